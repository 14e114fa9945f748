package qcow2

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/qapi"
)

// TestEmptyShowsTheBackingFile: everywhere, whatever the image had, and what a
// snapshot has stays.
func TestEmptyShowsTheBackingFile(t *testing.T) {
	const cs = 64 << 10
	for name, opts := range map[string][]imageOption{"plain": nil, "v2": {v2}, "extended": {extended}, "data-file": {external}} {
		t.Run(name, func(t *testing.T) {
			backing := &memFile{b: fill(9, 8*cs)}
			f := newImage(t, 8*cs+512, opts...)
			d := openWith(t, f, backing, &qapi.BlockdevOptionsQcow2{})
			put(t, d, 0, fill(1, 2*cs))
			put(t, d, 3*cs+512, fill(2, 512))
			put(t, d, 8*cs, fill(3, 512))
			snapshot := ""
			if !d.h.external {
				var err error
				if snapshot, err = d.CreateSnapshot(ctxb, "s", time.Unix(0, 0)); err != nil {
					t.Fatal(err)
				}
			}
			put(t, d, cs, fill(4, cs))
			if d.h.version >= 3 {
				if err := d.WriteZeroes(ctxb, 4*cs, cs, 0); err != nil {
					t.Fatal(err)
				}
			}
			was := get(t, d, 0, 8*cs+512)
			copy(was[cs:], fill(1, cs))
			copy(was[4*cs:], fill(9, cs))
			if err := d.Empty(ctxb); err != nil {
				t.Fatal(err)
			}
			want := append(fill(9, 8*cs), make([]byte, 512)...)
			if !bytes.Equal(get(t, d, 0, 8*cs+512), want) {
				t.Error("something hides the backing file")
			}
			flush(t, d)
			closeImage(t, d)
			mustCheck(t, f, true)
			d = openWith(t, f, backing, &qapi.BlockdevOptionsQcow2{})
			if !bytes.Equal(get(t, d, 0, 8*cs+512), want) {
				t.Error("something hides the backing file after it was opened again")
			}
			if snapshot != "" {
				r, err := d.PrepareRevert(ctxb, &snapshot, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(r.Switch(ctxb, nil), r.Finish(ctxb)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(get(t, d, 0, 8*cs+512), was) {
					t.Error("the snapshot has lost something")
				}
			}
			closeImage(t, d)
			mustCheck(t, f, true)
		})
	}
}

// TestRawDataFileCannotBeEmptied: it holds what the guest sees, and nothing may show
// through.
func TestRawDataFileCannotBeEmptied(t *testing.T) {
	f := newImage(t, 1<<20, externalRaw)
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 65536))
	if err := d.Empty(ctxb); !errors.Is(err, blockgraph.ErrNotSupported) {
		t.Errorf("error %v", err)
	}
	if !bytes.Equal(get(t, d, 0, 65536), fill(1, 65536)) {
		t.Error("content differs")
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}
