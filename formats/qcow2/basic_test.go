package qcow2

import (
	"bytes"
	"fmt"
	"testing"

	"blockd/qapi"
)

func TestWritesAreReadBackAfterReopen(t *testing.T) {
	for _, cs := range []uint64{512, 4096, 65536, 2 << 20} {
		for _, version := range []string{"v2", "v3"} {
			t.Run(fmt.Sprint(cs, version), func(t *testing.T) {
				opts := []imageOption{clusterSize(cs)}
				if version == "v2" {
					opts = append(opts, v2)
				}
				f := newImage(t, 8<<20, opts...)
				fieldCheck(t, f)
				d := openImage(t, f, nil)
				put(t, d, 1000, fill(1, 3000))
				put(t, d, 5<<20, fill(2, 1<<20))
				put(t, d, 8<<20-512, fill(3, 512))
				want := make([]byte, 8<<20)
				copy(want[1000:], fill(1, 3000))
				copy(want[5<<20:], fill(2, 1<<20))
				copy(want[8<<20-512:], fill(3, 512))
				if !bytes.Equal(get(t, d, 0, 8<<20), want) {
					t.Fatal("content before close")
				}
				closeImage(t, d)
				mustCheck(t, f, true)
				fieldCheck(t, f)
				d = openImage(t, f, nil)
				if !bytes.Equal(get(t, d, 0, 8<<20), want) {
					t.Fatal("content after reopen")
				}
				closeImage(t, d)
			})
		}
	}
}

func TestRefcountWidths(t *testing.T) {
	for _, bits := range []int64{1, 2, 4, 8, 16, 32, 64} {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			f := newImage(t, 4<<20, clusterSize(512), refcountBits(bits))
			d := openImage(t, f, nil)
			for i := int64(0); i < 4<<20; i += 64 << 10 {
				put(t, d, i, fill(byte(i>>16)+1, 40<<10))
			}
			flush(t, d)
			for i := int64(0); i < 4<<20; i += 128 << 10 {
				if err := d.Discard(ctxb, i, 64<<10); err != nil {
					t.Fatal(err)
				}
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			fieldCheck(t, f)
		})
	}
}

func TestPreallocationMapsEverything(t *testing.T) {
	for _, mode := range []qapi.PreallocMode{qapi.PreallocModeMetadata, qapi.PreallocModeFalloc, qapi.PreallocModeFull} {
		for _, cs := range []uint64{512, 65536} {
			f := newImage(t, 3<<20, clusterSize(cs), prealloc(mode))
			mustCheck(t, f, true)
			fieldCheck(t, f)
			d := openImage(t, f, nil)
			m, err := d.lookup(ctxb, 1<<20, 512, false)
			if err != nil || m.kind != data {
				t.Fatalf("%s: %+v, %v", mode, m, err)
			}
			if !bytes.Equal(get(t, d, 0, 3<<20), make([]byte, 3<<20)) {
				t.Fatal("content")
			}
			closeImage(t, d)
		}
	}
}
