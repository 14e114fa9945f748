package metrics

import (
	"strconv"

	dto "github.com/prometheus/client_model/go"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/exports"
	"blockd/ioengine"
	"blockd/jobs"
	"blockd/jobs/scratch"
)

// Sources are what is told of.
type Sources struct {
	Graph    *blockgraph.Graph
	Jobs     *jobs.Set
	Exports  *exports.Registry
	Commands *Commands
	// Scratch is the room of backups; nil: there is none.
	Scratch *scratch.Pool
	// Clock is the real clock.
	Clock clock.Clock
	// Version is that of the daemon.
	Version string
	// Limits bound the series; the zero value is DefaultLimits.
	Limits Limits
}

// Limits are how many of each are shown, the oldest first.
type Limits struct {
	Nodes, Users, Jobs, Exports int
}

// DefaultLimits are those of a daemon: about 50,000 series at most.
var DefaultLimits = Limits{Nodes: 2000, Users: 1000, Jobs: 500, Exports: 1000}

// collector reads a daemon whenever it is scraped.
type collector struct {
	Sources
	families *families
}

func newCollector(s Sources) *collector {
	if s.Limits == (Limits{}) {
		s.Limits = DefaultLimits
	}
	return &collector{s, newFamilies()}
}

// samples reads the daemon. When it has ended there is nothing.
func (c *collector) samples() *samples {
	s := newSamples(c.families)
	snap, ok := c.take()
	if !ok {
		return s
	}
	s.room(len(snap.nodes), s.nodeInfo, s.nodeSize, s.nodeHighest)
	s.room(len(snap.users), s.userInFlight, s.userHeld)
	s.room(len(snap.users)*len(operations), s.userOps, s.userErrors, s.userSeconds, s.userBytes)
	s.with(s.buildInfo, 1, c.Version)
	for i := range snap.nodes {
		s.node(&snap.nodes[i])
	}
	for i := range snap.users {
		s.user(&snap.users[i])
	}
	s.jobs(snap)
	s.exports(snap, c.Exports)
	s.graph(snap, c.Graph)
	s.process(c.Scratch)
	c.Commands.collect(s)
	s.with(s.leftOut, float64(snap.leftNodes), "nodes")
	s.with(s.leftOut, float64(snap.leftUsers), "users")
	s.with(s.leftOut, float64(snap.leftJobs), "jobs")
	s.with(s.leftOut, float64(snap.leftExports), "exports")
	return s
}

func (s *samples) node(n *node) {
	s.with(s.nodeInfo, 1, n.name, n.driver, strconv.FormatBool(n.readOnly))
	name := pairs(s.nodeSize.labels, []string{n.name})
	s.add(s.nodeSize, float64(n.size), name)
	s.add(s.nodeHighest, float64(n.highest), name)
	if n.specific == nil {
		return
	}
	if f := n.specific.File; f != nil {
		s.with(s.nodeDiscards, float64(f.DiscardNbOk), n.name, "ok")
		s.with(s.nodeDiscards, float64(f.DiscardNbFailed), n.name, "failed")
		s.add(s.nodeDiscard, float64(f.DiscardBytesOk), name)
	}
	if q := n.specific.Qcow2; q != nil {
		s.with(s.nodeLookups, float64(q.XL2Cache.Hits), n.name, "l2", "hit")
		s.with(s.nodeLookups, float64(q.XL2Cache.Misses), n.name, "l2", "miss")
		s.with(s.nodeCache, float64(q.XL2Cache.Size), n.name, "l2")
		s.with(s.nodeLookups, float64(q.XRefcountCache.Hits), n.name, "refcount", "hit")
		s.with(s.nodeLookups, float64(q.XRefcountCache.Misses), n.name, "refcount", "miss")
		s.with(s.nodeCache, float64(q.XRefcountCache.Size), n.name, "refcount")
	}
}

// operations are the values of the label op.
var operations = func() (list []*dto.LabelPair) {
	name := "op"
	for _, op := range [...]string{"read", "write", "flush", "discard", "write-zeroes"} {
		list = append(list, &dto.LabelPair{Name: &name, Value: &op})
	}
	return list
}()

// flushOp is the index of the flush, which has no bytes.
const flushOp = 2

