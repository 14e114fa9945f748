package qcow2

import (
	"context"
	"encoding/binary"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Internal snapshots (specification: "Snapshots"). They are listed and kept:
// what they use has a count above 1, so that writing copies it first.

const (
	snapshotHeader    = 40 // bytes of the fixed part
	maxSnapshots      = 65536
	maxSnapshotTable  = 64 << 20
	maxSnapshotExtra  = 1024
	snapshotExtraSize = 24 // bytes of the extra data that we know
)

// snapshot is an entry of the snapshot table.
type snapshot struct {
	l1Offset    uint64
	l1Size      uint32
	id, name    string
	vmStateSize uint64
	dateSec     uint32
	dateNsec    uint32
	vmClock     uint64 // nanoseconds
	diskSize    uint64 // bytes
	icount      uint64 // all ones: none
}

// readSnapshots reads the snapshot table.
func readSnapshots(ctx context.Context, f storage, h *header) (list []snapshot, tableSize int64, err error) {
	fail := func(err error) ([]snapshot, int64, error) {
		return nil, 0, blockgraph.Errorf(blockgraph.Errno(err), "Failed to read snapshot table: %s", blockgraph.Strerror(err))
	}
	be := binary.BigEndian
	off := int64(h.snapshotsOffset)
	fixed := make([]byte, snapshotHeader)
	for i := range h.snapshots {
		off = (off + 7) &^ 7
		past := func(n int64) bool { return off > f.Size()-n }
		if past(snapshotHeader) {
			return nil, 0, blockgraph.Errorf(syscall.EINVAL, "Snapshot table entry %d (at %#x) lies past the end of the file", i, off)
		}
		if err := readAt(ctx, f, off, fixed); err != nil {
			return fail(err)
		}
		off += snapshotHeader
		s := snapshot{
			l1Offset: be.Uint64(fixed), l1Size: be.Uint32(fixed[8:]),
			dateSec: be.Uint32(fixed[16:]), dateNsec: be.Uint32(fixed[20:]),
			vmClock: be.Uint64(fixed[24:]), vmStateSize: uint64(be.Uint32(fixed[32:])),
			diskSize: h.size, icount: 1<<64 - 1,
		}
		idLen, nameLen := int64(be.Uint16(fixed[12:])), int64(be.Uint16(fixed[14:]))
		extra := int64(be.Uint32(fixed[36:]))
		if extra > maxSnapshotExtra {
			return nil, 0, blockgraph.Errorf(syscall.EFBIG, "Too much extra metadata in snapshot table entry %d", i)
		}
		if past(extra + idLen + nameLen) {
			return nil, 0, blockgraph.Errorf(syscall.EINVAL, "Snapshot table entry %d (at %#x) lies past the end of the file", i, off-snapshotHeader)
		}
		rest := make([]byte, extra+idLen+nameLen)
		if err := readAt(ctx, f, off, rest); err != nil {
			return fail(err)
		}
		off += int64(len(rest))
		if extra >= 8 {
			s.vmStateSize = be.Uint64(rest)
		}
		if extra >= 16 {
			s.diskSize = be.Uint64(rest[8:])
		}
		if extra >= snapshotExtraSize {
			s.icount = be.Uint64(rest[16:])
		}
		s.id = string(rest[extra : extra+idLen])
		s.name = string(rest[extra+idLen:])
		list = append(list, s)
		if tableSize = off - int64(h.snapshotsOffset); tableSize > maxSnapshotTable {
			return nil, 0, blockgraph.Errorf(syscall.EFBIG, "Snapshot table is too big")
		}
	}
	return list, tableSize, nil
}

// l1Places returns where the snapshots' L1 tables lie; those that are out of
// bounds are left out.
func l1Places(list []snapshot) []place {
	var places []place
	for _, s := range list {
		if s.l1Offset < maxHostOffset && s.l1Size <= maxL1Size/l1EntrySize {
			places = append(places, place{int64(s.l1Offset), int64(s.l1Offset) + int64(s.l1Size)*l1EntrySize, kindInactiveL1})
		}
	}
	return places
}

func snapshotInfo(list []snapshot) []qapi.SnapshotInfo {
	var out []qapi.SnapshotInfo
	for _, s := range list {
		i := qapi.SnapshotInfo{
			ID: s.id, Name: s.name, VMStateSize: int64(s.vmStateSize),
			DateSec: int64(s.dateSec), DateNsec: int64(s.dateNsec),
			VMClockSec: int64(s.vmClock / 1e9), VMClockNsec: int64(s.vmClock % 1e9),
		}
		if s.icount != 1<<64-1 {
			n := int64(s.icount)
			i.Icount = &n
		}
		out = append(out, i)
	}
	return out
}
