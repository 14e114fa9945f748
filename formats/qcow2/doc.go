// Package qcow2 is the format driver for qcow2 images, versions 2 and 3. Names
// are those of the specification, docs/interop/qcow2 of QEMU.
//
// # What it promises
//
// Whenever writing stops, the image on disk is consistent: clusters may leak,
// but no table refers to a cluster that is not counted, and every sector reads
// as what was there at the last flush or as something written since, never as
// old or foreign content of a cluster. writeback.go has the order of writes,
// free.go the way of a freed cluster, inflight.go what concurrent writers of
// one cluster do.
//
// # Locks
//
//	Driver.headerTurn   a turn to rewrite the header; held during that write
//	Driver.flushMu      who writes back next; a leaf
//	Driver.mu           all metadata in memory
//	  metadataMap.mu    a leaf
//	  background.mu     a leaf
//
// Driver.mu is never held across I/O. An operation that needs a table which is
// not in memory fails with missingBlock or missingSlice, the table is loaded
// with nothing held, and the operation is tried again. One that needs a table
// which there is not has its room in the file made sure of in the same way
// (room.go), so that a full disk fails who asked for it and no write-back. Mapped reads and writes
// with cached tables take no lock at all: they pin an epoch (epoch.go), look up
// atomically read entries (map.go) and do their I/O; an extended entry, of two
// words, is read as one by a count of changes (entry.go). One write-back runs at a
// time; callers share it, and nobody else waits for it.
//
// # Where guest data is
//
// guest.go is the one place that reads and writes it: in the image file, or in an
// external data file at the guest's own offsets (datafile.go). In images with
// extended L2 entries a subcluster is what has a kind and is copied on a write
// (subcluster.go); elsewhere that is the whole cluster.
//
// # What may block
//
// Everything with a context does I/O on the file, the data file or the backing file. Fault
// points (DebugEvent) may block, too, and are never reached with a lock held.
//
// # Left out
//
// Bitmaps in the image are not maintained: opening it for writing clears
// autoclear bit 0, so that whoever knows bitmaps sees that they are outdated.
// lazy_refcounts is kept in the header, but counts are always written.
//
// The package imports neither jobs nor exports nor QMP.
//
//blockd:io
package qcow2
