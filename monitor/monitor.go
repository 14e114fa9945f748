// Package monitor ties the commands of QMP to what does them: it decodes
// nothing and stores nothing, but holds each command's rules, its order of
// checks and its error texts, as the field has them.
//
// Handlers run on their session's goroutine (package qmp), so they may wait.
// What changes the graph goes through one graph change (blockgraph.Update);
// what only looks takes a snapshot on the loop.
//
// Imports: everything below; nothing but package daemon and programs import it.
//
//blockd:blocking
package monitor

import (
	"context"

	"blockd/blockgraph"
	"blockd/exports"
	"blockd/jobs"
	"blockd/jobs/scratch"
	"blockd/logs"
	"blockd/qapi"
	"blockd/qmp"
)

// Config is what the commands work with.
type Config struct {
	Graph   *blockgraph.Graph
	Jobs    *jobs.Set
	Exports *exports.Registry
	// Scratch is where backups keep what guests overwrite; nil: nowhere.
	Scratch *scratch.Pool
	// CreateFile makes files; Formats writes formats into them, by driver name.
	CreateFile FileCreator
	Formats    map[string]FormatCreator
	// Making is told of each image that a command is about to make; nil: nobody
	// is.
	Making func(NewImage)
	// Iothread finds an iothread, which is in use until release; nil: there are
	// none.
	Iothread func(id string) (release func(), ok bool)
	// Devices are what query-block lists; nil: none.
	Devices Devices
	// Log is the daemon's.
	Log *logs.Log
}

// Devices are what guests' disks are attached to, which an emulator has and a
// storage daemon has not.
type Devices interface {
	// QueryBlock is query-block; Monitor.NodeInfo tells of what is inserted.
	QueryBlock(ctx context.Context) ([]qapi.BlockInfo, error)
	// QueryBlockstats is query-blockstats without query-nodes;
	// Monitor.NodeStats tells of what is inserted.
	QueryBlockstats() []qapi.BlockStats
}

// Monitor has the handlers of the block layer's commands.
type Monitor struct {
	Config
	graph   *blockgraph.Graph
	loop    *blockgraph.Loop
	jobs    *jobs.Set
	exports *exports.Registry
	lines   *logs.Follower // of FollowLog
}

// New returns handlers over c.
func New(c Config) *Monitor {
	return &Monitor{Config: c, graph: c.Graph, loop: c.Graph.Loop(), jobs: c.Jobs, exports: c.Exports}
}

// Register adds the commands and events to a registry.
func (m *Monitor) Register(r *qmp.Registry) {
	m.registerNodes(r)
	m.registerReopen(r)
	m.registerBackingFile(r)
	m.registerThreshold(r)
	m.registerActive(r)
	m.registerIothread(r)
	m.registerQueries(r)
	m.registerHistory(r)
	m.registerGraphView(r)
	m.registerLog(r)
	m.registerCreate(r)
	m.registerAmend(r)
	m.registerSnapshots(r)
	m.registerInternalSnapshots(r)
	m.registerBitmaps(r)
	m.registerBackup(r)
	m.registerStream(r)
	m.registerCommit(r)
	m.registerMirror(r)
	m.registerUpkeep(r)
	m.registerTransaction(r)
	m.registerJobs(r)
	m.registerExports(r)
	registerEvents(r)
}

func registerEvents(r *qmp.Registry) {
	qmp.RegisterEvent[qapi.JobStatusChange](r, "JOB_STATUS_CHANGE")
	qmp.RegisterEvent[qapi.BlockJobCompleted](r, "BLOCK_JOB_COMPLETED")
	qmp.RegisterEvent[qapi.BlockJobProgress](r, "BLOCK_JOB_CANCELLED")
	qmp.RegisterEvent[qapi.BlockJobProgress](r, "BLOCK_JOB_READY")
	qmp.RegisterEvent[qapi.BlockJobPending](r, "BLOCK_JOB_PENDING")
	qmp.RegisterEvent[qapi.BlockJobError](r, "BLOCK_JOB_ERROR")
	qmp.RegisterEvent[qapi.BlockImageCorrupted](r, "BLOCK_IMAGE_CORRUPTED")
	qmp.RegisterEvent[qapi.QuorumFailure](r, "QUORUM_FAILURE")
	qmp.RegisterEvent[qapi.QuorumReportBad](r, "QUORUM_REPORT_BAD")
	qmp.RegisterEvent[qapi.BlockExportDeleted](r, "BLOCK_EXPORT_DELETED")
}

// AddNode opens a node and has the monitor own it: blockdev-add, and
// --blockdev. On a worker.
func (m *Monitor) AddNode(ctx context.Context, o *qapi.BlockdevOptions) error {
	return m.update(ctx, "blockdev-add", func(tx *blockgraph.Tx) error { return addNode(tx, o) })
}

// update makes a graph change in the name of a command.
func (m *Monitor) update(ctx context.Context, command string, f func(tx *blockgraph.Tx) error) error {
	return m.graph.Update(ctx, blockgraph.Cause{Command: command}, f)
}

// CloseNodes gives up every node that the monitor owns, so that images are
// flushed and closed. For the end of the daemon, when no job and no export is
// left. On a worker.
func (m *Monitor) CloseNodes(ctx context.Context) error {
	return m.update(ctx, "quit", func(tx *blockgraph.Tx) error {
		for _, n := range m.nodes() {
			if n.MonitorOwned() {
				tx.SetMonitorOwned(n, false)
			}
		}
		return nil
	})
}
