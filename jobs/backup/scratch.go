package backup

import (
	"math"

	"blockd/qapi"
)

// This file decides about the scratch: whether guests' writes keep what they
// overwrite there, for the job to copy out, instead of waiting for the target.
// A reader of the target who is to see the point in time at once must not have
// one: with sync=none, and when the target reads from the source what it does
// not have itself.

// checkScratch fills in the parameters.
func (p *params) checkScratch(r Request) error {
	x := r.Args.XScratch
	if x == nil {
		x = &qapi.BackupScratch{}
	}
	can := r.Scratch != nil && !p.none && !r.Target.ChainContains(r.Source)
	p.scratch = qapi.Or(x.Enable, can)
	p.breakIfFull = qapi.Or(x.WhenFull, qapi.ScratchWhenFullWait) == qapi.ScratchWhenFullBreakSnapshot
	p.tellScratch = r.Args.XScratch != nil
	switch size := qapi.Or(x.MaxSize, 0); {
	case size > math.MaxInt64:
		return qapi.Errorf("max-size too large: %d > %d", size, int64(math.MaxInt64))
	case !p.scratch || can:
		p.scratchSize = int64(size)
		return nil
	case p.none:
		return qapi.Errorf("sync mode '%s' does not allow a scratch", r.Args.Sync)
	case r.Scratch == nil:
		return qapi.Errorf("There is no room for a scratch")
	default:
		return qapi.Errorf("The target '%s' reads from the source, which does not allow a scratch", r.Target.Name())
	}
}

// Scratch implements jobs.Scratcher. A scratch that nobody asked for, and that
// was not needed, is not told about.
func (b *backup) Scratch() *qapi.JobScratch {
	if b.room == nil {
		return nil
	}
	u := b.room.Usage()
	if !b.tellScratch && u.Peak == 0 && u.Full == 0 {
		return nil
	}
	return &qapi.JobScratch{Memory: u.Memory, Spilled: u.Spilled, Peak: u.Peak, Full: u.Full, MaxSize: b.room.MaxSize()}
}
