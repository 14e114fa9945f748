package preallocate

import (
	"context"
	"errors"
	"math"
	"sync"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/qapi"
)

// Filter is the driver of a preallocate node.
type Filter struct {
	pass.Through

	mu   sync.Mutex
	opts options
	// known: nobody else may write or resize the file, and the ends are right.
	known bool
	ends  ends
	bare  int           // writes under way that make the file longer themselves
	never bool          // the file cannot be extended by zeroes
	busy  chan struct{} // closed when who changes the file's length is done; nil: nobody
}

// ends are in bytes.
type ends struct {
	data int64 // what users wrote, and what the file held at first
	zero int64 // from here to file all is zeroes
	file int64
}

// enter waits until nobody changes the file's length. It returns with mu held,
// also when ctx has ended.
//
// +checklocksacquire:f.mu
func (f *Filter) enter(ctx context.Context) error {
	for {
		f.mu.Lock()
		busy := f.busy
		if busy == nil {
			return nil
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			f.mu.Lock()
			return ctx.Err()
		}
	}
}

// seize makes the caller the one who changes the file's length, and gives mu
// back. Called with mu held after enter; ended by cede.
//
// +checklocksrelease:f.mu
func (f *Filter) seize() {
	f.busy = make(chan struct{})
	f.mu.Unlock()
}

// cede is called with mu held.
//
// +checklocks:f.mu
func (f *Filter) cede() {
	close(f.busy)
	f.busy = nil
}

// before makes room for a write of bytes [off, off+n), or of zeroes there; done:
// these are zeroes already. after is to be called when the write has ended.
func (f *Filter) before(ctx context.Context, off, n int64, zeroes bool) (done bool, after func(), err error) {
	after = func() {}
	end := off + n
	f.mu.Lock()
	if !f.known || end <= f.ends.file {
		done = f.note(off, end, zeroes)
		f.mu.Unlock()
		return done, after, nil
	}
	f.mu.Unlock()
	err = f.enter(ctx)
	defer f.mu.Unlock()
	if err != nil {
		return false, nil, err
	}
	if f.known && end > f.ends.file && f.bare == 0 && !f.never {
		done = f.extend(ctx, off, end, zeroes)
	}
	if f.known && end > f.ends.file {
		f.bare++
		after = f.bareEnd
	}
	return f.note(off, end, zeroes && !done) || done, after, nil
}

// note records a write; it tells whether zeroes need not be written. With mu.
func (f *Filter) note(off, end int64, zeroes bool) bool {
	if !f.known {
		return false
	}
	e := &f.ends
	e.data = max(e.data, end)
	if zeroes && off >= e.zero && end <= e.file {
		return true
	}
	e.zero = max(e.zero, end)
	return false
}

// extend puts zeroes behind the file for a write that ends at end, and tells
// whether they cover a zero write that begins at off. With mu, which it gives
// back meanwhile, after enter.
//
// +checklocks:f.mu
func (f *Filter) extend(ctx context.Context, off, end int64, zeroes bool) bool {
	align := f.fileAlign()
	start := f.ends.file
	if zeroes {
		start = min(start, off)
	}
	start = up(start, align)
	to := max(start, end)
	if to > math.MaxInt64-f.opts.size {
		return false
	}
	to = up(to+f.opts.size, max(f.opts.align, align))
	if to <= start {
		return false
	}
	f.seize()
	err := f.Below().WriteZeroes(ctx, start, to-start, blockgraph.NoFallback)
	f.mu.Lock()
	f.cede()
	switch {
	case err == nil:
		f.ends.file = to
		return zeroes && start <= off
	case errors.Is(err, blockgraph.ErrNotSupported):
		f.never = true
	}
	return false
}

// bareEnd: with the last of them the file's end is known again.
func (f *Filter) bareEnd() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bare--
	if f.bare == 0 && f.known {
		e := &f.ends
		e.file = max(e.file, f.Below().Child().Size())
		e.zero = max(e.zero, e.file)
	}
}

// up rounds up to a multiple of a, which need not be a power of two; a result
// past what an offset can say is negative.
func up(x, a int64) int64 {
	if r := x % a; r != 0 {
		return x - r + a
	}
	return x
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	_, after, err := f.before(ctx, off, v.Len(), false)
	if err != nil {
		return err
	}
	defer after()
	return f.Below().WriteV(ctx, off, v, flags)
}

