package jobs

import (
	"errors"
	"testing"
	"testing/synctest"

	"blockd/blockgraph"
	"blockd/qapi"
)

// The sequences in this file are the rival's, recorded from version 7.2.22.

func synced(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		f(t, b)
		b.close()
		if b.deep > 1 {
			t.Errorf("phases were nested %d deep", b.deep)
		}
	})
}

func TestSuccessfulJobWithBothAutos(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{}, "a")
		b.expect("a created", "a running")
		f[0].finish()
		synctest.Wait()
		b.expect("a waiting", "a pending", "a COMPLETED", "a concluded", "a null")
	})
}

func TestJobStartedInADrainedSectionShowsPausedAndRunning(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		b.launch(true, nil, Options{}, "a")
		b.expect("a created", "a running", "a paused", "a running")
		b.launch(true, nil, Options{}, "x", "y")
		b.expect("x created", "y created", "x running", "x paused", "y running", "y paused", "x running", "y running")
	})
}

func TestManualFinalizeAndDismiss(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{ManualFinalize: true, ManualDismiss: true}, "a")
		b.take()
		f[0].finish()
		synctest.Wait()
		b.expect("a waiting", "a pending", "a PENDING")
		if e := b.do("a", (*Job).Finalize); e != "" {
			t.Fatal(e)
		}
		synctest.Wait()
		b.expect("a COMPLETED", "a concluded")
		if e := b.do("a", forced); e != "Job 'a' in state 'concluded' cannot accept command verb 'cancel'" {
			t.Fatal(e)
		}
		if e := b.do("a", (*Job).Dismiss); e != "" {
			t.Fatal(e)
		}
		b.expect("a null")
		if e := b.do("a", (*Job).Dismiss); e != "Job not found" {
			t.Fatal(e)
		}
	})
}

func TestCancelOfARunningJob(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		b.launch(false, nil, Options{ManualDismiss: true}, "a")
		b.take()
		b.do("a", forced)
		synctest.Wait()
		b.expect("a aborting", "a CANCELLED", "a concluded")
		var info []qapi.BlockJobInfo
		var jobs []qapi.JobInfo
		b.on(func() { info, jobs = b.set.BlockInfos(), b.set.Infos() })
		if info[0].Error == nil || *info[0].Error != "Operation canceled" || *jobs[0].Error != "Operation canceled" {
			t.Errorf("%+v", info[0])
		}
	})
}

func TestCancelOfAPausedJobResumesItFirst(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		b.launch(false, nil, Options{}, "a")
		b.do("a", (*Job).Pause)
		synctest.Wait()
		b.expect("a created", "a running", "a paused")
		if e := b.do("a", func(j *Job) error { return j.BlockCancel(false) }); e != "The block job for device 'a' is currently paused" {
			t.Error(e)
		}
		b.do("a", forced)
		synctest.Wait()
		b.expect("a running", "a aborting", "a CANCELLED", "a concluded", "a null")
	})
}

func TestFailingBody(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{}, "a")
		b.take()
		f[0].fail()
		synctest.Wait()
		b.expect("a aborting", "a COMPLETED: Input/output error", "a concluded", "a null")
	})
}

// TestCancelOfAJobThatIsBeingSetUp: another client cancels what is created but
// not started; the job ends right after its start.
func TestCancelOfAJobThatIsBeingSetUp(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		err := b.graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
			j, err := b.set.Create(Options{ID: "a", Type: qapi.JobTypeBackup, Block: true}, newFake(b, "a"))
			if err != nil {
				return err
			}
			b.do("a", forced)
			j.StartIn(tx, true)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.expect("a created", "a running", "a aborting", "a CANCELLED", "a concluded", "a null")
	})
}

func TestSetUpThatFailsAfterCreation(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		_, err := b.set.Create(Options{ID: "a", Block: true, Speed: -1}, newFake(b, "a"))
		if err == nil || err.Error() != "Parameter 'speed' expects a non-negative value" {
			t.Fatal(err)
		}
		b.expect("a created", "a null")
		j, err := b.set.Create(Options{ID: "a", Block: true}, newFake(b, "a"))
		if err != nil {
			t.Fatal(err)
		}
		j.Fail()
		<-j.Over()
		b.expect("a created", "a null")
	})
}

