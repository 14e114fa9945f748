package img

import (
	"context"
	"fmt"
	"sort"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// concat is the driver of a node that shows several images one after the other,
// for a conversion of them all into one. It is only read.
//
//blockd:io
type concat struct {
	node *blockgraph.Node
	ends []int64 // of the images, in bytes from the start of the first
}

// concatenate opens a node over images, which may be only one.
func (s *session) concatenate(images []*blockgraph.Node) (*blockgraph.Node, error) {
	if len(images) == 1 {
		return images[0], nil
	}
	c := &concat{}
	end := int64(0)
	for _, n := range images {
		if end += n.Size(); end < 0 || end > blockgraph.MaxSize {
			return nil, blockgraph.Errorf(syscall.EFBIG, "The images are too long together")
		}
		c.ends = append(c.ends, end)
	}
	typ := &blockgraph.DriverType{
		Name: "concat",
		Children: func(*qapi.BlockdevOptions) []blockgraph.ChildSpec {
			var list []blockgraph.ChildSpec
			for i, n := range images {
				name := n.Name()
				list = append(list, blockgraph.ChildSpec{Name: childName(i), Role: blockgraph.RoleData, Ref: qapi.BlockdevRef{Reference: &name}})
			}
			return list
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			c.node = r.Node
			return c, nil
		},
	}
	readOnly := true
	return s.openPrivate(typ, &readOnly)
}

//blockd:io
func childName(i int) string { return fmt.Sprintf("source.%d", i) }

// at returns the image that has byte off, where in it that is, and how many bytes
// it has from there on.
func (c *concat) at(off int64) (e *blockgraph.Edge, within, rest int64) {
	i := sort.Search(len(c.ends), func(i int) bool { return off < c.ends[i] })
	start := int64(0)
	if i > 0 {
		start = c.ends[i-1]
	}
	return c.node.Child(childName(i)), off - start, c.ends[i] - off
}

// ReadV implements blockgraph.Driver.
func (c *concat) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	for pos := int64(0); pos < v.Len(); {
		e, within, rest := c.at(off + pos)
		n := min(rest, v.Len()-pos)
		if err := e.ReadV(ctx, within, v.Slice(pos, n), 0); err != nil {
			return err
		}
		pos += n
	}
	return nil
}

// BlockStatus implements blockgraph.Driver.
func (c *concat) BlockStatus(_ context.Context, off, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	e, within, rest := c.at(off)
	return blockgraph.Status{
		Flags: blockgraph.StatusRecurse | blockgraph.StatusOffsetValid,
		N:     min(n, rest), Offset: within, File: e.Child(),
	}, nil
}

// Size implements blockgraph.Driver.
func (c *concat) Size(context.Context) (int64, error) { return c.ends[len(c.ends)-1], nil }

// WriteV implements blockgraph.Driver, as do the following: the node is
// read-only.
func (c *concat) WriteV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error {
	return syscall.EPERM
}

// WriteZeroes is refused.
func (c *concat) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return syscall.EPERM
}

// Discard is refused.
func (c *concat) Discard(context.Context, int64, int64) error { return syscall.EPERM }

// Flush has nothing to write.
func (c *concat) Flush(context.Context) error { return nil }

// Close has nothing of its own.
func (c *concat) Close(context.Context) error { return nil }
