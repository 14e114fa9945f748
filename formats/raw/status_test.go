package raw_test

import (
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/formats/raw"
	"blockd/qapi"
)

// What a raw node shows of an image is the raw node's own, but for what the image
// would read from a backing file: that counts as the raw node's only where there
// is one.
func TestRawOverAnImageHasWhatTheImageReadsFromItsBackingFile(t *testing.T) {
	w := graphtest.New(t, raw.DriverType(raw.Config{}))
	_, base := w.Mem("base-file", 4*graphtest.Cluster)
	_, top := w.Mem("top-file", 4*graphtest.Cluster)
	w.Image("base", "base-file", "")
	w.Image("top", "top-file", "base")
	base.Image().Fill(0, 2, 'b')
	top.Image().Fill(1, 3, 't')
	for _, c := range []struct {
		over string
		want [4]int // of each cluster: 1 where the raw node has it
	}{
		{"top", [4]int{1, 1, 1, 1}},
		{"base", [4]int{1, 1, 0, 0}},
	} {
		name := "raw-" + c.over
		n := w.Add(&qapi.BlockdevOptions{Driver: qapi.BlockdevDriverRaw, NodeName: &name, Raw: &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Reference: &c.over}}})
		for i, want := range c.want {
			st, depth, err := n.StatusAbove(t.Context(), nil, int64(i)*graphtest.Cluster, graphtest.Cluster, blockgraph.StatusAllocation)
			if has := st.Flags&blockgraph.StatusAllocated != 0; err != nil || depth != want || has != (want == 1) {
				t.Errorf("over %s, cluster %d: depth %d, allocated is %v, %v; want %d", c.over, i, depth, has, err, want)
			}
		}
	}
}
