package luks

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"hash"
)

// The anti-forensic splitter (specification: "AF-Splitter"): without any one
// byte of the result the key is lost, so that it is enough to overwrite a part
// of it.

// afSplit splits a key.
func afSplit(h hash.Hash, key []byte) []byte {
	n := len(key)
	out := make([]byte, n*stripes)
	last := out[n*(stripes-1):]
	rand.Read(out[:n*(stripes-1)]) // does not fail
	afDiffuse(h, out, last)
	subtle.XORBytes(last, last, key)
	return out
}

// afMerge returns the key of n bytes that was split.
func afMerge(h hash.Hash, split []byte, n int) []byte {
	key := make([]byte, n)
	afDiffuse(h, split, key)
	subtle.XORBytes(key, key, split[n*(stripes-1):])
	return key
}

// afDiffuse takes all stripes of split but the last into block.
func afDiffuse(h hash.Hash, split, block []byte) {
	n := len(block)
	sum := make([]byte, 0, h.Size())
	clear(block)
	for i := range stripes - 1 {
		subtle.XORBytes(block, block, split[i*n:(i+1)*n])
		for k, off := uint32(0), 0; off < n; k, off = k+1, off+h.Size() {
			part := block[off:min(off+h.Size(), n)]
			var index [4]byte
			binary.BigEndian.PutUint32(index[:], k)
			h.Reset()
			h.Write(index[:])
			h.Write(part)
			sum = h.Sum(sum[:0])
			copy(part, sum)
		}
	}
}
