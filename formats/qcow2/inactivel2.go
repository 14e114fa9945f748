package qcow2

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"syscall"

	"blockd/blockgraph"
)

// Where the L2 tables of internal snapshots lie, for the overlap check of kind
// inactive-l2. Only who asks for it pays: the snapshots' L1 tables are read when the
// option comes into force and when the list of snapshots changes.

// maxInactiveL1 bounds the L1 tables that are read for it, in bytes.
const maxInactiveL1 = 256 << 20

// inactiveTables returns where the L2 tables of snapshots lie, read from the disk;
// nothing unless the options ask for it.
func (d *Driver) inactiveTables(ctx context.Context, o *options, list []snapshot) ([]place, error) {
	if o.overlap&kindInactiveL2 == 0 {
		return nil, nil
	}
	var clusters []int64
	for _, p := range union(l1Places(list)) {
		for at := p.from; at < p.to; at += 1 << 20 {
			raw, err := tableAt(ctx, d.file(), at, min(p.to-at, 1<<20))
			if err != nil {
				return nil, blockgraph.Errorf(blockgraph.Errno(err), "Could not read the L1 tables of snapshots: %s", blockgraph.Strerror(err))
			}
			for ; len(raw) > 0; raw = raw[l1EntrySize:] {
				if off := int64(binary.BigEndian.Uint64(raw) & l1OffsetMask); off != 0 {
					clusters = append(clusters, off>>d.h.clusterBits)
				}
			}
			if len(clusters) > maxInactiveL1/l1EntrySize {
				return nil, blockgraph.Errorf(syscall.EFBIG, "Snapshots have more L2 tables than overlap-check can protect")
			}
		}
	}
	slices.Sort(clusters)
	var places []place
	for _, c := range slices.Compact(clusters) {
		from := c << d.h.clusterBits
		if k := len(places); k > 0 && places[k-1].to == from {
			places[k-1].to += d.h.clusterSize
			continue
		}
		places = append(places, place{from, from + d.h.clusterSize, kindInactiveL2})
	}
	return places, nil
}

// protectInactive has the overlap check know the L2 tables of snapshots, if these
// options ask for it.
func (d *Driver) protectInactive(ctx context.Context, o *options) error {
	places, err := d.inactiveTables(ctx, o, d.snapshots.Load().list)
	if err == nil && len(places) > 0 {
		d.meta.setPlaces(kindInactiveL2, places...)
	}
	return err
}

// union returns the same bytes as places that do not overlap.
func union(places []place) []place {
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.from, b.from) })
	var out []place
	for _, p := range places {
		if k := len(out); k > 0 && p.from <= out[k-1].to {
			out[k-1].to = max(out[k-1].to, p.to)
			continue
		}
		out = append(out, p)
	}
	return out
}
