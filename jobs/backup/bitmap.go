package backup

import (
	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/qapi"
)

// This file keeps the source's bitmap in step with the backup. From the point
// in time on the bitmap's bits stay as they are, and a successor records what
// guests change. At the job's end the bitmap has either what the successor has,
// so that it tells the next backup what has changed since this one, or both.

// freeze begins that, after the field's checks.
func (p *params) freeze(tx *blockgraph.Tx, source *blockgraph.Node) error {
	if p.bitmap == "" {
		return nil
	}
	use := blockgraph.BitmapWrite
	if p.syncMode == qapi.BitmapSyncModeNever {
		use = blockgraph.BitmapRead
	}
	return tx.FreezeBitmap(source, tx.Bitmap(source, p.bitmap), use)
}

// Commit implements jobs.Committer: the target has everything.
func (b *backup) Commit(tx *blockgraph.Tx) error {
	if b.bitmap == "" {
		return nil
	}
	return tx.ThawBitmap(b.source, b.bitmap, b.syncMode == qapi.BitmapSyncModeNever, nil)
}

// Abort implements jobs.Aborter. With bitmap-mode=always the bitmap tells what
// the target lacks.
func (b *backup) Abort(tx *blockgraph.Tx) error {
	if b.bitmap == "" {
		return nil
	}
	if b.syncMode != qapi.BitmapSyncModeAlways || b.unsafe.Load() {
		return tx.ThawBitmap(b.source, b.bitmap, true, nil)
	}
	b.noteUncopied()
	return tx.ThawBitmap(b.source, b.bitmap, false, b.uncopied.Load())
}

// noteUncopied notes what is not in the target, the first time that it is called.
// What is being copied counts as not copied: first the clusters are looked at and
// then the scratch, which is the way that they go.
func (b *backup) noteUncopied() {
	if b.syncMode != qapi.BitmapSyncModeAlways || b.uncopied.Load() != nil {
		return
	}
	m := bitmaps.New(b.clusters.Len(), bitmaps.MinGranularity)
	b.clusters.EachPending(m.Set)
	if b.room != nil {
		b.room.Each(m.Set)
	}
	b.uncopied.CompareAndSwap(nil, m)
}
