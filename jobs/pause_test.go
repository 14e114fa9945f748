package jobs

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/qapi"
)

func TestPauseAndResume(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		b.launch(false, nil, Options{}, "a")
		b.take()
		if e := b.do("a", (*Job).Resume); e != "Can't resume a job that was not paused" {
			t.Error(e)
		}
		b.do("a", (*Job).Pause)
		synctest.Wait()
		b.expect("a paused")
		if e := b.do("a", (*Job).Pause); e != "Job is already paused" {
			t.Error(e)
		}
		b.on(func() {
			i := b.set.BlockInfos()[0]
			if !i.Paused || i.Busy || i.Status != paused {
				t.Errorf("%+v", i)
			}
		})
		b.do("a", (*Job).Resume)
		b.expect("a running")
	})
}

// idler is a body that leaves its work to others.
type idler struct{ *fake }

func (idler) Busy() bool { return false }

// TestAJobThatIsToPauseIsBusyUntilItRests: who waits until it is not finds that
// nothing changes any more.
func TestAJobThatIsToPauseIsBusyUntilItRests(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := newFake(b, "a")
		j, err := b.set.Create(Options{ID: "a", Block: true}, idler{f})
		if err != nil {
			t.Fatal(err)
		}
		j.Start()
		release := make(chan struct{})
		f.steps <- func(context.Context, *Job) (bool, error) { <-release; return false, nil }
		synctest.Wait()
		busy := func(paused, want bool) {
			t.Helper()
			b.on(func() {
				if i := b.set.BlockInfos()[0]; i.Paused != paused || i.Busy != want {
					t.Errorf("%+v", i)
				}
			})
		}
		busy(false, false)
		b.do("a", (*Job).Pause)
		synctest.Wait()
		busy(true, true)
		close(release)
		synctest.Wait()
		busy(true, false)
		b.do("a", (*Job).Resume)
		busy(false, false)
	})
}

// TestSettleWaitsForAVerbsEffect: its events are out before the reply is sent.
func TestSettleWaitsForAVerbsEffect(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{ManualFinalize: true}, "a", "b")
		b.take()
		settled := func(id string, v Verb, f func(*Job) error) {
			var j *Job
			b.do(id, func(x *Job) error { j = x; return f(x) })
			j.Settle(v)
		}
		settled("a", VerbPause, (*Job).Pause)
		b.expect("a paused")
		settled("a", VerbCancel, forced)
		b.expect("a running", "a aborting", "a CANCELLED", "a concluded", "a null")
		f[1].finish()
		synctest.Wait()
		b.take()
		settled("b", VerbFinalize, (*Job).Finalize)
		b.expect("b COMPLETED", "b concluded", "b null")
	})
}

// TestSettleDoesNotWaitForABusyJob: the clock of the bench stands still, so the
// test's own steps are what lets Settle return.
func TestSettleDoesNotWaitForABusyJob(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		release := make(chan struct{})
		j, err := b.set.Create(Options{ID: "deaf", Block: true}, deaf(release))
		if err != nil {
			t.Fatal(err)
		}
		j.Start()
		if e := b.do("deaf", forced); e != "" {
			t.Fatal(e)
		}
		back := make(chan struct{})
		go func() { j.Settle(VerbCancel); close(back) }()
		synctest.Wait()
		select {
		case <-back:
			t.Fatal("did not wait at all")
		default:
		}
		b.clock.Step(SettleTime)
		<-back
		b.expect("deaf created", "deaf running")
		close(release)
	})
}

// TestPauseBeforeTheDrainEnds: the user's pause outlives the drain's.
func TestPauseBeforeTheDrainEnds(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		err := b.graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
			j, err := b.set.Create(Options{ID: "a", Type: qapi.JobTypeBackup, Block: true}, newFake(b, "a"))
			if err != nil {
				return err
			}
			if e := b.do("a", (*Job).Pause); e != "" {
				t.Error(e)
			}
			j.StartIn(tx, true)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.expect("a created", "a running", "a paused")
		b.do("a", (*Job).Resume)
		b.expect("a running")
	})
}

