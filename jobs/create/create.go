// Package create is blockdev-create: making a new image, as a job, because it
// may take long. The job ends by itself and then stays until it is dismissed;
// it has no BLOCK_JOB_* events, and what went wrong is told by query-jobs
// only.
//
// Nothing here blocks but the job's body, on a goroutine of its own.
//
//blockd:blocking
package create

import (
	"context"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/qapi"
)

// Creator makes an image. It runs on a worker without the graph token, and may
// take it. Its error's text is what query-jobs shows.
type Creator func(ctx context.Context, g *blockgraph.Graph, o *qapi.BlockdevCreateOptions) error

// Creators are the creators by driver.
type Creators map[qapi.BlockdevDriver]Creator

// Start creates and starts the job. It fails at once for a bad job id and for a
// driver that cannot create. Worker.
func (c Creators) Start(ctx context.Context, set *jobs.Set, a *qapi.BlockdevCreateArg) (*jobs.Job, error) {
	f := c[a.Options.Driver]
	if f == nil {
		return nil, qapi.Errorf("Driver does not support blockdev-create")
	}
	j, err := set.Create(jobs.Options{ID: a.JobID, Type: qapi.JobTypeCreate, ManualDismiss: true, Request: qapi.RequestOf(ctx)}, &job{create: f, options: a.Options})
	if err != nil {
		return nil, err
	}
	j.Start()
	return j, nil
}

type job struct {
	create  Creator
	options qapi.BlockdevCreateOptions
}

// Run makes the image. Its progress is one step.
func (c *job) Run(ctx context.Context, j *jobs.Job) error {
	j.Progress().SetRemaining(1)
	err := j.OnWorker(func() error { return c.create(ctx, j.Set().Graph(), &c.options) })
	j.Progress().Add(1)
	return err
}
