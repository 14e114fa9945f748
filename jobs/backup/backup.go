// Package backup is the backup job: a copy of a node as it was at one point in
// time, while guests go on writing.
//
// The point in time is the commit of the graph change that puts a
// copy-before-write filter over the source: the gates of all that could write
// are closed then. Any number of backups prepared in one change share it. From
// then on a guest's write first has the old content copied; the job copies the
// rest. Both share one set of clusters, so each is copied once and counted
// once.
//
// Prepare is called on a worker with the graph token held. The job's end runs
// in a change of its own (see package jobs). It must not import formats,
// exports or qmp.
//
//blockd:io
package backup

import (
	"context"
	"sync/atomic"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/filters/copybeforewrite"
	"blockd/jobs"
	"blockd/jobs/copy"
	"blockd/jobs/scratch"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// Request is one backup to be made.
type Request struct {
	Jobs *jobs.Set
	// Txn is the transaction that the job joins; nil: one of its own.
	Txn            *jobs.Txn
	Source, Target *blockgraph.Node
	Args           *qapi.BackupCommon
	// Scratch is where guests' writes may keep what they overwrite; nil: there
	// is no such room.
	Scratch *scratch.Pool
}

// Prepare sets a backup up within a graph change: it checks the arguments, puts
// the filter over the source, and creates the job, which starts with the
// change's commit. It fails with the field's texts; the change is then to be
// undone.
func Prepare(tx *blockgraph.Tx, r Request) (*jobs.Job, error) {
	a := r.Args
	if err := check(a, func(name string) *blockgraph.DirtyBitmap { return tx.Bitmap(r.Source, name) }); err != nil {
		return nil, err
	}
	p := defaults(a)
	if err := p.allowed(tx, r); err != nil {
		return nil, err
	}
	b := &backup{params: p}
	if err := b.insertFilter(tx, r); err != nil {
		return nil, err
	}
	if size := b.clusters.Size(); p.maxChunk != 0 && p.maxChunk < size {
		return nil, qapi.Errorf("Required max-chunk (%d) is less than backup cluster size (%d)", p.maxChunk, size)
	}
	o := transfer.JobOptions(qapi.JobTypeBackup, a.JobID, a.Speed, a.AutoFinalize, a.AutoDismiss)
	o.Txn = r.Txn
	return b.nodes.Start(tx, r.Jobs, o, b, true, func(j *jobs.Job) error { return b.attach(tx, j) })
}

// allowed makes the field's checks, in its order.
func (p *params) allowed(tx *blockgraph.Tx, r Request) error {
	if r.Source == r.Target {
		return qapi.Errorf("Source and target cannot be the same")
	}
	if p.compress && r.Target.Caps().Compressed == blockgraph.CapNone {
		return qapi.Errorf("Compression is not supported for this drive ")
	}
	if err := tx.CheckBlocked(r.Source, blockgraph.OpBackupSource); err != nil {
		return err
	}
	if err := tx.CheckBlocked(r.Target, blockgraph.OpBackupTarget); err != nil {
		return err
	}
	if err := p.perf(r.Args.XPerf); err != nil {
		return err
	}
	if err := p.checkScratch(r); err != nil {
		return err
	}
	if err := p.freeze(tx, r.Source); err != nil {
		return err
	}
	if r.Source.Size() != r.Target.Size() {
		return qapi.Errorf("Source and target image have different sizes")
	}
	return nil
}

// backup is the driver of the job.
type backup struct {
	params
	transfer.Body

	job      *jobs.Job
	source   *blockgraph.Node
	node     *blockgraph.Node // the filter's
	filter   *copybeforewrite.Filter
	clusters *copy.Clusters
	target   *blockgraph.Node
	nodes    transfer.Nodes
	room     *scratch.Scratch // nil: none

	// How far a failed copy had come; see bitmap.go.
	uncopied atomic.Pointer[bitmaps.Bitmap]
	unsafe   atomic.Bool

	root       *blockgraph.Root // over the filter: reads the source, writes the target
	targetRoot *blockgraph.Root
}

// insertFilter puts a copy-before-write filter over the source.
func (b *backup) insertFilter(tx *blockgraph.Tx, r Request) error {
	source, target := r.Source.Name(), r.Target.Name()
	discard := qapi.BlockdevDiscardOptionsUnmap // guests' discards go on as before
	o := &qapi.BlockdevOptions{
		Driver:   qapi.BlockdevDriverCopyBeforeWrite,
		Discard:  &discard,
		NodeName: r.Args.FilterNodeName,
		CopyBeforeWrite: &qapi.BlockdevOptionsCbw{
			File:       qapi.BlockdevRef{Reference: &source},
			Target:     qapi.BlockdevRef{Reference: &target},
			OnCBWError: &b.onCBW,
		},
	}
	if b.minCluster != 0 {
		o.CopyBeforeWrite.MinClusterSize = &b.minCluster
	}
	n, err := tx.Open(o)
	if err != nil {
		return qapi.Errorf("Could not create node: %s", err)
	}
	b.source, b.node, b.target = r.Source, n, r.Target
	b.filter = n.Driver().(*copybeforewrite.Filter)
	if b.top {
		b.filter.SetTop()
	}
	b.filter.SetCompressed(b.compress)
	if qapi.Or(r.Args.DiscardSource, false) {
		b.filter.SetDiscardSource()
	}
	b.clusters = b.filter.Clusters()
	if b.marked {
		b.filter.Restrict(tx.Bitmap(b.source, b.bitmap).Bits)
	}
	if b.scratch {
		b.room = r.Scratch.New(r.Source.Size(), b.clusters.Size(), b.scratchSize)
		b.filter.SetScratch(b.room, b.breakIfFull)
	}
	return tx.InsertFilter(n, r.Source)
}

// attach makes the job a user of its nodes.
func (b *backup) attach(tx *blockgraph.Tx, j *jobs.Job) error {
	b.job = j
	var err error
	if b.root, err = b.nodes.Use(tx, b.node, "main node", blockgraph.PermConsistentRead, blockgraph.PermAll); err != nil {
		return err
	}
	if b.targetRoot, err = b.nodes.Use(tx, b.target, "target", 0, blockgraph.PermAll); err != nil {
		return err
	}
	j.Progress().SetRemaining(b.clusters.Remaining())
	b.clusters.SetProgress(j.Progress().Report)
	return nil
}

// Run copies what guests' writes have not had copied. With sync=none it only
// waits for the cancel.
func (b *backup) Run(ctx context.Context, j *jobs.Job) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer b.watch(ctx, stop)()
	err := b.copy(ctx, j)
	broken := b.filter.SnapshotError() // of the filter's own accord
	if err != nil {
		b.filter.Abandon() // nobody wants the old content any more
		b.noteUncopied()
		if b.room != nil {
			b.room.Drop()
		}
	}
	if broken != nil {
		return transfer.Error(broken)
	}
	return err
}

