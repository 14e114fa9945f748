// Package bitmapstore has what formats share that store dirty bitmaps so that
// they survive a crash: at every moment the stored bitmaps have at least the
// dirty bits of those in memory.
//
// Two things see to it. A change of a node's list of bitmaps is brought to the
// image as a whole and durably before it is seen (the format's part, with
// Content). And before the first change in a region of the disk that is clean
// in the image its bits there are set in place (Ahead). What is in place thus
// has bits too many until the format writes it anew.
//
// Locks: Ahead's turn, a channel, which is held over I/O on the image; it comes
// before all locks of the format. Data plane and workers; blocks as the image
// does. Imports bitmaps, blockgraph, clock of this module.
//
//blockd:io
package bitmapstore

import (
	"math/bits"

	"blockd/bitmaps"
	"blockd/blockgraph"
)

// GranularityBits returns log2 of a bitmap's granularity.
func GranularityBits(b *bitmaps.Bitmap) uint8 {
	return uint8(bits.TrailingZeros64(uint64(b.Granularity())))
}

// Content returns the bits that are to be stored of a bitmap for a disk of size
// bytes: with those of its successor, which it would get back after a crash. It
// may be the bitmap's own, which goes on changing. An error is one of a size
// that the bitmap cannot have.
func Content(b *blockgraph.DirtyBitmap, size int64) (*bitmaps.Bitmap, error) {
	content := b.Bits
	if b.Successor == nil && content.Size() == size {
		return content, nil
	}
	content = content.Clone()
	if b.Successor != nil {
		content.Merge(b.Successor)
	}
	return content, content.Resize(size)
}
