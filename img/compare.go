package img

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/cli"
)

// Exit codes of compare.
const (
	exitDiffer = 1
	exitOpen   = 2
	exitStatus = 3
	exitRead   = 4
)

func compareCommand(t *tool) *cobra.Command {
	var a, b source
	var strict, show bool
	cmd := t.command("compare FILE1 FILE2", "Tell whether two images hold the same", twoImages, func(s *session, args []string) error {
		a.name, b.name = args[0], args[1]
		b.imageOpts, b.share, b.readCache = a.imageOpts, a.share, a.readCache
		left, err := s.openRead(a)
		if err != nil {
			return &cli.Exit{Code: exitOpen, Err: err}
		}
		defer s.closeRoot(left)
		right, err := s.openRead(b)
		if err != nil {
			return &cli.Exit{Code: exitOpen, Err: err}
		}
		defer s.closeRoot(right)
		names := map[*blockgraph.Root]string{left: a.name, right: b.name}
		c := comparison{s: s, left: left, right: right, names: names, strict: strict, p: s.newProgress(show)}
		err = c.run()
		var exit *cli.Exit
		if errors.As(err, &exit) && exit.Code == exitDiffer {
			c.p.end(exit)
			if failed := s.say("%s", exit.Err); failed != nil {
				return failed
			}
			return &cli.Exit{Code: exitDiffer}
		}
		c.p.end(err)
		if err == nil {
			err = s.say("Images are identical.")
		}
		return err
	})
	a.register(cmd)
	a.registerShare(cmd)
	b.registerFormat(cmd.Flags(), "second-format", "F")
	cmd.Flags().StringVarP(&a.readCache, "cache", "T", "", "cache mode")
	cmd.Flags().BoolVarP(&strict, "strict", "s", false, "sizes and allocation have to be the same, too")
	cmd.Flags().BoolVarP(&show, "progress", "p", false, "show progress")
	return cmd
}

// openRead opens an image for reading.
func (s *session) openRead(o source) (*blockgraph.Root, error) {
	n, err := s.openImage(o, mode{})
	if err != nil {
		return nil, err
	}
	return s.root(n, blockgraph.PermConsistentRead)
}

// comparison compares two images.
type comparison struct {
	s           *session
	left, right *blockgraph.Root
	names       map[*blockgraph.Root]string // as the user has given them
	strict      bool
	p           *progress
}

// differ is the result that the images are not the same.
func differ(format string, args ...any) error {
	return &cli.Exit{Code: exitDiffer, Err: fmt.Errorf(format, args...)}
}

func (c *comparison) run() error {
	l, r := c.left.Size(), c.right.Size()
	total := max(l, r)
	if l != r && c.strict {
		return differ("Strict mode: Image size mismatch!")
	}
	for off := int64(0); off < min(l, r); {
		n, err := c.step(off, min(l, r)-off)
		if err != nil {
			return err
		}
		off += n
		c.p.set(off, total)
	}
	if l == r {
		return nil
	}
	if err := c.s.say("Warning: Image size mismatch!"); err != nil {
		return err
	}
	longer := c.left
	if r > l {
		longer = c.right
	}
	for off := min(l, r); off < total; {
		e, err := c.extent(longer, off, total-off)
		if err != nil {
			return err
		}
		if e.data() {
			e.N = min(e.N, chunk)
			if err := c.zero(longer, off, e.N); err != nil {
				return err
			}
		}
		off += e.N
		c.p.set(off, total)
	}
	return nil
}

func (c *comparison) extent(r *blockgraph.Root, off, n int64) (extent, error) {
	e, err := extentAt(c.s.ctx, r, off, n)
	if err != nil {
		return e, &cli.Exit{Code: exitStatus, Err: fmt.Errorf("Sector allocation test failed for %s", c.names[r])}
	}
	return e, nil
}

// step compares some bytes at off, at most n, and returns how many.
func (c *comparison) step(off, n int64) (int64, error) {
	l, err := c.extent(c.left, off, n)
	if err != nil {
		return 0, err
	}
	r, err := c.extent(c.right, off, n)
	if err != nil {
		return 0, err
	}
	n = min(l.N, r.N)
	if c.strict {
		kind := blockgraph.StatusData | blockgraph.StatusZero | blockgraph.StatusAllocated
		if l.Flags&kind != r.Flags&kind {
			return 0, differ("Strict mode: Offset %d block status mismatch!", off)
		}
	}
	switch {
	case !l.data() && !r.data():
		return n, nil
	case !r.data():
		n = min(n, chunk)
		return n, c.zero(c.left, off, n)
	case !l.data():
		n = min(n, chunk)
		return n, c.zero(c.right, off, n)
	}
	n = min(n, chunk)
	return n, c.same(off, n)
}

// same compares data on both sides.
func (c *comparison) same(off, n int64) error {
	other := make(chan error, 1)
	a, err := c.s.buffer()
	if err != nil {
		return err
	}
	defer a.Release()
	b, err := c.s.buffer()
	if err != nil {
		return err
	}
	defer b.Release()
	go func() { other <- c.read(c.right, off, b.Bytes()[:n]) }()
	err = c.read(c.left, off, a.Bytes()[:n])
	if failed := <-other; err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	x, y := a.Bytes()[:n], b.Bytes()[:n]
	if bytes.Equal(x, y) {
		return nil
	}
	return differ("Content mismatch at offset %d!", off+firstDifference(x, y))
}

// firstDifference is where two slices first differ, at a sector's boundary as
// the field tells it.
func firstDifference(x, y []byte) int64 {
	const sector = 512
	for i := 0; ; i += sector {
		end := min(i+sector, len(x))
		if !bytes.Equal(x[i:end], y[i:end]) {
			return int64(i)
		}
	}
}

// zero fails when a range does not read as zeroes.
func (c *comparison) zero(r *blockgraph.Root, off, n int64) error {
	b, err := c.s.buffer()
	if err != nil {
		return err
	}
	defer b.Release()
	data := b.Bytes()[:n]
	if err := c.read(r, off, data); err != nil {
		return err
	}
	for i, v := range data {
		if v != 0 {
			return differ("Content mismatch at offset %d!", off+int64(i)&^511)
		}
	}
	return nil
}

func (c *comparison) read(r *blockgraph.Root, off int64, p []byte) error {
	if err := r.ReadV(c.s.ctx, off, blockgraph.MakeIOVec(p), 0); err != nil {
		return &cli.Exit{Code: exitRead, Err: fmt.Errorf("Error while reading offset %d of %s: %s", off, c.names[r], blockgraph.Strerror(err))}
	}
	return nil
}
