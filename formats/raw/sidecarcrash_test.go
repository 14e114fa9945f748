package raw

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
)

// The file beside the image after a crash at any moment: what of the writes since
// the last flush survives is decided by the sector. Whatever does, the bitmaps are
// those of before or after the command under way, and have all that changed.

// memHost is a file in memory with one beside it, which records what reaches it.
type memHost struct {
	*graphtest.Memory
	side []byte
	log  []sideOp
	gone bool // there is no file beside it
}

type sideOp struct {
	off   int64
	data  []byte // nil: a flush, or a truncation to off
	flush bool
}

func (m *memHost) OpenSidecar(_ context.Context, _, _ string, _, create bool) (blockgraph.Sidecar, error) {
	if m.gone && !create {
		return nil, syscall.ENOENT
	}
	m.gone = false
	return memSide{m}, nil
}

func (m *memHost) Identity(context.Context) (blockgraph.FileIdentity, error) {
	return blockgraph.FileIdentity{Dev: 1, Ino: 2, Size: crashDisk}, nil
}

type memSide struct{ m *memHost }

func (s memSide) Size(context.Context) (int64, error) { return int64(len(s.m.side)), nil }

func (s memSide) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	if off < int64(len(s.m.side)) {
		copy(p, s.m.side[off:])
	}
	return nil
}

func (s memSide) WriteAt(_ context.Context, p []byte, off int64) error {
	s.m.log = append(s.m.log, sideOp{off: off, data: bytes.Clone(p)})
	s.m.side = apply(s.m.side, s.m.log[len(s.m.log)-1:], func(int, int64) bool { return true })
	return nil
}

func (s memSide) Truncate(_ context.Context, n int64) error {
	s.m.log = append(s.m.log, sideOp{off: n})
	s.m.side = apply(s.m.side, s.m.log[len(s.m.log)-1:], func(int, int64) bool { return true })
	return nil
}

func (s memSide) Flush(context.Context) error {
	s.m.log = append(s.m.log, sideOp{flush: true})
	return nil
}

func (s memSide) Close() error { return nil }

// apply does operations to a file's content. What was flushed is there; of the
// rest, the sectors that survives says.
func apply(b []byte, ops []sideOp, survives func(op int, sector int64) bool) []byte {
	b = slices.Clone(b)
	durable := 0
	for i, o := range ops {
		if o.flush {
			durable = i
		}
	}
	for i, o := range ops {
		switch {
		case o.flush:
		case o.data == nil:
			if i < durable || survives(i, 0) {
				b = slices.Grow(b, int(o.off))
				if n := len(b); int64(n) < o.off {
					clear(b[n:o.off])
				}
				b = b[:o.off]
			}
		default:
			for at := int64(0); at < int64(len(o.data)); {
				n := min(recordSize-(o.off+at)%recordSize, int64(len(o.data))-at)
				if i < durable || survives(i, (o.off+at)/recordSize) {
					if end := o.off + at + n; end > int64(len(b)) {
						b = append(b, make([]byte, end-int64(len(b)))...)
					}
					copy(b[o.off+at:], o.data[at:at+n])
				}
				at += n
			}
		}
	}
	return b
}

const crashDisk = 256 << 10

// crashState is what the bitmaps were after a command, and where the log ended.
type crashState struct {
	at   int
	list []*blockgraph.DirtyBitmap // with bits of their own
}

func TestBitmapsBesideAnImageAfterACrashAnywhere(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	m := &memHost{Memory: graphtest.NewMemory(crashDisk), gone: true}
	loop := blockgraph.NewLoop()
	t.Cleanup(loop.Stop)
	g := blockgraph.NewGraph(loop, clock.Real(), DriverType(Config{}), &blockgraph.DriverType{
		Name: "file", Protocol: true,
		Open: func(context.Context, *blockgraph.OpenRequest) (blockgraph.Driver, error) { return m, nil },
	})
	w := &world{t: t, g: g}
	s := &sided{w, w.mustOpen(sideOptions("x", sidecarAlone))}
	side := s.r.Node().Driver().(*storing).side
	side.ahead.RegionBits = 15
	var states []crashState
	note := func() {
		var list []*blockgraph.DirtyBitmap
		for _, b := range s.r.Node().State().Bitmaps {
			c := *b
			c.Bits = b.Bits.Clone()
			if b.Successor != nil {
				c.Bits.Merge(b.Successor)
			}
			list = append(list, &c)
		}
		states = append(states, crashState{len(m.log), list})
	}
	note()
	for i := range 120 {
		switch list := s.r.Node().State().Bitmaps; {
		case rnd.IntN(2) == 0:
			off := rnd.Int64N(crashDisk/512) * 512
			s.write(off, min(512<<rnd.IntN(6), crashDisk-off))
		case len(list) == 0 || len(list) < 4 && rnd.IntN(4) == 0:
			s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error {
				return tx.AddBitmap(n, fmt.Sprint(i), 512<<rnd.IntN(3), true, rnd.IntN(5) == 0)
			})
		default:
			b := list[rnd.IntN(len(list))]
			s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return randomChange(tx, n, b, rnd) })
		}
		note()
	}
	checkCrashes(t, s, m, states, seed)
}

