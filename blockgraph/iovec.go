package blockgraph

import (
	"bytes"

	"blockd/ioengine"
)

// IOVec is a list of memory segments that one request reads into or writes
// from. It does not own the memory: the request that was admitted does, until
// the last system call on it has returned.
//
// An IOVec is not changed while a request uses it. Slices of it share the
// memory. The zero value is an empty vector.
type IOVec struct {
	segs [][]byte
	size int64
	one  [1][]byte // backing store of the common one-segment vector
}

// MakeIOVec returns a vector over segs, which it keeps.
func MakeIOVec(segs ...[]byte) *IOVec {
	v := &IOVec{segs: segs}
	for _, s := range segs {
		v.size += int64(len(s))
	}
	return v
}

// SetBytes makes v a vector of the single segment b, without allocating.
func (v *IOVec) SetBytes(b []byte) {
	v.one[0] = b
	v.segs = v.one[:]
	v.size = int64(len(b))
}

// Reset empties v and keeps its storage for reuse.
func (v *IOVec) Reset() {
	clear(v.segs)
	v.segs = v.segs[:0]
	v.size = 0
}

// Append adds a segment at the end.
func (v *IOVec) Append(b []byte) {
	if len(b) == 0 {
		return
	}
	v.segs = append(v.segs, b)
	v.size += int64(len(b))
}

// AppendRange adds bytes [off, off+n) of src at the end, sharing its memory.
func (v *IOVec) AppendRange(src *IOVec, off, n int64) {
	for _, s := range src.segs {
		if n == 0 {
			return
		}
		l := int64(len(s))
		if off >= l {
			off -= l
			continue
		}
		take := min(l-off, n)
		v.Append(s[off : off+take])
		off, n = 0, n-take
	}
	if n != 0 {
		panic("blockgraph: IOVec range out of bounds")
	}
}

// Slice returns a new vector over bytes [off, off+n), sharing the memory.
// It returns v itself when the range is all of it.
func (v *IOVec) Slice(off, n int64) *IOVec {
	if off == 0 && n == v.size {
		return v
	}
	s := &IOVec{}
	s.segs = s.one[:0]
	s.AppendRange(v, off, n)
	return s
}

// Len returns the size in bytes.
func (v *IOVec) Len() int64 { return v.size }

// Segments returns the segments, none of them empty. The caller must not
// change the list.
func (v *IOVec) Segments() [][]byte { return v.segs }

// IsZero tells whether all bytes are zero.
func (v *IOVec) IsZero() bool {
	for _, s := range v.segs {
		for len(s) > 0 {
			z := ioengine.Zeroes(int64(len(s)))
			if !bytes.Equal(s[:len(z)], z) {
				return false
			}
			s = s[len(z):]
		}
	}
	return true
}

// Zero fills bytes [off, off+n) with zeroes.
func (v *IOVec) Zero(off, n int64) {
	v.each(off, n, func(b []byte) { clear(b) })
}

// CopyIn copies all of p into the vector from byte off on.
func (v *IOVec) CopyIn(off int64, p []byte) {
	v.each(off, int64(len(p)), func(b []byte) { p = p[copy(b, p):] })
}

// CopyOut fills all of p from the vector's bytes from off on.
func (v *IOVec) CopyOut(off int64, p []byte) {
	v.each(off, int64(len(p)), func(b []byte) { p = p[copy(p, b):] })
}

// Bytes returns the memory of a vector with one segment, and nil for others.
func (v *IOVec) Bytes() []byte {
	if len(v.segs) == 1 {
		return v.segs[0]
	}
	return nil
}

func (v *IOVec) each(off, n int64, f func([]byte)) {
	for _, s := range v.segs {
		if n == 0 {
			return
		}
		l := int64(len(s))
		if off >= l {
			off -= l
			continue
		}
		take := min(l-off, n)
		f(s[off : off+take])
		off, n = 0, n-take
	}
	if n != 0 {
		panic("blockgraph: IOVec range out of bounds")
	}
}
