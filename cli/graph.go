package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"blockd/cli/picture"
	"blockd/qapi"
	"blockd/qmpclient"
)

func graphCommand(env *Environment) *cobra.Command {
	var watch, dot, svg, json bool
	cmd := command(env, "graph SOCKET", "Show the block graph", `
Prints the nodes with who uses them, as trees, or as a picture. With --watch it
prints every change of the graph with its cause as it happens; on a terminal
the graph after it, too.`,
		cobra.ExactArgs(1), func(ctx context.Context, c *qmpclient.Client, _ []string) error {
			if watch {
				if dot || svg {
					return errors.New("--watch goes neither with --dot nor with --svg")
				}
				return env.watchGraph(ctx, c, json)
			}
			if json {
				answer, err := c.Execute(ctx, "x-debug-query-block-graph", nil)
				if err != nil {
					return err
				}
				return env.printJSON(answer)
			}
			g, err := fetchGraph(ctx, c)
			if err != nil {
				return err
			}
			text := g.Text()
			switch {
			case dot:
				text = g.Dot()
			case svg:
				text = g.SVG()
			}
			_, err = env.Out.Write([]byte(text))
			return err
		})
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing changes")
	cmd.Flags().BoolVar(&dot, "dot", false, "print it for Graphviz")
	cmd.Flags().BoolVar(&svg, "svg", false, "print it as SVG")
	cmd.Flags().BoolVar(&json, "json", false, "print it, or its changes, as JSON")
	cmd.MarkFlagsMutuallyExclusive("dot", "svg", "json")
	return cmd
}

// fetchGraph asks for the graph, and for what is to be said about its nodes.
func fetchGraph(ctx context.Context, c *qmpclient.Client) (*picture.Graph, error) {
	answer, err := c.Execute(ctx, "x-debug-query-block-graph", nil)
	if err != nil {
		return nil, err
	}
	edges, _ := answer.(*qapi.Object)
	nodes, err := c.Execute(ctx, "query-named-block-nodes", qapi.NewObject("flat", true))
	if err != nil {
		return nil, err
	}
	facts := map[string]*qapi.Object{}
	for _, n := range qmpclient.ObjectsOf(nodes) {
		facts[qmpclient.String(n, "node-name")] = n
	}
	exports, err := c.Execute(ctx, "query-block-exports", nil)
	if err != nil {
		return nil, err
	}
	g := &picture.Graph{}
	id := func(o *qapi.Object, key string) string { return strconv.FormatInt(qmpclient.Int(o, key), 10) }
	for _, n := range qmpclient.Objects(edges, "nodes") {
		name := qmpclient.String(n, "name")
		box := picture.Box{ID: id(n, "id"), Title: printable(name)}
		if typ := qmpclient.String(n, "type"); typ != "block-driver" {
			box.User = true
			box.Lines = []string{printable(typ)}
			if name == "" {
				box.Title, box.Lines = printable(typ), nil
			}
		} else {
			box.Lines = describe(facts[name])
		}
		g.Boxes = append(g.Boxes, box)
	}
	for _, e := range qmpclient.Objects(edges, "edges") {
		g.Arrows = append(g.Arrows, picture.Arrow{
			From: id(e, "parent"), To: id(e, "child"), Label: printable(qmpclient.String(e, "name")),
			Hint: fmt.Sprintf("uses %s; shares %s", words(e, "perm"), words(e, "shared-perm")),
		})
	}
	nameExports(g, exports)
	return g, nil
}

// anonymous is the title of a user that has no name.
const anonymous = "block-backend"

