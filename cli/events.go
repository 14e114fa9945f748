package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"blockd/qapi"
	"blockd/qmpclient"
)

func eventsCommand(env *Environment) *cobra.Command {
	var json, graph bool
	cmd := command(env, "events SOCKET [NAME...]", "Print events as they come", `
Prints every event, or those named, until it is interrupted or the server ends.
On a pipe each event is one line of JSON, as it came.`,
		cobra.MinimumNArgs(1), func(ctx context.Context, c *qmpclient.Client, names []string) error {
			if graph || slices.Contains(names, "GRAPH_CHANGED") {
				if _, err := c.Execute(ctx, "x-graph-subscribe", nil); err != nil {
					return err
				}
			}
			return follow(ctx, c, func(e qmpclient.Event) error {
				if len(names) > 0 && !slices.Contains(names, e.Name) {
					return nil
				}
				return env.printEvent(e, json)
			})
		})
	cmd.Flags().BoolVar(&json, "json", false, "JSON lines on a terminal, too")
	cmd.Flags().BoolVar(&graph, "graph", false, "changes of the block graph, too (GRAPH_CHANGED)")
	return cmd
}

// follow hands events over until the user interrupts it, the server ends, or
// show fails.
func follow(ctx context.Context, c *qmpclient.Client, show func(qmpclient.Event) error) error {
	for {
		e, err := c.Next(ctx)
		if ended(ctx, err) {
			return nil
		} else if err != nil {
			return err
		}
		if err := show(e); err != nil {
			return err
		}
	}
}

// ended tells whether an endless command has come to its good end: the user
// interrupted it, or the server is gone.
func ended(ctx context.Context, err error) bool {
	return err != nil && (ctx.Err() != nil || errors.Is(err, qmpclient.ErrClosed))
}

// printEvent prints one event.
func (env *Environment) printEvent(e qmpclient.Event, json bool) error {
	if json || !env.Terminal {
		_, err := env.Out.Write(append(qapi.AppendJSON(nil, e.Whole), '\n'))
		return err
	}
	when := time.Unix(e.Seconds, e.Microseconds*1000).Format("15:04:05.000")
	_, err := fmt.Fprintf(env.Out, "%s %s %s\n", env.paint(faint, when), env.paint(bold, printable(e.Name)), printable(inLine(e.Data)))
	return err
}

// inLine prints an object's members as key=value, in the order in which they
// came.
func inLine(o *qapi.Object) string {
	var parts []string
	for key, v := range o.All() {
		text := string(qapi.AppendJSON(nil, v))
		if s, ok := v.(string); ok && !strings.ContainsAny(s, " \"") {
			text = s
		}
		parts = append(parts, key+"="+text)
	}
	return strings.Join(parts, " ")
}
