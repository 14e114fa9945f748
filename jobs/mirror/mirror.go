package mirror

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"blockd/blockgraph"
	"blockd/filters/mirrortop"
	"blockd/jobs"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// mirror is the driver of the job.
type mirror struct {
	transfer.Body

	// Set up before the start.
	typ            qapi.JobType
	sync           qapi.MirrorSyncMode
	backing        Backing
	onRead, onCopy qapi.BlockdevOnError
	unmap          bool
	buffer         int64 // bytes in flight
	zeroTarget     bool  // it has to be made to read as zeroes where the source does
	targetIsZero   bool  // it does
	countAllocated bool  // zeroing the rest is not worth telling as progress
	fresh          bool  // it was made for this job
	zeroAsData     bool  // it cannot hide a later backing file with zeroes
	replaces       *string
	commit         bool
	readOnly       bool // the base of a commit was, and is to be again
	blockAfter     time.Duration

	job            *jobs.Job
	filter         *mirrortop.Filter
	node           *blockgraph.Node // the filter's
	source, target *blockgraph.Node
	base           *blockgraph.Node // what is below it is not copied; nil: everything is
	main           *blockgraph.Root // over the filter
	targetRoot     *blockgraph.Root
	nodes          transfer.Nodes

	// Any goroutine.
	inFlight   atomic.Int64     // bytes that are being copied and no longer marked
	wake       mirrortop.Signal // something changed for the body
	completing atomic.Bool      // asked to complete
	leaving    atomic.Bool      // asked to end without a pivot
	blocking   atomic.Bool      // the copy mode that the user chose is write-blocking
	isReady    atomic.Bool
	begun      atomic.Bool // what there is to copy is known
	mu         sync.Mutex  //blockd:short
	failure    error       // what ends the job
	give       context.CancelFunc
	pace       pace

	// toReplace is set on the loop before completing is, and not again; guard by
	// a commit of the body's.
	toReplace *blockgraph.Node
	guard     *blockgraph.Blocker

	// Held by the graph's token; the body reads what it has set.
	surveyed bool // what is dirty is known: writes may be synchronous
	final    bool // the job is to end: they shall be
	pivoted  bool // the target has taken the source's place

	unforced int // of the body: passes that left something dirty since then
}

// Kick implements jobs.Kicker.
func (m *mirror) Kick() {
	m.Body.Kick()
	m.wake.Send()
}

// Busy implements jobs.Busier.
func (m *mirror) Busy() bool { return m.Usage().Steps > 0 }

// Drained implements jobs.Orphaner: neither a step nor a guest's write is under
// way to the target.
func (m *mirror) Drained() <-chan struct{} {
	return m.DrainedWith(m.job.Set().Clock(), m.filter.Rest())
}

// Orphans implements jobs.Orphaner.
func (m *mirror) Orphans() int { return m.Body.Orphans() + m.filter.Writes() }

// Complete implements jobs.Completer.
func (m *mirror) Complete() error {
	if m.completing.Load() {
		return nil
	}
	if m.replaces != nil {
		n := m.job.Set().Graph().Node(*m.replaces)
		if n == nil {
			return qapi.Errorf("Node name '%s' not found", *m.replaces)
		}
		m.toReplace = n
	}
	m.completing.Store(true)
	m.wake.Send()
	return nil
}

// Cancel implements jobs.SoftCanceller: a job that is ready completes without a
// pivot unless it is forced.
func (m *mirror) Cancel(force bool) bool {
	if s := m.job.Status(); s != qapi.JobStatusReady && s != qapi.JobStatusStandby {
		force = true
	}
	if force {
		m.filter.Abandon()
	} else {
		m.leaving.Store(true)
		m.wake.Send()
	}
	return force
}

// Refresh implements jobs.Informer.
func (m *mirror) Refresh() { m.refresh() }

// refresh brings the job's progress up to date.
//
//blockd:any
func (m *mirror) refresh() {
	if m.begun.Load() {
		m.job.Progress().SetRemaining(m.filter.Dirty().Count() + max(0, m.inFlight.Load()))
	}
}

// JobInfo implements jobs.Informer.
func (m *mirror) JobInfo(info *qapi.JobInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := m.filter.Dirty().Count() + m.inFlight.Load(); m.begun.Load() {
		m.pace.sample(left)
		info.XConvergence = m.pace.estimate(left)
	}
}

// BlockJobInfo implements jobs.Informer. Once it has done its work the field's
// mirror is paused, as its nodes stay drained.
func (m *mirror) BlockJobInfo(info *qapi.BlockJobInfo) {
	if info.Status == qapi.JobStatusWaiting || info.Status == qapi.JobStatusPending {
		info.Paused = true
	}
	if m.typ == qapi.JobTypeMirror {
		info.Mirror = &qapi.BlockJobInfoMirror{ActivelySynced: m.filter.Synced()}
	}
}

// fail ends the job with an error. Any goroutine.
func (m *mirror) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure == nil {
		m.failure = err
		m.give()
	}
}

func (m *mirror) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failure
}
