package img

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Options that are given without a value, as `-b "$BASE"` of a script whose variable
// is not set. To take them for options that are not there would commit into another
// image, copy what no snapshot holds, or look at the content for a format.

// mayBeEmpty marks an option whose value "" means something.
const mayBeEmpty = "empty"

// allowEmpty lets options have an empty value.
func allowEmpty(f *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f.Lookup(name).Annotations = map[string][]string{mayBeEmpty: nil}
	}
}

// checkGiven refuses options without a value, in the field's words where it has
// some.
func checkGiven(cmd *cobra.Command, args []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		_, ok := f.Annotations[mayBeEmpty]
		if ok || err != nil || f.Value.Type() != "string" || f.Value.String() != "" {
			return
		}
		switch f.Name {
		case "base":
			err = errNotInChain("", args[0])
		case "rate":
			_, err = parseSize("rate limit", "")
		case "snapshot":
			err = fmt.Errorf("Failed to load snapshot: Can't find snapshot")
		case "format", "output-format":
			err = fmt.Errorf("Unknown file format ''")
		default:
			err = fmt.Errorf("Option --%s has no value", f.Name)
		}
	})
	return err
}
