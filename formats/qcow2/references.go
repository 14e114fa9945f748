package qcow2

// How often clusters are referred to: what a check of an image at rest counts.
// It is as large as what is counted, not as the file: an image of a few kilobytes
// may refer to clusters anywhere in a file that is mostly holes.

// maxCheckMemory bounds what such a check keeps in memory, in bytes. It is enough
// for 16 TiB of data in clusters of 64 KiB.
const maxCheckMemory = 1 << 30

const (
	pageClusters = 64
	manyTimes    = 255 // in a page: the count is in references.more
	// What entries of the two maps take, in bytes.
	pageMemory = pageClusters + 32
	moreMemory = 40
)

// references are counts of references to clusters.
type references struct {
	pages  map[int64]*[pageClusters]uint8
	more   map[int64]uint64
	memory int64 // bytes
}

func newReferences() references {
	return references{pages: map[int64]*[pageClusters]uint8{}, more: map[int64]uint64{}}
}

// add counts references to a cluster.
func (r *references) add(cluster int64, times uint64) {
	page := r.pages[cluster/pageClusters]
	if page == nil {
		page = new([pageClusters]uint8)
		r.pages[cluster/pageClusters] = page
		r.memory += pageMemory
	}
	p := &page[cluster%pageClusters]
	switch n := uint64(*p) + times; {
	case *p == manyTimes:
		r.more[cluster] += times
	case n >= manyTimes:
		*p, r.more[cluster] = manyTimes, n
		r.memory += moreMemory
	default:
		*p = uint8(n)
	}
}

// count returns how often a cluster is referred to.
func (r *references) count(cluster int64) uint64 {
	page := r.pages[cluster/pageClusters]
	if page == nil {
		return 0
	}
	return r.times(page, cluster)
}

// times is count in a page.
func (r *references) times(page *[pageClusters]uint8, cluster int64) uint64 {
	if n := page[cluster%pageClusters]; n != manyTimes {
		return uint64(n)
	}
	return r.more[cluster]
}

// each calls f for each cluster that is referred to.
func (r *references) each(f func(cluster int64, times uint64)) {
	for p, page := range r.pages {
		r.eachOf(page, p*pageClusters, p*pageClusters, (p+1)*pageClusters, f)
	}
}

// between calls f for each of clusters [from, to) that is referred to, in order.
func (r *references) between(from, to int64, f func(cluster int64, times uint64)) {
	for p := from / pageClusters; p*pageClusters < to; p++ {
		if page := r.pages[p]; page != nil {
			r.eachOf(page, p*pageClusters, from, to, f)
		}
	}
}

// eachOf is between within the page that begins with cluster first.
func (r *references) eachOf(page *[pageClusters]uint8, first, from, to int64, f func(cluster int64, times uint64)) {
	for cl := max(first, from); cl < min(first+pageClusters, to); cl++ {
		if page[cl-first] != 0 {
			f(cl, r.times(page, cl))
		}
	}
}
