package qcow2

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// vastFile is the file of a large image all of whose disk is allocated: the
// beginning is real, L2 tables and data are made up as they are read.
type vastFile struct {
	memFile
	h      *header
	tables int64 // where the L2 tables begin, one after the other
	length int64

	reads, bytes atomic.Int64
}

func (f *vastFile) Size() int64 { return f.length }

func (f *vastFile) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	f.reads.Add(1)
	f.bytes.Add(v.Len())
	if off < f.tables {
		return f.memFile.ReadV(ctx, off, v, flags)
	}
	perTable := int64(1) << f.h.l2Bits
	end := f.tables + f.h.clusters(int64(f.h.size))/perTable*f.h.clusterSize
	p := make([]byte, v.Len())
	for i := 0; i < len(p); i += 8 {
		at := off + int64(i)
		if at >= end {
			binary.LittleEndian.PutUint64(p[i:], uint64(at))
			continue
		}
		binary.BigEndian.PutUint64(p[i:], uint64(end+(at-f.tables)/8*f.h.clusterSize)|flagCopied)
	}
	v.CopyIn(0, p)
	return nil
}

// newVast makes the file of an image of that size with the usual clusters.
func newVast(t *testing.T, size int64) *vastFile {
	t.Helper()
	f := &vastFile{}
	f.b = newImage(t, size).b
	h, _, _, err := readHeader(ctxb, &f.memFile)
	if err != nil {
		t.Fatal(err)
	}
	f.h = h
	f.tables = h.clusters(int64(len(f.b))) * h.clusterSize
	f.length = f.tables + int64(h.l1Size)*h.clusterSize + size
	f.b = append(f.b, make([]byte, f.tables-int64(len(f.b)))...)
	for i := range int64(h.l1Size) {
		binary.BigEndian.PutUint64(f.b[int64(h.l1Offset)+i*8:], uint64(f.tables+i*h.clusterSize)|flagCopied)
	}
	return f
}

type vastChildren struct{ f *vastFile }

func (c vastChildren) file() storage          { return c.f }
func (c vastChildren) backing() storage       { return nil }
func (c vastChildren) data() storage          { return nil }
func (c vastChildren) node() *blockgraph.Node { return nil }

// TestReadOfALargeImageTakesTwoIOs: hardly any of the L2 tables fits the cache;
// one read gets the part of a table, another one the data.
func TestReadOfALargeImageTakesTwoIOs(t *testing.T) {
	const size = 1 << 40
	f := newVast(t, size)
	d, err := open(ctxb, vastChildren{f}, &qapi.BlockdevOptions{Qcow2: &qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(256 << 10))}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if slices := int64(size) >> f.h.clusterBits >> d.sliceBits; int64(d.cache.capacity) > slices/100 {
		t.Fatalf("the cache holds %d of %d slices", d.cache.capacity, slices)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, 4096)
	most, twice := int64(0), 0
	for range 500 {
		off := rnd.Int64N(size/4096) * 4096
		before := f.reads.Load()
		if err := d.ReadV(ctxb, off, blockgraph.MakeIOVec(p), 0); err != nil {
			t.Fatal(err)
		}
		n := f.reads.Load() - before
		if most = max(most, n); n == 2 {
			twice++
		}
		host := f.length - size + off
		if got := int64(binary.LittleEndian.Uint64(p)); got != host {
			t.Fatalf("read at %#x came from %#x, not %#x", off, got, host)
		}
	}
	if most > 2 {
		t.Errorf("a read took %d I/Os", most)
	}
	if twice == 0 {
		t.Error("the cache had everything")
	}
	closeImage(t, d)
}

// TestOpenOfALargeImageReadsLittle: the header, and the tables that are always
// in memory, each once.
func TestOpenOfALargeImageReadsLittle(t *testing.T) {
	f := newVast(t, 10<<40)
	d, err := open(ctxb, vastChildren{f}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		t.Fatal(err)
	}
	reads, bytes := f.reads.Load(), f.bytes.Load()
	closeImage(t, d)
	tables := int64(f.h.l1Size)*l1EntrySize + int64(f.h.refTableClusters)<<f.h.clusterBits
	t.Logf("%d reads of %d bytes, tables of %d bytes", reads, bytes, tables)
	if reads > 4 || bytes > tables+2*f.h.clusterSize {
		t.Errorf("%d reads of %d bytes, of which tables are %d", reads, bytes, tables)
	}
}
