package luks

import (
	"context"
	"sync"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Requests go through a buffer in which the ciphertext is: a guest does not see
// it in its memory, and what a guest writes is encrypted as it was at one
// moment, though the guest may change its memory meanwhile.

// piece bounds the buffer of a request, in bytes.
const piece = 1 << 20

// Storage is where sectors lie.
//
//blockd:io
type Storage interface {
	ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
	WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error
}

// vectors are the vectors over such buffers, kept for the next request.
var vectors = sync.Pool{New: func() any { return new(blockgraph.IOVec) }}

// ReadV reads whole sectors at byte off of s and decrypts them into v; the first
// has the given number. Data plane.
func (c *Cipher) ReadV(ctx context.Context, s Storage, off int64, v *blockgraph.IOVec, sector uint64) error {
	if c.locked() {
		return errLocked
	}
	n := v.Len()
	b := ioengine.Bounce(int(min(n, piece)))
	defer b.Release()
	bounce := vectors.Get().(*blockgraph.IOVec)
	defer vectors.Put(bounce)
	for pos := int64(0); pos < n; pos += piece {
		p := b.Bytes()[:min(n-pos, piece)]
		bounce.SetBytes(p)
		if err := s.ReadV(ctx, off+pos, bounce, 0); err != nil {
			return err
		}
		c.Decrypt(p, sector+uint64(pos)/SectorSize)
		v.CopyIn(pos, p)
	}
	return nil
}

// WriteV writes v, whole sectors, encrypted at byte off of s; the first has the
// given number. Data plane.
func (c *Cipher) WriteV(ctx context.Context, s Storage, off int64, v *blockgraph.IOVec, sector uint64, flags blockgraph.Flags) error {
	if c.locked() {
		return errLocked
	}
	n := v.Len()
	b := ioengine.Bounce(int(min(n, piece)))
	defer b.Release()
	bounce := vectors.Get().(*blockgraph.IOVec)
	defer vectors.Put(bounce)
	for pos := int64(0); pos < n; pos += piece {
		p := b.Bytes()[:min(n-pos, piece)]
		v.CopyOut(pos, p)
		c.Encrypt(p, sector+uint64(pos)/SectorSize)
		bounce.SetBytes(p)
		if err := s.WriteV(ctx, off+pos, bounce, flags); err != nil {
			return err
		}
	}
	return nil
}
