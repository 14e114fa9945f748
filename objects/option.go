package objects

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"blockd/qapi"
)

// Help is the error of ParseOption when the option asks for help. The program
// prints Text and ends with success.
type Help struct{ Text string }

func (h *Help) Error() string { return "help was asked for" }

// ParseOption reads the argument of --object: JSON, or key=value with the type
// first. Errors are *qapi.Error, or *Help.
func ParseOption(s string) (*qapi.ObjectOptions, error) {
	o := &qapi.ObjectOptions{}
	err := qapi.DecodeOption(s, "qom-type", o)
	if qapi.IsHelpRequest(err) {
		return nil, &Help{helpText(s)}
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// AddOption creates the object that --object describes. It may block, as Add.
func (r *Registry) AddOption(ctx context.Context, s string) error {
	o, err := ParseOption(s)
	if err != nil {
		return err
	}
	return r.Add(ctx, o)
}

// helpText describes the properties of the type that s names, or lists the
// types.
func helpText(s string) string {
	var rest []string
	for _, part := range strings.Split(s, ",") {
		if part != "help" && part != "?" {
			rest = append(rest, part)
		}
	}
	if args, err := qapi.ParseKeyval(strings.Join(rest, ","), "qom-type"); err == nil {
		v, _ := args.Get("qom-type")
		if name, ok := v.(string); ok && classOf(name) != nil {
			return helpOn(classOf(name))
		}
	}
	text := "List of user creatable objects:\n"
	for _, name := range slices.Sorted(slices.Values(qapi.ObjectType("").QAPIEnum())) {
		text += "  " + name + "\n"
	}
	return text
}

func helpOn(c *class) string {
	var lines []string
	for _, p := range c.properties() {
		if p.set != nil {
			lines = append(lines, fmt.Sprintf("  %s=<%s>\n", p.name, p.typ))
		}
	}
	if len(lines) == 0 {
		return "There are no options for " + c.name + ".\n"
	}
	slices.Sort(lines)
	return c.name + " options:\n" + strings.Join(lines, "")
}