func TestStopPolicyPausesAndResumeClearsTheStatus(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{}, "a")
		b.take()
		f[0].steps <- func(ctx context.Context, j *Job) (bool, error) {
			j.OnError(qapi.BlockdevOnErrorAuto, qapi.IoOperationTypeWrite, syscall.ENOSPC)
			return false, nil
		}
		synctest.Wait()
		b.expect("a ERROR write stop", "a paused")
		b.on(func() {
			if i := b.set.BlockInfos()[0]; i.IOStatus != qapi.BlockDeviceIoStatusNospace || !i.Paused {
				t.Errorf("%+v", i)
			}
		})
		b.do("a", (*Job).Resume)
		b.expect("a running")
		b.on(func() {
			if i := b.set.BlockInfos()[0]; i.IOStatus != qapi.BlockDeviceIoStatusOk {
				t.Errorf("%+v", i)
			}
		})
		f[0].steps <- func(ctx context.Context, j *Job) (bool, error) {
			j.OnError(qapi.BlockdevOnErrorIgnore, qapi.IoOperationTypeRead, syscall.EIO)
			return false, nil
		}
		synctest.Wait()
		b.expect("a ERROR read ignore")
	})
}

// mirrorLike is a job that goes ready.
type mirrorLike struct {
	fake
	completed chan struct{}
	soft      bool
}

func (m *mirrorLike) Run(ctx context.Context, j *Job) error {
	j.Ready()
	for {
		if err := j.PausePoint(ctx); err != nil {
			return err
		}
		select {
		case <-m.completed:
			return nil
		case <-j.PauseRequested():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *mirrorLike) Complete() error { close(m.completed); return nil }
func (m *mirrorLike) Cancel(force bool) bool {
	if !force && !m.soft {
		m.soft = true
		close(m.completed)
	}
	return force
}

// startMirrorLike starts one as job m.
func startMirrorLike(b *bench) {
	b.t.Helper()
	j, err := b.set.Create(Options{ID: "m", Block: true}, &mirrorLike{fake: *newFake(b, "m"), completed: make(chan struct{})})
	if err != nil {
		b.t.Fatal(err)
	}
	j.Start()
}

func TestReadyJobCompletesOrIsCancelledSoftly(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		for _, verb := range []func(*Job) error{(*Job).Complete, func(j *Job) error { return j.BlockCancel(false) }} {
			startMirrorLike(b)
			synctest.Wait()
			b.expect("m created", "m running", "m ready", "m READY")
			b.do("m", (*Job).Pause)
			synctest.Wait()
			b.expect("m standby")
			b.do("m", (*Job).Resume)
			b.expect("m ready")
			if e := b.do("m", verb); e != "" {
				t.Fatal(e)
			}
			synctest.Wait()
			b.expect("m waiting", "m pending", "m COMPLETED", "m concluded", "m null")
		}
	})
}

// TestCompleteIsRefusedOfAJobThatLeaves: who has asked a ready job to end as it
// is cannot have it pivot any more, though it has not changed its state yet.
func TestCompleteIsRefusedOfAJobThatLeaves(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		startMirrorLike(b)
		synctest.Wait()
		b.take()
		e := b.do("m", func(j *Job) error {
			if err := j.BlockCancel(false); err != nil {
				return err
			}
			if s := j.Status(); s != ready {
				t.Errorf("the job is %s", s)
			}
			return j.Complete()
		})
		if e != "The active block job 'm' cannot be completed" {
			t.Error(e)
		}
		synctest.Wait()
		b.expect("m waiting", "m pending", "m COMPLETED", "m concluded", "m null")
	})
}

func TestCompleteOfAPausedReadyJobTakesEffectOnResume(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		startMirrorLike(b)
		b.do("m", (*Job).Pause)
		synctest.Wait()
		b.take()
		if b.status("m") == paused { // paused before it was ready
			b.do("m", (*Job).Resume)
			synctest.Wait()
			b.do("m", (*Job).Pause)
			synctest.Wait()
			b.take()
		}
		b.do("m", (*Job).Complete)
		synctest.Wait()
		b.expect()
		b.do("m", (*Job).Resume)
		synctest.Wait()
		b.expect("m ready", "m waiting", "m pending", "m COMPLETED", "m concluded", "m null")
	})
}
