package qcow2

import (
	"slices"
	"testing"

	"blockd/bitmaps"
	"blockd/blockgraph"
)

// storeNames stores empty bitmaps of these names, the newest first, keeping the
// ones of before that have one of them.
func storeNames(t *testing.T, d *Driver, names ...string) {
	t.Helper()
	var list []*blockgraph.DirtyBitmap
	for _, name := range names {
		b := &blockgraph.DirtyBitmap{Name: name, Persistent: true, Bits: bitmaps.New(64<<10, 512)}
		for _, was := range d.bitmaps.want {
			if was.Name == name {
				b = was
			}
		}
		list = append(list, b)
	}
	if err := d.StoreBitmaps(ctxb, list); err != nil {
		t.Fatal(err)
	}
}

func storedNames(d *Driver) []string {
	var names []string
	for _, e := range d.bitmaps.dir {
		names = append(names, e.name)
	}
	return names
}

// TestNewBitmapsFollowThoseOfTheImageNewestFirst is the field's order (QEMU's test 246).
func TestNewBitmapsFollowThoseOfTheImageNewestFirst(t *testing.T) {
	img := newImage(t, 64<<10, clusterSize(512))
	d := openImage(t, img, nil)
	for _, step := range []struct {
		names, want []string // in memory; in the image
		reopen      bool
	}{
		{names: []string{"a"}, want: []string{"a"}},
		{names: []string{"b", "a"}, want: []string{"b", "a"}},
		{names: []string{"c", "b", "a"}, want: []string{"c", "b", "a"}, reopen: true},
		{names: []string{"d", "a", "b", "c"}, want: []string{"c", "b", "a", "d"}},
		{names: []string{"e", "d", "a", "b", "c"}, want: []string{"c", "b", "a", "e", "d"}},
		{names: []string{"e", "d", "a", "c"}, want: []string{"c", "a", "e", "d"}},
		// One that was removed comes back as a new one.
		{names: []string{"b", "e", "d", "a", "c"}, want: []string{"c", "a", "b", "e", "d"}, reopen: true},
	} {
		storeNames(t, d, step.names...)
		if got := storedNames(d); !slices.Equal(got, step.want) {
			t.Fatalf("%v are stored as %v, not %v", step.names, got, step.want)
		}
		if step.reopen {
			closeImage(t, d)
			d = openImage(t, img, nil)
			if got := storedNames(d); !slices.Equal(got, step.want) {
				t.Fatalf("%v are found as %v, not %v", step.names, got, step.want)
			}
		}
	}
	closeImage(t, d)
}
