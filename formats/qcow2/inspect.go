package qcow2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"blockd/blockgraph"
	"blockd/ioengine"
)

// Checking an image that may be in use: references to every cluster are counted
// and compared with its refcount (the field: qemu-img check).
//
// The image's clusters are gone through window by window, each with a view
// (view.go) that guests keep right meanwhile; for each window all tables are
// read once. Memory is a little over 4 bytes for a cluster of the window: 64 MiB
// for 1 TiB at a time with clusters of 64 KiB, whatever the image's length.
// Tables that are not in the cache are read past it.
//
// A cluster is judged when nothing is under way with it: requests that have
// allocated clusters without having mapped them yet are waited for, and who is
// touched meanwhile is judged later. What has been found is repaired under
// Driver.mu, when nothing has touched it since.
//
// A run goes through all windows. The first one counts and repairs counts; if
// need be a second one repairs copied flags; after repairs another one finds out
// what is left.

const (
	// inspectWindow is how many clusters are looked at at a time.
	inspectWindow = 16 << 20
	// inspectPiece is how many entries of a table are gone through with
	// Driver.mu held.
	inspectPiece = 1024
	// inspectRounds is how often clusters that are touched all the time are
	// looked at again before they are taken for sound.
	inspectRounds = 1000

	maxMessages = 32
)

// inspection is a check that goes on.
type inspection struct {
	*steps
	d      *Driver
	fix    blockgraph.CheckFix
	window int64
	// keepLeaks: clusters that nothing refers to stay as they are.
	keepLeaks bool

	res  blockgraph.CheckResult // of the present run; what was fixed, of all
	done blockgraph.CheckResult // of the last whole run
	// lost: the refcount structures are to be made anew, which is not done beside
	// guests; before is what was found when that was done, or nil.
	lost   bool
	before *blockgraph.CheckResult

	// Of a run.
	limit    int64 // clusters that are looked at
	flagsFix bool  // repairs flags, and counts nothing
	wrong    int64 // flags that do not fit
	broken   bool  // the refcount structures themselves are unsound

	// Of a window.
	v     *view
	first bool
	win   blockgraph.CheckResult
	shape shape
	list  []snapshot
	worth int64           // bytes of work of a window
	left  int64           // windows of the run after the present one
	found []uint64        // clusters whose count is wrong
	extra map[int64]int32 // their references that are not in the view
	flags int64           // copied flags that do not fit
	// high are the counts of clusters with refcount structures where they are more
	// than 1.
	high map[int64]int64
}

// shape is what a window's work is done under; a graph change may replace it
// between two steps.
type shape struct {
	sliceBits uint32
	snapshots *snapshotList
	reverts   int
}

// errShape: the work on a window begins anew.
var errShape = errors.New("qcow2: the image has another shape now")

// StartCheck implements blockgraph.Checker.
func (d *Driver) StartCheck(o blockgraph.CheckOptions) (blockgraph.Check, error) {
	if o.Fix != blockgraph.CheckFixNone && (d.readOnly.Load() || d.broken.Load()) {
		return nil, syscall.EIO
	}
	if !d.care.CompareAndSwap(false, true) {
		return nil, syscall.EBUSY
	}
	return d.newInspection(o.Fix), nil
}

func (d *Driver) newInspection(fix blockgraph.CheckFix) *inspection {
	c := &inspection{d: d, fix: fix, window: inspectWindow}
	c.steps = newSteps(func(*steps) error { return c.run() })
	return c
}

// Step implements blockgraph.Check.
func (c *inspection) Step(ctx context.Context, n int64) (did int64, more bool, err error) {
	return c.step(ctx, n)
}

// Remaining implements blockgraph.Check.
func (c *inspection) Remaining() int64 { return max(c.worth*(c.left+1), 0) }

// Result implements blockgraph.Check.
func (c *inspection) Result() blockgraph.CheckResult {
	r := c.done
	if b := c.before; b != nil {
		r.CorruptionsFixed = max(0, b.Corruptions+b.CorruptionsFixed-r.Corruptions)
		r.LeaksFixed = max(0, b.Leaks+b.LeaksFixed-r.Leaks)
		r.Messages = slices.Concat(b.Messages, r.Messages)
	}
	return r
}

// Lost implements blockgraph.Check.
func (c *inspection) Lost() bool { return c.lost }

