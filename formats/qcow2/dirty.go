package qcow2

// pieceSize is the unit in which changed parts of tables are written, in
// bytes; tables and slices that are smaller are one piece.
const pieceSize = 4096

// pieces is the set of changed pieces of a table.
type pieces []uint64

// add marks the pieces that hold bytes [from, to).
func (p *pieces) add(from, to int64) {
	for i := from / pieceSize; i*pieceSize < to; i++ {
		for int(i/64) >= len(*p) {
			*p = append(*p, 0)
		}
		(*p)[i/64] |= 1 << (i % 64)
	}
}

// merge adds all pieces of o.
func (p *pieces) merge(o pieces) {
	for i, w := range o {
		for i >= len(*p) {
			*p = append(*p, 0)
		}
		(*p)[i] |= w
	}
}

func (p pieces) empty() bool {
	for _, w := range p {
		if w != 0 {
			return false
		}
	}
	return true
}

// take returns the set and leaves it empty.
func (p *pieces) take() pieces {
	t := *p
	*p = nil
	return t
}

// runs calls f for each run of bytes [from, to) that is marked, within a table
// of size bytes.
func (p pieces) runs(size int64, f func(from, to int64)) {
	n := int64(len(p)) * 64
	for i := int64(0); i < n; i++ {
		if p[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		from := i
		for i < n && p[i/64]&(1<<(i%64)) != 0 {
			i++
		}
		f(from*pieceSize, min(i*pieceSize, size))
	}
}
