package nbd

import (
	"context"
	"strings"

	"blockd/blockgraph"
	"blockd/nbdproto"
)

// Metadata contexts: what block status can report about an export.

// StatusContext is one metadata context. Data plane; called from many
// goroutines at once.
type StatusContext interface {
	// Name is the full name, such as "qemu:dirty-bitmap:b0", at most
	// nbdproto.MaxString bytes.
	Name() string
	// Extent describes the range at off: its flags hold for length bytes,
	// 0 < length <= n. The caller merges neighbours.
	Extent(ctx context.Context, off, n int64) (flags uint32, length int64, err error)
}

// statusContext is a context with the id under which a server announces it.
type statusContext struct {
	StatusContext
	id uint32
}

// The ids are part of what clients may have recorded: base:allocation is 0,
// qemu:allocation-depth 1, bitmaps count from 2.
const (
	idAllocation uint32 = iota
	idDepth
	idFirstMore
)

// allocation is base:allocation.
type allocation struct{ b Backend }

func (allocation) Name() string { return "base:allocation" }

func (a allocation) Extent(ctx context.Context, off, n int64) (uint32, int64, error) {
	st, _, err := a.b.BlockStatus(ctx, off, n, blockgraph.StatusPrecise)
	var flags uint32
	if st.Flags&blockgraph.StatusData == 0 {
		flags |= nbdproto.StateHole
	}
	if st.Flags&blockgraph.StatusZero != 0 {
		flags |= nbdproto.StateZero
	}
	return flags, st.N, err
}

// depth is qemu:allocation-depth: 0 for what no layer has, 1 for the top one.
type depth struct{ b Backend }

func (depth) Name() string { return "qemu:allocation-depth" }

func (d depth) Extent(ctx context.Context, off, n int64) (uint32, int64, error) {
	st, depth, err := d.b.BlockStatus(ctx, off, n, blockgraph.StatusAllocation)
	return uint32(depth), st.N, err
}

// namespaces are the queries that ask for everything that begins with them.
var namespaces = map[string]bool{"base:": true, "qemu:": true, "qemu:dirty-bitmap:": true}

// selectContexts returns the contexts that the queries ask for, in the order of
// their ids. Whole namespaces can be listed, not set.
func selectContexts(all []statusContext, queries []string, list bool) []statusContext {
	var chosen []statusContext
	for _, c := range all {
		for _, q := range queries {
			if q == c.Name() || list && namespaces[q] && strings.HasPrefix(c.Name(), q) {
				chosen = append(chosen, c)
				break
			}
		}
	}
	return chosen
}
