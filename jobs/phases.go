package jobs

import (
	"context"
	"log/slog"
	"strings"

	"blockd/blockgraph"
	"blockd/qapi"
)

// This file runs the phases of the end of a transaction, one after the other.

// update runs fn in a graph change on behalf of the jobs; when none of them has
// phases, without one.
//
//blockd:blocking
func (t *Txn) update(ctx context.Context, jobs []*Job, fn func(tx *blockgraph.Tx) error) error {
	for _, j := range jobs {
		if j.hasPhases() {
			return t.set.graph.Update(qapi.WithRequest(ctx, j.request), blockgraph.Cause{Job: j.id}, fn)
		}
	}
	return nil
}

func (j *Job) hasPhases() bool {
	switch j.driver.(type) {
	case Preparer, Committer, Aborter, Cleaner:
		return true
	}
	return false
}

// prepareAll prepares each job, and returns the one that failed.
func prepareAll(tx *blockgraph.Tx, jobs []*Job) (*Job, error) {
	for _, j := range jobs {
		if d, ok := j.driver.(Preparer); ok {
			if err := d.Prepare(tx); err != nil {
				return j, err
			}
		}
	}
	return nil, nil
}

// commitAll commits and cleans each job.
func commitAll(tx *blockgraph.Tx, jobs []*Job) (*Job, error) {
	for _, j := range jobs {
		if d, ok := j.driver.(Committer); ok {
			if err := d.Commit(tx); err != nil {
				return j, err
			}
		}
		if err := j.clean(tx); err != nil {
			return j, err
		}
	}
	return nil, nil
}

// abortAll aborts and cleans each job.
func abortAll(tx *blockgraph.Tx, jobs []*Job) error {
	for _, j := range jobs {
		if d, ok := j.driver.(Aborter); ok {
			if err := d.Abort(tx); err != nil {
				return err
			}
		}
		if err := j.clean(tx); err != nil {
			return err
		}
	}
	return nil
}

func (j *Job) clean(tx *blockgraph.Tx) error {
	if d, ok := j.driver.(Cleaner); ok {
		return d.Clean(tx)
	}
	return nil
}

//blockd:blocking
func logAbort(jobs []*Job, err error) {
	ids := make([]string, len(jobs))
	for i, j := range jobs {
		ids[i] = j.id
	}
	slog.ErrorContext(jobs[0].context(), "cleaning up after jobs failed", "jobs", strings.Join(ids, ","), "error", err)
}
