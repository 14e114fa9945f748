package exports

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"blockd/blockgraph"
	"blockd/exports/nbd"
	"blockd/qapi"
)

// The NBD server's life: one per daemon.

// errStopped is the field's text for commands that need the server.
var errStopped = qapi.Errorf("NBD server not running")

func errNotRunning() error { return errStopped }

// Running tells whether there is an NBD server. It does not wait.
func (r *Registry) Running() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server != nil
}

// StartNBD is --nbd-server. It may wait for a name to resolve. On a worker.
func (r *Registry) StartNBD(ctx context.Context, o *qapi.NbdServerOptions) error {
	r.mu.Lock()
	if r.server != nil || r.starting {
		r.mu.Unlock()
		return qapi.Errorf("NBD server already running")
	}
	r.starting = true
	r.mu.Unlock()
	server, err := r.newServer(ctx, o)
	r.mu.Lock()
	r.starting = false
	r.server = server
	r.mu.Unlock()
	return err
}

// StartNBDLegacy is the command nbd-server-start, whose address is nested. On
// a worker.
func (r *Registry) StartNBDLegacy(ctx context.Context, o *qapi.NbdServerStartArg) error {
	return r.StartNBD(ctx, &qapi.NbdServerOptions{NbdServerOptionsBase: o.NbdServerOptionsBase, Addr: qapi.SocketAddress(o.Addr)})
}

func (r *Registry) newServer(ctx context.Context, o *qapi.NbdServerOptions) (*nbd.Server, error) {
	takeFD := func(name string) (int, error) {
		if r.TakeFD == nil {
			return -1, qapi.Errorf("File descriptor named '%s' has not been found", name)
		}
		return r.TakeFD(ctx, name)
	}
	var secure *tls.Config
	if o.TLSCreds != nil {
		if r.TLS == nil {
			return nil, qapi.Errorf("No TLS credentials with id '%s'", *o.TLSCreds)
		}
		authz := ""
		if o.TLSAuthz != nil {
			authz = *o.TLSAuthz
		}
		var err error
		if secure, err = r.TLS(*o.TLSCreds, authz); err != nil {
			return nil, err
		}
	}
	ls, err := nbd.Listen(ctx, &o.Addr, r.Access, takeFD)
	if err != nil {
		return nil, err
	}
	cfg := nbd.Config{Secure: secure, Clock: r.Clock, Ready: r.Ready, MaxConnections: nbd.DefaultMaxConnections, HandshakeMax: nbd.DefaultHandshakeSeconds * time.Second}
	if o.MaxConnections != nil {
		cfg.MaxConnections = *o.MaxConnections
	}
	if o.HandshakeMaxSeconds != nil {
		cfg.HandshakeMax = time.Duration(*o.HandshakeMaxSeconds) * time.Second
	}
	return nbd.NewServer(cfg, ls...), nil
}

// hungTime is how long the end of the server waits for requests that do not
// return. Then they are orphaned: each keeps its buffer and its export's root
// until it returns, and the export stays on the list, shutting down.
const hungTime = 5 * time.Second

// StopNBD is the command nbd-server-stop: it ends all NBD exports, clients or
// not, and returns when they are gone, or hung. On a worker.
func (r *Registry) StopNBD(ctx context.Context) error {
	var server *nbd.Server
	var ending []*export
	err := r.Graph.Update(ctx, blockgraph.Cause{Command: "nbd-server-stop"}, func(tx *blockgraph.Tx) error {
		if !r.Running() {
			return errStopped
		}
		tx.OnCommit(func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			server, r.server = r.server, nil
			for _, e := range r.exports {
				if e.typ == qapi.BlockExportTypeNBD {
					ending = append(ending, e)
					r.shutDown(ctx, e)
				}
			}
		})
		return nil
	})
	if err != nil {
		return err
	}
	stopped := make(chan struct{})
	r.removals.Go(func() {
		defer close(stopped)
		server.Close()
		for _, e := range ending {
			<-e.gone
		}
	})
	hung := r.Clock.NewTimer(hungTime)
	defer hung.Stop()
	select {
	case <-stopped:
	case <-hung.C():
		logHung(ctx, ending)
	case <-ctx.Done():
		logHung(ctx, ending)
	}
	return nil
}

// logHung names the exports that wait for requests.
func logHung(ctx context.Context, exports []*export) {
	for _, e := range exports {
		select {
		case <-e.gone:
		default:
			slog.WarnContext(ctx, "an export ends with requests that do not return", "user", e.root.String(), "requests", e.root.InFlight())
		}
	}
}

// AddNBD is the command nbd-server-add: an export whose id is its name. A
// read-only node is quietly exported read-only. On a worker.
func (r *Registry) AddNBD(ctx context.Context, a *qapi.NbdServerAddArg) error {
	return r.Graph.Update(ctx, blockgraph.Cause{Command: "nbd-server-add"}, func(tx *blockgraph.Tx) error { return r.addNamed(tx, a) })
}

func (r *Registry) addNamed(tx *blockgraph.Tx, a *qapi.NbdServerAddArg) error {
	n, err := tx.LookUp(&a.Device, &a.Device)
	if err != nil {
		return err
	}
	name := a.Device
	if a.Name != nil {
		name = *a.Name
	}
	o := &qapi.BlockExportOptions{
		Type: qapi.BlockExportTypeNBD, ID: name, NodeName: n.Name(), Writable: a.Writable,
		NBD: &qapi.BlockExportOptionsNbd{Name: &name, Description: a.Description},
	}
	if a.Bitmap != nil {
		o.NBD.Bitmaps = []qapi.BlockDirtyBitmapOrStr{{Local: a.Bitmap}}
	}
	if tx.State(n).ReadOnly {
		o.Writable = nil
	}
	return r.AddIn(tx, o)
}

// RemoveNBD is the command nbd-server-remove. On a worker.
func (r *Registry) RemoveNBD(ctx context.Context, name string, mode *qapi.BlockExportRemoveMode) error {
	r.mu.Lock()
	e := r.find(name)
	r.mu.Unlock()
	if e != nil && e.typ != qapi.BlockExportTypeNBD {
		return qapi.Errorf("Block export '%s' is not an NBD export", name)
	}
	return r.Del(ctx, name, mode)
}
