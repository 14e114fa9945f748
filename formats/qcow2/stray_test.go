package qcow2

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// TestAPlaceBetweenClusters: an entry whose place is not one of the file's clusters is a
// corruption for who reads and writes there; who gives it up goes on without it.
func TestAPlaceBetweenClusters(t *testing.T) {
	const cs, place = 64 << 10, 0x50200
	const read = "fatal: Cluster allocation offset 0x50200 unaligned (L2 offset: "
	const freed = "Cannot free unaligned cluster 0x50200"
	write := func(d *Driver) error { return d.WriteV(ctxb, 512, blockgraph.MakeIOVec(fill(1, 512)), 0) }
	for _, c := range []struct {
		name string
		word uint64
		opts []imageOption
		keep bool
		run  func(d *Driver) error
		want string // "": nothing is reported
		// after is the entry then.
		after l2Entry
	}{
		{name: "read", word: flagCopied | place, want: read, run: func(d *Driver) error {
			return d.ReadV(ctxb, 0, blockgraph.MakeIOVec(make([]byte, 512)), 0)
		}},
		{name: "write", word: flagCopied | place, run: write, want: "fatal: Data cluster offset 0x50200 unaligned (guest offset: 0x200)"},
		{name: "write over zeroes", word: flagCopied | place | flagZero, run: write, want: "fatal: Preallocated zero cluster offset 0x50200 unaligned (guest offset: 0x200)"},
		{name: "write with subclusters", word: flagCopied | place, opts: []imageOption{extended}, run: write, want: "fatal: Data cluster offset 0x50200 unaligned (guest offset: 0x200)"},
		{name: "write to a shared one", word: place, run: write, want: read},
		{name: "discard", word: flagCopied | place, want: freed, run: func(d *Driver) error { return d.Discard(ctxb, 0, cs) }, after: l2Entry{word: flagZero}},
		{name: "discard of zeroes", word: flagCopied | place | flagZero, want: freed, run: func(d *Driver) error { return d.Discard(ctxb, 0, cs) }, after: l2Entry{word: flagZero}},
		{name: "discard with subclusters", word: flagCopied | place, opts: []imageOption{extended}, want: freed, run: func(d *Driver) error { return d.Discard(ctxb, 0, cs) }, after: l2Entry{bitmap: allZero}},
		{name: "discard that keeps the place", word: flagCopied | place, keep: true, want: "Cannot discard unaligned cluster 0x50200", run: func(d *Driver) error { return d.Discard(ctxb, 0, cs) }, after: l2Entry{word: flagCopied | place | flagZero}},
		{name: "zeroes", word: flagCopied | place, run: func(d *Driver) error { return d.WriteZeroes(ctxb, 0, cs, 0) }, after: l2Entry{word: flagCopied | place | flagZero}},
		{name: "zeroes, unmapped", word: flagCopied | place, want: freed, run: func(d *Driver) error { return d.WriteZeroes(ctxb, 0, cs, blockgraph.MayUnmap) }, after: l2Entry{word: flagZero}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newImage(t, 1<<20, c.opts...)
			d := openImage(t, f, nil)
			put(t, d, cs, fill(1, cs))
			table := int64(d.l1.Load().entries[0].Load() & l1OffsetMask)
			closeImage(t, d)
			binary.BigEndian.PutUint64(f.b[table:], c.word)
			if len(c.opts) > 0 {
				binary.BigEndian.PutUint64(f.b[table+8:], allAllocated)
			}
			d = openWith(t, f, nil, &qapi.BlockdevOptionsQcow2{DiscardNoUnref: &c.keep})
			var msgs []string
			d.OnCorruption(func(msg string, _, _ int64, fatal bool) {
				if fatal {
					msg = "fatal: " + msg
				}
				msgs = append(msgs, msg)
			})
			fatal := strings.HasPrefix(c.want, "fatal")
			if err := c.run(d); fatal != (err != nil) || fatal && !errors.Is(err, syscall.EIO) {
				t.Error(err)
			}
			if c.want == "" && msgs != nil || c.want != "" && (len(msgs) != 1 || !strings.HasPrefix(msgs[0], c.want)) {
				t.Errorf("%q", msgs)
			}
			if !fatal {
				if got := d.l1.Load().peek(0, 0).load(0); got != c.after {
					t.Errorf("the entry is %#x, not %#x", got, c.after)
				}
				if !slices.Equal(get(t, d, cs, cs), fill(1, cs)) {
					t.Error("its neighbour has changed")
				}
			}
			closeImage(t, d)
			// What was given up, and was not in use, has left no trace.
			if c.after == (l2Entry{word: flagZero}) {
				mustCheck(t, f, true)
			}
		})
	}
}
