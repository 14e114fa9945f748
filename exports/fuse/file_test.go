package fuse

import (
	"context"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"blockd/qapi"
)

// empty is a disk of no length.
type empty struct{ Backend }

func (empty) Size() int64 { return 0 }

// TestGrowingIsUse: a request that waits for the disk to grow is under way,
// though the backend does not have it yet.
func TestGrowingIsUse(t *testing.T) {
	var e *Export
	unused := true
	e = &Export{Config: Config{
		Backend: empty{}, Writable: true, Growable: true, InFlight: func() int64 { return 0 },
		Resize: func(context.Context, int64, bool, qapi.PreallocMode) error {
			unused = e.CloseIfUnused()
			return unix.ENOSPC
		},
	}}
	if _, st := e.Write(nil, &gofuse.WriteIn{}, []byte("x")); st != gofuse.Status(unix.ENOSPC) {
		t.Errorf("the write got %v", st)
	}
	if unused || !e.CloseIfUnused() {
		t.Errorf("unused meanwhile: %v, afterwards: %v", unused, e.CloseIfUnused())
	}
}
