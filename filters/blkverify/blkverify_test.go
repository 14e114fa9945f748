package blkverify_test

import (
	"bytes"
	"errors"
	"log/slog"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/filters/blkverify"
	"blockd/qapi"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

func TestBothAreWrittenAndCompared(t *testing.T) {
	w := graphtest.New(t, blkverify.Type())
	_, raw := w.Mem("raw", 1<<20)
	_, test := w.Mem("test", 1<<20)
	name, a, b := "v", "raw", "test"
	n := w.Add(&qapi.BlockdevOptions{Driver: "blkverify", NodeName: &name,
		Blkverify: &qapi.BlockdevOptionsBlkverify{Raw: qapi.BlockdevRef{Reference: &a}, Test: qapi.BlockdevRef{Reference: &b}}})
	r := w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	write := func() error {
		return r.WriteV(t.Context(), 512, graphtest.Vec(bytes.Repeat([]byte{5}, 1024)), 0)
	}
	read := func() error {
		p := make([]byte, 4096)
		return r.ReadV(t.Context(), 0, blockgraph.MakeIOVec(p[:1000], p[1000:]), 0)
	}
	if err := errors.Join(write(), read(), r.WriteZeroes(t.Context(), 1024, 512, 0), r.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw.Bytes(), test.Bytes()) || raw.Bytes()[512] != 5 || raw.Bytes()[1024] != 0 {
		t.Error("not both were written")
	}
	if raw.Flushes.Load() != 0 || test.Flushes.Load() != 1 {
		t.Error("flushes", raw.Flushes.Load(), test.Flushes.Load())
	}
	test.EditRange(2000, 1, func(p []byte) { p[0] = 9 })
	if err := read(); err == nil || err.Error() != "blkverify: read offset=0 bytes=4096 contents mismatch at offset 2000" {
		t.Error(err)
	}
	raw.SetHook(graphtest.Failing(1, syscall.ENOSPC, graphtest.Write))
	if err := write(); err == nil || err.Error() != "blkverify: write offset=512 bytes=1024 return value mismatch 0 != -28" {
		t.Error(err)
	}
	both := graphtest.Failing(2, syscall.ENOSPC, graphtest.Write)
	raw.SetHook(both)
	test.SetHook(both)
	if err := write(); !errors.Is(err, syscall.ENOSPC) {
		t.Error("where both fail alike:", err)
	}
}

func TestFileNameSaysWhatToCompare(t *testing.T) {
	parse := func(name string) (*qapi.BlockdevOptions, error) {
		return blkverify.Type().ParseFilename(name, func(child string) (qapi.BlockdevRef, error) {
			if child == "bad" {
				return qapi.BlockdevRef{}, syscall.ENOENT
			}
			return qapi.BlockdevRef{Reference: &child}, nil
		})
	}
	o, err := parse("blkverify:raw:a:b")
	if err != nil || o.Driver != "blkverify" || *o.Blkverify.Raw.Reference != "raw" || *o.Blkverify.Test.Reference != "a:b" {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parse("blkverify:raw"); err == nil || err.Error() != "blkverify requires raw copy and original image path" {
		t.Error(err)
	}
	for _, name := range []string{"blkverify:bad:test", "blkverify:raw:bad"} {
		if _, err := parse(name); !errors.Is(err, syscall.ENOENT) {
			t.Error(name, err)
		}
	}
}
