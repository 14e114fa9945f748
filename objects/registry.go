// Package objects holds what users create by object-add and --object:
// throttle groups, secrets, I/O threads and the main loop's settings; and the
// commands that create, delete, list and change them (the field: QOM).
//
// An object has a type, an id and properties, which a table for each type
// describes (types.go). Whoever relies on an object acquires it, and then it
// cannot be deleted. iothread and main-loop objects are accepted and shown but
// steer nothing: the Go runtime schedules blockd's work.
//
// Locks: Registry.mu guards the list and the objects' properties; below it a
// throttle group's own lock.
// Blocking: Add and AddOption may read a file; the rest returns at once.
// Imports: the clock, qapi, throttlegroup, and qmp for the registration of
// the commands.
//
//blockd:blocking
package objects

import (
	"context"
	"io"
	"os"
	"sync"

	"blockd/clock"
	"blockd/qapi"
)

// Object is one object: *ThrottleGroup, *Secret, *IOThread, *MainLoop, *TLSCreds,
// *AuthzSimple, *AuthzList or *AuthzListfile.
type Object interface {
	// QOMType is the object's type, as object-add names it.
	QOMType() qapi.ObjectType
}

// Registry is the objects of a daemon. Its methods may be called from any
// goroutine outside the control plane's loop.
type Registry struct {
	clock clock.Clock
	open  func(name string) (io.ReadCloser, error)

	mu      sync.Mutex
	entries map[string]*entry
}

// entry is an object and its users, guarded by Registry.mu.
type entry struct {
	object Object
	users  int
}

// Option changes how a Registry works.
type Option func(*Registry)

// WithOpener has files of secrets opened by f, which may refuse a name or
// know more names than the file system does. Its errors should wrap a
// syscall.Errno. Default: os.Open.
func WithOpener(f func(name string) (io.ReadCloser, error)) Option {
	return func(r *Registry) { r.open = f }
}

// New returns a Registry without objects. Throttle groups work by clk.
func New(clk clock.Clock, options ...Option) *Registry {
	r := &Registry{
		clock:   clk,
		open:    func(name string) (io.ReadCloser, error) { return os.Open(name) },
		entries: map[string]*entry{},
	}
	for _, o := range options {
		o(r)
	}
	return r
}

// SetClock has the throttle groups that are made from now on work by clk. Before
// clients are served.
func (r *Registry) SetClock(clk clock.Clock) { r.clock = clk }

// Add creates an object. Errors are *qapi.Error in the field's words. Blocks
// while a secret's file is read.
func (r *Registry) Add(ctx context.Context, o *qapi.ObjectOptions) error {
	if !qapi.WellFormedID(o.ID) {
		return qapi.Errorf("Parameter 'id' expects an identifier")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Properties first, then the id, then what the object is made of: with
	// several mistakes the field reports that of the earliest step.
	obj, complete, err := r.create(o)
	if err != nil {
		return err
	}
	r.mu.Lock()
	err = r.checkNew(o.ID)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if complete != nil {
		if err := complete(); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.checkNew(o.ID); err != nil {
		return err
	}
	if o.QOMType == qapi.ObjectTypeMainLoop {
		for _, e := range r.entries {
			if e.object.QOMType() == qapi.ObjectTypeMainLoop {
				return qapi.Errorf("only one main-loop instance allowed")
			}
		}
	}
	r.entries[o.ID] = &entry{object: obj}
	return nil
}

// create makes an object of its options. complete, if not nil, may block and
// gives it its content.
func (r *Registry) create(o *qapi.ObjectOptions) (obj Object, complete func() error, err error) {
	switch o.QOMType {
	case qapi.ObjectTypeIothread:
		obj, complete, err = newIOThread(o.Iothread)
	case qapi.ObjectTypeMainLoop:
		obj, complete, err = newMainLoop(o.MainLoop)
	case qapi.ObjectTypeSecret:
		s := newSecret(o.Secret)
		obj, complete = s, func() error { return s.load(r) }
	case qapi.ObjectTypeTLSCredsX509:
		c := newTLSCreds(o.TLSCredsX509)
		obj, complete = c, func() error { return c.load(r) }
	case qapi.ObjectTypeTLSCredsPsk:
		err = qapi.Errorf("TLS credentials of type 'tls-creds-psk' are not supported, use 'tls-creds-x509'")
	case qapi.ObjectTypeAuthzSimple:
		obj = &AuthzSimple{identity: o.AuthzSimple.Identity}
	case qapi.ObjectTypeAuthzList:
		obj = newAuthzList(o.AuthzList)
	case qapi.ObjectTypeAuthzListfile:
		a := newAuthzListfile(o.AuthzListfile)
		obj, complete = a, func() error { return a.complete(r) }
	case qapi.ObjectTypeThrottleGroup:
		obj, err = newThrottleGroup(r.clock, o.ThrottleGroup)
	default:
		err = qapi.Errorf("Parameter 'qom-type' does not accept value '%s'", o.QOMType)
	}
	return obj, complete, err
}

// checkNew fails when an id is taken. Called with mu held.
//
// +checklocks:r.mu
func (r *Registry) checkNew(id string) error {
	if _, taken := r.entries[id]; taken || id == "type" {
		return qapi.Errorf("attempt to add duplicate property '%s' to object (type 'container')", id)
	}
	return nil
}

// Delete removes an object that nobody uses. Errors are *qapi.Error.
func (r *Registry) Delete(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[id]
	if e == nil {
		return qapi.Errorf("object '%s' not found", id)
	}
	if e.users > 0 || e.object.QOMType() == qapi.ObjectTypeMainLoop {
		return qapi.Errorf("object '%s' is in use, can not be deleted", id)
	}
	delete(r.entries, id)
	return nil
}

// Lookup returns the object of that id if it is a T. It may be deleted at any
// time; see Acquire.
//
//blockd:io
func Lookup[T Object](r *Registry, id string) (obj T, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[id]; e != nil {
		obj, ok = e.object.(T)
	}
	return obj, ok
}

// Acquire returns the object of that id if it is a T, and keeps it from being
// deleted until release is called, once.
func Acquire[T Object](r *Registry, id string) (obj T, release func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[id]
	if e == nil {
		return obj, nil, false
	}
	if obj, ok = e.object.(T); !ok {
		return obj, nil, false
	}
	e.users++
	release = sync.OnceFunc(func() {
		r.mu.Lock()
		e.users--
		r.mu.Unlock()
	})
	return obj, release, true
}