func TestTransactionWhoseSecondActionFails(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		for _, txn := range []*Txn{nil, b.set.NewTxn()} {
			err := b.graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
				for _, id := range []string{"x", "y"} {
					j, err := b.set.Create(Options{ID: id, Block: true, Txn: txn, ManualDismiss: true}, newFake(b, id))
					if err != nil {
						return err
					}
					j.StartIn(tx, true)
				}
				return errors.New("Transaction aborted using Abort action")
			})
			if err == nil {
				t.Fatal("the change went through")
			}
			b.expect("x created", "y created", "y aborting", "y concluded", "y null", "x aborting", "x concluded", "x null")
		}
	})
}

func TestGroupedJobsWaitForEachOther(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(true, b.set.NewTxn(), Options{}, "x", "y")
		b.take()
		f[1].finish()
		synctest.Wait()
		b.expect("y waiting")
		f[0].finish()
		synctest.Wait()
		b.expect("x waiting", "y pending", "x pending", "y COMPLETED", "y concluded", "y null", "x COMPLETED", "x concluded", "x null")
	})
}

// TestOneManualMemberHoldsTheGroup: job-finalize of any member ends all.
func TestOneManualMemberHoldsTheGroup(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		txn := b.set.NewTxn()
		f := b.launch(false, txn, Options{ManualFinalize: true}, "x")
		f = append(f, b.launch(false, txn, Options{}, "y")...)
		b.take()
		f[0].finish()
		f[1].finish()
		synctest.Wait()
		got := b.take()
		if len(got) != 5 || got[2] != "y pending" || got[3] != "x pending" || got[4] != "x PENDING" {
			t.Fatalf("%q", got)
		}
		b.do("y", (*Job).Finalize)
		<-txn.Over()
		b.expect("y COMPLETED", "y concluded", "y null", "x COMPLETED", "x concluded", "x null")
	})
}

func TestNobodyJoinsATransactionThatIsEnding(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		txn := b.set.NewTxn()
		f := b.launch(false, txn, Options{ManualFinalize: true}, "x")
		f[0].finish()
		synctest.Wait()
		b.take()
		if _, err := b.set.Create(Options{ID: "y", Block: true, Txn: txn}, newFake(b, "y")); err == nil {
			t.Fatal("joined")
		}
		b.expect()
		b.do("x", (*Job).Finalize)
		<-txn.Over()
		b.expect("x COMPLETED", "x concluded", "x null")
	})
}

func TestCancelOfAPendingMember(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, b.set.NewTxn(), Options{ManualFinalize: true}, "x", "y")
		f[0].finish()
		f[1].finish()
		synctest.Wait()
		b.take()
		b.do("x", forced)
		synctest.Wait()
		b.expect("y aborting", "y CANCELLED", "y concluded", "y null", "x aborting", "x CANCELLED", "x concluded", "x null")
	})
}

func TestGroupedCancelOfOneMember(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, b.set.NewTxn(), Options{}, "a", "b")
		f[0].finish()
		synctest.Wait()
		b.take()
		b.do("b", forced)
		synctest.Wait()
		b.expect("b aborting", "b CANCELLED", "b concluded", "b null", "a aborting", "a CANCELLED", "a concluded", "a null")
	})
}

func TestGroupedFailureOfTheFirst(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, b.set.NewTxn(), Options{}, "a", "b")
		b.take()
		f[0].fail()
		synctest.Wait()
		b.expect("a aborting", "b aborting", "b CANCELLED", "b concluded", "b null", "a COMPLETED: Input/output error", "a concluded", "a null")
	})
}

// TestFailingPrepareAbortsTheGroup: what the others had prepared is undone
// before anything of theirs is committed.
func TestFailingPrepareAbortsTheGroup(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, b.set.NewTxn(), Options{}, "a", "b", "c")
		f[1].prepareErr = errBody
		b.take()
		for _, x := range f {
			x.finish()
			synctest.Wait()
		}
		b.expect("a waiting", "b waiting", "c waiting", "c pending", "b pending", "a pending",
			"b aborting",
			"c aborting", "c CANCELLED", "c concluded", "c null",
			"b COMPLETED: Input/output error", "b concluded", "b null",
			"a aborting", "a CANCELLED", "a concluded", "a null")
		if f[2].unprepared != 1 || f[0].unprepared != 0 {
			t.Errorf("undone: c %d, a %d", f[2].unprepared, f[0].unprepared)
		}
		want := "[c abort c clean b abort b clean a abort a clean]"
		if got := toString(b.phases); got != want {
			t.Errorf("phases %s, want %s", got, want)
		}
	})
}

