// Package blkverify is the filter that does everything twice, to an image under
// test and to a raw copy, and fails where the two differ (the field: blkverify,
// which ends the program there).
//
// What blocks: every I/O method. It has no state. It must not import jobs, qmp
// or formats.
//
//blockd:io
package blkverify

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/ioengine"
	"blockd/qapi"
)

// maxTransfer bounds what a read needs of memory besides, in bytes.
const maxTransfer = 32 << 20

// Filter is the driver of a blkverify node. The filtered child is the raw copy.
type Filter struct{ pass.Through }

// Type returns the driver type for the graph's registry.
func Type() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverBlkverify),
		Filter:   true,
		Required: blockgraph.RequiredChildren("raw", "test"),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{
				{Name: "raw", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.Blkverify.Raw},
				{Name: "test", Role: blockgraph.RoleData, Ref: o.Blkverify.Test},
			}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return &Filter{pass.Through{Node: r.Node}}, nil
		},
		ExactFilename: func(_ *qapi.BlockdevOptions, child func(name string) string) string {
			raw, test := child("raw"), child("test")
			if raw == "" || test == "" {
				return ""
			}
			return prefix + raw + ":" + test
		},
		ParseFilename: parseFilename,
		PartialChildren: []blockgraph.ChildSpec{
			{Name: "raw", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary}, {Name: "test", Role: blockgraph.RoleData},
		},
	}
}

// prefix begins the file names of such nodes.
const prefix = "blkverify:"

// parseFilename reads blkverify:RAW:TEST.
func parseFilename(name string, parse func(string) (qapi.BlockdevRef, error)) (*qapi.BlockdevOptions, error) {
	raw, test, ok := strings.Cut(strings.TrimPrefix(name, prefix), ":")
	if !ok {
		return nil, qapi.Errorf("blkverify requires raw copy and original image path")
	}
	o := &qapi.BlockdevOptionsBlkverify{}
	var err error
	if o.Raw, err = parse(raw); err == nil {
		o.Test, err = parse(test)
	}
	return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverBlkverify, Blkverify: o}, err
}

func (f *Filter) test() *blockgraph.Edge { return f.Node.Child("test") }

// both does a request on both children at once. Errors that differ are one.
func (f *Filter) both(kind string, off, n int64, do func(e *blockgraph.Edge, raw bool) error) error {
	done := make(chan error, 1)
	go func() { done <- do(f.test(), false) }()
	raw := do(f.Below(), true)
	test := <-done
	if a, b := blockgraph.Errno(test), blockgraph.Errno(raw); a != b {
		return f.mismatch(kind, off, n, fmt.Sprintf("return value mismatch %d != %d", -int(a), -int(b)))
	}
	return test
}

func (f *Filter) mismatch(kind string, off, n int64, what string) error {
	text := fmt.Sprintf("blkverify: %s offset=%d bytes=%d %s", kind, off, n, what)
	slog.Error(text, "node", f.Node.Name())
	return blockgraph.Errorf(syscall.EIO, "%s", text)
}

// ReadV implements blockgraph.Driver.
func (f *Filter) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	copied := ioengine.Bounce(int(v.Len()))
	defer copied.Release()
	err := f.both("read", off, v.Len(), func(e *blockgraph.Edge, raw bool) error {
		if raw {
			return e.ReadV(ctx, off, blockgraph.MakeIOVec(copied.Bytes()), 0)
		}
		return e.ReadV(ctx, off, v, 0)
	})
	if err != nil {
		return err
	}
	rest := copied.Bytes()
	for _, s := range v.Segments() {
		if !bytes.Equal(s, rest[:len(s)]) {
			at := v.Len() - int64(len(rest))
			for i := 0; s[i] == rest[i]; i++ {
				at++
			}
			return f.mismatch("read", off, v.Len(), fmt.Sprintf("contents mismatch at offset %d", off+at))
		}
		rest = rest[len(s):]
	}
	return nil
}

// WriteV implements blockgraph.Driver.
func (f *Filter) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return f.both("write", off, v.Len(), func(e *blockgraph.Edge, _ bool) error { return e.WriteV(ctx, off, v, flags) })
}

// WriteZeroes is not there: zeroes are written as data.
func (f *Filter) WriteZeroes(context.Context, int64, int64, blockgraph.Flags) error {
	return blockgraph.ErrNotSupported
}

// Discard is not there: what it leaves may differ.
func (f *Filter) Discard(context.Context, int64, int64) error { return blockgraph.ErrNotSupported }

// Flush flushes the image under test; the copy is not worth it.
func (f *Filter) Flush(ctx context.Context) error { return f.test().Flush(ctx) }

// Size is that of the image under test.
func (f *Filter) Size(ctx context.Context) (int64, error) {
	return f.test().Child().Driver().Size(ctx)
}

// Limits implements blockgraph.LimitsReader.
func (f *Filter) Limits() blockgraph.Limits {
	l := f.Through.Limits()
	for _, m := range []int64{maxTransfer, f.test().Child().Limits().MaxTransfer} {
		if m > 0 && (l.MaxTransfer == 0 || m < l.MaxTransfer) {
			l.MaxTransfer = m
		}
	}
	return l
}

// Caps implements blockgraph.LimitsReader.
func (f *Filter) Caps() blockgraph.Caps {
	return blockgraph.Caps{FUA: blockgraph.CapEmulate, WriteZeroes: blockgraph.CapEmulate, WriteUnchanged: blockgraph.CapNative}
}