func (s *samples) user(u *user) {
	labels := pairs(s.userHeld.labels, u.labels())
	s.add(s.userInFlight, float64(u.root.InFlight()), labels)
	s.add(s.userHeld, float64(u.root.Waits()), labels)
	stats := u.root.Stats()
	byOp := withPairs(labels, operations)
	for i, n := range [...]*blockgraph.OpStats{&stats.Read, &stats.Write, &stats.Flush, &stats.Unmap, &stats.Zero} {
		s.add(s.userOps, float64(n.Ops), byOp[i])
		s.add(s.userErrors, float64(n.Failed), byOp[i])
		s.add(s.userSeconds, float64(n.TimeNs)/1e9, byOp[i])
		if i != flushOp {
			s.add(s.userBytes, float64(n.Bytes), byOp[i])
		}
	}
	if read, write, flush, ok := u.root.Latencies(); ok {
		s.distribute(s.userDuration, &read, float64(stats.Read.TimeNs)/1e9, byOp[0])
		s.distribute(s.userDuration, &write, float64(stats.Write.TimeNs)/1e9, byOp[1])
		s.distribute(s.userDuration, &flush, float64(stats.Flush.TimeNs)/1e9, byOp[flushOp])
	}
}

func (s *samples) jobs(snap *snapshot) {
	for i := range snap.jobs {
		j := &snap.jobs[i]
		typ := string(j.Type)
		s.with(s.jobInfo, 1, j.ID, typ, string(j.Status))
		labels := pairs(s.jobCurrent.labels, []string{j.ID, typ})
		s.add(s.jobCurrent, float64(j.CurrentProgress), labels)
		s.add(s.jobFinal, float64(j.TotalProgress), labels)
		failed := 0.0
		if j.Error != nil {
			failed = 1
		}
		s.add(s.jobFailed, failed, labels)
		if k := j.XScratch; k != nil {
			s.with(s.jobScratch, float64(k.Memory), j.ID, typ, "memory")
			s.with(s.jobScratch, float64(k.Spilled), j.ID, typ, "file")
			s.add(s.jobFull, float64(k.Full), labels)
		}
		if j.XOrphans != nil {
			s.add(s.jobOrphans, float64(*j.XOrphans), labels)
		}
	}
}

func (s *samples) exports(snap *snapshot, registry *exports.Registry) {
	for i := range snap.exports {
		e := &snap.exports[i]
		s.with(s.exportInfo, 1, e.ID, string(e.Type), e.node, strconv.FormatBool(e.ShuttingDown))
		s.with(s.exportClients, float64(e.Clients()), e.ID, string(e.Type))
	}
	if n, most, running := registry.Connections(); running {
		s.with(s.nbdConnections, float64(n))
		s.with(s.nbdMost, float64(most))
	}
}

func (s *samples) graph(snap *snapshot, g *blockgraph.Graph) {
	s.with(s.graphNodes, float64(snap.graphNodes))
	s.with(s.graphUsers, float64(snap.graphUsers))
	s.with(s.graphOrphans, float64(snap.orphans))
	s.with(s.graphSteps, float64(snap.steps))
	drains, waited := g.Drains()
	s.with(s.graphDrains, float64(drains))
	s.with(s.graphWaited, waited.Seconds())
	s.with(s.loopLatency, snap.latency.Seconds())
}

// process tells of what all parts share.
func (s *samples) process(room *scratch.Pool) {
	if room != nil {
		memory, spilled := room.Usage()
		s.with(s.scratchBytes, float64(memory), "memory")
		s.with(s.scratchBytes, float64(spilled), "file")
	}
	used, waits := ioengine.Process.Usage()
	s.with(s.bufferBytes, float64(used))
	s.with(s.bufferWaits, float64(waits))
	calls := ioengine.ProcessCalls.Stats()
	s.with(s.fileCalls, float64(calls.Reads), "read")
	s.with(s.fileCalls, float64(calls.Writes), "write")
	s.with(s.fileCalls, float64(calls.Others), "other")
	s.with(s.fileBytes, float64(calls.ReadBytes), "read")
	s.with(s.fileBytes, float64(calls.WrittenBytes), "write")
	s.with(s.fileInFlight, float64(calls.InFlight))
	s.with(s.fileWaiting, float64(calls.Waiting))
	s.with(s.fileWaits, float64(calls.SlotWaits))
}