// WriteZeroes implements blockgraph.Driver.
func (f *Filter) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	plain := flags&^blockgraph.NoFallback == 0
	done, after, err := f.before(ctx, off, n, plain)
	if done || err != nil {
		return err
	}
	defer after()
	return f.Below().WriteZeroes(ctx, off, n, flags)
}

// Size is where the data ends.
func (f *Filter) Size(ctx context.Context) (int64, error) {
	f.mu.Lock()
	known, data := f.known, f.ends.data
	f.mu.Unlock()
	if known {
		return data, nil
	}
	return f.Through.Size(ctx)
}

// Truncate implements blockgraph.Truncater.
func (f *Filter) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	if err := f.enter(ctx); err != nil {
		f.mu.Unlock()
		return err
	}
	if !f.known {
		f.mu.Unlock()
		return f.Below().Truncate(ctx, size, exact, prealloc, zeroed)
	}
	if size > f.ends.data && size <= f.ends.file && prealloc == qapi.PreallocModeFalloc {
		// It is there already.
		f.ends.zero = max(f.ends.zero, f.ends.data)
		f.ends.data = size
		f.mu.Unlock()
		return nil
	}
	e := f.ends
	f.seize()
	err := f.resize(ctx, &e, size, exact, prealloc, zeroed)
	f.mu.Lock()
	f.ends = e
	f.cede()
	f.mu.Unlock()
	return err
}

// resize drops the preallocation, so that growing does what its mode says, and
// changes the file's length.
func (f *Filter) resize(ctx context.Context, e *ends, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	if size > e.data && prealloc != qapi.PreallocModeFalloc {
		if err := f.crop(ctx, e); err != nil {
			return blockgraph.Errorf(blockgraph.Errno(err), "preallocate-filter: failed to drop write-zero preallocation: %s", blockgraph.Strerror(err))
		}
	}
	if err := f.Below().Truncate(ctx, size, exact, prealloc, zeroed); err != nil {
		return err
	}
	*e = ends{size, size, size}
	return nil
}

// crop cuts off what was not used.
func (f *Filter) crop(ctx context.Context, e *ends) error {
	if e.data >= e.file {
		return nil
	}
	if err := f.Below().Truncate(ctx, e.data, true, qapi.PreallocModeOff, false); err != nil {
		return err
	}
	e.file, e.zero = e.data, e.data
	return nil
}

// Close cuts off what was not used.
func (f *Filter) Close(ctx context.Context) error {
	if !f.known {
		return nil
	}
	return f.crop(ctx, &f.ends)
}

const resizing = blockgraph.PermWrite | blockgraph.PermResize

// PreparePerms implements blockgraph.Permissioner: without the permission to
// write and resize, the file is as if there were no filter.
func (f *Filter) PreparePerms(ctx context.Context, perm, _ blockgraph.Perm) error {
	f.mu.Lock()
	known, e := f.known, f.ends
	f.mu.Unlock()
	if !known || perm&resizing == resizing {
		return nil
	}
	err := f.crop(ctx, &e)
	if err != nil {
		return blockgraph.Errorf(blockgraph.Errno(err), "Failed to drop preallocation")
	}
	f.mu.Lock()
	f.ends = e
	f.mu.Unlock()
	return nil
}

// CommitPerms implements blockgraph.Permissioner.
func (f *Filter) CommitPerms(perm, _ blockgraph.Perm) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch may := perm&resizing == resizing; {
	case !may:
		f.known = false
	case !f.known:
		size := f.Below().Child().Size()
		f.known, f.never, f.ends = true, false, ends{size, size, size}
	}
}

// AbortPerms implements blockgraph.Permissioner.
func (f *Filter) AbortPerms() {}

// ChildPerms implements blockgraph.ChildPermissioner: the ends are right only
// while nobody else writes or resizes.
func (f *Filter) ChildPerms(e *blockgraph.Edge, writable bool, perm, shared blockgraph.Perm) (blockgraph.Perm, blockgraph.Perm) {
	np, ns := blockgraph.DefaultChildPerms(e.Role(), writable, perm, shared)
	if perm&resizing == resizing {
		np, ns = np|resizing, ns&^resizing
	}
	return np, ns
}

var (
	_ blockgraph.Permissioner      = (*Filter)(nil)
	_ blockgraph.ChildPermissioner = (*Filter)(nil)
	_ blockgraph.Truncater         = (*Filter)(nil)
)