// nameExports gives the exports' names to the users without names that use
// their nodes. Of several exports of one node any may be any of them.
func nameExports(g *picture.Graph, exports any) {
	boxes := map[string]*picture.Box{}
	for i := range g.Boxes {
		boxes[g.Boxes[i].ID] = &g.Boxes[i]
	}
	for _, e := range qmpclient.ObjectsOf(exports) {
		node := printable(qmpclient.String(e, "node-name"))
		for _, a := range g.Arrows {
			if user := boxes[a.From]; user.User && user.Title == anonymous && boxes[a.To].Title == node {
				user.Title = printable(qmpclient.String(e, "id"))
				user.Lines = []string{printable(qmpclient.String(e, "type")) + " export"}
				break
			}
		}
	}
}

// words is a list of strings in one.
func words(o *qapi.Object, key string) string {
	v, _ := o.Get(key)
	var list []string
	for _, w := range asList(v) {
		if s, ok := w.(string); ok {
			list = append(list, printable(s))
		}
	}
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// describe says what a node is, in a few words each.
func describe(n *qapi.Object) []string {
	if n == nil {
		return nil
	}
	image := qmpclient.Member(n, "image")
	lines := []string{printable(qmpclient.String(n, "drv")), bytesText(float64(qmpclient.Int(image, "virtual-size")))}
	if qmpclient.Bool(n, "ro") {
		lines[0] += ", read-only"
	}
	for _, b := range qmpclient.Objects(n, "dirty-bitmaps") {
		lines = append(lines, fmt.Sprintf("bitmap %s: %s dirty", printable(qmpclient.String(b, "name")), bytesText(float64(qmpclient.Int(b, "count")))))
	}
	return lines
}

// watchGraph prints the changes of the graph until it is interrupted or the
// server ends.
func (env *Environment) watchGraph(ctx context.Context, c *qmpclient.Client, json bool) error {
	if _, err := c.Execute(ctx, "x-graph-subscribe", nil); err != nil {
		return err
	}
	if env.Terminal && !json {
		if err := env.showGraph(ctx, c); err != nil {
			return err
		}
	}
	return follow(ctx, c, func(e qmpclient.Event) error {
		if e.Name != "GRAPH_CHANGED" {
			return nil
		}
		step := qmpclient.Member(e.Data, "step")
		if json {
			_, err := env.Out.Write(append(qapi.AppendJSON(nil, step), '\n'))
			return err
		}
		if err := env.printStep(step); err != nil || !env.Terminal {
			return err
		}
		if err := env.showGraph(ctx, c); err != nil && !ended(ctx, err) {
			return err
		}
		return nil
	})
}

func (env *Environment) showGraph(ctx context.Context, c *qmpclient.Client) error {
	g, err := fetchGraph(ctx, c)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(env.Out, g.Text())
	return err
}

// printStep prints a step of the graph's history.
func (env *Environment) printStep(step *qapi.Object) error {
	stamp := qmpclient.Member(step, "timestamp")
	when := time.Unix(qmpclient.Int(stamp, "seconds"), qmpclient.Int(stamp, "microseconds")*1000).Format("15:04:05.000")
	cause := qmpclient.Member(step, "cause")
	text := qmpclient.String(cause, "type")
	if what := qmpclient.String(cause, text); what != "" {
		text += " " + printable(what)
	}
	if id, ok := cause.Get("id"); ok {
		text += " (id " + printable(string(qapi.AppendJSON(nil, id))) + ")"
	}
	if _, err := fmt.Fprintf(env.Out, "%s %s %s\n", env.paint(faint, when), env.paint(bold, fmt.Sprintf("step %d", qmpclient.Int(step, "number"))), text); err != nil {
		return err
	}
	for _, change := range qmpclient.Objects(step, "changes") {
		typ := qmpclient.String(change, "type")
		change.Delete("type")
		if _, err := fmt.Fprintf(env.Out, "  %s %s\n", env.paint(colourOf(typ), typ), printable(inLine(change))); err != nil {
			return err
		}
	}
	return nil
}

func colourOf(change string) string {
	switch {
	case strings.HasSuffix(change, "added"), change == "linked":
		return green
	case strings.HasSuffix(change, "removed"), change == "unlinked":
		return red
	}
	return yellow
}
