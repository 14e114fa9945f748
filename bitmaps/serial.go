package bitmaps

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// This file is the bitmap data of the qcow2 specification ("Bitmap data"): bit
// n of the data, counted from the lowest bit of each byte, stands for granule n.
// Offsets and lengths are bytes of that data and multiples of 8.

// SerialSize returns the length of the data in bytes, rounded up to 8.
func (b *Bitmap) SerialSize() int64 { return SerialSize(b.Size(), b.Granularity()) }

// SerialSize is SerialSize of a bitmap over size bytes.
func SerialSize(size, granularity int64) int64 {
	return (bitsFor(size, shiftOf(granularity)) + 63) / 64 * 8
}

// Serialize fills p with the data from byte at on, zeroes past its end. It
// returns whether any bit is set. Bits set meanwhile may or may not be there.
func (b *Bitmap) Serialize(at int64, p []byte) (any bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	l, n := b.levels.Load(), bitsFor(b.size.Load(), b.shift)
	clear(p)
	first := min(at*8, n)
	end := min(n, first+int64(len(p))*8)
	for bit := l.nextSet(first, end); bit < end; bit = l.nextSet(bit, end) {
		w := bit / 64
		v := l.word(w)
		if n-w*64 < 64 {
			v &= 1<<(n-w*64) - 1
		}
		binary.LittleEndian.PutUint64(p[w*8-at:], v)
		any = any || v != 0
		bit = (w + 1) * 64
	}
	return any
}

// Deserialize sets the bits of the data p, which begins at byte at; those past
// the end are ignored, those set already stay.
func (b *Bitmap) Deserialize(at int64, p []byte) {
	b.mu.RLock() // no levels are replaced
	defer b.mu.RUnlock()
	l, n := b.levels.Load(), bitsFor(b.size.Load(), b.shift)
	for w := at / 8; len(p) >= 8 && w*64 < n; w, p = w+1, p[8:] {
		v := binary.LittleEndian.Uint64(p)
		if n-w*64 < 64 {
			v &= 1<<(n-w*64) - 1
		}
		if v != 0 {
			l.or(w, v)
		}
	}
}

// SHA256 returns the hash of the data in hexadecimal digits, as the field's
// debugging command prints it. Of an empty bitmap it is that of one word, as in
// the field.
func (b *Bitmap) SHA256() string {
	h := sha256.New()
	buf := make([]byte, 64<<10)
	for at, size := int64(0), max(8, b.SerialSize()); at < size; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-at)]
		b.Serialize(at, p)
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
