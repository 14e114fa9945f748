package cli

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"blockd/qapi"
	"blockd/qmpclient"
)

// lookEvery is how often jobs are looked at.
const lookEvery = 500 * time.Millisecond

func jobsCommand(env *Environment) *cobra.Command {
	var watch, json bool
	cmd := command(env, "jobs SOCKET", "Show the jobs", `
Prints the jobs with their progress. With --watch a terminal shows them with
their rate and the time left until it is interrupted; a pipe gets a line of
JSON whenever something has changed.`,
		cobra.ExactArgs(1), func(ctx context.Context, c *qmpclient.Client, _ []string) error {
			if watch {
				return env.watchJobs(ctx, c, json)
			}
			answer, err := c.Execute(ctx, "query-jobs", nil)
			if err != nil {
				return err
			}
			if json {
				return env.printJSON(answer)
			}
			return env.tableOfJobs(viewJobs(answer))
		})
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing")
	cmd.Flags().BoolVar(&json, "json", false, "print query-jobs as JSON")
	return cmd
}

func viewJobs(answer any) []jobView {
	var list []jobView
	for _, o := range qmpclient.ObjectsOf(answer) {
		list = append(list, viewJob(o))
	}
	return list
}

func (env *Environment) tableOfJobs(list []jobView) error {
	w := tabwriter.NewWriter(env.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTYPE\tSTATUS\tPROGRESS\tDONE\tTOTAL\tERROR")
	for _, j := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f %%\t%d\t%d\t%s\n", printable(j.id), printable(j.typ), printable(j.status),
			100*j.fraction(), j.done, j.total, printable(j.problem))
	}
	return w.Flush()
}

// watchJobs shows the jobs until it is interrupted or the server ends.
func (env *Environment) watchJobs(ctx context.Context, c *qmpclient.Client, json bool) error {
	var rates pace
	screen := canvas{env: env}
	last := ""
	for {
		answer, err := c.Execute(ctx, "query-jobs", nil)
		if ended(ctx, err) {
			return nil
		} else if err != nil {
			return err
		}
		if json || !env.Terminal {
			if text := string(qapi.AppendJSON(nil, answer)); text != last {
				last = text
				if _, err := fmt.Fprintln(env.Out, text); err != nil {
					return err
				}
			}
		} else {
			list := viewJobs(answer)
			rates.measure(env.Clock.Now(), list)
			if err := screen.draw(env.jobLines(list)); err != nil {
				return err
			}
		}
		if env.Clock.Sleep(ctx, lookEvery) != nil {
			return nil
		}
	}
}

func (env *Environment) jobLines(list []jobView) []string {
	if len(list) == 0 {
		return []string{env.paint(faint, "no jobs")}
	}
	var lines []string
	for _, j := range list {
		lines = append(lines, env.line(j, env.Width()))
	}
	return lines
}
