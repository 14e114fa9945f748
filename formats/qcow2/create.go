package qcow2

import (
	"context"
	"encoding/binary"
	"math/bits"
	"syscall"

	"blockd/blockgraph"
	"blockd/formats/luks"
	"blockd/qapi"
)

const defaultClusterSize = 64 << 10

// Files are what a new image is written into.
type Files struct {
	File *blockgraph.Edge
	// Data is the external data file, or nil, and DataName its name for the
	// image's header.
	Data     *blockgraph.Edge
	DataName string
	// Keys has the secrets of an image that is to be encrypted.
	Keys luks.Config
}

// Create writes a new image into a file, which is empty or is overwritten from
// its beginning on. Errors are the field's texts. On a worker.
//
//blockd:blocking
func Create(ctx context.Context, files Files, o *qapi.BlockdevCreateOptionsQcow2) error {
	l := loneFile{f: edge{files.File}, dataName: files.DataName, keys: files.Keys}
	if files.Data != nil {
		l.external = edge{files.Data}
	}
	return l.create(ctx, o)
}

// creation is what create options come to.
type creation struct {
	version     uint32
	clusterBits uint32
	order       uint32 // log2 of the refcount bits
	lazy        bool
	compression uint8
	prealloc    qapi.PreallocMode
	external    bool
	raw         bool
	extended    bool
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
	if c.extended = is(o.ExtendedL2, false); c.extended && c.version < 3 {
		return bad("Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)")
	}
	if cluster < 1<<minClusterBits || cluster > 1<<maxClusterBits || !isPowerOfTwo(cluster) {
		return bad("Cluster size must be a power of two between %d and %dk", 1<<minClusterBits, 1<<(maxClusterBits-10))
	}
	c.clusterBits = uint32(bits.TrailingZeros64(cluster))
	if c.extended && c.clusterBits < minExtendedClusterBits {
		return bad("Extended L2 entries are only supported with cluster sizes of at least %d bytes", 1<<minExtendedClusterBits)
	}
	if o.Preallocation != nil {
		c.prealloc = *o.Preallocation
	}
	if o.BackingFile != nil && c.prealloc != qapi.PreallocModeOff && !c.extended {
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
			return bad("Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)")
		}
		c.order = uint32(bits.TrailingZeros64(uint64(n)))
	}
	c.external, c.raw = o.DataFile != nil, is(o.DataFileRaw, false)
	switch {
	case c.raw && !c.external:
		return bad("data-file-raw requires data-file")
	case c.raw && o.BackingFile != nil:
		return bad("Backing file and data-file-raw cannot be used at the same time")
	case c.raw && o.Encrypt != nil:
		return bad("Encryption and data-file-raw cannot be used at the same time")
	case c.external && c.version < 3:
		return bad("External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)")
	case c.raw && c.prealloc == qapi.PreallocModeOff:
		c.prealloc = qapi.PreallocModeMetadata // the mapping says what the data file does
	}
	if o.CompressionType != nil && *o.CompressionType == qapi.Qcow2CompressionTypeZstd {
		if c.version < 3 {
			return bad("Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)")
		}
		c.compression = compressionZstd
	}
	return c, nil
}

// create makes an image in one file.
//
//blockd:blocking
func (l loneFile) create(ctx context.Context, o *qapi.BlockdevCreateOptionsQcow2) error {
	f := l.f
	c, err := checkCreate(o)
	if err != nil {
		return err
	}
	h, ext, err := l.begin(ctx, c, o)
	if err != nil {
		return err
	}
	cs := h.clusterSize
	head := make([]byte, cs)
	h.encode(head)
	area := ext.encode(int64(h.length)+int64(len(ext.encode(true))) <= sector)
	if int64(h.length)+int64(len(area)) > cs {
		return headerError("Could not update qcow2 header", syscall.ENOSPC)
	}
	copy(head[h.length:], area)
	if err := f.Flush(ctx); err != nil {
		return headerError("Could not write refcount table", err)
	}
	if err := writeAt(ctx, f, 0, head); err != nil {
		return headerError("Could not write qcow2 header", err)
	}
	if err := f.Flush(ctx); err != nil {
		return headerError("Could not write qcow2 header", err)
	}
	if o.BackingFile == nil && c.prealloc == qapi.PreallocModeOff && !c.external {
		return nil
	}
	d, err := open(ctx, l, &qapi.BlockdevOptions{}, false)
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
	if err := d.fillNew(ctx, int64(o.Size), c.prealloc); err != nil {
		_ = d.Close(ctx)
		return blockgraph.Errorf(blockgraph.Errno(err), "Could not resize image: %s", err)
	}
	return d.Close(ctx)
}

// begin lays an image out, all but its header, and makes its key. Options are
// checked before anything is written.
//
//blockd:blocking
func (l *loneFile) begin(ctx context.Context, c *creation, o *qapi.BlockdevCreateOptionsQcow2) (h *header, ext *extensions, err error) {
	ext = &extensions{features: ourFeatures(), dataFile: l.dataName}
	if c.version < 3 {
		ext.features = nil
	}
	switch {
	case o.Encrypt == nil:
		h, err = c.layOut(ctx, l.f, int64(o.Size), 0)
	case o.Encrypt.LUKS == nil:
		if l.crypt, err = openAES(o.Encrypt.QCow.KeySecret, l.keys); err != nil {
			return nil, nil, err
		}
		if h, err = c.layOut(ctx, l.f, int64(o.Size), 0); err == nil {
			h.cryptMethod = cryptAES
		}
	default:
		v, err := luks.Create(ctx, o.Encrypt.LUKS, "encrypt.", l.keys, func(n int64) (luks.Store, error) {
			if h, err = c.layOut(ctx, l.f, int64(o.Size), n); err != nil {
				return nil, err
			}
			h.cryptMethod = cryptLUKS
			ext.setCrypto(h.behindL1(), n)
			return cryptStore{l.file, ext.crypto}, nil
		})
		if err != nil {
			return nil, nil, err
		}
		l.crypt = &encryption{v.Cipher, v, ext.crypto}
	}
	return h, ext, err
}

