package mirror

import (
	"context"
	"time"

	"blockd/jobs"
	"blockd/jobs/copy"
	"blockd/jobs/transfer"
	"blockd/qapi"
)

const (
	// slice is how long what becomes dirty is gathered once the job is ready.
	slice = 100 * time.Millisecond
	// lastPasses is how often the job goes over what guests make dirty after it
	// was asked to end, and lastBytes how much it then leaves to the change that
	// ends it, where guests' writes cannot be made synchronous.
	lastPasses = 3
	lastBytes  = 4 << 20
)

// Run copies until it is asked to end and nothing is dirty. It runs again when
// the change that was to end the job could not copy what was left.
func (m *mirror) Run(ctx context.Context, j *jobs.Job) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	m.mu.Lock()
	m.give = stop
	m.mu.Unlock()
	err := m.run(ctx, j)
	if f := m.failed(); f != nil {
		err = f
	}
	if err != nil {
		m.filter.Abandon()
	}
	m.refresh()
	return err
}

func (m *mirror) run(ctx context.Context, j *jobs.Job) error {
	if !m.begun.Load() {
		if err := m.survey(ctx, j); err != nil {
			return err
		}
	}
	m.unforced = 0
	w := newWork(m)
	w.settle = func(ctx context.Context) (bool, error) { return m.settle(ctx, w) }
	return m.Body.Run(ctx, j, w, transfer.Options{
		SpeedChunk: m.buffer, FreeZeroes: m.unmap && canUnmap(m.target),
		OnRead: m.onRead, OnWrite: m.onCopy, PutOff: true, Window: m.buffer,
	})
}

// survey finds out what there is to copy.
func (m *mirror) survey(ctx context.Context, j *jobs.Job) error {
	if err := m.sizes(ctx); err != nil {
		return err
	}
	if m.source.Size() > 0 {
		if err := m.begin(ctx, j); err != nil {
			return err
		}
	}
	if err := m.setMode(ctx, func() { m.surveyed = true }); err != nil {
		return err
	}
	m.mu.Lock()
	m.pace.restart()
	m.mu.Unlock()
	m.begun.Store(true)
	m.refresh()
	return nil
}

// ending tells whether the job was asked to end well.
func (m *mirror) ending() bool { return m.completing.Load() || m.leaving.Load() }

// settle is called when the job has gone over everything that was dirty. It
// waits for more, and returns false when the job may end.
func (m *mirror) settle(ctx context.Context, w *work) (more bool, err error) {
	for {
		if err := m.converge(ctx); err != nil {
			return false, err
		}
		if left := m.filter.Dirty().Count(); left > 0 {
			if m.ending() && m.final && !m.filter.Active() {
				if m.unforced++; m.unforced > lastPasses && left <= lastBytes {
					return false, m.Flush(ctx, m.job, m.targetRoot, m.onCopy)
				}
			}
			if w.putOff {
				w.putOff = false
				return true, m.sleep(ctx)
			}
			return true, nil
		}
		if !m.isReady.Load() {
			if err := m.Flush(ctx, m.job, m.targetRoot, m.onCopy); err != nil {
				return false, err
			}
			m.isReady.Store(true)
			m.filter.Sync()
			m.job.Progress().SetRemaining(0)
			m.job.Ready()
		}
		switch {
		case m.job.PauseWanted():
			return true, nil
		case m.filter.Active() && !m.filter.Sync():
			return true, nil // something was dirty just now
		case !m.ending():
			if err := m.rest(ctx); err != nil {
				return false, err
			}
		case !m.final:
			if err := m.guardReplaced(ctx); err != nil {
				return false, err
			}
			if err := m.setFinal(ctx); err != nil {
				return false, err
			}
		default:
			return false, m.Flush(ctx, m.job, m.targetRoot, m.onCopy)
		}
	}
}

// rest waits until something is dirty, for a moment more, or until somebody
// wants something of the job.
func (m *mirror) rest(ctx context.Context) error {
	dirt := m.filter.AwaitDirt()
	select {
	case <-dirt:
		return m.sleep(ctx)
	case <-m.wake:
	case <-m.job.PauseRequested():
	case <-ctx.Done():
	}
	m.filter.EndAwait()
	return ctx.Err()
}

// sleep waits for a slice, or until somebody wants something of the job.
func (m *mirror) sleep(ctx context.Context) error {
	t := m.job.Set().Clock().NewTimer(slice)
	defer t.Stop()
	select {
	case <-t.C():
	case <-m.wake:
	case <-m.job.PauseRequested():
	case <-ctx.Done():
	}
	return ctx.Err()
}

// copied accounts for n bytes that the job has brought to the target.
func (m *mirror) copied(n int64) {
	m.job.Progress().Add(n)
	m.pace.copied.Add(n)
}

// progress accounts for what guests' writes bring to the target.
func (m *mirror) progress(done, remaining int64) {
	m.inFlight.Add(remaining)
	if done > 0 {
		m.job.Progress().Add(done)
	}
}

// guestWriteFailed decides about a guest's write that failed on the target. The
// guest does not hear of it, and what it wrote is dirty. A job that stops for it
// leaves the target alone until it is resumed.
func (m *mirror) guestWriteFailed(err error) {
	switch m.job.OnError(m.onCopy, qapi.IoOperationTypeWrite, err) {
	case qapi.BlockErrorActionReport:
		m.fail(transfer.Error(err))
	case qapi.BlockErrorActionStop:
		m.filter.SetHalted(true)
	}
}

var _ copy.Work = (*work)(nil)

var _ interface {
	jobs.Driver
	jobs.Preparer
	jobs.Cleaner
	jobs.Completer
	jobs.SoftCanceller
	jobs.Changer
	jobs.Informer
	jobs.SpeedSetter
	jobs.Kicker
	jobs.Busier
	jobs.Orphaner
} = (*mirror)(nil)
