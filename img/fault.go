package img

import (
	"context"
	"fmt"
	"sync"

	"blockd/blockgraph"
	"blockd/filters/pass"
)

// fault keeps where the content of a conversion's source or target was first not to
// be had: a job only tells that something failed.
type fault struct {
	mu sync.Mutex
	//+checklocks:mu
	text string
}

// note keeps the fault, if err is one, and returns err. doing is what failed at
// byte off.
//
//blockd:io
func (f *fault) note(ctx context.Context, doing string, off int64, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.text == "" {
		f.text = fmt.Sprintf("error while %s %d: %s", doing, off, blockgraph.Strerror(err))
	}
	return err
}

// first is what was noted first, "" for nothing.
func (f *fault) first() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text
}

// watched is the driver of a filter over a conversion's source that notes what
// cannot be read.
//
//blockd:io
type watched struct {
	pass.Through
	fault *fault
}

// watch puts the filter over a source.
func (s *session) watch(from *blockgraph.Node, f *fault) (*blockgraph.Node, error) {
	readOnly := true
	return s.openFilter("watched", from, &readOnly, func(p pass.Through) blockgraph.Driver { return &watched{p, f} })
}

// ReadV notes what cannot be read.
func (w *watched) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return w.fault.note(ctx, "reading at byte", off, w.Through.ReadV(ctx, off, v, flags))
}
