package img

import (
	"errors"
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
		if lists, ok := f.Value.(pflag.SliceValue); ok && f.Name == "options" && err == nil {
			err = checkLists(lists.GetSlice())
		}
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

// unknownFlag is the field's text for an option that there is not, or that lacks its
// value.
func unknownFlag(_ *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var alone *pflag.ValueRequiredError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return fmt.Errorf("unrecognized option '-%s'", unknown.GetSpecifiedShortnames())
	case errors.As(err, &unknown):
		return fmt.Errorf("unrecognized option '--%s'", unknown.GetSpecifiedName())
	case errors.As(err, &alone) && alone.GetSpecifiedShortnames() != "":
		return fmt.Errorf("missing argument for option '-%s'", alone.GetSpecifiedShortnames())
	case errors.As(err, &alone):
		return fmt.Errorf("missing argument for option '--%s'", alone.GetSpecifiedName())
	}
	return err
}

// given is an option's value, nil if it is not there.
func given(cmd *cobra.Command, name, value string) *string {
	if !cmd.Flags().Changed(name) {
		return nil
	}
	return &value
}

// Arguments beside options.
var (
	oneImage       = arguments(1, "Expecting one image file name")
	twoImages      = arguments(2, "Expecting two image file names")
	imageAndBitmap = arguments(2, "Expecting filename and bitmap name")
)

// arguments demands so many arguments, in the field's words.
func arguments(n int, text string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return errors.New(text)
		}
		return nil
	}
}
