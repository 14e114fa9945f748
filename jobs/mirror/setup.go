package mirror

import (
	"context"
	"time"

	"blockd/blockgraph"
	"blockd/filters/mirrortop"
	"blockd/jobs"
	"blockd/jobs/chain"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// Request is one mirror to be made.
type Request struct {
	Jobs           *jobs.Set
	Source, Target *blockgraph.Node
	// Args are the command's; Source and Target stand for what they name.
	Args *qapi.BlockdevMirror
	// Unmap: where the source reads as zeroes the target may free space.
	Unmap bool
	// Fresh: the target was made for this job.
	Fresh   bool
	Backing Backing
}

// Prepare sets a mirror up within a graph change: it checks the arguments, puts
// the filter over the source, and creates the job, which starts with the
// change's commit. It fails with the field's texts; the change is then to be
// undone.
func Prepare(tx *blockgraph.Tx, r Request) (*jobs.Job, error) {
	a := r.Args
	if err := check(a); err != nil {
		return nil, err
	}
	if err := tx.CheckBlocked(r.Source, blockgraph.OpMirrorSource); err != nil {
		return nil, err
	}
	if err := tx.CheckBlocked(r.Target, blockgraph.OpMirrorTarget); err != nil {
		return nil, err
	}
	m := &mirror{
		typ: qapi.JobTypeMirror, sync: a.Sync, backing: r.Backing,
		onRead: qapi.Or(a.OnSourceError, qapi.BlockdevOnErrorReport), onCopy: qapi.Or(a.OnTargetError, qapi.BlockdevOnErrorReport),
		unmap: r.Unmap, targetIsZero: qapi.Or(a.TargetIsZero, false), fresh: r.Fresh, replaces: a.Replaces,
		source: r.Source, target: r.Target,
		blockAfter: time.Duration(qapi.Or(a.XWriteBlockingAfter, 0)) * time.Second,
	}
	m.blocking.Store(qapi.Or(a.CopyMode, qapi.MirrorCopyModeBackground) == qapi.MirrorCopyModeWriteBlocking)
	if m.sync == qapi.MirrorSyncModeTop {
		if m.base = belowOverlay(tx, r.Source); m.base == nil {
			m.sync = qapi.MirrorSyncModeFull
		}
	}
	m.zeroTarget = m.sync == qapi.MirrorSyncModeFull && !m.targetIsZero
	// The field counts only what is allocated of a top without a backing file.
	m.countAllocated = a.Sync == qapi.MirrorSyncModeTop
	if err := m.checkReplaces(tx); err != nil {
		return nil, err
	}
	if err := checkLate(a); err != nil {
		return nil, err
	}
	return m.start(tx, r.Jobs, a.FilterNodeName, int64(qapi.Or(a.Granularity, 0)), qapi.Or(a.BufSize, 0), transfer.JobOptions(m.typ, a.JobID, a.Speed, a.AutoFinalize, a.AutoDismiss))
}

// ActiveCommit is a commit of the active layer to be made.
type ActiveCommit struct {
	Jobs *jobs.Set
	// Top is the active layer, Base an image below it.
	Top, Base      *blockgraph.Node
	JobID          *string
	Speed          *int64
	OnError        *qapi.BlockdevOnError
	FilterNodeName *string
	AutoFinalize   *bool
	AutoDismiss    *bool
}

// NewActiveCommit sets a commit of the active layer up within a graph change.
// The arguments about the chain were checked before. It fails with the field's
// texts; the change is then to be undone.
func NewActiveCommit(tx *blockgraph.Tx, c ActiveCommit) (*jobs.Job, error) {
	onError := qapi.Or(c.OnError, qapi.BlockdevOnErrorReport)
	m := &mirror{
		typ: qapi.JobTypeCommit, sync: qapi.MirrorSyncModeTop, commit: true,
		onRead: onError, onCopy: onError, unmap: true,
		source: c.Top, target: c.Base,
		readOnly: tx.State(c.Base).ReadOnly,
	}
	m.base = chain.Below(tx, c.Top)
	for m.base != nil && chain.SkipFilters(tx, m.base) != chain.SkipFilters(tx, c.Base) {
		m.base = chain.Below(tx, m.base) // in the end the highest filter over the base
	}
	if m.readOnly {
		if err := tx.SetReadOnly(c.Base, false); err != nil {
			return nil, err
		}
	}
	return m.start(tx, c.Jobs, c.FilterNodeName, 0, 0, transfer.JobOptions(m.typ, c.JobID, c.Speed, c.AutoFinalize, c.AutoDismiss))
}

// start makes the filter and the job.
func (m *mirror) start(tx *blockgraph.Tx, set *jobs.Set, name *string, granularity, buffer int64, o jobs.Options) (*jobs.Job, error) {
	m.wake = mirrortop.NewSignal()
	m.give = func() {}
	m.pace.init(set.Clock())
	if chain.SkipFilters(tx, m.source) == chain.SkipFilters(tx, m.target) {
		return nil, qapi.Errorf("Can't mirror node into itself")
	}
	m.commit = m.commit || chain.Contains(tx, m.source, m.target)
	cluster, old := clusters(tx.Context(), m.target)
	if granularity == 0 {
		granularity = defaultGranularity(cluster)
	}
	// A target that is to get its backing file later cannot fill in the rest of
	// a cluster from there: it gets whole ones.
	st := tx.State(chain.SkipFilters(tx, m.target))
	detached := st.BackingName != "" && st.Backing() == nil
	m.zeroAsData = detached && old
	whole := detached && granularity < cluster
	if whole {
		granularity = cluster
	}
	m.buffer = bufferSize(buffer, granularity)
	var err error
	m.filter, err = mirrortop.New(mirrortop.Options{Source: m.source, Granularity: granularity, Commit: m.commit, Whole: whole, ZeroAsData: m.zeroAsData})
	if err != nil {
		return nil, err
	}
	m.filter.SetExclusive(m.blocking.Load() && !m.commit)
	if err := m.insertFilter(tx, name); err != nil {
		return nil, err
	}
	return m.nodes.Start(tx, set, o, m, false, func(j *jobs.Job) error {
		m.job = j
		if err := m.attach(tx); err != nil {
			return err
		}
		tx.AddMarker(m.source, m.filter)
		return nil
	})
}

// insertFilter puts the filter over the source.
func (m *mirror) insertFilter(tx *blockgraph.Tx, name *string) error {
	unmap := qapi.BlockdevDiscardOptionsUnmap // guests' discards go on as before
	n, err := tx.OpenType(m.filter.Type(), &qapi.BlockdevOptions{Driver: mirrortop.Driver, NodeName: name, Discard: &unmap})
	if err != nil {
		return err
	}
	if name == nil {
		tx.SetImplicit(n)
	}
	m.node = n
	return tx.ReplaceNode(m.source, n)
}

// attach makes the job a user of its nodes.
func (m *mirror) attach(tx *blockgraph.Tx) error {
	const (
		read      = blockgraph.PermConsistentRead
		unchanged = blockgraph.PermWriteUnchanged
		write     = blockgraph.PermWrite
	)
	var err error
	// Nobody changes the length of the source.
	if m.main, err = m.nodes.Use(tx, m.node, "main node", read, read|unchanged|write); err != nil {
		return err
	}
	perm, shared := write, unchanged
	switch {
	case m.commit:
		if m.target.Size() < m.source.Size() {
			perm |= blockgraph.PermResize
		}
		shared |= read | write
	case chain.Contains(tx, m.source, chain.SkipFilters(tx, m.target)):
		return qapi.Errorf("Cannot mirror to a filter on top of a node in the source's backing chain")
	}
	if m.targetRoot, err = m.nodes.Open(tx, m.target, perm, shared); err != nil {
		return err
	}
	m.filter.SetTarget(mirrortop.Target{Root: m.targetRoot, OnError: m.guestWriteFailed, Progress: m.progress})
	if _, err = m.nodes.Use(tx, m.source, "source", 0, read|unchanged|write); err != nil {
		return err
	}
	if _, err = m.nodes.Use(tx, m.target, "target", 0, blockgraph.PermAll); err != nil {
		return err
	}
	if !chain.Contains(tx, m.source, m.target) {
		return nil
	}
	between := unchanged | write
	for n := chain.Below(tx, m.source); n != m.target; n = chain.Below(tx, n) {
		if chain.SkipFilters(tx, n) == chain.SkipFilters(tx, m.target) {
			between |= read // from here on there are only filters over the base
		}
		if _, err := m.nodes.Use(tx, n, "intermediate node", 0, between); err != nil {
			return err
		}
	}
	return m.nodes.Freeze(tx, m.node, m.target)
}

// clusters returns a node's cluster size in bytes, 0 where there is none, and
// whether it is of an old version of its format, which has no zero clusters.
func clusters(ctx context.Context, n *blockgraph.Node) (size int64, old bool) {
	for {
		if i, ok := n.Driver().(blockgraph.ImageInformer); ok {
			var info qapi.ImageInfo
			if i.ImageInfo(ctx, &info) != nil || info.ClusterSize == nil {
				return 0, false
			}
			if s := info.FormatSpecific; s != nil && s.Qcow2 != nil {
				old = s.Qcow2.Compat == "0.10"
			}
			if c := *info.ClusterSize; c > 0 && c&(c-1) == 0 && c <= maxGranularity {
				size = c
			}
			return size, old
		}
		e := n.Filtered()
		if e == nil {
			return 0, false
		}
		n = e.Child()
	}
}

// defaultGranularity returns the unit of copying for a target of that cluster
// size.
func defaultGranularity(cluster int64) int64 {
	if cluster == 0 {
		return 64 << 10
	}
	return min(max(cluster, 4<<10), 64<<10)
}
