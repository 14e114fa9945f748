package img

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"blockd/qapi"
)

func bitmapCommand(t *tool) *cobra.Command {
	var o, from source
	var granularity string
	var todo []bitmapAction
	cmd := t.command("bitmap FILE BITMAP", "Change a dirty bitmap that an image stores", imageAndBitmap, func(s *session, args []string) error {
		if len(todo) == 0 {
			return errors.New("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
		}
		does := func(name string) bool {
			return slices.ContainsFunc(todo, func(a bitmapAction) bool { return a.name == name })
		}
		switch {
		case granularity != "" && !does("add"):
			return errors.New("granularity only supported with --add")
		case from.format != "" && from.name == "":
			return errors.New("-F only supported with -b")
		case from.name != "" && !does("merge"):
			return errors.New("Merge bitmap source file only supported with --merge")
		}
		o.name = args[0]
		b := bitmap{s: s, name: args[1]}
		if granularity != "" {
			var err error
			if b.granularity, err = parseSize("granularity", granularity); err != nil {
				return err
			}
		}
		n, err := s.openImage(o, mode{writable: true, noBacking: true})
		if err != nil {
			return err
		}
		b.node, b.from = n.Name(), n.Name()
		if from.name != "" {
			other, err := s.openImage(from, mode{noBacking: true})
			if err != nil {
				return err
			}
			b.from = other.Name()
		}
		for _, a := range todo {
			if err := b.do(a); err != nil {
				return fmt.Errorf("Operation %s on bitmap %s failed: %w", a.name, b.name, err)
			}
		}
		return nil
	})
	o.register(cmd)
	f := cmd.Flags()
	for _, a := range []struct{ name, help string }{
		{"add", "make it"}, {"remove", "remove it"}, {"clear", "set nothing dirty"},
		{"enable", "have it record"}, {"disable", "have it record no more"},
	} {
		// They are done in the order in which they are given.
		f.VarP(&actionFlag{name: a.name, list: &todo}, a.name, "", a.help)
		f.Lookup(a.name).NoOptDefVal = "true"
	}
	f.VarP(&actionFlag{name: "merge", list: &todo}, "merge", "", "add what the bitmap of that `name` has dirty")
	allowEmpty(f, "add", "remove", "clear", "enable", "disable", "merge") // what is done looks at their values
	f.StringVarP(&from.name, "source", "b", "", "the image of the bitmaps to merge")
	from.registerFormat(f, "source-format", "F")
	f.StringVarP(&granularity, "granularity", "g", "", "bytes per bit, for --add")
	return cmd
}

// bitmapAction is one thing to be done.
type bitmapAction struct{ name, value string }

// actionFlag is a flag that adds to the list of actions.
type actionFlag struct {
	name string
	list *[]bitmapAction
}

var _ pflag.Value = (*actionFlag)(nil)

// Set implements pflag.Value.
func (a *actionFlag) Set(v string) error {
	*a.list = append(*a.list, bitmapAction{a.name, v})
	return nil
}

// String implements pflag.Value.
func (a *actionFlag) String() string { return "" }

// Type implements pflag.Value.
func (a *actionFlag) Type() string {
	if a.name == "merge" {
		return "string"
	}
	return "bool"
}

// bitmap is the bitmap that is changed.
type bitmap struct {
	s           *session
	node, name  string
	from        string // the node of what is merged
	granularity int64
}

func (b *bitmap) do(a bitmapAction) error {
	o := qapi.NewObject("node", b.node, "name", b.name)
	switch a.name {
	case "add":
		o.Set("persistent", true)
		if b.granularity > math.MaxUint32 {
			return errors.New("Granularity must be power of 2 and at least 512")
		}
		if b.granularity != 0 {
			o.Set("granularity", b.granularity)
		}
	case "merge":
		source := qapi.NewObject("node", b.from, "name", a.value)
		o = qapi.NewObject("node", b.node, "target", b.name, "bitmaps", []any{source})
	}
	_, err := b.s.execute("block-dirty-bitmap-"+a.name, o)
	return err
}
