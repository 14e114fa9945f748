package img

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/jobs/chain"
	"blockd/qapi"
)

func commitCommand(t *tool) *cobra.Command {
	var o source
	var base string
	var keep, show bool
	var rate string
	cmd := t.command("commit FILE", "Write what an image has into its backing file", oneImage, func(s *session, args []string) error {
		speed := int64(0)
		if rate != "" {
			var err error
			if speed, err = parseSize("rate limit", rate); err != nil {
				return err
			}
		}
		o.name = args[0]
		top, err := s.openImage(o, mode{writable: true})
		if err != nil {
			return err
		}
		into := top.BackingChain()
		if base != "" {
			if into, err = s.below(top, base); err != nil {
				return err
			}
		}
		switch {
		case into == nil && base != "":
			return errNotInChain(base, o.name)
		case into == nil:
			return fmt.Errorf("Image does not have a backing file")
		}
		job := qapi.NewObject("device", top.Name(), "base-node", into.Name(), "speed", speed)
		if err := s.job("block-commit", job, show); err != nil {
			return fmt.Errorf("Block job failed: %w", err)
		}
		// What lies between a base further down and the image would show through.
		if !keep && base == "" {
			if err := s.empty(top); err != nil {
				return err
			}
		}
		return s.say("Image committed.")
	})
	o.register(cmd)
	f := cmd.Flags()
	f.StringVarP(&base, "base", "b", "", "the image of the chain to write into (default: the backing file)")
	f.BoolVarP(&keep, "keep", "d", false, "FILE keeps what it has, as it does with -b")
	f.StringVarP(&o.cache, "cache", "t", "", "cache mode")
	f.StringVarP(&rate, "rate", "r", "", "bytes per second, 0 for no limit")
	f.BoolVarP(&show, "progress", "p", false, "show progress")
	return cmd
}

func errNotInChain(base, name string) error {
	return fmt.Errorf("Did not find '%s' in the backing chain of '%s'", base, name)
}

// empty gives up what an image has of its own, where its format can do so.
func (s *session) empty(n *blockgraph.Node) error {
	e, ok := n.Driver().(blockgraph.Emptier)
	if !ok {
		return nil
	}
	r, err := s.root(n, blockgraph.PermWrite)
	if err != nil {
		return err
	}
	defer s.closeRoot(r)
	a, err := r.Enter(s.ctx)
	if err != nil {
		return err
	}
	err = e.Empty(s.ctx)
	a.Leave()
	switch {
	case errors.Is(err, blockgraph.ErrNotSupported):
		return nil
	case err != nil:
		return fmt.Errorf("Failed to empty %s: %s", n.Filename(), blockgraph.Strerror(err))
	}
	return r.Flush(s.ctx)
}

// below returns the image of a chain that goes by a file name, nil for none.
func (s *session) below(top *blockgraph.Node, name string) (n *blockgraph.Node, err error) {
	err = s.d.Graph.Update(s.ctx, cause, func(tx *blockgraph.Tx) error {
		n = chain.FindBacking(tx, top, name)
		return nil
	})
	return n, err
}
