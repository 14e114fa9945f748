package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// A driver that works on an image for long without requests from above, each access
// of which is admitted to the graph by itself: changes of the graph, and a pause, find
// their place between two. Between two accesses a child may become another one, with
// the same content; so it is looked up each time.

// entering are children of which each access is admitted first.
type entering struct {
	sameChildren
	enter blockgraph.EnterFunc
}

func (c entering) file() storage    { return enteringStorage{c.children.file, c.enter} }
func (c entering) backing() storage { return c.ifAny(c.children.backing) }
func (c entering) data() storage    { return c.ifAny(c.children.data) }

func (c entering) ifAny(now func() storage) storage {
	if now() == nil {
		return nil
	}
	return enteringStorage{now, c.enter}
}

// enteringStorage is one of them.
type enteringStorage struct {
	now   func() storage // nil: there is none any more
	enter blockgraph.EnterFunc
}

func (s enteringStorage) do(ctx context.Context, f func(s storage) error) error {
	return s.enter(ctx, func() error {
		if now := s.now(); now != nil {
			return f(now)
		}
		return syscall.ENXIO
	})
}

func (s enteringStorage) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return s.do(ctx, func(s storage) error { return s.ReadV(ctx, off, v, flags) })
}

func (s enteringStorage) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return s.do(ctx, func(s storage) error { return s.WriteV(ctx, off, v, flags) })
}

func (s enteringStorage) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	return s.do(ctx, func(s storage) error { return s.WriteZeroes(ctx, off, n, flags) })
}

func (s enteringStorage) Discard(ctx context.Context, off, n int64) error {
	return s.do(ctx, func(s storage) error { return s.Discard(ctx, off, n) })
}

func (s enteringStorage) Flush(ctx context.Context) error {
	return s.do(ctx, func(s storage) error { return s.Flush(ctx) })
}

func (s enteringStorage) Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error {
	return s.do(ctx, func(s storage) error { return s.Truncate(ctx, size, exact, prealloc, zeroed) })
}

// DebugEvent may wait, for whoever looks at the fault point.
func (s enteringStorage) DebugEvent(event string) {
	_ = s.do(context.Background(), func(s storage) error {
		s.DebugEvent(event)
		return nil
	})
}

func (s enteringStorage) ReadsZero(ctx context.Context, off, n int64) (zero bool) {
	err := s.do(ctx, func(s storage) error {
		zero = s.ReadsZero(ctx, off, n)
		return nil
	})
	return err == nil && zero
}

func (s enteringStorage) Size() int64 {
	if now := s.now(); now != nil {
		return now.Size()
	}
	return 0
}

func (s enteringStorage) Grows() bool {
	now := s.now()
	return now != nil && now.Grows()
}

func (s enteringStorage) FreshZero() bool {
	now := s.now()
	return now != nil && now.FreshZero()
}

func (s enteringStorage) Node() *blockgraph.Node {
	if now := s.now(); now != nil {
		return now.Node()
	}
	return nil
}
