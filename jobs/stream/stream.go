// Package stream is the stream job: it copies data from backing files into an
// image until these are no longer needed, and then takes them out of the
// chain, while guests go on using the image.
//
// A copy-on-read filter over the image does the copying: it writes only where
// the image has nothing yet, decided under the image's own allocator, so a
// newer write of a guest is never overwritten. The links from the filter down
// to the lowest streamed image, and on to the node right above the base, are
// frozen, down to that image by the filter itself. What is below the chain is not
// the job's: another job may replace it meanwhile. So the new backing file is
// whatever is there at the end, looked up within the graph change that makes the
// new link, when nobody else can change it.
//
// Prepare is called on a worker with the graph token held. It must not import
// formats, exports or qmp.
//
//blockd:io
package stream

import (
	"context"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/chain"
	"blockd/jobs/copy"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

// Prepare sets a stream up within a graph change: it checks the arguments, puts
// the filter over top, and creates the job, which starts with the change's
// commit. top is what a.Device names. It fails with the field's texts; the
// change is then to be undone.
func Prepare(tx *blockgraph.Tx, set *jobs.Set, top *blockgraph.Node, a *qapi.BlockStreamArg) (*jobs.Job, error) {
	if err := Check(a); err != nil {
		return nil, err
	}
	p, err := find(tx, top, a)
	if err != nil {
		return nil, err
	}
	s := &stream{
		part:    p,
		onError: qapi.Or(a.OnError, qapi.BlockdevOnErrorReport),
		mask:    qapi.Or(a.BackingMaskProtocol, false),
		backing: a.BackingFile,
	}
	if s.readOnly = tx.State(top).ReadOnly; s.readOnly {
		if err := s.makeWritable(tx); err != nil {
			return nil, err
		}
	}
	if err := s.insertFilter(tx, a.FilterNodeName); err != nil {
		return nil, err
	}
	o := transfer.JobOptions(qapi.JobTypeStream, a.JobID, a.Speed, a.AutoFinalize, a.AutoDismiss)
	return s.nodes.Start(tx, set, o, s, false, func(j *jobs.Job) error { return s.attach(tx, j) })
}

// stream is the driver of the job.
type stream struct {
	part
	transfer.Body

	onError qapi.BlockdevOnError
	mask    bool // name the format of a protocol node "raw"
	// readOnly: the top was, and is to be again.
	readOnly bool
	backing  *string // what the header is to say, or nil

	filter *blockgraph.Node
	root   *blockgraph.Root // over the filter
	nodes  transfer.Nodes
}

// makeWritable reopens the top, once nobody else relies on the chain.
func (s *stream) makeWritable(tx *blockgraph.Tx) error {
	c, err := tx.FreezeChain(s.top, s.aboveBase)
	if err != nil {
		return err
	}
	defer tx.Thaw(c) // the filter is about to freeze it
	return tx.SetReadOnly(s.top, false)
}

// insertFilter puts a copy-on-read filter over the top, and freezes the chain.
func (s *stream) insertFilter(tx *blockgraph.Tx, name *string) error {
	top, bottom := s.top.Name(), s.bottom.Name()
	n, err := tx.Open(&qapi.BlockdevOptions{
		Driver:   qapi.BlockdevDriverCopyOnRead,
		NodeName: name,
		CopyOnRead: &qapi.BlockdevOptionsCor{
			File:   qapi.BlockdevRef{Reference: &top},
			Bottom: &bottom,
		},
	})
	if err != nil {
		return qapi.Errorf("Could not create node: %s", err)
	}
	if name == nil {
		tx.SetImplicit(n)
	}
	s.filter = n
	if err := s.nodes.Freeze(tx, s.bottom, s.aboveBase); err != nil {
		return err
	}
	return tx.InsertFilter(n, s.top)
}

// attach makes the job a user of its nodes: nobody may change what it reads
// once.
func (s *stream) attach(tx *blockgraph.Tx, j *jobs.Job) error {
	const basic = blockgraph.PermConsistentRead | blockgraph.PermWriteUnchanged
	if _, err := s.nodes.Use(tx, s.filter, "main node", 0, blockgraph.PermAll); err != nil {
		return err
	}
	var err error
	if s.root, err = s.nodes.Open(tx, s.filter, basic, basic|blockgraph.PermWrite); err != nil {
		return err
	}
	if _, err := s.nodes.Use(tx, s.top, "active node", 0, basic|blockgraph.PermWrite); err != nil {
		return err
	}
	end := chain.Below(tx, s.aboveBase)
	for n := chain.Below(tx, s.top); n != end; n = chain.Below(tx, n) {
		if _, err := s.nodes.Use(tx, n, "intermediate node", 0, basic); err != nil {
			return err
		}
	}
	if !s.isDone() {
		j.Progress().SetRemaining(s.top.Size()) // which clients see once the command has its reply
	}
	return nil
}

// isDone tells whether there is nothing to stream.
func (s *stream) isDone() bool { return s.top.SkipFilters() == s.bottom }

// Run copies up what the chain below the top has.
func (s *stream) Run(ctx context.Context, j *jobs.Job) error {
	if s.isDone() {
		return nil
	}
	err := s.Body.Run(ctx, j, copy.NewPopulate(copy.PopulateOptions{
		Root: s.root, Bottom: s.bottom, Length: s.top.Size(), Progress: j.Progress().Report,
	}), transfer.Options{
		SpeedChunk: copy.StreamChunk, Careful: copy.CarefulStart,
		OnRead: s.onError, ReadsOnly: true, LeaveIgnored: true,
	})
	if err != nil {
		return err
	}
	// The header may name the new backing file only when the data is safe.
	return s.Flush(ctx, j, s.root, s.onError)
}

// Busy implements jobs.Busier.
func (s *stream) Busy() bool { return s.Usage().Steps > 0 }

// Prepare takes the streamed images out of the chain and says so in the
// header.
func (s *stream) Prepare(tx *blockgraph.Tx) error {
	if err := s.remove(tx); err != nil {
		return err
	}
	image := chain.SkipFilters(tx, s.top)
	if !chain.HasBacking(tx, image) {
		return nil
	}
	base := chain.Below(tx, s.aboveBase)
	name, format := chain.HeaderFor(tx, base, s.backing, s.mask)
	if err := tx.SetChild(image, "backing", blockgraph.RoleCOW, base); err != nil {
		return err
	}
	return chain.WriteHeader(tx, image, name, format)
}

// Clean gives up what the job holds.
func (s *stream) Clean(tx *blockgraph.Tx) error {
	if !s.nodes.Left() {
		if err := s.remove(tx); err != nil {
			return err
		}
	}
	if s.readOnly {
		return chain.MakeReadOnly(tx, s.top)
	}
	return nil
}

// remove takes the filter out, and ends the job's use of its nodes.
func (s *stream) remove(tx *blockgraph.Tx) error {
	if err := s.nodes.Leave(tx); err != nil {
		return err
	}
	tx.ThawBelow(s.filter)
	if err := tx.ReplaceNode(s.filter, chain.Below(tx, s.filter)); err != nil {
		return err
	}
	// It would need to write to the image until it is closed.
	return tx.SetChild(s.filter, "file", 0, nil)
}
