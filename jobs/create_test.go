package jobs_test

import (
	"context"
	"errors"
	"testing"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/create"
	"blockd/qapi"
)

func TestCreateIsAJobThatStaysUntilItIsDismissed(t *testing.T) {
	w := newWorld(t)
	var made string
	c := create.Creators{qapi.BlockdevDriverFile: func(_ context.Context, _ *blockgraph.Graph, o *qapi.BlockdevCreateOptions) error {
		made = o.File.Filename
		return nil
	}}
	options := qapi.BlockdevCreateOptions{Driver: "file", File: &qapi.BlockdevCreateOptionsFile{Filename: "/new", Size: 512}}
	j, err := c.Start(context.Background(), w.jobs, &qapi.BlockdevCreateArg{JobID: "c", Options: options})
	if err != nil {
		t.Fatal(err)
	}
	<-j.Over()
	w.expectEvents("c concluded", "c created, c running, c waiting, c pending, c concluded")
	if made != "/new" {
		t.Errorf("made %q", made)
	}
	w.graph.Loop().Do(func() {
		infos := w.jobs.Infos()
		if len(infos) != 1 || infos[0].CurrentProgress != 1 || infos[0].TotalProgress != 1 || infos[0].Error != nil {
			t.Errorf("%+v", infos)
		}
		if err := j.Dismiss(); err != nil {
			t.Error(err)
		}
	})
	w.expectEvents("c null", "c null")
}

func TestCreateErrorIsToldByTheQueryOnly(t *testing.T) {
	w := newWorld(t)
	const text = "Image size must be a multiple of 512 bytes"
	c := create.Creators{qapi.BlockdevDriverFile: func(context.Context, *blockgraph.Graph, *qapi.BlockdevCreateOptions) error {
		return errors.New(text)
	}}
	j, err := c.Start(context.Background(), w.jobs, &qapi.BlockdevCreateArg{JobID: "c", Options: qapi.BlockdevCreateOptions{Driver: "file"}})
	if err != nil {
		t.Fatal(err)
	}
	<-j.Over()
	w.expectEvents("c concluded", "c created, c running, c aborting, c concluded")
	w.graph.Loop().Do(func() {
		if i := w.jobs.Infos()[0]; i.Error == nil || *i.Error != text || i.Type != qapi.JobTypeCreate {
			t.Errorf("%+v", i)
		}
	})
}

func TestCreateRefusals(t *testing.T) {
	w := newWorld(t)
	c := create.Creators{qapi.BlockdevDriverFile: func(context.Context, *blockgraph.Graph, *qapi.BlockdevCreateOptions) error { return nil }}
	for _, x := range []struct{ id, driver, want string }{
		{"c", "null-co", "Driver does not support blockdev-create"},
		{"1 c", "file", "Invalid job ID '1 c'"},
	} {
		var j *jobs.Job
		j, err := c.Start(context.Background(), w.jobs, &qapi.BlockdevCreateArg{JobID: x.id, Options: qapi.BlockdevCreateOptions{Driver: qapi.BlockdevDriver(x.driver)}})
		if j != nil || err == nil || err.Error() != x.want {
			t.Errorf("%s by %s: %v", x.id, x.driver, err)
		}
	}
	if len(w.events) != 0 {
		t.Errorf("events %q", w.events)
	}
}
