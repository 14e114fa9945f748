package copybeforewrite

import "blockd/bitmaps"

// Restrict has a job leave out the clusters in which the bitmap marks nothing:
// they are not copied, and a reader of the snapshot does not get at them. In
// queries, as in the field's, that is nothing about readers. Before the filter is
// in the graph.
func (f *Filter) Restrict(to *bitmaps.Bitmap) {
	before := f.goneBitmap().Count()
	f.restrict(to)
	f.unchosen += f.goneBitmap().Count() - before
}

// restrict is Restrict for the node's own bitmap.
func (f *Filter) restrict(to *bitmaps.Bitmap) {
	size, length := f.clusters.Size(), f.clusters.Len()
	gone := f.goneBitmap()
	for off := int64(0); off < length; {
		start, n, ok := to.NextDirty(off, length)
		end := start &^ (size - 1)
		if !ok {
			end = length
		}
		if end > off {
			f.clusters.Clear(off, end-off)
			gone.Set(off, end-off)
		}
		if !ok {
			return
		}
		off = (start + n + size - 1) &^ (size - 1)
	}
}
