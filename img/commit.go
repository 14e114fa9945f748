package img

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
)

func commitCommand(t *tool) *cobra.Command {
	var o source
	var base string
	var keep, show bool
	var rate int64
	cmd := t.command("commit FILE", "Write what an image has into its backing file", cobra.ExactArgs(1), func(s *session, args []string) error {
		o.name = args[0]
		top, err := s.openImage(o, mode{writable: true})
		if err != nil {
			return err
		}
		into := top.BackingChain()
		if base != "" {
			into = below(top, base)
		}
		switch {
		case into == nil && base != "":
			return fmt.Errorf("Did not find '%s' in the backing chain of '%s'", base, o.name)
		case into == nil:
			return fmt.Errorf("Image does not have a backing file")
		}
		job := qapi.NewObject("device", top.Name(), "base-node", into.Name(), "speed", rate)
		if err := s.job("block-commit", job, show); err != nil {
			return err
		}
		return s.say("Image committed.")
	})
	o.register(cmd)
	f := cmd.Flags()
	f.StringVarP(&base, "base", "b", "", "the image of the chain to write into (default: the backing file)")
	f.BoolVarP(&keep, "keep", "d", false, "accepted: FILE keeps what it has in any case")
	f.StringVarP(&o.cache, "cache", "t", "", "cache mode")
	f.Int64VarP(&rate, "rate", "r", 0, "bytes per second, 0 for no limit")
	f.BoolVarP(&show, "progress", "p", false, "show progress")
	return cmd
}

// below returns the image of a chain that goes by a file name.
func below(top *blockgraph.Node, name string) *blockgraph.Node {
	wanted, _ := filepath.Abs(name)
	for n := top.BackingChain(); n != nil; n = n.BackingChain() {
		if path, err := filepath.Abs(n.Filename()); n.Filename() == name || err == nil && path == wanted {
			return n
		}
	}
	return nil
}
