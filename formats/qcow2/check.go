package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// The checker counts references to every cluster, as they are on disk, and
// compares them with the refcounts (the field: qemu-img check). It reads only
// and needs an image that nobody writes to.

// checkResult is what a check found.
type checkResult struct {
	corruptions int64
	leaks       int64
	// messages are the first findings, for people.
	messages []string
}

type checker struct {
	ctx      context.Context
	f        storage
	h        *header
	ext      *extensions
	res      checkResult
	counts   references
	tables   map[int64]uint32 // how many L1 entries name an L2 table
	limit    int64            // first cluster that is out of bounds
	table    []uint64
	l1       []uint64
	stored   map[int64][]byte // refcount blocks as on disk, by index, if they count anything
	brokenRC bool             // the refcount structures themselves are unsound

	blockMemory int64 // bytes in stored
	most        int64 // bytes that it may take
}

// check reads the image in f and checks it.
func check(ctx context.Context, f storage) (*checker, error) {
	c, err := newChecker(ctx, f)
	if err == nil {
		err = c.countReferences()
	}
	if err == nil {
		err = c.walkRefcounts()
	}
	if err == nil {
		c.compare()
		err = c.checkCopied()
	}
	return c, err
}

// newChecker returns a checker for the image in f, which has seen its header.
func newChecker(ctx context.Context, f storage) (*checker, error) {
	h, ext, _, err := readHeader(ctx, f)
	if err != nil {
		return nil, err
	}
	c := &checker{ctx: ctx, f: f, h: h, ext: ext, counts: newReferences(), tables: map[int64]uint32{}, stored: map[int64][]byte{}}
	c.limit, c.most = h.clusters(f.Size())+1, maxCheckMemory
	return c, nil
}

// countReferences counts all references but those of the refcount structures.
func (c *checker) countReferences() error {
	h := c.h
	c.ref(0, h.clusterSize, "header")
	l1, err := c.words(int64(h.l1Offset), int64(h.l1Size))
	if err != nil {
		return err
	}
	c.l1 = l1
	c.ref(int64(h.l1Offset), int64(h.l1Size)*l1EntrySize, "active L1 table")
	c.walkL1(l1)
	list, tableSize, err := readSnapshots(c.ctx, c.f, h)
	if err != nil {
		return err
	}
	c.ref(int64(h.snapshotsOffset), tableSize, "snapshot table")
	c.ref(int64(c.ext.crypto.offset), int64(c.ext.crypto.length), "encryption header")
	if h.external && len(list) > 0 {
		c.corruption("%d snapshots in image with data file", len(list))
	}
	for _, s := range list {
		if h.checkTable(s.l1Offset, uint64(s.l1Size), l1EntrySize, maxL1Size, "") != nil || s.l1Offset >= maxHostOffset {
			c.corruption("snapshot '%s' has an L1 table out of bounds", s.name)
			continue
		}
		c.ref(int64(s.l1Offset), int64(s.l1Size)*l1EntrySize, "snapshot L1 table")
		if c.count(int64(s.l1Offset)>>h.clusterBits) > 1 {
			continue // it is used for something else, too, which the comparison tells
		}
		words, err := c.words(int64(s.l1Offset), int64(s.l1Size))
		if err != nil {
			return err
		}
		c.walkL1(words)
		if err := c.room(); err != nil {
			return err
		}
	}
	for off, times := range c.tables {
		if err := c.walkL2(off, times); err != nil {
			return err
		}
	}
	return c.walkBitmaps()
}

func (c *checker) corruption(format string, args ...any) {
	c.res.corruptions++
	if len(c.res.messages) < maxMessages {
		c.res.messages = append(c.res.messages, fmt.Sprintf("ERROR "+format, args...))
	}
}

func (c *checker) leak(format string, args ...any) {
	c.res.leaks++
	if len(c.res.messages) < maxMessages {
		c.res.messages = append(c.res.messages, fmt.Sprintf("Leaked "+format, args...))
	}
}

// ref counts a reference to all clusters of bytes [off, off+n).
func (c *checker) ref(off, n int64, what string) { c.refs(off, n, 1, what) }

// refs counts several of them.
func (c *checker) refs(off, n int64, times uint32, what string) {
	if n <= 0 {
		return
	}
	cb := c.h.clusterBits
	for cl := off >> cb; cl<<cb < off+n; cl++ {
		if cl >= c.limit {
			c.corruption("%s at %#x lies past the end of the file", what, off)
			return
		}
		if c.room() != nil {
			return // who walks tells
		}
		c.counts.add(cl, uint64(times))
	}
}

