// Package mirrortop is the filter that a mirror job puts over its source (the
// field: mirror_top). It lets the job know which parts of the source are not
// on the target yet, and in the copy mode write-blocking it brings guests'
// writes to the target itself, before they complete.
//
// # Passive and active
//
// A passive filter passes everything through: what a write changed is marked in
// the dirty bitmap, which is a marker of the source node, after it landed and
// before the guest hears of it. Marking takes no lock.
//
// An active filter takes the granules that a write touches alone (Lock), has
// the source do the write, takes the marks back, writes the same to the target
// and only then lets the guest go on. What cannot be brought to the target
// stays marked: granules that the write covers in part and that were dirty
// before, zeroes that the target can hold only as data, a target that a graph
// change has closed, a failed write. A failed
// target never fails a guest's write. The mark of somebody who writes to the
// source beside an active filter would be lost, so nobody may: an active filter
// does not share the permission to write.
//
// SetActive is called while the guests are drained, so no write is ever half
// passive and half active. The job's own copies take granules alone, too, so
// that of two writes to one place on the target the later one always has the
// newer data.
//
// # A target that does not answer
//
// The write to the target runs beside the guest's request, with a copy of the
// data, an admission at the target's root and the lock on its granules. Abandon
// lets all guests that wait go on; the write itself cannot be taken back, is
// counted (Rest) and keeps what it holds until it returns.
//
// Order within an active write: the guest's admission and buffer, the lock,
// the target's admission, which it takes only if it need not wait for it.
// Locks: Filter.mu, a leaf, and those of bitmaps and blockgraph.RangeLock; none
// is held across I/O. What blocks: every I/O method, Lock. It must not import
// jobs, qmp or formats.
package mirrortop
