package img

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"blockd/qapi"
)

// output is the form in which a result is printed.
type output struct{ form string }

func (o *output) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.form, "output", "human", "human or json")
}

// json tells whether JSON is wanted; any other word but human is an error.
func (o *output) json() (bool, error) {
	switch o.form {
	case "json":
		return true, nil
	case "human":
		return false, nil
	}
	return false, fmt.Errorf("--output must be used with human or json as argument.")
}

// printJSON prints a value as qemu-img does, over several lines.
func (s *session) printJSON(v any) error {
	_, err := s.env.Out.Write(append(qapi.AppendPretty(nil, v), '\n'))
	return err
}

// units is a count of bytes in the field's words for people.
func units(n int64) string {
	suffixes := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i, whole := 0, n
	for whole >= 1000 && i < len(suffixes)-1 {
		whole /= 1024
		i++
	}
	// Three digits that matter.
	return fmt.Sprintf("%0.3g %s", float64(n)/float64(int64(1)<<(10*i)), suffixes[i])
}

// dump prints members of an object by lines, nested ones indented, dashes as
// spaces.
func dump(b *strings.Builder, o *qapi.Object, indent int) {
	for key, v := range o.InOrder() {
		dumpMember(b, strings.ReplaceAll(key, "-", " "), v, indent)
	}
}

func dumpMember(b *strings.Builder, key string, v any, indent int) {
	fmt.Fprintf(b, "%*s%s:", 4*indent, "", key)
	switch v := v.(type) {
	case *qapi.Object:
		b.WriteString("\n")
		dump(b, v, indent+1)
	case []any:
		b.WriteString("\n")
		for i, e := range v {
			dumpMember(b, fmt.Sprintf("[%d]", i), e, indent+1)
		}
	case string:
		b.WriteString(" " + v + "\n")
	default:
		b.WriteString(" " + string(qapi.AppendJSON(nil, v)) + "\n")
	}
}
