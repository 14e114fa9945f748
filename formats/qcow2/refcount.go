package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"blockd/ioengine"
)

// Refcounts (specification: "Host cluster management"). Refcount blocks are
// kept as they are on disk, so that any width from 1 to 64 bits works, and
// changed in memory only; writeback.go brings them to disk before anything
// that refers to the clusters that they count.

const (
	refTableMask = 0xfffffffffffffe00 // offset bits of a refcount table entry
	// minRefBlocks is the least number of refcount blocks in the cache.
	minRefBlocks = 4
	// minRefCache is the least size of that cache in bytes.
	minRefCache = 256 << 10
	// lookBack is how many free clusters are worth a new search for runs.
	lookBack = 256
)

// refcounts is guarded by Driver.mu.
type refcounts struct {
	order     uint32 // log2 of the width in bits
	blockBits uint32 // log2 of the entries of a block

	table       []uint64 // offsets of blocks; 0: all counts are 0
	tableOffset int64    // bytes
	tableDirty  pieces
	// damaged says what is wrong with the table as a whole, or "".
	damaged string
	// moved: the table has a new place, of which the header does not know yet.
	moved bool

	blocks   map[int64]*refBlock
	ring     []*refBlock // for the clock that evicts
	hand     int
	capacity int // blocks
	loading  map[int64]*loading
	dirty    map[*refBlock]struct{}

	// hint is where to look for one free cluster and for several.
	hint [2]int64
	// passed counts the clusters that became free before hint[1], passedFrom is
	// the first of them; when they are many the search goes back.
	passed     int64
	passedFrom int64
	// wrapped: the search that is going on has begun anew at 0.
	wrapped bool
	// untouched is the first cluster that nobody ever wrote: from there on the
	// file reads as zeroes, if what is new in it does.
	untouched int64
}

// refBlock is one refcount block in memory.
type refBlock struct {
	index int64
	off   int64 // bytes in the file
	data  []byte
	free  int // entries that are 0
	dirty pieces
	fresh bool // not yet in the table on disk
	used  bool // since the clock's hand passed
}

// missingBlock is the error of an operation under the lock that needs a
// refcount block in memory; see Driver.fetch.
type missingBlock int64

func (m missingBlock) Error() string {
	return fmt.Sprintf("refcount block %d is not in memory", int64(m))
}

// loading is a table being read; done is closed when it is over.
type loading struct {
	done chan struct{}
	err  error
}

// refAt returns entry i of a block with counts of 1<<order bits.
func refAt(b []byte, order uint32, i int64) uint64 {
	switch order {
	case 0:
		return uint64(b[i/8]>>(i%8)) & 1
	case 1:
		return uint64(b[i/4]>>(2*(i%4))) & 3
	case 2:
		return uint64(b[i/2]>>(4*(i%2))) & 15
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[2*i:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[4*i:]))
	default:
		return binary.BigEndian.Uint64(b[8*i:])
	}
}

