package exports

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/exports/nbd"
	"blockd/qapi"
	"blockd/sockets"
)

// Options are a registry's ties to the rest of the daemon.
type Options struct {
	Graph *blockgraph.Graph
	// Ready is closed when the NBD server may take clients: whoever comes while
	// the program still makes its exports is to find them. nil: at once.
	Ready <-chan struct{}
	// Clock is the real clock.
	Clock clock.Clock
	// Deleted is told of an export that is gone (BLOCK_EXPORT_DELETED). It runs
	// on the loop and must not wait.
	Deleted func(id string)
	// Iothread finds an iothread, which is in use until release; nil: there are
	// none.
	Iothread func(id string) (release func(), ok bool)
	// TakeFD hands over a descriptor by number or by the name that getfd gave
	// it, for addresses of type fd. ctx is that of the command; nil: there are
	// none.
	TakeFD func(ctx context.Context, name string) (int, error)
	// Access says who may connect to the server's unix sockets.
	Access sockets.Access
	// TLS returns the configuration for credentials, which asks the object authz,
	// unless "", about every client. nil: there are no credentials.
	TLS func(creds, authz string) (*tls.Config, error)
	// AllowFile refuses files that exports are not to be mounted over, by names
	// that are absolute and free of symbolic links. nil: none.
	AllowFile func(name string) error
}

// Registry is all exports of a daemon, and its NBD server.
type Registry struct {
	Options

	mu sync.Mutex //blockd:short
	// +checklocks:mu
	exports []*export // the newest first, as the field lists them
	// +checklocks:mu
	staged []staged // those that the present graph change adds
	// +checklocks:mu
	server *nbd.Server
	// +checklocks:mu
	starting bool
	removals sync.WaitGroup
}

// served is an export as its clients see it, of any type.
//
//blockd:io
type served interface {
	// Clients returns how many there are. It does not wait.
	Clients() int
	// Close disconnects them and takes no more.
	Close()
	// CloseIfUnused returns false if somebody uses the export. Otherwise it takes
	// no more clients, or Close, which follows, will see to it. It does not wait.
	CloseIfUnused() bool
	// Done is closed when the export is closed and no request will reach its
	// backend any more.
	Done() <-chan struct{}
}

// export is one export of any type.
type export struct {
	id      string
	typ     qapi.BlockExportType
	root    *blockgraph.Root
	served  served
	bitmaps []exported // of NBD
	file    string     // FUSE: where it is mounted
	device  uint64     // FUSE: of the mount

	shuttingDown bool          // guarded by Registry.mu
	gone         chan struct{} // closed when it is off the list
}

// staged is an export that a change is about to add: its id, and what else of it
// there must be only one of.
type staged struct {
	id   string
	typ  qapi.BlockExportType
	name string // NBD: the export's; FUSE: the file's

	device uint64 // FUSE: of the mount
}

// New returns an empty registry.
func New(o Options) *Registry { return &Registry{Options: o} }

// find returns the export with that id, or nil.
//
// +checklocks:r.mu
func (r *Registry) find(id string) *export {
	for _, e := range r.exports {
		if e.id == id {
			return e
		}
	}
	return nil
}

// Add is the command block-export-add, and --export. On a worker.
func (r *Registry) Add(ctx context.Context, o *qapi.BlockExportOptions) error {
	return r.Graph.Update(ctx, blockgraph.Cause{Command: "block-export-add"}, func(tx *blockgraph.Tx) error { return r.AddIn(tx, o) })
}

// AddIn adds an export within a graph change: clients can see it from the
// commit on. On a worker, with the token held.
func (r *Registry) AddIn(tx *blockgraph.Tx, o *qapi.BlockExportOptions) error {
	if !qapi.WellFormedID(o.ID) {
		return qapi.Errorf("Invalid block export id")
	}
	r.mu.Lock()
	taken := r.find(o.ID) != nil || slices.ContainsFunc(r.staged, func(s staged) bool { return s.id == o.ID })
	r.mu.Unlock()
	if taken {
		return qapi.Errorf("Block export id '%s' is already in use", o.ID)
	}
	n := tx.Find(o.NodeName)
	if n == nil {
		return qapi.Errorf("Cannot find device='' nor node-name='%s'", o.NodeName)
	}
	if isOn(o.Writable) && tx.State(n).ReadOnly {
		return qapi.Errorf("Cannot export read-only node as writable")
	}
	if err := r.enterIothread(tx, n, o); err != nil {
		return err
	}
	root, err := r.open(tx, n, o)
	if err != nil {
		return err
	}
	e := &export{id: o.ID, typ: o.Type, root: root, gone: make(chan struct{})}
	if o.Type == qapi.BlockExportTypeFuse {
		err = r.addFuse(tx, n, e, o)
	} else {
		err = r.addNBD(tx, n, e, o)
	}
	if err != nil {
		return err
	}
	tx.After(func() {
		slog.DebugContext(tx.Context(), "export_added", "export", o.ID, "type", string(o.Type), "node", n.Name())
	})
	return nil
}

