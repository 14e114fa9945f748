package qcow2

import "blockd/qapi"

// Measure returns how long the file of a new image will be, in bytes, once
// data bytes of its disk are allocated (a multiple of the cluster size), and
// once all of it is. It holds for the layout that Create makes, snapshots and
// bitmaps left aside. Errors are those of Create. Anybody may call it.
func Measure(o *qapi.BlockdevCreateOptionsQcow2, data int64) (required, full int64, err error) {
	c, err := checkCreate(o)
	if err != nil {
		return 0, 0, err
	}
	cluster, entry := int64(1)<<c.clusterBits, int64(8)
	if c.extended {
		entry *= 2
	}
	size := roundUp(int64(o.Size), cluster)
	full = metadataLength(size, cluster, c.order, entry) + size
	if c.prealloc == qapi.PreallocModeFull || c.prealloc == qapi.PreallocModeFalloc {
		data = size
	}
	return full - size + min(data, size), full, nil
}

// metadataLength is what a fully allocated disk of size bytes needs besides its
// data: the header, L2 tables, the L1 table, refcount blocks and their table.
func metadataLength(size, cluster int64, refcountOrder uint32, entry int64) int64 {
	const pointer = 8
	entries := roundUp(size/cluster, cluster/entry)
	tables := entries * entry
	length := cluster + tables + roundUp(tables/cluster*pointer, cluster)

	// Refcount blocks count themselves and their table.
	perBlock := cluster * 8 >> refcountOrder
	clusters := (length + size) / cluster
	blocks, table := int64(0), int64(0)
	for {
		b := (clusters + blocks + table + perBlock - 1) / perBlock
		t := roundUp(b*pointer, cluster) / cluster
		if b == blocks && t == table {
			return length + (blocks+table)*cluster
		}
		blocks, table = b, t
	}
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
