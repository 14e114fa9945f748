// Package state uses what belongs to the control plane.
//
//blockd:io
package state

import "planted/plane"

type job struct {
	id     string
	status int //blockd:global loop
	parent int //blockd:global
	done   chan struct{}
}

func newJob() *job { return &job{id: "x", status: 1, parent: 2} }

func (j *job) fromIO() int {
	return j.parent // want "job.fromIO() is io, but uses the field parent: job.fromIO()"
}

//blockd:any
func (j *job) fromAny() {
	j.status = 1 // want "job.fromAny() is any, but uses the field status: job.fromAny()"
}

//blockd:blocking
func (j *job) fromWorker() int {
	return j.parent // want "job.fromWorker() is blocking, but uses the field parent: job.fromWorker()"
}

func (j *job) withToken(*plane.Tx) int { return j.parent }

func (j *job) withTokenOnly(*plane.Tx) int {
	return j.status // want "job.withTokenOnly() is blocking, but uses the field status: job.withTokenOnly()"
}

//blockd:blocking
func (j *job) asks(l *plane.Loop) (status int) {
	l.Do(func() { status = j.status })
	return status
}

//blockd:blocking
func (j *job) inGoroutine(tx *plane.Tx) {
	go func() {
		j.parent++ // want "job.inGoroutine() is blocking, but uses the field parent: job.inGoroutine() -> go job.inGoroutine$1()"
	}()
}

// A reader needs no class to be called from anywhere.
func (j *job) ID() string { return j.id }

//blockd:global loop
func (j *job) onLoop() string { return j.ID() }

// What changes something is no reader.
func (j *job) rename() { j.id = "y" }

//blockd:global loop
func (j *job) renames() {
	j.rename() // want "job.renames() is global, but calls io code: job.renames() -> job.rename()"
}