// stage notes an export that the present change adds, until its end.
func (r *Registry) stage(tx *blockgraph.Tx, s staged) {
	r.mu.Lock()
	r.staged = append(r.staged, s)
	r.mu.Unlock()
	over := func() {
		r.mu.Lock()
		r.staged = slices.DeleteFunc(r.staged, func(x staged) bool { return x == s })
		r.mu.Unlock()
	}
	tx.OnCommit(over)
	tx.OnAbort(over)
}

// enterIothread has the export's node belong to the export's thread, if the
// node's other users let it. An export that insists on its thread fails else.
func (r *Registry) enterIothread(tx *blockgraph.Tx, n *blockgraph.Node, o *qapi.BlockExportOptions) error {
	if o.Iothread == nil {
		return nil
	}
	var release func()
	ok := false
	if r.Iothread != nil {
		release, ok = r.Iothread(*o.Iothread)
	}
	if !ok {
		return qapi.Errorf("iothread \"%s\" not found", *o.Iothread)
	}
	if err := tx.SetIothread(n, tx.UseIothread(*o.Iothread, release)); isOn(o.FixedIothread) {
		return err
	}
	return nil
}

// open makes an export's root.
func (r *Registry) open(tx *blockgraph.Tx, n *blockgraph.Node, o *qapi.BlockExportOptions) (*blockgraph.Root, error) {
	perm, shared := blockgraph.PermConsistentRead, blockgraph.PermAll
	if isOn(o.Writable) {
		perm |= blockgraph.PermWrite
	}
	switch {
	case o.Type == qapi.BlockExportTypeNBD:
		// Clients are told the size once.
		shared &^= blockgraph.PermResize
	case isOn(o.Writable) || isOn(o.Fuse.Growable):
		perm |= blockgraph.PermResize
	}
	switch {
	case !isOn(o.AllowInactive):
		// Clients are to find the image ready.
		if err := tx.Activate(n); err != nil {
			return nil, err
		}
	case o.Type != qapi.BlockExportTypeNBD:
		return nil, qapi.Errorf("Export type does not support inactive exports")
	}
	return tx.NewRoot(n, blockgraph.RootOptions{Perm: perm, Shared: shared, Label: "export " + o.ID, AllowInactive: isOn(o.AllowInactive), FixedIothread: isOn(o.FixedIothread)})
}

// addNBD makes an export that the server's clients can see from the commit on.
func (r *Registry) addNBD(tx *blockgraph.Tx, n *blockgraph.Node, e *export, o *qapi.BlockExportOptions) error {
	writable := isOn(o.Writable)
	r.mu.Lock()
	server := r.server
	r.mu.Unlock()
	if server == nil {
		return errNotRunning()
	}
	limits := n.Limits()
	cfg := &nbd.ExportConfig{
		Name: o.NodeName, Backend: e.root, Size: n.Size(), Writable: writable, Writethrough: isOn(o.Writethrough),
		Alignment: uint32(min(max(limits.RequestAlignment, 1), math.MaxUint32)), MaxTransfer: uint32(min(limits.MaxTransfer, math.MaxUint32)),
	}
	if o.NBD != nil {
		if o.NBD.Name != nil {
			cfg.Name = *o.NBD.Name
		}
		cfg.Description = o.NBD.Description
		cfg.AllocationDepth = isOn(o.NBD.AllocationDepth)
	}
	if err := cfg.CheckNames(); err != nil {
		return err
	}
	if r.isStaged(o.Type, cfg.Name) || server.HasExport(cfg.Name) {
		return qapi.Errorf("NBD server already has export named '%s'", cfg.Name)
	}
	if o.NBD != nil {
		var err error
		if cfg.Contexts, e.bitmaps, err = offerBitmaps(tx, n, o.NBD.Bitmaps, writable); err != nil {
			return err
		}
	}
	r.stage(tx, staged{o.ID, o.Type, cfg.Name, 0})
	tx.OnCommit(func() {
		served, err := server.AddExport(cfg)
		if err != nil {
			// Names and server were checked under the token.
			panic("exports: " + err.Error())
		}
		r.list(e, served)
	})
	return nil
}

// isStaged tells whether the present change adds an export of that name.
func (r *Registry) isStaged(t qapi.BlockExportType, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.staged, func(s staged) bool { return s.typ == t && s.name == name })
}

// list puts an export on the list, from where clients can find it.
//
//blockd:global
func (r *Registry) list(e *export, s served) {
	r.mu.Lock()
	e.served = s
	r.exports = slices.Insert(r.exports, 0, e)
	r.mu.Unlock()
}

