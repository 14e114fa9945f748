package blockgraph_test

import (
	"testing"

	"blockd/blockgraph"
)

// TestIsZeroLooksAtEveryByte: of every segment, however long.
func TestIsZeroLooksAtEveryByte(t *testing.T) {
	const long = 3<<20 + 7 // longer than what it is compared with at a time
	lengths := []int{1, 0, 512, long, 3}
	for i, n := range lengths {
		for _, at := range []int{0, n / 2, n - 1} {
			if n == 0 {
				continue
			}
			var segs [][]byte
			for _, n := range lengths {
				segs = append(segs, make([]byte, n))
			}
			v := blockgraph.MakeIOVec(segs...)
			if !v.IsZero() {
				t.Fatal("zeroes are not zero")
			}
			segs[i][at] = 1
			if v.IsZero() {
				t.Errorf("byte %d of segment %d was not looked at", at, i)
			}
		}
	}
}