// setRefAt changes entry i; v must fit.
func setRefAt(b []byte, order uint32, i int64, v uint64) {
	switch order {
	case 0:
		b[i/8] = b[i/8]&^(1<<(i%8)) | byte(v)<<(i%8)
	case 1:
		b[i/4] = b[i/4]&^(3<<(2*(i%4))) | byte(v)<<(2*(i%4))
	case 2:
		b[i/2] = b[i/2]&^(15<<(4*(i%2))) | byte(v)<<(4*(i%2))
	case 3:
		b[i] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(b[2*i:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(b[4*i:], uint32(v))
	default:
		binary.BigEndian.PutUint64(b[8*i:], v)
	}
}

// maxRef is the largest count that fits.
func maxRef(order uint32) uint64 {
	if order == 6 {
		return 1<<64 - 1
	}
	return 1<<(1<<order) - 1
}

// refBlockAt returns the block at an index, nil when all its counts are 0, or
// a missingBlock error. Driver.mu is held.
func (d *Driver) refBlockAt(index int64) (*refBlock, error) {
	r := &d.refs
	if index >= int64(len(r.table)) || r.table[index] == 0 {
		return nil, nil
	}
	if b := r.blocks[index]; b != nil {
		b.used = true
		d.counted.refHits.Add(1)
		return b, nil
	}
	return nil, missingBlock(index)
}

// refcount returns the count of a cluster. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) refcount(cluster int64) (uint64, error) {
	b, err := d.refBlockAt(cluster >> d.refs.blockBits)
	if b == nil || err != nil {
		return 0, err
	}
	return refAt(b.data, d.refs.order, cluster&(1<<d.refs.blockBits-1)), nil
}

// setRef changes a count in a block. Driver.mu is held.
func (d *Driver) setRef(b *refBlock, i int64, v uint64) {
	r := &d.refs
	old := refAt(b.data, r.order, i)
	if old == v {
		return
	}
	if old == 0 {
		b.free--
	} else if v == 0 {
		b.free++
	}
	setRefAt(b.data, r.order, i, v)
	d.countChanged(b, i, old, v)
	bit := i << r.order
	b.dirty.add(bit/8, bit/8+1)
	r.dirty[b] = struct{}{}
}

// dropRef takes one reference from a cluster, and returns how many are left.
// Driver.mu is held.
func (d *Driver) dropRef(cluster int64) (uint64, error) {
	r := &d.refs
	b, err := d.refBlockAt(cluster >> r.blockBits)
	if err != nil {
		return 0, err
	}
	i := cluster & (1<<r.blockBits - 1)
	if b == nil || refAt(b.data, r.order, i) == 0 {
		d.corrupt(false, cluster<<d.h.clusterBits, d.h.clusterSize, "Refcount of cluster %#x is 0, but it was in use", cluster<<d.h.clusterBits)
		return 0, nil
	}
	v := refAt(b.data, r.order, i) - 1
	d.setRef(b, i, v)
	if v == 0 {
		d.becameFree(cluster)
	}
	return v, nil
}

// becameFree lets a cluster be found whose count has fallen to 0. Driver.mu is
// held.
func (d *Driver) becameFree(cluster int64) {
	r := &d.refs
	if d.packAt>>d.h.clusterBits == cluster {
		d.packAt = 0
	}
	r.hint[0] = min(r.hint[0], cluster)
	if cluster < r.hint[1] {
		if r.passed++; r.passed == 1 {
			r.passedFrom = cluster
		}
		r.passedFrom = min(r.passedFrom, cluster)
		if r.passed >= lookBack {
			r.hint[1], r.passed = r.passedFrom, 0
		}
	}
}

// loadRefBlock brings a refcount block into memory.
func (d *Driver) loadRefBlock(ctx context.Context, index int64) error {
	r := &d.refs
	d.mu.Lock()
	if l := r.loading[index]; l != nil {
		d.mu.Unlock()
		return waitLoading(ctx, l)
	}
	if index >= int64(len(r.table)) || r.table[index] == 0 || r.blocks[index] != nil {
		d.mu.Unlock()
		return nil
	}
	off := int64(r.table[index] & refTableMask)
	l := &loading{done: make(chan struct{})}
	r.loading[index] = l
	d.mu.Unlock()

	b := &refBlock{index: index, off: off, used: true}
	err := d.readRefBlock(ctx, b)

	d.mu.Lock()
	delete(r.loading, index)
	if err == nil {
		d.evictRefBlocks()
		r.blocks[index] = b
		r.ring = append(r.ring, b)
	}
	l.err = err
	d.mu.Unlock()
	close(l.done)
	return err
}

func (d *Driver) readRefBlock(ctx context.Context, b *refBlock) error {
	if b.off&(d.h.clusterSize-1) != 0 || uint64(b.off) >= maxHostOffset {
		return d.corrupt(true, -1, -1, "Refblock offset %#x unaligned (reftable index: %#x)", b.off, b.index)
	}
	d.counted.refMisses.Add(1)
	b.data = make([]byte, d.h.clusterSize)
	f := d.file()
	f.DebugEvent("refblock_load")
	// Data goes through an aligned buffer, for storage that bypasses the cache.
	buf := ioengine.Bounce(len(b.data))
	defer buf.Release()
	if err := readAt(ctx, f, b.off, buf.Bytes()); err != nil {
		return err
	}
	copy(b.data, buf.Bytes())
	b.free = countFree(b.data, d.refs.order, d.refs.blockBits)
	return nil
}

func countFree(data []byte, order, blockBits uint32) int {
	n := 0
	for i := int64(0); i < 1<<blockBits; i++ {
		if refAt(data, order, i) == 0 {
			n++
		}
	}
	return n
}

// evictRefBlocks makes room for one more block if clean ones can be had.
// Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) evictRefBlocks() {
	r := &d.refs
	for tries := 2 * len(r.ring); len(r.ring) >= r.capacity && tries > 0; tries-- {
		if r.hand >= len(r.ring) {
			r.hand = 0
		}
		b := r.ring[r.hand]
		if _, dirty := r.dirty[b]; dirty || b.fresh || b.used || d.busyWriting(nil, b) {
			b.used = false
			r.hand++
			continue
		}
		delete(r.blocks, b.index)
		r.ring[r.hand] = r.ring[len(r.ring)-1]
		r.ring = r.ring[:len(r.ring)-1]
	}
}

