package qcow2

import (
	"context"
	"encoding/binary"
	"math/bits"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

const defaultClusterSize = 64 << 10

// Create writes a new image into file, which is empty or is overwritten from
// its beginning on. Errors are the field's texts. On a worker.
//
//blockd:blocking
func Create(ctx context.Context, file *blockgraph.Edge, o *qapi.BlockdevCreateOptionsQcow2) error {
	return create(ctx, edge{file}, o)
}

// creation is what create options come to.
type creation struct {
	version     uint32
	clusterBits uint32
	order       uint32 // log2 of the refcount bits
	lazy        bool
	compression uint8
	prealloc    qapi.PreallocMode
}

func checkCreate(o *qapi.BlockdevCreateOptionsQcow2) (*creation, error) {
	bad := func(format string, args ...any) (*creation, error) {
		return nil, blockgraph.Errorf(syscall.EINVAL, format, args...)
	}
	c := &creation{version: 3, order: 4, lazy: is(o.LazyRefcounts, false), prealloc: qapi.PreallocModeOff}
	if o.Size%sector != 0 {
		return bad("Image size must be a multiple of %d bytes", sector)
	}
	if o.Version != nil && *o.Version == qapi.BlockdevQcow2VersionV2 {
		c.version = 2
	}
	cluster := uint64(defaultClusterSize)
	if o.ClusterSize != nil {
		cluster = *o.ClusterSize
	}
	if cluster < 1<<minClusterBits || cluster > 1<<maxClusterBits || !isPowerOfTwo(cluster) {
		return bad("Cluster size must be a power of two between %d and %dk", 1<<minClusterBits, 1<<(maxClusterBits-10))
	}
	c.clusterBits = uint32(bits.TrailingZeros64(cluster))
	if o.Preallocation != nil {
		c.prealloc = *o.Preallocation
	}
	if o.BackingFile != nil && c.prealloc != qapi.PreallocModeOff {
		return bad("Backing file and preallocation can only be used at the same time if extended_l2 is on")
	}
	if o.BackingFmt != nil && o.BackingFile == nil {
		return bad("Backing format cannot be used without backing file")
	}
	if c.version < 3 && c.lazy {
		return bad("Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)")
	}
	if o.RefcountBits != nil {
		n := *o.RefcountBits
		if n < 1 || n > 64 || !isPowerOfTwo(uint64(n)) {
			return bad("Refcount width must be a power of two and may not exceed 64 bits")
		}
		if c.version < 3 && n != 16 {
			return bad("Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)")
		}
		c.order = uint32(bits.TrailingZeros64(uint64(n)))
	}
	if o.CompressionType != nil && *o.CompressionType == qapi.Qcow2CompressionTypeZstd {
		if c.version < 3 {
			return bad("Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)")
		}
		c.compression = compressionZstd
	}
	return c, nil
}

//blockd:blocking
func create(ctx context.Context, f storage, o *qapi.BlockdevCreateOptionsQcow2) error {
	c, err := checkCreate(o)
	if err != nil {
		return err
	}
	cs := int64(1) << c.clusterBits
	// An old image's tables must not come to life when a crash cuts us off.
	head := make([]byte, cs)
	if err := writeAt(ctx, f, 0, head[:sector]); err != nil {
		return headerError("Could not write qcow2 header", err)
	}
	if err := f.Flush(ctx); err != nil {
		return headerError("Could not write qcow2 header", err)
	}
	h, err := c.layOut(ctx, f, int64(o.Size))
	if err != nil {
		return err
	}
	ext := &extensions{features: ourFeatures()}
	if c.version < 3 {
		ext.features = nil
	}
	h.encode(head)
	copy(head[h.length:], ext.encode(int64(h.length)+int64(len(ext.encode(true))) <= sector))
	if err := f.Flush(ctx); err != nil {
		return headerError("Could not write refcount table", err)
	}
	if err := writeAt(ctx, f, 0, head); err != nil {
		return headerError("Could not write qcow2 header", err)
	}
	if err := f.Flush(ctx); err != nil {
		return headerError("Could not write qcow2 header", err)
	}
	if o.BackingFile == nil && c.prealloc == qapi.PreallocModeOff {
		return nil
	}
	d, err := open(ctx, loneFile{f}, &qapi.BlockdevOptions{}, false)
	if err != nil {
		return err
	}
	if o.BackingFile != nil {
		format := ""
		if o.BackingFmt != nil {
			format = string(*o.BackingFmt)
		}
		if err := d.ChangeBackingFile(ctx, *o.BackingFile, format); err != nil {
			_ = d.Close(ctx)
			if format == "" {
				format = "(null)"
			}
			return headerError("Could not assign backing file '"+*o.BackingFile+"' with format '"+format+"'", err)
		}
	}
	if c.prealloc != qapi.PreallocModeOff {
		if err := d.preallocate(ctx, 0, int64(o.Size), c.prealloc); err != nil {
			_ = d.Close(ctx)
			return blockgraph.Errorf(blockgraph.Errno(err), "Could not resize image: %s", err)
		}
	}
	return d.Close(ctx)
}

func headerError(what string, err error) error {
	return blockgraph.Errorf(blockgraph.Errno(err), "%s: %s", what, blockgraph.Strerror(err))
}

// loneFile is an image without a graph around it.
type loneFile struct{ f storage }

func (l loneFile) file() storage          { return l.f }
func (l loneFile) node() *blockgraph.Node { return nil }
func (l loneFile) backing() storage       { return nil }

// layOut writes the refcount table, refcount blocks and L1 table of an empty
// image: header, refcount table, refcount blocks, L1 table.
func (c *creation) layOut(ctx context.Context, f storage, size int64) (*header, error) {
	h := &header{version: c.version, clusterBits: c.clusterBits, clusterSize: 1 << c.clusterBits, size: uint64(size), refcountOrder: c.order, compression: c.compression, length: v2HeaderLength}
	if c.version >= 3 {
		h.length = ourHeader
		if c.lazy {
			h.compatible |= compatLazyRefcounts
		}
		if c.compression != compressionZlib {
			h.incompatible |= incompatCompression
		}
	}
	h.setGeometry()
	l1 := h.l1Entries(h.size)
	if size < 0 || l1 > maxL1Size/l1EntrySize {
		return nil, blockgraph.Errorf(syscall.EFBIG, "Could not resize image: Failed to grow the L1 table: File too large")
	}
	l1Clusters := h.clusters(int64(l1) * l1EntrySize)
	table, blocks := int64(1), int64(1)
	total := int64(0)
	for {
		total = 1 + table + blocks + l1Clusters
		b := (total + 1<<h.refBlockBits - 1) >> h.refBlockBits
		t := h.clusters(b * 8)
		if b <= blocks && t <= table {
			break
		}
		blocks, table = max(b, blocks), max(t, table)
	}
	h.refTableOffset, h.refTableClusters = uint64(h.clusterSize), uint32(table)
	blocksAt := (1 + table) << h.clusterBits
	h.l1Offset, h.l1Size = uint64(blocksAt+blocks<<h.clusterBits), uint32(l1)

	words := make([]byte, table<<h.clusterBits)
	for i := range blocks {
		binary.BigEndian.PutUint64(words[i*8:], uint64(blocksAt+i<<h.clusterBits))
	}
	if err := writeAt(ctx, f, h.clusterSize, words); err != nil {
		return nil, headerError("Could not write refcount table", err)
	}
	block := make([]byte, h.clusterSize)
	for i := range blocks {
		clear(block)
		first := i << h.refBlockBits
		for k := first; k < min(total, first+1<<h.refBlockBits); k++ {
			setRefAt(block, h.refcountOrder, k-first, 1)
		}
		if err := writeAt(ctx, f, blocksAt+i<<h.clusterBits, block); err != nil {
			return nil, headerError("Could not write refcount table", err)
		}
	}
	zero := make([]byte, min(l1Clusters<<h.clusterBits, 1<<20))
	for off := int64(0); off < l1Clusters<<h.clusterBits; off += int64(len(zero)) {
		n := min(int64(len(zero)), l1Clusters<<h.clusterBits-off)
		if err := writeAt(ctx, f, int64(h.l1Offset)+off, zero[:n]); err != nil {
			return nil, headerError("Could not resize image: Failed to grow the L1 table", err)
		}
	}
	return h, nil
}

// encode writes the fixed fields to b.
func (h *header) encode(b []byte) {
	be := binary.BigEndian
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], h.version)
	be.PutUint32(b[20:], h.clusterBits)
	be.PutUint64(b[fieldSize:], h.size)
	be.PutUint32(b[fieldL1Size:], h.l1Size)
	be.PutUint64(b[fieldL1Offset:], h.l1Offset)
	be.PutUint64(b[fieldRefTableOffset:], h.refTableOffset)
	be.PutUint32(b[fieldRefTableSize:], h.refTableClusters)
	if h.version < 3 {
		return
	}
	be.PutUint64(b[fieldIncompatible:], h.incompatible)
	be.PutUint64(b[80:], h.compatible)
	be.PutUint32(b[96:], h.refcountOrder)
	be.PutUint32(b[100:], h.length)
	b[104] = h.compression
}
