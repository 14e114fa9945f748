package jobs

import (
	"context"
	"slices"
	"strings"
	"sync"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// Set is all jobs of a daemon.
type Set struct {
	graph *blockgraph.Graph
	loop  *blockgraph.Loop
	clock clock.Clock // real: speed limits
	emit  func(event string, data any)

	workers sync.WaitGroup // bodies and ends of transactions

	// Control plane.
	jobs    []*Job          //blockd:global loop // the newest first
	pasts   []*past         //blockd:global loop // the oldest first
	closing bool            //blockd:global loop
	empty   []chan struct{} //blockd:global loop // closed when no job is left
}

// New returns an empty set. clk is the real clock. emit is called on the loop,
// in the order in which clients are to see the events; it must not wait.
func New(graph *blockgraph.Graph, clk clock.Clock, emit func(event string, data any)) *Set {
	return &Set{graph: graph, loop: graph.Loop(), clock: clk, emit: emit}
}

// Graph returns the graph that the jobs work on.
func (s *Set) Graph() *blockgraph.Graph { return s.graph }

// Clock returns the real clock.
func (s *Set) Clock() clock.Clock { return s.clock }

// Find returns a job for the job-* commands. Control plane.
func (s *Set) Find(id string) (*Job, error) {
	for _, j := range s.jobs {
		if j.id == id {
			return j, nil
		}
	}
	return nil, qapi.Errorf("Job not found")
}

// FindBlock returns a block job for the block-job-* commands. Control plane.
func (s *Set) FindBlock(id string) (*Job, error) {
	for _, j := range s.jobs {
		if j.id == id && j.block {
			return j, nil
		}
	}
	return nil, qapi.ClassErrorf(qapi.DeviceNotActive, "Block job '%s' not found", id)
}

// check refuses an id for a new job. Control plane.
func (s *Set) check(id string) error {
	switch _, err := s.Find(id); {
	case s.closing:
		return errShutdown
	case !qapi.WellFormedID(id):
		return qapi.Errorf("Invalid job ID '%s'", id)
	case err == nil:
		return qapi.Errorf("Job ID '%s' already in use", id)
	}
	return nil
}

// remove forgets a job. Control plane.
func (s *Set) remove(j *Job) {
	s.jobs = slices.DeleteFunc(s.jobs, func(x *Job) bool { return x == j })
	if len(s.jobs) == 0 {
		for _, c := range s.empty {
			close(c)
		}
		s.empty = nil
	}
}

// Shutdown cancels every job by force, dismisses what has concluded, and
// waits until none is left and nothing of them is in flight. From then on no job can be created. Worker. When
// ctx ends first, the error names the jobs that are still there.
//
//blockd:blocking
func (s *Set) Shutdown(ctx context.Context) error {
	gone := make(chan struct{})
	if !s.loop.Do(func() {
		s.closing = true
		for _, j := range slices.Clone(s.jobs) {
			if j.status == concluded {
				j.drop()
			} else {
				j.cancel(true)
			}
		}
		if len(s.jobs) == 0 {
			close(gone)
			return
		}
		s.empty = append(s.empty, gone)
	}) {
		return nil
	}
	ended := make(chan struct{})
	go func() { // ends with the last worker, which ctx may not be able to wait for
		<-gone
		s.workers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	var left []string
	s.loop.Do(func() {
		for _, j := range s.jobs {
			left = append(left, j.id)
		}
	})
	return qapi.Errorf("jobs did not end in time: %s", strings.Join(left, ", "))
}