// newRefBlock makes an empty block in memory for an index, at a free cluster,
// whose count becomes 1. Driver.mu is held.
func (d *Driver) newRefBlock(index, cluster int64) *refBlock {
	r := &d.refs
	b := &refBlock{index: index, off: cluster << d.h.clusterBits, data: make([]byte, d.h.clusterSize), free: 1 << r.blockBits, fresh: true, used: true}
	b.dirty.add(0, d.h.clusterSize)
	r.dirty[b] = struct{}{}
	r.blocks[index] = b
	r.ring = append(r.ring, b)
	d.blockChanged(index, r.table[index], uint64(b.off))
	r.table[index] = uint64(b.off)
	r.tableDirty.add(index*8, index*8+8)
	d.meta.add(cluster, kindRefBlock)
	if home := r.blocks[cluster>>r.blockBits]; home != nil {
		d.setRef(home, cluster&(1<<r.blockBits-1), 1)
	}
	r.untouched = max(r.untouched, cluster+1)
	return b
}

// refTableGrowth is a larger place for the refcount table: clusters from first on,
// and behind them blocks for as many refcount blocks, which count all of that.
type refTableGrowth struct{ first, clusters, blocks, entries int64 }

// planRefTable finds a larger place for the refcount table, just behind what it
// covers so far, which is free and which nobody else can take. Driver.mu is held.
func (d *Driver) planRefTable() (refTableGrowth, error) {
	old := int64(len(d.refs.table))
	perBlock := int64(1) << d.refs.blockBits
	perCluster := d.h.clusterSize / 8
	g := refTableGrowth{first: old << d.refs.blockBits}
	for g.entries = max(old*3/2, old+2); ; g.entries += g.blocks {
		g.entries = (g.entries + perCluster - 1) / perCluster * perCluster
		g.clusters = g.entries / perCluster
		g.blocks = (g.clusters + perBlock - 2) / (perBlock - 1)
		if old+g.blocks < g.entries {
			break
		}
	}
	if g.entries > maxRefTableSize/8 {
		if old >= maxRefTableSize/8-g.blocks-1 {
			return g, syscall.EFBIG
		}
		g.entries = maxRefTableSize / 8
		g.clusters = g.entries / perCluster
		g.blocks = (g.clusters + perBlock - 2) / (perBlock - 1)
	}
	if err := d.checkLimit(g.first + g.clusters + g.blocks); err != nil {
		return g, err
	}
	return g, d.checkUnclaimed(g.first, g.clusters+g.blocks, forOther)
}

// moveRefTable gives the table its larger place, where there is room. The blocks
// that count it are made at once. Driver.mu is held.
func (d *Driver) moveRefTable(g refTableGrowth) {
	r := &d.refs
	old := int64(len(r.table))
	perBlock := int64(1) << r.blockBits
	oldOffset, oldClusters := r.tableOffset, old/(d.h.clusterSize/8)
	r.table = append(r.table, make([]uint64, g.entries-old)...)
	for i := range g.blocks {
		d.newRefBlock(old+i, g.first+g.clusters+i)
	}
	end := g.first + g.clusters + g.blocks
	for c := g.first; c < end; c++ {
		d.setRef(r.blocks[c>>r.blockBits], c&(perBlock-1), 1)
	}
	r.untouched = max(r.untouched, end)
	r.tableOffset = g.first << d.h.clusterBits
	r.moved = true
	d.meta.setPlaces(kindRefTable, place{r.tableOffset, r.tableOffset + g.entries*8, kindRefTable})
	d.free(oldOffset>>d.h.clusterBits, oldClusters, discardOther)
}

func waitLoading(ctx context.Context, l *loading) error {
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetch loads or makes what an operation under the lock found missing, or waits for
// space that is reserved; the operation is then tried again. Any other error is
// returned.
func (d *Driver) fetch(ctx context.Context, err error) error {
	switch m := err.(type) {
	case missingBlock:
		return d.loadRefBlock(ctx, int64(m))
	case missingSlice:
		_, err := d.loadSlice(ctx, m.table, m.index)
		return err
	case missingTable:
		return d.makeTable(ctx, int64(m))
	case missingCounts:
		return d.makeRefBlock(ctx, m.index, m.at)
	case shortRefTable:
		return d.growRefTable(ctx, int(m))
	case *reservation:
		return m.wait(ctx)
	}
	return err
}