// Rebuild implements blockgraph.Check.
func (c *inspection) Rebuild(ctx context.Context) error {
	d := c.d
	if d.readOnly.Load() || d.broken.Load() {
		return syscall.EIO
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	if err := d.rebuildRefcounts(ctx); err != nil {
		return err
	}
	if c.before == nil {
		before := c.done
		c.before = &before
	}
	c.stop()
	c.lost, c.res = false, blockgraph.CheckResult{}
	c.steps = newSteps(func(*steps) error { return c.run() })
	return nil
}

// Close implements blockgraph.Check.
func (c *inspection) Close() {
	c.stop()
	c.setView(nil)
	c.d.care.Store(false)
}

func (c *inspection) run() error {
	fix := c.fix
	if err := c.runOnce(fix); err != nil {
		return err
	}
	if err := c.finishRepairs(fix); err != nil {
		return err
	}
	if c.lost && c.done.CheckErrors == 0 {
		c.done.CheckErrors = 1
	}
	if fix == blockgraph.CheckFixNone || c.done.Corruptions > 0 || c.done.CheckErrors > 0 {
		return nil
	}
	return c.d.clearMarks(c.ctx)
}

// finishRepairs repairs what depends on counts that are right, makes all repairs
// durable, and finds out what is left.
func (c *inspection) finishRepairs(fix blockgraph.CheckFix) error {
	fixed := func() int64 { return c.res.LeaksFixed + c.res.CorruptionsFixed }
	// Flags are judged by counts, so that those must be right.
	safe := fix == blockgraph.CheckFixAll && !c.lost
	if fix == blockgraph.CheckFixLeaks {
		safe = c.res.Corruptions == c.wrong && c.res.Leaks == 0 && c.res.CheckErrors == 0
	}
	if safe && c.wrong+fixed() > 0 {
		if err := c.d.writeBack(c.ctx); err != nil {
			return err
		}
		c.flagsFix = true
		if err := c.runOnce(fix); err != nil {
			return err
		}
		c.flagsFix = false
	}
	if fixed() == 0 {
		return nil
	}
	if err := c.d.settle(c.ctx); err != nil {
		return err
	}
	return c.runOnce(blockgraph.CheckFixNone)
}

// runOnce goes through all windows, and repairs as fix says.
func (c *inspection) runOnce(fix blockgraph.CheckFix) error {
	asked := c.fix
	c.fix = fix
	defer func() { c.fix = asked }()
	fixedLeaks, fixedCorruptions := c.res.LeaksFixed, c.res.CorruptionsFixed
	c.res = blockgraph.CheckResult{LeaksFixed: fixedLeaks, CorruptionsFixed: fixedCorruptions}
	c.wrong, c.broken = 0, false
	h := c.d.h
	c.limit = h.clusters(c.d.file().Size())
	for from := int64(0); from < c.limit; from += c.window {
		to := min(from+c.window, c.limit)
		c.left = (c.limit - to + c.window - 1) / c.window
		err := errShape
		for err == errShape {
			err = c.look(from, to)
		}
		if err != nil {
			return err
		}
		if err := c.repair(); err != nil {
			return err
		}
		c.setView(nil)
		c.res.Corruptions += c.win.Corruptions
		c.res.Leaks += c.win.Leaks
		c.res.CheckErrors += c.win.CheckErrors
		c.res.Allocated += c.win.Allocated
		c.res.Fragmented += c.win.Fragmented
		c.res.Compressed += c.win.Compressed
		c.res.ImageEnd = max(c.res.ImageEnd, c.win.ImageEnd)
		c.res.Messages = append(c.res.Messages, c.win.Messages...)
		c.wrong += c.flags
		if !c.flagsFix {
			// Flags are judged by the counts as they were.
			c.res.Corruptions += c.flags
		}
	}
	c.left, c.worth = 0, 0
	c.lost = c.lost || c.broken && asked == blockgraph.CheckFixAll
	c.res.Total = h.clusters(c.d.size.Load())
	if !c.flagsFix {
		c.done = c.res
	}
	return nil
}

func (c *inspection) setView(v *view) {
	c.v = v
	c.d.mu.Lock()
	c.d.view = v
	c.d.mu.Unlock()
}

func (c *inspection) message(format string, args ...any) {
	if len(c.res.Messages)+len(c.win.Messages) < maxMessages {
		c.win.Messages = append(c.win.Messages, fmt.Sprintf(format, args...))
	}
}

// corruption notes one that belongs to no window: it is counted in the first.
func (c *inspection) corruption(format string, args ...any) {
	if c.first {
		c.win.Corruptions++
		c.message("ERROR "+format, args...)
	}
}

// rest counts work, lets others in where the step has done enough, and tells
// whether the window's work is still good for something.
func (c *inspection) rest(n int64) error {
	if err := c.spend(n); err != nil {
		return err
	}
	if c.shape != c.d.shape() {
		return errShape
	}
	return nil
}

func (d *Driver) shape() shape {
	return shape{d.sliceBits, d.snapshots.Load(), d.reverts}
}

// look fills a view of a window and judges it.
func (c *inspection) look(from, to int64) error {
	d := c.d
	c.shape = d.shape()
	c.list = c.shape.snapshots.list
	c.first, c.win, c.flags = from == 0, blockgraph.CheckResult{}, 0
	c.found, c.extra, c.high = nil, map[int64]int32{}, map[int64]int64{}
	c.worth = c.estimate(from, to)
	c.setView(newView(d.h, from, to))
	err := c.readCounts()
	if err == nil {
		err = c.walkRefTable()
	}
	if err == nil {
		err = c.walkActive()
	}
	if err != nil || c.flagsFix {
		return err
	}
	if d.h.external && len(c.list) > 0 {
		c.corruption("%d snapshots in image with data file", len(c.list))
	}
	for _, s := range c.list {
		if err := c.walkSnapshot(s); err != nil {
			return err
		}
	}
	return c.judge()
}

// estimate returns how many bytes of metadata a window takes.
func (c *inspection) estimate(from, to int64) int64 {
	d := c.d
	t := d.l1.Load()
	tables := int64(0)
	for i := range t.entries {
		if t.entries[i].Load()&l1OffsetMask != 0 {
			tables++
		}
	}
	for _, s := range c.list {
		tables += min(int64(s.l1Size), tables)
	}
	return (tables + (to-from)>>d.h.refBlockBits + 1) << d.h.clusterBits
}

// readCounts takes the window's counts into the view.
func (c *inspection) readCounts() error {
	d, v := c.d, c.v
	r := &d.refs
	var raw *ioengine.Buffer
	defer func() { raw.Release() }()
	for v.counts < v.end {
		index := v.counts >> r.blockBits
		d.mu.Lock()
		var content []byte
		off := int64(0)
		if index < int64(len(r.table)) {
			off = int64(r.table[index] & refTableMask)
		}
		b := r.blocks[index]
		sound := c.soundBlock(off)
		switch {
		case b != nil:
			content = b.data
		case off == 0 || !sound:
		case v.readBlock == index && !v.changed && raw != nil:
			content = raw.Bytes()
		default:
			v.readBlock, v.changed = index, false
			d.mu.Unlock()
			if raw == nil {
				raw = ioengine.Bounce(int(d.h.clusterSize))
			}
			if err := readAt(c.ctx, d.file(), off, raw.Bytes()); err != nil {
				if c.ctx.Err() != nil {
					return err
				}
				c.win.Corruptions++
				c.message("ERROR refcount block %d at %#x cannot be read: %s", index, off, blockgraph.Strerror(err))
				c.broken = true
				clear(raw.Bytes())
			}
			continue
		}
		end := min(v.counts+inspectPiece, (index+1)<<r.blockBits, v.end)
		if content == nil {
			end = min((index+1)<<r.blockBits, v.end) // all counts are 0
		}
		from := v.counts
		v.counts = end
		for cl := from; cl < end && content != nil; cl++ {
			n := refAt(content, r.order, cl&(1<<r.blockBits-1))
			if n == 0 {
				continue
			}
			v.setCount(cl, 0, n)
			if n > 1 && d.meta.at(cl<<d.h.clusterBits, 1, kindRefBlock|kindRefTable) != 0 {
				c.high[cl] = int64(min(n, maxCounted))
			}
			c.win.ImageEnd = (cl + 1) << d.h.clusterBits
		}
		if end == v.end || end>>r.blockBits != index {
			v.readBlock = -1
		}
		d.mu.Unlock()
		if err := c.rest(max((end-from)<<r.order/8, 1)); err != nil {
			return err
		}
	}
	return nil
}

// soundBlock tells whether a refcount block can lie at off.
func (c *inspection) soundBlock(off int64) bool {
	return off >= 0 && off&(c.d.h.clusterSize-1) == 0 && off < c.d.file().Size()
}
