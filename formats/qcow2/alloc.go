package qcow2

import (
	"errors"
	"syscall"

	"blockd/blockgraph"
)

// Allocation of clusters. Everything here works on memory, with Driver.mu
// held; a refcount block that is not in memory is reported as missingBlock, one
// that there is not as missingCounts, and the whole operation is tried again when
// it is there.
//
// A cluster is free when its count in memory is 0. Counts fall only when the
// unmapping is durable and nobody can use the old mapping any more (free.go),
// so a free cluster may be taken at once.

// limit returns the end of the clusters that fit the format and the storage,
// and the error for going past it.
func (d *Driver) limit() (int64, error) {
	if r := d.reserved; r != nil && r.open {
		return r.first, r
	}
	if f := d.file(); !f.Grows() {
		return f.Size() >> d.h.clusterBits, syscall.ENOSPC
	}
	return maxHostOffset >> d.h.clusterBits, syscall.EFBIG
}

// checkLimit holds that clusters below end are within the limit.
func (d *Driver) checkLimit(end int64) error {
	if limit, err := d.limit(); end > limit {
		return err
	}
	return nil
}

// purpose is what clusters are allocated for: for guest data as many as there are,
// and what the field calls it where it is not to lie at offset 0.
type purpose struct {
	partial bool
	name    string
}

var (
	forGuest    = purpose{partial: true}
	forTable    = purpose{name: "L2 table"}
	forPacked   = purpose{name: "compressed cluster"}
	forRefBlock = purpose{name: "refcount block"}
	forOther    = purpose{}
)

// checkUnclaimed holds that free clusters are not known to hold metadata,
// which in a sound image they never do, whatever overlap-check says.
func (d *Driver) checkUnclaimed(first, n int64, why purpose) error {
	cb := d.h.clusterBits
	if first == 0 && why.name != "" {
		return d.corrupt(true, -1, -1, "Preventing invalid allocation of %s at offset 0", why.name)
	}
	if k := d.meta.at(first<<cb, n<<cb, ^metadataKind(0)); k != 0 {
		return d.corrupt(true, first<<cb, n<<cb, invalidWrite, k)
	}
	return nil
}

// errAgain tells that the search for free clusters begins anew.
var errAgain = errors.New("qcow2: allocation starts over")

// allocate takes n contiguous free clusters; for some purposes fewer where the
// storage is full otherwise. Their counts become 1 in memory.
func (d *Driver) allocate(n int64, why purpose) (first, got int64, err error) {
	first, err = d.findFree(n)
	for err == errAgain || why.partial && n > 1 && noSpace(err) {
		if err != errAgain {
			n /= 2
		}
		first, err = d.findFree(n)
	}
	if err != nil {
		return 0, 0, err
	}
	if err := d.checkUnclaimed(first, n, why); err != nil {
		return 0, 0, err
	}
	r := &d.refs
	for c := first; c < first+n; {
		b := r.blocks[c>>r.blockBits]
		end := min(first+n, (b.index+1)<<r.blockBits)
		for ; c < end; c++ {
			d.setRef(b, c&(1<<r.blockBits-1), 1)
		}
	}
	r.untouched = max(r.untouched, first+n)
	mine, other := &r.hint[0], &r.hint[1]
	if n > 1 {
		mine, other = other, mine
	}
	*mine = first + n
	if *other == first {
		*other = first + n
	}
	return first, n, nil
}

// findFree looks for the first run of n free clusters, all of whose refcount
// blocks are in memory then. Where the search has to be interrupted, the hint
// keeps what it has achieved, so that it ends however few blocks fit the
// cache.
func (d *Driver) findFree(n int64) (int64, error) {
	r := &d.refs
	hint := &r.hint[0]
	if n > 1 {
		hint = &r.hint[1]
	}
	limit, full := d.limit()
	start, run := *hint, int64(0)
	for c := *hint; ; {
		if c >= limit {
			// Space may have been skipped before the hint.
			if *hint = 0; r.wrapped {
				r.wrapped = false
				if d.reserved != nil {
					full = d.reserved // there may be space soon
				}
				return 0, full
			}
			r.wrapped = true
			return 0, errAgain
		}
		b, err := d.refBlockAt(c >> r.blockBits)
		if err != nil {
			if run == 0 {
				start = c
			}
			*hint = start
			r.capacity = max(r.capacity, int((c-start)>>r.blockBits)+minRefBlocks)
			return 0, err
		}
		if b == nil {
			index := c >> r.blockBits
			if index >= int64(len(r.table)) {
				if _, err := d.planRefTable(); noSpace(err) {
					c = limit
					continue
				} else if err != nil {
					return 0, err
				}
				return 0, shortRefTable(len(r.table))
			}
			// The new block takes the first cluster of the run, so that the
			// run stays contiguous.
			at := c
			if run > 0 {
				at = start
			}
			return 0, missingCounts{index, at}
		}
		end := min((b.index+1)<<r.blockBits, limit)
		if b.free == 0 {
			c, run = end, 0
			continue
		}
		for ; c < end; c++ {
			if refAt(b.data, r.order, c&(1<<r.blockBits-1)) != 0 || d.reserved.has(c) {
				run = 0
				continue
			}
			if run == 0 {
				start = c
			}
			if run++; run == n {
				r.wrapped = false
				return start, nil
			}
		}
	}
}

// release gives back clusters that were allocated but never mapped. They must
// be in memory still, which the caller's recent allocation sees to; else they
// leak until the next check.
func (d *Driver) release(first, n int64) {
	for c := first; c < first+n; c++ {
		if _, err := d.dropRef(c); err != nil {
			d.free(c, first+n-c, discardOther)
			return
		}
	}
}

// noSpace tells whether err may go away when pending frees are done.
func noSpace(err error) bool { return blockgraph.Errno(err) == syscall.ENOSPC }
