package blklogwrites_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/filters/blklogwrites"
	"blockd/qapi"
)

const size = 1 << 20

type world struct {
	*graphtest.World
	file, log *graphtest.Memory
	root      *blockgraph.Root
}

func newWorld(t *testing.T, edit func(o *qapi.BlockdevOptionsBlklogwrites)) *world {
	t.Helper()
	w := &world{World: graphtest.New(t, blklogwrites.Type())}
	_, w.file = w.Mem("f", size)
	w.Setup = func(m *graphtest.Memory) { m.Cap.Grow = true }
	_, w.log = w.Mem("l", 0)
	w.root = w.Root(w.Add(options(edit)), graphtest.ReadWrite, blockgraph.PermAll)
	return w
}

func options(edit func(o *qapi.BlockdevOptionsBlklogwrites)) *qapi.BlockdevOptions {
	name, file, log := "n", "f", "l"
	o := &qapi.BlockdevOptionsBlklogwrites{File: qapi.BlockdevRef{Reference: &file}, Log: qapi.BlockdevRef{Reference: &log}}
	if edit != nil {
		edit(o)
	}
	return &qapi.BlockdevOptions{Driver: "blklogwrites", NodeName: &name, Blklogwrites: o, Discard: ptr(qapi.BlockdevDiscardOptionsUnmap)}
}

func ptr[T any](v T) *T { return &v }

// replay does what the log says, as far as the superblock counts, on a disk of
// zeroes.
func (w *world) replay(t *testing.T) (disk []byte, entries uint64) {
	t.Helper()
	le := binary.LittleEndian
	b := w.log.Bytes()
	if le.Uint64(b) != 0x6a736677736872 || le.Uint64(b[8:]) != 1 {
		t.Fatal("no superblock")
	}
	disk, entries = make([]byte, size), le.Uint64(b[16:])
	sector := uint64(le.Uint32(b[24:]))
	at := sector
	for range entries {
		off, n, flags := le.Uint64(b[at:])*sector, le.Uint64(b[at+8:])*sector, le.Uint64(b[at+16:])
		at += sector
		if flags&4 != 0 {
			continue
		}
		copy(disk[off:off+n], b[at:at+n])
		at += n
	}
	return disk, entries
}

// TestReplayGivesTheSameDisk: writers at once, each in a place of its own.
func TestReplayGivesTheSameDisk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t, func(o *qapi.BlockdevOptionsBlklogwrites) { o.LogSuperUpdateInterval = ptr(uint64(7)) })
	var wg sync.WaitGroup
	for g := range int64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 100 {
				n := 1 + r.Int64N(8192)
				off := g*size/4 + r.Int64N(size/4-n)
				// Whole sectors, so that no two guests share one.
				off, n = off&^511, (n+511)&^511
				var err error
				switch r.IntN(5) {
				case 0:
					err = w.root.WriteZeroes(context.Background(), off, n, 0)
				case 1:
					err = w.root.Flush(context.Background())
				default:
					err = w.root.WriteV(context.Background(), off, graphtest.Vec(bytes.Repeat([]byte{byte(1 + r.IntN(255))}, int(n))), 0)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := w.root.WriteV(t.Context(), 0, graphtest.Vec(make([]byte, 512)), blockgraph.FUA); err != nil {
		t.Fatal(err)
	}
	disk, _ := w.replay(t)
	if !bytes.Equal(disk, w.file.Bytes()) {
		t.Error("the replayed disk differs")
	}
}

// TestSuperblockCountsOnlyWhatIsWritten: a flush waits for the entries before
// it.
func TestSuperblockCountsOnlyWhatIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.Graph.Loop().Stop()
		hold := graphtest.NewHold(graphtest.Write)
		w.log.SetHook(func(r graphtest.Request) error {
			if r.Off == 512 { // the first entry
				return hold.Wait(r)
			}
			return nil
		})
		done := make(chan error, 2)
		go func() {
			done <- w.root.WriteV(context.Background(), 0, graphtest.Vec(bytes.Repeat([]byte{1}, 512)), 0)
		}()
		<-hold.Entered
		if err := w.root.WriteV(context.Background(), 512, graphtest.Vec(bytes.Repeat([]byte{2}, 512)), 0); err != nil {
			t.Error(err)
		}
		go func() { done <- w.root.Flush(context.Background()) }()
		synctest.Wait()
		if b := w.log.Bytes(); len(b) >= 8 && binary.LittleEndian.Uint64(b) != 0 {
			t.Error("the superblock is there already")
		}
		hold.Release()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if disk, entries := w.replay(t); entries != 3 || disk[0] != 1 || disk[512] != 2 {
			t.Error(entries, disk[0], disk[512])
		}
	})
}

func TestLogEndsWithTheFirstError(t *testing.T) {
	w := newWorld(t, nil)
	write := func(off int64) error {
		return w.root.WriteV(t.Context(), off, graphtest.Vec(make([]byte, 512)), 0)
	}
	if err := errors.Join(write(0), w.root.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	w.log.SetHook(graphtest.Failing(1, syscall.ENOSPC, graphtest.Write))
	for range 2 {
		if err := write(512); !errors.Is(err, syscall.ENOSPC) {
			t.Error(err)
		}
	}
	if err := w.root.Flush(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if _, entries := w.replay(t); entries != 2 {
		t.Error(entries)
	}
}

func TestFailedRequestsAreLogged(t *testing.T) {
	w := newWorld(t, nil)
	w.file.SetHook(graphtest.Failing(1, syscall.EIO, graphtest.Write))
	if err := w.root.WriteV(t.Context(), 0, graphtest.Vec(make([]byte, 512)), 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if err := w.root.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if _, entries := w.replay(t); entries != 2 {
		t.Error(entries)
	}
}

func TestRequestsAreWholeSectors(t *testing.T) {
	w := newWorld(t, func(o *qapi.BlockdevOptionsBlklogwrites) { o.LogSectorSize = ptr(uint32(4096)) })
	w.file.Edit(func(b []byte) {
		for i := range b {
			b[i] = 7
		}
	})
	if err := w.root.WriteV(t.Context(), 4095, graphtest.Vec([]byte{1, 2}), blockgraph.FUA); err != nil {
		t.Fatal(err)
	}
	disk, entries := w.replay(t)
	if entries != 2 || !bytes.Equal(disk[:8192], w.file.Bytes()[:8192]) || disk[4095] != 1 || disk[4096] != 2 || disk[0] != 7 {
		t.Error(entries, disk[4094:4098])
	}
}