func (c *checker) count(cluster int64) uint64 { return c.counts.count(cluster) }

// room holds that the checker has not taken more memory than it may.
func (c *checker) room() error {
	if c.counts.memory+c.blockMemory > c.most {
		return syscall.ENOMEM
	}
	return nil
}

// words reads n big-endian words, as far as they lie within the file.
func (c *checker) words(off, n int64) ([]uint64, error) {
	b, err := tableAt(c.ctx, c.f, off, n*8)
	if err != nil {
		return nil, err
	}
	w := make([]uint64, len(b)/8)
	for i := range w {
		w[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return w, nil
}

// walkL1 counts the L2 tables of an L1 table.
func (c *checker) walkL1(l1 []uint64) {
	for _, e := range l1 {
		off, aligned := c.h.judgeL1Entry(e, c.corruption)
		if off == 0 {
			continue
		}
		c.ref(off, c.h.clusterSize, "L2 table")
		if aligned && off>>c.h.clusterBits < c.limit {
			c.tables[off]++
		}
	}
}

// walkL2 counts what an L2 table refers to, which is in use several times when
// snapshots share it. Each table is read once, however many entries of a
// hostile image name it.
func (c *checker) walkL2(off int64, times uint32) error {
	l2, err := c.entries(off)
	if err != nil {
		return err
	}
	for _, e := range l2 {
		off, n := c.h.judgeL2Entry(e, c.corruption)
		c.refs(off, n, times, "data cluster")
	}
	return c.room()
}

// entries reads an L2 table.
func (c *checker) entries(off int64) ([]l2Entry, error) {
	words, err := c.words(off, c.h.clusterSize/8)
	step := 1 << (c.h.l2EntryBits - 3)
	list := make([]l2Entry, 0, len(words)/step)
	for len(words) >= step { // the file may end within an entry
		e := l2Entry{word: words[0]}
		if c.h.extended {
			e.bitmap = words[1]
		}
		list = append(list, e)
		words = words[step:]
	}
	return list, err
}

// walkBitmaps counts what the bitmaps that are in force use.
func (c *checker) walkBitmaps() error {
	b := c.ext.bitmaps
	if !b.present || b.size == 0 {
		return nil
	}
	c.ref(int64(b.offset), int64(b.size), "bitmap directory")
	if int64(b.offset+b.size)>>c.h.clusterBits >= c.limit {
		return nil
	}
	dir := ioengine.Bounce(int(b.size))
	defer dir.Release()
	if err := readAt(c.ctx, c.f, int64(b.offset), dir.Bytes()); err != nil {
		return err
	}
	be := binary.BigEndian
	for p := dir.Bytes(); len(p) >= 24; {
		table, n := int64(be.Uint64(p)), int64(be.Uint32(p[8:]))
		size := (24 + int64(be.Uint16(p[18:])) + int64(be.Uint32(p[20:])) + 7) &^ 7
		if size > int64(len(p)) || n > maxL1Size/8 || table < 0 || table >= maxHostOffset || (table+n*8)>>c.h.clusterBits > c.limit {
			c.corruption("bitmap directory is invalid")
			return nil
		}
		p = p[size:]
		c.ref(table, n*8, "bitmap table")
		if c.count(table>>c.h.clusterBits) > 1 {
			continue // the same, for tables of bitmaps; the count is wrong already
		}
		words, err := c.words(table, n)
		if err != nil {
			return err
		}
		for _, w := range words {
			if off := int64(w & l2OffsetMask); off != 0 {
				c.ref(off, c.h.clusterSize, "bitmap data")
			}
		}
		if err := c.room(); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) walkRefcounts() error {
	h := c.h
	first, n := int64(h.refTableOffset)>>h.clusterBits, int64(h.refTableClusters)
	c.ref(int64(h.refTableOffset), n<<h.clusterBits, "refcount table")
	if first+n > c.limit || first+n > h.clusters(c.f.Size()) {
		c.corruption("refcount table at %#x is outside image", h.refTableOffset)
		c.brokenRC = true
	}
	for cl := first; cl < min(first+n, c.limit); cl++ {
		if c.count(cl) > 1 {
			c.corruption("refcount table at %#x is used for something else, too", h.refTableOffset)
			c.brokenRC = true
			break
		}
	}
	words, err := c.words(int64(h.refTableOffset), n<<h.clusterBits/8)
	if err != nil {
		if c.ctx.Err() != nil {
			return err
		}
		c.corruption("refcount table at %#x cannot be read: %s", h.refTableOffset, blockgraph.Strerror(err))
		c.brokenRC, words = true, nil
	}
	c.table = words
	b := make([]byte, h.clusterSize)
	for i, e := range words {
		off, sound := h.judgeRefTableEntry(int64(i), e, c.f.Size(), c.corruption)
		if !sound {
			c.brokenRC = true
		}
		if off == 0 || !sound {
			continue
		}
		c.ref(off, h.clusterSize, "refcount block")
		if c.count(off>>h.clusterBits) != 1 {
			c.corruption("refcount block %d at %#x is used for something else, too", i, off)
			c.brokenRC = true
			if c.count(off>>h.clusterBits) > 1 {
				continue // each block is read once, however often a hostile table names it
			}
		}
		if err := readAt(c.ctx, c.f, off, b); err != nil {
			if c.ctx.Err() != nil {
				return err
			}
			c.corruption("refcount block %d at %#x cannot be read: %s", i, off, blockgraph.Strerror(err))
			c.brokenRC = true
			continue
		}
		if len(bytes.TrimLeft(b, "\x00")) == 0 {
			continue
		}
		c.stored[int64(i)] = b
		c.blockMemory += h.clusterSize
		if err := c.room(); err != nil {
			return err
		}
		b = make([]byte, h.clusterSize)
	}
	return c.room()
}

// storedCount returns the refcount on disk.
func (c *checker) storedCount(cluster int64) uint64 {
	b := c.stored[cluster>>c.h.refBlockBits]
	if b == nil {
		return 0
	}
	return refAt(b, c.h.refcountOrder, cluster&(1<<c.h.refBlockBits-1))
}

func (c *checker) compare() {
	c.mismatches(func(cluster int64, stored, counted uint64) {
		if stored < counted {
			c.corruption("cluster %d refcount=%d reference=%d", cluster, stored, counted)
		} else {
			c.leak("cluster %d refcount=%d reference=%d", cluster, stored, counted)
		}
	})
}

// mismatches calls f for every cluster whose refcount on disk is not the
// number of references.
func (c *checker) mismatches(f func(cluster int64, stored, counted uint64)) {
	bits := c.h.refBlockBits
	for i := range c.stored {
		for k := range int64(1) << bits {
			cl := i<<bits + k
			if s, n := c.storedCount(cl), c.count(cl); s != n {
				f(cl, s, n)
			}
		}
	}
	c.counts.each(func(cl int64, n uint64) {
		if c.stored[cl>>bits] == nil {
			f(cl, 0, n)
		}
	})
}

// checkCopied compares the copied flags of the active tables with the
// refcounts on disk.
func (c *checker) checkCopied() error {
	return c.wrongFlags(func(table, entry int64, old uint64) {
		c.corruption("copied flag is wrong: L1 index %d, L2 index %d, entry %#x", table, entry, old)
	}, c.storedCount)
}

// wrongFlags calls f for each entry of the active tables whose copied flag
// does not fit the count; entry is -1 for the L1 entry itself.
func (c *checker) wrongFlags(f func(table, entry int64, old uint64), count func(cluster int64) uint64) error {
	cb := c.h.clusterBits
	wrong := func(e uint64) bool {
		return (count(int64(e&l2OffsetMask)>>cb) == 1) != (e&flagCopied != 0)
	}
	wrongEntry := func(e l2Entry) bool {
		if c.h.external {
			return e.word&flagCopied == 0 // only this image has the data file
		}
		return wrong(e.word)
	}
	seen := make(map[int64]bool, len(c.tables))
	for i, e := range c.l1 {
		off := int64(e & l1OffsetMask)
		if off == 0 || off&(c.h.clusterSize-1) != 0 || off>>cb >= c.limit {
			continue
		}
		if wrong(e) {
			f(int64(i), -1, e)
		}
		if seen[off] {
			continue
		}
		seen[off] = true
		l2, err := c.entries(off)
		if err != nil {
			return err
		}
		for j, e := range l2 {
			if c.h.hasPlace(e) && wrongEntry(e) {
				f(int64(i), int64(j), e.word)
			}
		}
	}
	return nil
}
