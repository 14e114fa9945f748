package qcow2

import (
	"context"
	"errors"
	"log/slog"

	"blockd/blockgraph"
)

// Freed clusters. A cluster goes through three lists before its count falls:
//
//	unmapped  no table in memory refers to it, but one on disk may
//	durable   the write-back after that has succeeded
//	draining  an epoch has begun since; when the requests of the one before
//	          have ended nobody reads or writes the cluster
//
// Then it is punched out of the file, if so asked, and its count is dropped.
// Until then it cannot be taken for anything else.

// discardKind says why a cluster became free, which decides if the space in
// the file is given up, too.
type discardKind uint8

const (
	discardNever discardKind = iota
	discardRequest
	discardSnapshot
	discardOther
	discardAlways
)

// extent is n clusters from first on, each of which loses one reference.
type extent struct {
	first, n int64
	kind     discardKind
	// kept: these are guest clusters that keep their places, from cluster host on,
	// and lose no reference but what they hold: see keptspace.go.
	kept bool
	host int64
	turn int64
}

type freeLists struct {
	unmapped []extent
	durable  []extent
	draining []extent
	dropping []extent // what the one who is busy has in hand
	count    int64    // clusters in all lists
	busy     bool     // somebody is dropping counts
	// kept is how many of them keep their places; retaken says in which turn places
	// came to hold something again, which no extent of an earlier turn discards.
	kept    int64
	turn    int64
	retaken map[int64]int64
}

// maxPendingFrees is how many clusters may wait for a write-back before one is
// started for their sake.
const maxPendingFrees = 16384

// free notes that clusters have lost a reference in memory. Driver.mu is held.
func (d *Driver) free(first, n int64, kind discardKind) {
	f := &d.frees
	f.count += n
	d.freesChanged(first, n)
	if at := d.packAt >> d.h.clusterBits; at >= first && at < first+n {
		d.packAt = 0 // the cluster may be on its way to be punched
	}
	f.add(extent{first: first, n: n, kind: kind})
}

// add puts clusters on the first list.
func (f *freeLists) add(x extent) {
	if k := len(f.unmapped); k > 0 {
		last := &f.unmapped[k-1]
		if last.kind == x.kind && last.kept == x.kept && last.turn == x.turn && last.first+last.n == x.first && (!x.kept || last.host+last.n == x.host) {
			last.n += x.n
			return
		}
	}
	f.unmapped = append(f.unmapped, x)
}

// reclaim drops the counts of freed clusters that nobody uses any more. It
// does not wait for requests; those that are not done yet stay for the next
// call. It returns the first error, with nothing lost.
func (d *Driver) reclaim(ctx context.Context) error {
	d.mu.Lock()
	f := &d.frees
	if f.busy {
		d.mu.Unlock()
		return nil
	}
	f.busy = true
	var err error
	for err == nil {
		if len(f.draining) == 0 {
			if len(f.durable) == 0 || !d.epochs.quiet() {
				break
			}
			f.draining, f.durable = f.durable, nil
			d.epochs.advance()
		}
		if !d.epochs.quiet() {
			break
		}
		list := f.draining
		f.draining, f.dropping = nil, list
		d.mu.Unlock()
		rest, e := d.dropExtents(ctx, list)
		d.mu.Lock()
		err, f.dropping = e, nil
		f.durable = append(f.durable, rest...)
	}
	f.busy = false
	d.mu.Unlock()
	return err
}

// dropExtents punches and drops what nobody uses. It returns what is left.
func (d *Driver) dropExtents(ctx context.Context, list []extent) ([]extent, error) {
	for len(list) > 0 {
		x := &list[0]
		if x.kept {
			d.dropKept(ctx, x)
			list = list[1:]
			continue
		}
		n, punch, err := d.wholeRun(ctx, x)
		if err != nil {
			return list, err
		}
		if punch {
			if err := d.discardClusters(ctx, x.first, n); err != nil && !errors.Is(err, blockgraph.ErrNotSupported) {
				slog.Debug("qcow2: a freed cluster keeps its space", "error", err)
			}
		}
		d.file().DebugEvent("cluster_free")
		if err := d.dropRun(ctx, x, n); err != nil {
			return list, err
		}
		if x.n == 0 {
			list = list[1:]
		}
	}
	return nil, nil
}

// wholeRun returns how many clusters at the front of x can be handled in one
// go, and whether they are to be punched: all of them are in their last
// reference then.
func (d *Driver) wholeRun(ctx context.Context, x *extent) (n int64, punch bool, err error) {
	pass := d.options().discards[x.kind]
	if !pass {
		return x.n, false, nil
	}
	for {
		d.mu.Lock()
		n, punch = 0, false
		for ; n < x.n; n++ {
			var count uint64
			if count, err = d.refcount(x.first + n); err != nil {
				break
			}
			last := count == 1
			if n == 0 {
				punch = last
			} else if last != punch {
				break
			}
		}
		d.mu.Unlock()
		if n > 0 {
			return n, punch, nil
		}
		if err = d.fetch(ctx, err); err != nil {
			return 0, false, err
		}
	}
}

// dropRun drops one reference of n clusters at the front of x.
func (d *Driver) dropRun(ctx context.Context, x *extent, n int64) error {
	for n > 0 {
		d.mu.Lock()
		var err error
		for n > 0 {
			if _, err = d.dropRef(x.first); err != nil {
				break
			}
			x.first++
			x.n--
			n--
			d.frees.count--
		}
		d.mu.Unlock()
		if err == nil {
			break
		}
		if err = d.fetch(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) pendingFrees() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.frees.count > 0
}
