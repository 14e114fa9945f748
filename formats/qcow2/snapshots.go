package qcow2

import (
	"context"
	"encoding/binary"
	"math"
	"strconv"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// The table of internal snapshots (specification: "Snapshots"). What a snapshot
// uses has a count above 1, so that writing copies it first. snapshotchange.go
// makes and removes them.

const (
	snapshotHeader    = 40 // bytes of the fixed part
	maxSnapshots      = 65536
	maxSnapshotTable  = 64 << 20
	maxSnapshotExtra  = 1024
	snapshotExtraSize = 24 // bytes of the extra data that we know
	// maxSnapshotName is the longest name in bytes; the field cuts longer ones.
	maxSnapshotName = 255
	noIcount        = math.MaxUint64
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
	icount      uint64 // noIcount: none
	extra       []byte // what of the extra data we do not know
}

// snapshotList is what the image has of snapshots. It is immutable: queries
// read it while a change makes the next one.
type snapshotList struct {
	list []snapshot
	at   place // of the table
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
			diskSize: h.size, icount: noIcount,
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
			s.extra = rest[snapshotExtraSize:extra:extra]
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
		if s.icount != noIcount {
			n := int64(s.icount)
			i.Icount = &n
		}
		out = append(out, i)
	}
	return out
}

// encodeSnapshots returns a table as it stands in the image. One that is too big
// gives EFBIG.
func encodeSnapshots(list []snapshot) ([]byte, error) {
	be := binary.BigEndian
	var b []byte
	for _, s := range list {
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		b = be.AppendUint64(b, s.l1Offset)
		b = be.AppendUint32(b, s.l1Size)
		b = be.AppendUint16(b, uint16(len(s.id)))
		b = be.AppendUint16(b, uint16(len(s.name)))
		b = be.AppendUint32(b, s.dateSec)
		b = be.AppendUint32(b, s.dateNsec)
		b = be.AppendUint64(b, s.vmClock)
		small := uint32(s.vmStateSize)
		if s.vmStateSize > math.MaxUint32 {
			small = 0 // who reads only this takes it for one without VM state
		}
		b = be.AppendUint32(b, small)
		b = be.AppendUint32(b, uint32(snapshotExtraSize+len(s.extra)))
		b = be.AppendUint64(b, s.vmStateSize)
		b = be.AppendUint64(b, s.diskSize)
		b = be.AppendUint64(b, s.icount)
		b = append(b, s.extra...)
		b = append(b, s.id...)
		b = append(b, s.name...)
		if len(b) > maxSnapshotTable {
			return nil, syscall.EFBIG
		}
	}
	return b, nil
}

// nextSnapshotID returns an id that none of the list has: one more than the
// largest number among them.
func nextSnapshotID(list []snapshot) string {
	var last uint64
	for _, s := range list {
		digits := 0
		for digits < len(s.id) && s.id[digits] >= '0' && s.id[digits] <= '9' {
			digits++
		}
		// Numbers that do not fit count as the largest that does.
		n, _ := strconv.ParseUint(s.id[:digits], 10, 64)
		last = max(last, n)
	}
	for last++; ; last++ {
		id := strconv.FormatUint(last, 10)
		if findSnapshot(list, &id, nil) < 0 {
			return id
		}
	}
}

// findSnapshot returns the index of the first snapshot with that id and name,
// of which one may be nil, or -1.
func findSnapshot(list []snapshot, id, name *string) int {
	for i, s := range list {
		if (id == nil || s.id == *id) && (name == nil || s.name == *name) {
			return i
		}
	}
	return -1
}