// fillNew gives a new image its data file's length and what is preallocated.
func (d *Driver) fillNew(ctx context.Context, size int64, mode qapi.PreallocMode) error {
	stale := int64(0)
	if d.h.external {
		stale = d.dataFile().Size()
		if err := d.resizeData(ctx, size, false, mode == qapi.PreallocModeOff, mode); err != nil {
			return err
		}
	}
	if mode == qapi.PreallocModeOff {
		return nil
	}
	return d.preallocate(ctx, 0, size, stale, mode)
}

func headerError(what string, err error) error {
	return blockgraph.Errorf(blockgraph.Errno(err), "%s: %s", what, blockgraph.Strerror(err))
}

// loneFile is an image without a graph around it.
type loneFile struct {
	f        storage
	external storage // data file, or nil
	dataName string
	keys     luks.Config
	crypt    *encryption // of the image that is being made
}

func (l loneFile) openCrypt(context.Context, *header, *extensions, *qapi.BlockdevOptions) (*encryption, error) {
	return l.crypt, nil
}

func (l loneFile) file() storage          { return l.f }
func (l loneFile) node() *blockgraph.Node { return nil }
func (l loneFile) backing() storage       { return nil }
func (l loneFile) data() storage          { return l.external }

// layOut writes the refcount table, refcount blocks and L1 table of an empty
// image: header, refcount table, refcount blocks, L1 table, and room for a LUKS
// header of luksSize bytes.
func (c *creation) layOut(ctx context.Context, f storage, size, luksSize int64) (*header, error) {
	// An old image's tables must not come to life when a crash cuts us off.
	if err := writeAt(ctx, f, 0, make([]byte, sector)); err != nil {
		return nil, headerError("Could not write qcow2 header", err)
	}
	if err := f.Flush(ctx); err != nil {
		return nil, headerError("Could not write qcow2 header", err)
	}
	h := &header{version: c.version, clusterBits: c.clusterBits, clusterSize: 1 << c.clusterBits, size: uint64(size), refcountOrder: c.order, compression: c.compression, length: v2HeaderLength}
	if c.version >= 3 {
		h.length = ourHeader
		if c.lazy {
			h.compatible |= compatLazyRefcounts
		}
		for bit, on := range map[uint64]bool{incompatCompression: c.compression != compressionZlib, incompatDataFile: c.external, incompatExtendedL2: c.extended} {
			if on {
				h.incompatible |= bit
			}
		}
		if c.raw {
			h.autoclear |= autoclearRaw
		}
	}
	h.setGeometry()
	l1 := h.l1Entries(h.size)
	switch {
	case size < 0:
		return nil, blockgraph.Errorf(syscall.EINVAL, "Could not resize image: Image size cannot be negative")
	case size > blockgraph.MaxSize:
		return nil, blockgraph.Errorf(syscall.EFBIG, "Could not resize image: offset(%d) exceeds maximum(%d)", size, int64(blockgraph.MaxSize))
	case l1 > maxL1Size/l1EntrySize:
		return nil, blockgraph.Errorf(syscall.EFBIG, "Could not resize image: Failed to grow the L1 table: File too large")
	}
	l1Clusters := h.clusters(int64(l1) * l1EntrySize)
	table, blocks := int64(1), int64(1)
	total := int64(0)
	for {
		total = 1 + table + blocks + l1Clusters + h.clusters(luksSize)
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
	if luksSize > 0 {
		if err := f.WriteZeroes(ctx, h.behindL1(), h.clusters(luksSize)<<h.clusterBits, 0); err != nil {
			return nil, headerError("Could not zero fill encryption header", err)
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

// behindL1 is the first byte of the cluster after the L1 table.
func (h *header) behindL1() int64 {
	return int64(h.l1Offset) + h.clusters(int64(h.l1Size)*l1EntrySize)<<h.clusterBits
}

// encode writes the fixed fields to b.
func (h *header) encode(b []byte) {
	be := binary.BigEndian
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], h.version)
	be.PutUint32(b[20:], h.clusterBits)
	be.PutUint64(b[fieldSize:], h.size)
	be.PutUint32(b[fieldCryptMethod:], h.cryptMethod)
	be.PutUint32(b[fieldL1Size:], h.l1Size)
	be.PutUint64(b[fieldL1Offset:], h.l1Offset)
	be.PutUint64(b[fieldRefTableOffset:], h.refTableOffset)
	be.PutUint32(b[fieldRefTableSize:], h.refTableClusters)
	if h.version < 3 {
		return
	}
	be.PutUint64(b[fieldIncompatible:], h.incompatible)
	be.PutUint64(b[fieldCompatible:], h.compatible)
	be.PutUint64(b[fieldAutoclear:], h.autoclear)
	be.PutUint32(b[fieldRefcountOrder:], h.refcountOrder)
	be.PutUint32(b[fieldHeaderLength:], h.length)
	b[104] = h.compression
}
