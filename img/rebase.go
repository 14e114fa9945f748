package img

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/jobs/chain"
)

func rebaseCommand(t *tool) *cobra.Command {
	var o source
	var r rebasing
	cmd := t.command("rebase -b BACKING FILE", "Put an image over another backing file", oneImage, func(s *session, args []string) error {
		if r.backing == "" && !r.unsafe && !r.alone {
			return errors.New("Must specify backing file (-b) or use unsafe mode (-u)")
		}
		o.name = args[0]
		r.s = s
		return r.run(o)
	})
	o.register(cmd)
	o.registerShare(cmd)
	f := cmd.Flags()
	f.StringVarP(&r.backing, "backing", "b", "", "the new backing file, \"\" for none")
	f.StringVarP(&r.format, "backing-format", "F", "", "its format")
	f.BoolVarP(&r.unsafe, "unsafe", "u", false, "only change the name: the content is the same, or shall change")
	f.StringVarP(&o.cache, "cache", "t", "", "cache mode")
	f.StringVarP(&r.sourceCache, "source-cache", "T", "", "cache mode of the backing files")
	f.BoolVarP(&r.show, "progress", "p", false, "show progress")
	allowEmpty(f, "backing", "backing-format")
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { r.alone = cmd.Flags().Changed("backing") && r.backing == "" }
	return cmd
}

// rebasing puts an image over another backing file. What it reads from the old
// one and would not read from the new one is written into it first.
type rebasing struct {
	s               *session
	backing, format string
	sourceCache     string
	unsafe, show    bool
	alone           bool             // without a backing file from now on
	image, old, now *blockgraph.Root // old and now: the backing files, nil for none
}

func (r *rebasing) run(o source) error {
	if err := (&source{cache: o.cache, readCache: r.sourceCache}).checkCache(); err != nil {
		return err
	}
	top := o
	top.share = false // -U is about the backing files: others may not write the image meanwhile
	n, err := r.s.openImage(top, mode{writable: true, noBacking: r.unsafe})
	if err != nil {
		return err
	}
	switch {
	case r.format != "" && r.s.d.Graph.DriverType(r.format) == nil:
		return fmt.Errorf("Invalid format name: '%s'", r.format)
	case r.format == "" && r.backing != "":
		return fmt.Errorf("Could not change the backing file to '%s': backing format must be specified", r.backing)
	}
	if !r.unsafe {
		if err := r.keepContent(n, o); err != nil {
			return err
		}
	}
	err = r.s.d.Graph.Update(r.s.ctx, cause, func(tx *blockgraph.Tx) error {
		return chain.WriteHeader(tx, n, r.backing, r.format)
	})
	if err != nil {
		return fmt.Errorf("Could not change the backing file to '%s': %w", r.backing, err)
	}
	return nil
}

// keepContent writes what would change.
func (r *rebasing) keepContent(n *blockgraph.Node, o source) (err error) {
	if r.backing != "" {
		below := source{name: resolve(o.name, r.backing), format: r.format, share: o.share, readCache: r.sourceCache}
		node, err := r.s.openNode(below, mode{})
		if err != nil {
			return fmt.Errorf("Could not open new backing file '%s': %w", r.backing, err)
		}
		if r.now, err = r.s.root(node, blockgraph.PermConsistentRead); err != nil {
			return err
		}
		defer r.s.closeRoot(r.now)
	}
	// Without a backing file so far it reads as zeroes where it has nothing of its own,
	// which the new one would show through.
	switch backing := n.BackingChain(); {
	case backing != nil:
		if r.old, err = r.s.root(backing, blockgraph.PermConsistentRead); err != nil {
			return err
		}
		defer r.s.closeRoot(r.old)
	case r.now == nil:
		return nil
	}
	if r.image, err = r.s.root(n, blockgraph.PermConsistentRead|blockgraph.PermWrite); err != nil {
		return err
	}
	defer r.s.closeRoot(r.image)
	p := r.s.newProgress(r.show)
	defer func() { p.end(err) }()
	for off, size := int64(0), n.Size(); off < size; {
		k, err := r.step(off, size-off)
		if err != nil {
			return err
		}
		off += k
		p.set(off, size)
	}
	return r.image.Flush(r.s.ctx)
}

// step settles some bytes at off, at most n, and returns how many.
func (r *rebasing) step(off, n int64) (int64, error) {
	st, owned, err := r.s.own(r.image, off, n)
	switch {
	case err != nil:
		return 0, fmt.Errorf("error while reading image metadata: %s", blockgraph.Strerror(err))
	case owned:
		return st, nil
	}
	n = min(st, chunk)
	// Where the old one has ended, or there was none, zeroes need not be written as data.
	zeroes := r.old == nil || off >= r.old.Size()
	if !zeroes {
		n = min(n, r.old.Size()-off)
	}
	a, err := r.s.buffer()
	if err != nil {
		return 0, err
	}
	defer a.Release()
	b, err := r.s.buffer()
	if err != nil {
		return 0, err
	}
	defer b.Release()
	before, after := a.Bytes()[:n], b.Bytes()[:n]
	if err := r.read("old", r.old, off, before); err != nil {
		return 0, err
	}
	if err := r.read("new", r.now, off, after); err != nil {
		return 0, err
	}
	return n, r.write(off, before, after, zeroes)
}

// read reads from a backing file, beyond whose end there are zeroes; nil is
// none.
func (r *rebasing) read(which string, root *blockgraph.Root, off int64, p []byte) error {
	k := int64(0)
	if root != nil {
		k = max(0, min(int64(len(p)), root.Size()-off))
	}
	clear(p[k:])
	if k == 0 {
		return nil
	}
	if err := root.ReadV(r.s.ctx, off, blockgraph.MakeIOVec(p[:k]), 0); err != nil {
		return fmt.Errorf("error while reading from %s backing file", which)
	}
	return nil
}

// write writes the stretches that differ; zeroes: before is nothing else.
func (r *rebasing) write(off int64, before, after []byte, zeroes bool) error {
	const unit = 4096
	differs := func(i int) bool {
		end := min(i+unit, len(before))
		return !bytes.Equal(before[i:end], after[i:end])
	}
	for i := 0; i < len(before); {
		if !differs(i) {
			i += unit
			continue
		}
		end := i
		for end < len(before) && differs(end) {
			end += unit
		}
		end = min(end, len(before))
		var err error
		if zeroes {
			err = r.image.WriteZeroes(r.s.ctx, off+int64(i), int64(end-i), 0)
		} else {
			err = r.image.WriteV(r.s.ctx, off+int64(i), blockgraph.MakeIOVec(before[i:end]), 0)
		}
		if err != nil {
			return fmt.Errorf("Error while writing to COW image: %s", blockgraph.Strerror(err))
		}
		i = end
	}
	return nil
}