// TestCancelWhileTheEndWaitsForTheGraph: a job that is about to commit but
// does not hold the token yet can still be cancelled, at once.
func TestCancelWhileTheEndWaitsForTheGraph(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{}, "a")
		b.take()
		hold, held := make(chan struct{}), make(chan struct{})
		go b.graph.Update(t.Context(), blockgraph.Cause{}, func(*blockgraph.Tx) error {
			close(held)
			<-hold
			return nil
		})
		<-held
		f[0].finish()
		synctest.Wait()
		b.expect("a waiting", "a pending")
		if e := b.do("a", (*Job).Finalize); e != "Job 'a' in state 'pending' cannot accept command verb 'finalize'" {
			t.Error(e)
		}
		if e := b.do("a", forced); e != "" {
			t.Error(e)
		}
		close(hold)
		synctest.Wait()
		b.expect("a aborting", "a CANCELLED", "a concluded", "a null")
		if got := toString(b.phases); got != "[a abort a clean]" {
			t.Error(got)
		}
	})
}

// TestCancelAfterTheCommitComesTooLate: the verb is accepted, as the job is
// pending still, and changes nothing.
func TestCancelAfterTheCommitComesTooLate(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{}, "a")
		b.take()
		f[0].after = func() {
			if e := b.do("a", forced); e != "" {
				t.Error(e)
			}
		}
		f[0].finish()
		synctest.Wait()
		b.expect("a waiting", "a pending", "a COMPLETED", "a concluded", "a null")
		if got := toString(b.phases); got != "[a prepare a commit a clean]" {
			t.Error(got)
		}
	})
}

func TestJobThatIsNoBlockJobHasNoBlockJobEvents(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := newFake(b, "c")
		j, err := b.set.Create(Options{ID: "c", Type: qapi.JobTypeCreate, ManualDismiss: true}, f)
		if err != nil {
			t.Fatal(err)
		}
		j.Start()
		f.finish()
		<-j.Over()
		b.expect("c created", "c running", "c waiting", "c pending", "c concluded")
		b.on(func() {
			if len(b.set.BlockInfos()) != 0 || len(b.set.Infos()) != 1 {
				t.Error("wrong list")
			}
			_, err := b.set.FindBlock("c")
			if e := qapi.AsError(err); e.Class != qapi.DeviceNotActive || e.Desc != "Block job 'c' not found" {
				t.Error(e)
			}
		})
	})
}

func TestJobIDs(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		b.launch(false, nil, Options{}, "j0")
		for id, want := range map[string]string{
			"1 bad": "Invalid job ID '1 bad'", "": "Invalid job ID ''", "ü": "Invalid job ID 'ü'",
			"j0": "Job ID 'j0' already in use",
		} {
			if _, err := b.set.Create(Options{ID: id}, newFake(b, id)); err == nil || err.Error() != want {
				t.Errorf("%q: %v", id, err)
			}
		}
		b.on(func() {
			_, err := b.set.Find("zz")
			if e := qapi.AsError(err); e.Class != qapi.GenericError || e.Desc != "Job not found" {
				t.Error(e)
			}
		})
	})
}

func TestShutdownEndsEveryJobAndRefusesNewOnes(t *testing.T) {
	synced(t, func(t *testing.T, b *bench) {
		f := b.launch(false, nil, Options{ManualDismiss: true, ManualFinalize: true}, "run", "pend", "done", "stopped")
		f[1].finish()
		f[2].fail()
		b.do("stopped", (*Job).Pause)
		synctest.Wait()
		b.take()
		if err := b.set.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		last := map[string]string{}
		for _, e := range b.take() {
			last[e[:3]] = e
		}
		for _, e := range []string{"run null", "pend null", "done null", "stopped null"} {
			if last[e[:3]] != e {
				t.Errorf("last event %q, want %q", last[e[:3]], e)
			}
		}
		if _, err := b.set.Create(Options{ID: "late"}, newFake(b, "late")); err == nil {
			t.Error("a job was created after the shutdown")
		}
	})
}