// randomChange changes one bitmap.
func randomChange(tx *blockgraph.Tx, n *blockgraph.Node, b *blockgraph.DirtyBitmap, rnd *rand.Rand) error {
	if b.Successor != nil {
		return tx.ThawBitmap(n, b.Name, rnd.IntN(2) == 0, nil)
	}
	switch rnd.IntN(5) {
	case 0:
		return tx.RemoveBitmap(n, b)
	case 1:
		return tx.ClearBitmap(n, b)
	case 2:
		return tx.EnableBitmap(n, b, b.Disabled)
	case 3:
		other := tx.State(n).Bitmaps[0]
		if other.Successor != nil {
			return nil
		}
		return tx.MergeBitmap(n, b, n, other)
	}
	return tx.FreezeBitmap(n, b, blockgraph.BitmapRead)
}

func checkCrashes(t *testing.T, s *sided, m *memHost, states []crashState, seed uint64) {
	log := m.log
	d := s.r.Node().Driver().(*storing).driver
	now := 0
	for k := range len(log) + 1 {
		for now+1 < len(states) && states[now+1].at <= k {
			now++
		}
		// Commands that change nothing end where they began.
		next := min(now+1, len(states)-1)
		for way := range uint64(3) {
			pick := rand.New(rand.NewPCG(seed+way, uint64(k)))
			b := apply(nil, log[:k], func(int, int64) bool { return way == 0 || way == 2 && pick.IntN(2) == 0 })
			crashed := &sidecar{d: d, host: &memHost{Memory: m.Memory, side: b}, exclusive: true, readOnly: true, ahead: s.r.Node().Driver().(*storing).side.ahead}
			list, err := crashed.load(t.Context())
			if err != nil {
				t.Fatalf("crash at %d of %d, way %d: %v", k, len(log), way, err)
			}
			before, after := crashDiff(list, states[now].list), crashDiff(list, states[next].list)
			if before != "" && after != "" {
				t.Fatalf("crash at %d of %d, way %d, during command %d: %s; or %s", k, len(log), way, next, before, after)
			}
		}
	}
}

// crashDiff tells what is wrong with bitmaps that are to be a superset of want.
func crashDiff(got, want []*blockgraph.DirtyBitmap) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d bitmaps, not %d", len(got), len(want))
	}
	for i, b := range want {
		g := got[i]
		if g.Name != b.Name || g.Disabled != b.Disabled || g.Inconsistent || g.Bits.Granularity() != b.Bits.Granularity() {
			return fmt.Sprintf("%+v, not %+v", g, b)
		}
		for off := int64(0); ; {
			start, n, ok := b.Bits.NextDirty(off, crashDisk)
			if !ok {
				break
			}
			if at, _, lost := g.Bits.NextClean(start, start+n); lost {
				return fmt.Sprintf("%s has lost %d", b.Name, at)
			}
			off = start + n
		}
	}
	return ""
}

// FuzzBitmapFile reads whatever lies beside an image: what is accepted keeps the
// limits and encodes to the bytes that were read.
func FuzzBitmapFile(f *testing.F) {
	h := &sideHeader{generation: 3, disk: 1 << 20, next: 1 << 20, image: blockgraph.FileIdentity{Dev: 1, Ino: 2}}
	dir := encodeSideDir([]*sideEntry{{name: "a", granularityBits: 12, flags: entryEnabled, data: area{dataStart, 32}}})
	h.dir, h.dirSum = area{dataStart + 32, int64(len(dir))}, crc32.Checksum(dir, crcTable)
	f.Add(h.encode(), append(make([]byte, 32), dir...))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, head, rest []byte) {
		if len(head) >= recordSize {
			// The checksum is no secret.
			binary.BigEndian.PutUint32(head[recordSize-4:], crc32.Checksum(head[:recordSize-4], crcTable))
		}
		b := make([]byte, dataStart)
		copy(b, head)
		h, _, err := chooseHeader(b)
		if err != nil || h == nil {
			return
		}
		again, err := decodeHeader(h.encode())
		if err != nil || *again != *h {
			t.Fatalf("%+v became %+v (%v)", h, again, err)
		}
		h.dirSum = crc32.Checksum(rest, crcTable)
		list, err := decodeSideDir(h, rest)
		if err != nil {
			return
		}
		for _, e := range list {
			if e.data.n > maxSideBytes || len(e.name) > blockgraph.MaxBitmapName {
				t.Fatalf("%+v", e)
			}
		}
		if !bytes.Equal(encodeSideDir(list), rest) {
			t.Fatalf("%q became another", rest)
		}
	})
}
