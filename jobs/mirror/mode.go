package mirror

import (
	"context"
	"log/slog"

	"blockd/blockgraph"
	"blockd/qapi"
)

// This file is about when guests' writes go to the target by themselves.

// setMode makes the filter active or passive, as the user's copy mode and the
// job's state want it. note, if not nil, changes that state within the same
// change, and is not undone if the change fails. It fails when others write to
// the source. Worker, or the body.
func (m *mirror) setMode(ctx context.Context, note func()) error {
	return m.job.Change(ctx, func(tx *blockgraph.Tx) error {
		if note != nil {
			note()
		}
		// Nobody else may come to write as soon as the filter is to be active,
		// though it is that only once the job knows what is dirty.
		exclusive := !m.commit && (m.final || m.blocking.Load())
		active := exclusive && (m.final || m.surveyed)
		wasExclusive := m.filter.Exclusive()
		if m.nodes.Left() || active == m.filter.Active() && exclusive == wasExclusive {
			return nil
		}
		if active != m.filter.Active() {
			if err := tx.Drain(m.node); err != nil {
				return err
			}
		}
		m.filter.SetExclusive(exclusive)
		tx.OnAbort(func() { m.filter.SetExclusive(wasExclusive) })
		if err := tx.RefreshPerms(m.node); err != nil {
			return err
		}
		tx.OnCommit(func() { m.filter.SetActive(active) })
		return nil
	})
}

// setFinal makes guests' writes synchronous for the job's end, which does without
// if that cannot be had. The body.
func (m *mirror) setFinal(ctx context.Context) error {
	err := m.setMode(ctx, func() { m.final = true })
	if err != nil && ctx.Err() == nil && m.final {
		slog.InfoContext(ctx, "a mirror ends while others write to its source", "job", m.job.ID(), "error", err)
		return nil
	}
	return err
}

// CheckChange implements jobs.Changer.
func (m *mirror) CheckChange(o *qapi.BlockJobChangeOptions) error {
	if m.typ != qapi.JobTypeMirror || o.Mirror == nil {
		return qapi.Errorf("Job type does not support change")
	}
	return nil
}

// Change implements jobs.Changer. The field knows only the way from background
// to write-blocking. On the way back, writes that are under way still reach the
// target before they complete.
func (m *mirror) Change(ctx context.Context, o *qapi.BlockJobChangeOptions) error {
	want := o.Mirror.CopyMode == qapi.MirrorCopyModeWriteBlocking
	if !m.blocking.CompareAndSwap(!want, want) {
		return nil
	}
	if err := m.setMode(ctx, nil); err != nil {
		m.blocking.Store(!want)
		return err
	}
	m.wake.Send()
	return nil
}

// converge measures how the job fares, and makes writes synchronous when it has
// not become ready in the time that the user gave it. The body.
func (m *mirror) converge(ctx context.Context) error {
	if m.filter.Halted() && !m.job.PauseWanted() {
		m.filter.SetHalted(false) // it was resumed
	}
	m.mu.Lock()
	age := m.pace.sample(m.filter.Dirty().Count() + m.inFlight.Load())
	m.mu.Unlock()
	if m.blockAfter == 0 || age < m.blockAfter || m.isReady.Load() || !m.blocking.CompareAndSwap(false, true) {
		return nil
	}
	err := m.setMode(ctx, nil)
	if err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "a mirror cannot change to write-blocking", "job", m.job.ID(), "error", err)
		m.blocking.Store(false)
		m.blockAfter = 0
		return nil
	}
	return err
}
