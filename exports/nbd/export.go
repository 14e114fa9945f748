package nbd

import (
	"maps"
	"slices"
	"sync"

	"blockd/nbdproto"
	"blockd/qapi"
)

// sectorSize is the unit to which the size of an export is rounded down.
const sectorSize = 512

// ExportConfig describes an export. It does not change afterwards.
type ExportConfig struct {
	Name        string
	Description *string
	Backend     Backend
	// Size is the length of the backend in bytes. It must not change while the
	// export exists.
	Size int64
	// Alignment is the backend's request alignment in bytes, a power of two;
	// 0 counts as 1.
	Alignment uint32
	// MaxTransfer is the backend's longest request in bytes; 0: no limit.
	MaxTransfer uint32
	Writable    bool
	// Writethrough: every write is durable before its reply.
	Writethrough bool
	// AllocationDepth: offer qemu:allocation-depth.
	AllocationDepth bool
	// Contexts are further metadata contexts, such as dirty bitmaps.
	Contexts []StatusContext
}

// Export is something that clients of a server may ask for by name.
type Export struct {
	server       *Server
	name         string
	description  *string
	backend      Backend
	size         int64
	flags        nbdproto.TransmissionFlags
	sizes        nbdproto.BlockSizes // minimum is that of clients that asked
	writethrough bool
	contexts     []statusContext

	mu     sync.Mutex         //blockd:short
	conns  map[*conn]struct{} // +checklocks:mu
	closed bool               // +checklocks:mu
	done   chan struct{}
}

// CheckNames returns the field's error for a name or description that is too
// long.
func (e *ExportConfig) CheckNames() error {
	if len(e.Name) > nbdproto.MaxString {
		return qapi.Errorf("export name '%s' too long", e.Name)
	}
	if e.Description != nil && len(*e.Description) > nbdproto.MaxString {
		return qapi.Errorf("description '%s' too long", *e.Description)
	}
	return nil
}

func newExport(s *Server, o *ExportConfig) *Export {
	e := &Export{
		server: s, name: o.Name, description: o.Description, backend: o.Backend,
		size: o.Size / sectorSize * sectorSize, writethrough: o.Writethrough,
		conns: map[*conn]struct{}{}, done: make(chan struct{}),
	}
	e.flags = nbdproto.HasFlags | nbdproto.SendFlush | nbdproto.SendFUA | nbdproto.SendCache
	// All connections share one backend, so a flush on one covers the others.
	if s.maxConnections != 1 {
		e.flags |= nbdproto.CanMultiConn
	}
	if o.Writable {
		e.flags |= nbdproto.SendTrim | nbdproto.SendWriteZeroes | nbdproto.SendFastZero
	} else {
		e.flags |= nbdproto.ReadOnly
	}
	e.sizes.Minimum = max(1, min(o.Alignment, nbdproto.MaxPayload))
	e.sizes.Preferred = max(4096, e.sizes.Minimum)
	e.sizes.Maximum = nbdproto.MaxPayload
	if o.MaxTransfer != 0 {
		e.sizes.Maximum = min(e.sizes.Maximum, o.MaxTransfer)
	}
	e.contexts = []statusContext{{allocation{o.Backend}, idAllocation}}
	if o.AllocationDepth {
		e.contexts = append(e.contexts, statusContext{depth{o.Backend}, idDepth})
	}
	for i, c := range o.Contexts {
		e.contexts = append(e.contexts, statusContext{c, idFirstMore + uint32(i)})
	}
	return e
}

// Clients returns how many connections use the export.
func (e *Export) Clients() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// Close takes the export from the server, so that its name is free, and
// disconnects its clients. It does not wait; see Done.
func (e *Export) Close() {
	e.server.forget(e)
	conns, _ := e.end(false)
	for _, c := range conns {
		c.close()
	}
}

// CloseIfUnused is Close, if there is no client; otherwise it returns false.
func (e *Export) CloseIfUnused() bool {
	if _, ended := e.end(true); !ended {
		return false
	}
	e.server.forget(e)
	return true
}

// end takes no more clients, and returns those that there are, to be closed.
// With onlyUnused it does nothing when there are any.
func (e *Export) end(onlyUnused bool) (clients []*conn, ended bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if onlyUnused && len(e.conns) > 0 {
		return nil, false
	}
	if !e.closed && len(e.conns) == 0 {
		close(e.done)
	}
	e.closed = true
	return slices.Collect(maps.Keys(e.conns)), true
}

// Done is closed when the export is closed and no request will reach its
// backend any more.
func (e *Export) Done() <-chan struct{} { return e.done }

// attach makes c a client; false when the export has been closed.
func (e *Export) attach(c *conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.conns[c] = struct{}{}
	c.export = e
	return true
}

func (e *Export) detach(c *conn) {
	e.mu.Lock()
	delete(e.conns, c)
	last := e.closed && len(e.conns) == 0
	e.mu.Unlock()
	if last {
		close(e.done)
	}
}

// info is what a client is told when it chooses the export. payload: it may ask
// for some of its metadata contexts.
func (e *Export) info(structured, payload bool) nbdproto.ExportInfo {
	f := e.flags
	if structured {
		f |= nbdproto.SendDF
	}
	if payload {
		f |= nbdproto.BlockStatusPay
	}
	return nbdproto.ExportInfo{Size: uint64(e.size), Flags: f}
}