// watch ends the copying when the filter gives the point in time up, under
// on-cbw-error=break-snapshot. The result ends the watch.
func (b *backup) watch(ctx context.Context, stop context.CancelFunc) func() {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-b.filter.Broken():
			stop()
		case <-done:
		case <-ctx.Done():
		}
	}()
	return func() { close(done); <-ended }
}

func (b *backup) copy(ctx context.Context, j *jobs.Job) error {
	if b.none {
		for {
			if err := j.PausePoint(ctx); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
			case <-j.PauseRequested():
			}
		}
	}
	err := b.Body.Run(ctx, j, b.filter.Work(b.root), transfer.Options{
		SpeedChunk: copy.MirrorChunk,
		MaxWorkers: b.maxWorkers, MaxChunk: b.maxChunk,
		OnRead: b.onRead, OnWrite: b.onCopy,
	})
	if err != nil {
		return err
	}
	if err := b.Flush(ctx, j, b.targetRoot, b.onCopy); err != nil {
		b.unsafe.Store(true)
		return err
	}
	return nil
}

// Drained implements jobs.Orphaner: what the engine and what guests' writes left
// behind.
func (b *backup) Drained() <-chan struct{} {
	return b.DrainedWith(b.job.Set().Clock(), b.filter.Resting())
}

// Orphans implements jobs.Orphaner.
func (b *backup) Orphans() int { return b.Body.Orphans() + b.filter.Copies() }

// Busy implements jobs.Busier: the field's backup job leaves all work to others,
// and is busy only while a pause has it wait for them.
func (b *backup) Busy() bool { return false }

// Clean removes the filter and gives the nodes up.
func (b *backup) Clean(tx *blockgraph.Tx) error {
	if err := b.nodes.Leave(tx); err != nil {
		return err
	}
	for _, e := range tx.State(b.node).Edges {
		if e.Name() != "file" {
			continue
		}
		if err := tx.ReplaceNode(b.node, e.Child()); err != nil {
			return err
		}
	}
	// It would let nobody write to the source until it is closed.
	return tx.SetChild(b.node, "file", 0, nil)
}