// Del is the command block-export-del. An export without clients is gone when
// it returns; one with clients, under mode hard, soon after; see
// Options.Deleted. On a worker.
func (r *Registry) Del(ctx context.Context, id string, mode *qapi.BlockExportRemoveMode) error {
	hard := mode != nil && *mode == qapi.BlockExportRemoveModeHard
	r.mu.Lock()
	e := r.find(id)
	if e == nil {
		r.mu.Unlock()
		return qapi.Errorf("Export '%s' is not found", id)
	}
	if e.shuttingDown {
		r.mu.Unlock()
		return qapi.Errorf("Export '%s' is already shutting down", id)
	}
	if !hard && !e.served.CloseIfUnused() {
		r.mu.Unlock()
		return qapi.Errorf("export '%s' still in use", id)
	}
	unused := e.served.Clients() == 0
	r.shutDown(ctx, e)
	r.mu.Unlock()
	if unused {
		select {
		case <-e.gone:
		case <-ctx.Done():
		}
	}
	return nil
}

// shutDown begins the end of an export; it goes on when ctx ends, which says
// only who asked for it. Called with mu held.
//
//blockd:any
func (r *Registry) shutDown(ctx context.Context, e *export) {
	if e.shuttingDown {
		return
	}
	e.shuttingDown = true
	//blockd:blocking
	r.removals.Go(func() {
		e.served.Close()
		<-e.served.Done()
		err := r.Graph.Update(context.WithoutCancel(ctx), blockgraph.Cause{Command: "block-export-del"}, func(tx *blockgraph.Tx) error {
			if err := releaseBitmaps(tx, e.bitmaps); err != nil {
				return err
			}
			tx.OnCommit(func() {
				r.forget(e)
				if r.Deleted != nil {
					r.Deleted(e.id)
				}
				close(e.gone)
			})
			return tx.CloseRoot(e.root)
		})
		if err != nil {
			// The daemon is past graph changes; nobody is left to tell.
			r.forget(e)
			close(e.gone)
		}
		slog.DebugContext(ctx, "export_closed", "export", e.id)
	})
}

// forget takes an export off the list.
//
//blockd:any
func (r *Registry) forget(e *export) {
	r.mu.Lock()
	r.exports = slices.DeleteFunc(r.exports, func(x *export) bool { return x == e })
	r.mu.Unlock()
}

// Query is the command query-block-exports. It does not wait.
func (r *Registry) Query() []qapi.BlockExportInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]qapi.BlockExportInfo, 0, len(r.exports))
	for _, e := range r.exports {
		info := qapi.BlockExportInfo{ID: e.id, Type: e.typ, ShuttingDown: e.shuttingDown}
		if n := e.root.Node(); n != nil {
			info.NodeName = n.Name()
		}
		list = append(list, info)
	}
	return list
}

// Use is what an export does at the moment.
type Use struct {
	ID   string
	Type qapi.BlockExportType
	// Root is what its requests go through.
	Root         *blockgraph.Root
	ShuttingDown bool

	served served
}

// Clients returns how many clients use the export now. It does not wait.
//
//blockd:io
func (u *Use) Clients() int { return u.served.Clients() }

// Uses returns all exports, the oldest first. Seen from the loop they fit the
// graph's roots. It does not wait.
//
//blockd:global
func (r *Registry) Uses() []Use {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Use, 0, len(r.exports))
	for _, e := range slices.Backward(r.exports) {
		list = append(list, Use{ID: e.id, Type: e.typ, Root: e.root, ShuttingDown: e.shuttingDown, served: e.served})
	}
	return list
}

// Connections returns how many clients the NBD server has, those that have not
// chosen an export yet among them, and how many it takes, 0 for any number. ok
// is false when there is no server. It does not wait.
//
//blockd:io
func (r *Registry) Connections() (n int, most uint32, ok bool) {
	r.mu.Lock()
	server := r.server
	r.mu.Unlock()
	if server == nil {
		return 0, 0, false
	}
	return server.Connections(), server.MaxConnections(), true
}

// Close ends every export and the server, disconnecting all clients. What has
// not ended when ctx does is named in the error. The file of the server's socket
// stays once the program was ready, as in the field, whose users remove it; not
// one that nobody else can have been at (Access.Exclusive). On a worker; the
// loop must still run.
func (r *Registry) Close(ctx context.Context) error {
	r.mu.Lock()
	server := r.server
	for _, e := range r.exports {
		if e.typ != qapi.BlockExportTypeNBD {
			r.shutDown(ctx, e)
		}
	}
	r.mu.Unlock()
	if server != nil {
		if r.wasReady() && !r.Access.Exclusive {
			server.LeaveFiles()
		}
		if err := r.StopNBD(ctx); err != nil && !errors.Is(err, errStopped) {
			return err
		}
	}
	ended := make(chan struct{})
	go func() { // ends with the last request, which ctx may not be able to wait for
		r.removals.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	var left []string
	for _, e := range r.Query() {
		left = append(left, e.ID)
	}
	return qapi.Errorf("exports did not end in time: %s", strings.Join(left, ", "))
}

// wasReady tells whether the server has taken clients.
func (r *Registry) wasReady() bool {
	if r.Ready == nil {
		return true
	}
	select {
	case <-r.Ready:
		return true
	default:
		return false
	}
}

func isOn(b *bool) bool { return b != nil && *b }
