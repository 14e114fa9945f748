package qcow2

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// unopened is in the place of an external data file that is not opened, since only
// what the image says of itself is wanted: so one can look at an image of which one
// does not know yet what files of the host it names, or whose data file is gone. It
// has no content, and fails what wants some.
type unopened struct{}

func (unopened) ReadV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error {
	return syscall.ENOMEDIUM
}

func (unopened) WriteV(context.Context, int64, *blockgraph.IOVec, blockgraph.Flags) error {
	return syscall.ENOMEDIUM
}

func (unopened) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return syscall.ENOMEDIUM
}

func (unopened) Discard(context.Context, int64, int64) error { return syscall.ENOMEDIUM }

func (unopened) Flush(context.Context) error { return nil }

func (unopened) Truncate(context.Context, int64, bool, qapi.PreallocMode, bool) error {
	return syscall.ENOMEDIUM
}

func (unopened) DebugEvent(string) {}

func (unopened) Size() int64 { return 0 }

func (unopened) Grows() bool { return false }

func (unopened) FreshZero() bool { return false }

func (unopened) ReadsZero(context.Context, int64, int64) bool { return false }

func (unopened) Node() *blockgraph.Node { return nil }
