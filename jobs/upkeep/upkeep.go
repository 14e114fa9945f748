// Package upkeep is the jobs that look after an image while guests use it:
// x-blockdev-check finds and repairs damage, x-blockdev-compact gives space
// back. What they do is the format's (blockgraph.Upkeep); this is the job
// around it: its use of the node, steps, speed, pauses, progress, results.
//
// A step is done under an admission of its own, so that graph changes find the
// image at rest between two. The copy engine paces the steps; they copy nothing
// between nodes, so none has a buffer, and one goes on at a time.
//
// The Prepare functions are called on a worker with the graph token held. It
// must not import formats, exports or qmp.
//
//blockd:io
package upkeep

import (
	"context"
	"sync/atomic"
	"syscall"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/copy"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

const (
	// maxStep is the most work of a step in bytes: what a pause or a graph
	// change waits for.
	maxStep = 1 << 20
	// unit is the work of a step under a speed limit, in bytes.
	unit = 64 << 10
)

// job is the driver of both.
type job struct {
	transfer.Body
	root *blockgraph.Root
	care blockgraph.Upkeep
	// report fills in results when the work is done.
	report func(r *results)
	result atomic.Pointer[results]
	closed bool
}

// results are what queries and the job's last event tell.
type results struct {
	check   *qapi.ImageCheck
	compact *qapi.ImageCompact
}

// start makes the job a user of the node and creates it. begin asks the node's
// driver to begin; what it returns belongs to the job.
func start(tx *blockgraph.Tx, set *jobs.Set, o jobs.Options, root blockgraph.RootOptions, n *blockgraph.Node, begin func(root *blockgraph.Root) (blockgraph.Upkeep, func(r *results), error)) (*jobs.Job, error) {
	b := &job{}
	o.Request = qapi.RequestOf(tx.Context())
	j, err := set.Create(o, b)
	if err != nil {
		return nil, err
	}
	root.Desc, root.Job, root.StayAtNode = string(o.Type)+" job '"+j.ID()+"'", j.ID(), true
	root.Shared = blockgraph.PermAll
	if b.root, err = tx.NewRoot(n, root); err == nil {
		b.care, b.report, err = begin(b.root)
	}
	if err != nil {
		j.Fail()
		if err == syscall.EBUSY {
			err = qapi.Errorf("Node '%s' is being checked or compacted already", n.Name())
		}
		return nil, err
	}
	tx.OnAbort(b.close)
	j.StartIn(tx, false)
	return j, nil
}

// Run implements jobs.Driver.
func (b *job) Run(ctx context.Context, j *jobs.Job) error {
	err := b.work(ctx, j)
	if c, ok := b.care.(blockgraph.Check); ok && err == nil && c.Lost() {
		b.tell() // if it ends here, this is what is known
		if err = j.Change(ctx, func(tx *blockgraph.Tx) error { return b.rebuild(tx, c) }); err == nil {
			err = b.work(ctx, j)
		}
	}
	if err == nil {
		b.tell()
	}
	return err
}

// work does all steps.
func (b *job) work(ctx context.Context, j *jobs.Job) error {
	w := &work{b: b, progress: j.Progress()}
	return b.Body.Run(ctx, j, w, transfer.Options{MaxWorkers: 1, MaxChunk: maxStep, SpeedChunk: unit})
}

// tell lets queries see what is known.
func (b *job) tell() {
	r := &results{}
	b.report(r)
	b.result.Store(r)
}

// Busy implements jobs.Busier.
func (b *job) Busy() bool { return b.Usage().Steps > 0 }

// Clean implements jobs.Cleaner.
func (b *job) Clean(tx *blockgraph.Tx) error {
	b.close()
	return tx.CloseRoot(b.root)
}

// close ends the work. No step is in flight.
func (b *job) close() {
	if !b.closed {
		b.closed = true
		b.care.Close()
	}
}

// Refresh implements jobs.Informer.
func (b *job) Refresh() {}

// JobInfo implements jobs.Informer.
func (b *job) JobInfo(info *qapi.JobInfo) {
	if r := b.result.Load(); r != nil {
		info.XCheck, info.XCompact = r.check, r.compact
	}
}

// BlockJobInfo implements jobs.Informer.
func (b *job) BlockJobInfo(info *qapi.BlockJobInfo) {
	if r := b.result.Load(); r != nil {
		info.XCheck, info.XCompact = r.check, r.compact
	}
}

// Completed implements jobs.Reporter.
func (b *job) Completed(event *qapi.BlockJobCompleted) {
	if r := b.result.Load(); r != nil {
		event.XCheck, event.XCompact = r.check, r.compact
	}
}

// work feeds the engine with steps.
type work struct {
	b        *job
	progress *jobs.Progress
	off      int64 // of the next step, as if the work were a file
	owed     int64 // work that steps did beyond what was planned
	done     bool
}

// Unit implements copy.Work.
func (w *work) Unit() int64 { return unit }

// Next implements copy.Work. No step is in flight.
func (w *work) Next(_ context.Context, l copy.Limit) (copy.Piece, error) {
	n := max(1, min(l.Zero, maxStep))
	switch {
	case w.owed > 0:
		n = min(n, w.owed)
	case w.done:
		return copy.Piece{}, nil
	}
	p := copy.Piece{Off: w.off, N: n, Kind: copy.Zero}
	w.off += n
	return p, nil
}

// Do implements copy.Work: what is owed counts against the speed only.
func (w *work) Do(ctx context.Context, p copy.Piece, _ []byte) error {
	if w.owed > 0 {
		w.owed -= min(w.owed, p.N)
		return nil
	}
	a, err := w.b.root.Enter(ctx)
	if err != nil {
		return err
	}
	defer a.Leave()
	did, more, err := w.b.care.Step(ctx, p.N)
	if err != nil {
		return err
	}
	w.done = !more
	w.owed = max(0, did-p.N)
	w.progress.Add(did)
	w.progress.SetRemaining(w.b.care.Remaining())
	return nil
}

// Skip implements copy.Work.
func (w *work) Skip(copy.Piece, bool) {}

// Settle implements copy.Work.
func (w *work) Settle(context.Context) (bool, error) { return false, nil }
