package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/monitor"
	"blockd/objects/throttlegroup"
	"blockd/qapi"
)

// backend is what stands between a guest device and the graph (the field:
// BlockBackend): a root with a name, that stays while media come and go.
type backend struct {
	name  string // "": it belongs to a device alone
	guest string // the device's id or path, where there is no name

	// Guarded by backends.mu; changed by commits of graph changes only.
	root *blockgraph.Root // nil: no medium
	dev  *device          // or nil

	dinfo        bool // it came with -drive, and goes with its device
	readOnly     bool // what a new medium is opened as
	writeThrough bool
	exports      []string   // made by the backend's name, which go with its medium
	throttle     *throttled // or nil
}

// throttled is a backend's place in a throttle group of its own kind.
type throttled struct {
	group  string
	limits *throttlegroup.Group
	member *throttlegroup.Member
	aio    atomic.Int64 // requests begun by aio and not ended
}

// backends are all of them, in the order in which they came. They implement
// daemon.Devices.
type backends struct {
	m *machine

	mu     sync.Mutex //blockd:short
	list   []*backend // +checklocks:mu
	groups map[string]*throttlegroup.Group
	counts map[string]int // of drives, by interface
}

func newBackends(m *machine) *backends {
	return &backends{m: m, groups: map[string]*throttlegroup.Group{}, counts: map[string]int{}}
}

// Device implements blockgraph.Devices.
func (b *backends) Device(name string) (*blockgraph.Root, bool) {
	if name == "" {
		return nil, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.list {
		if x.name == name {
			return x.root, true
		}
	}
	return nil, false
}

// byName returns the backend of that name, or nil.
func (b *backends) byName(name string) *backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.list {
		if x.name == name && name != "" {
			return x
		}
	}
	return nil
}

// noteExport has an export go with the backend's medium.
func (b *backends) noteExport(x *backend, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.exports = append(x.exports, name)
}

func (b *backends) takeExports(x *backend) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := x.exports
	x.exports = nil
	return names
}

// all returns those that queries list.
//
//blockd:global
func (b *backends) all() []*backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.list), func(x *backend) bool { return x.name == "" && x.dev == nil })
}

// rootOf returns a backend's root as of now.
//
//blockd:global
func (b *backends) rootOf(x *backend) *blockgraph.Root {
	b.mu.Lock()
	defer b.mu.Unlock()
	return x.root
}

// look returns the backends that queries list, each with its root, as of one
// instant.
func (b *backends) look() (list []*backend, roots []*blockgraph.Root) {
	b.m.daemon.Loop.Do(func() {
		list = b.all()
		for _, x := range list {
			roots = append(roots, b.rootOf(x))
		}
	})
	return list, roots
}

// present is rootOf for whoever has no graph change under way.
func (b *backends) present(x *backend) (r *blockgraph.Root) {
	b.m.daemon.Loop.Do(func() { r = b.rootOf(x) })
	return r
}

// setRoot is called when a change is published.
//
//blockd:global
func (b *backends) setRoot(x *backend, r *blockgraph.Root) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.root = r
}

// enlist adds a backend when a change is published.
//
//blockd:global
func (b *backends) enlist(x *backend, r *blockgraph.Root) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.root = r
	b.list = append(b.list, x)
}

// delist removes a backend.
//
//blockd:global
func (b *backends) delist(x *backend) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list = slices.DeleteFunc(b.list, func(y *backend) bool { return x == y })
}

// insert opens a root over a node for a backend, with the permissions of whom it
// belongs to.
func (b *backends) insert(tx *blockgraph.Tx, x *backend, n *blockgraph.Node, perm, shared blockgraph.Perm) (*blockgraph.Root, error) {
	return tx.NewRoot(n, blockgraph.RootOptions{Device: x.name, Guest: x.guest, Perm: perm, Shared: shared})
}

// letGo closes all roots at the end.
func (b *backends) letGo(ctx context.Context) error {
	b.m.devices.forget()
	b.mu.Lock()
	list := b.list
	b.list = nil
	b.mu.Unlock()
	return b.m.update(ctx, "quit", func(tx *blockgraph.Tx) error {
		for _, x := range list {
			if x.root == nil {
				continue
			}
			if err := tx.CloseRoot(x.root); err != nil {
				return err
			}
		}
		return nil
	})
}

// QueryBlock implements monitor.Devices.
func (b *backends) QueryBlock(ctx context.Context) ([]qapi.BlockInfo, error) {
	list := []qapi.BlockInfo{}
	all, roots := b.look()
	for k, x := range all {
		i := qapi.BlockInfo{Device: x.name, Type: "unknown", Removable: x.dev == nil || x.dev.removable()}
		if d := x.dev; d != nil {
			q := d.qdev()
			i.Qdev = &q
			if d.hasTray() {
				open := d.trayOpen.Load()
				i.TrayOpen = &open
				i.Locked = false
			}
			if d.reportsStatus() {
				ok := qapi.BlockDeviceIoStatusOk
				i.IOStatus = &ok
			}
		}
		if r := roots[k]; r != nil && r.Node() != nil {
			info, err := b.m.daemon.Monitor.NodeInfo(ctx, r.Node().SkipImplicit())
			if err != nil {
				return nil, err
			}
			if info != nil {
				info.Cache.Writeback = !x.writeThrough
				x.throttle.describe(info)
				i.Inserted = info
			}
		}
		list = append(list, i)
	}
	return list, nil
}

// QueryBlockstats implements monitor.Devices.
func (b *backends) QueryBlockstats() []qapi.BlockStats {
	list := []qapi.BlockStats{}
	b.m.daemon.Loop.Do(func() {
		for _, x := range b.all() {
			list = append(list, b.stats(x))
		}
	})
	return list
}

//blockd:global
func (b *backends) stats(x *backend) qapi.BlockStats {
	s := qapi.BlockStats{Stats: qapi.BlockDeviceStats{TimedStats: []qapi.BlockDeviceTimedStats{}}}
	r := b.rootOf(x)
	if r != nil && r.Node() != nil {
		s = monitor.NodeStats(r.Node().SkipImplicit())
		n := r.Stats()
		d := &s.Stats
		d.RdBytes, d.RdOperations, d.RdTotalTimeNs, d.FailedRdOperations = n.Read.Bytes, n.Read.Ops, n.Read.TimeNs, n.Read.Failed
		d.WrBytes, d.WrOperations, d.WrTotalTimeNs, d.FailedWrOperations = n.Write.Bytes, n.Write.Ops, n.Write.TimeNs, n.Write.Failed
		d.UnmapBytes, d.UnmapOperations, d.UnmapTotalTimeNs, d.FailedUnmapOperations = n.Unmap.Bytes, n.Unmap.Ops, n.Unmap.TimeNs, n.Unmap.Failed
		d.FlushOperations, d.FlushTotalTimeNs, d.FailedFlushOperations = n.Flush.Ops, n.Flush.TimeNs, n.Flush.Failed
	}
	s.Stats.AccountInvalid, s.Stats.AccountFailed = true, true
	s.Device = &x.name
	if x.dev != nil {
		q := x.dev.qdev()
		s.Qdev = &q
	}
	return s
}
