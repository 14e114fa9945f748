package chardev

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"blockd/clock"
	"blockd/qapi"
	"blockd/sockets"

	"golang.org/x/sys/unix"
)

// Config is what a Registry needs from the program.
type Config struct {
	// Clock paces reconnection and deadlines: the real one. Required.
	Clock clock.Clock
	// Warn is told what is not an error of a command, one text each without a
	// line end: that the start waits for a client, that a reconnection failed.
	// nil drops them.
	Warn func(text string)
	// Activated are the sockets that the service manager has handed over; nil: none.
	Activated *sockets.Activated
	// Access says who may connect to the unix sockets that are opened.
	Access sockets.Access
	// Daemonize tells that standard input and output will go away.
	Daemonize bool
}

// FDSource finds a descriptor that a client passed under a name. The Registry
// owns what it returns.
type FDSource func(name string) (*os.File, error)

// Registry holds the character devices of the process by id.
type Registry struct {
	cfg Config

	mu      sync.Mutex
	devices []*Device // in the order in which they were added
	// +checklocks:mu
	opening []*Device // that may wait for a peer
	// +checklocks:mu
	ending bool // nothing is opened any more
	// +checklocks:mu
	stdio bool // standard input and output are taken
}

// NewRegistry returns a Registry without devices.
func NewRegistry(cfg Config) *Registry {
	if cfg.Warn == nil {
		cfg.Warn = func(string) {}
	}
	return &Registry{cfg: cfg}
}

func (r *Registry) find(id string) *Device {
	for _, d := range r.devices {
		if d.id == id {
			return d
		}
	}
	return nil
}

// Add opens the device that --chardev describes. Errors are *qapi.Error in the
// words of the command line, or the context's. It may block, see the package
// comment; ctx ends that.
func (r *Registry) Add(ctx context.Context, o Options) error {
	return r.add(ctx, o.ID, &o.Backend, r.InheritedSocket,
		fmt.Sprintf("attempt to add duplicate property '%s' to object (type 'container')", o.ID))
}

// ChardevAdd is the command chardev-add. fds finds the descriptors that the
// client passed; nil when it cannot pass any.
func (r *Registry) ChardevAdd(ctx context.Context, a *qapi.ChardevAddArg, fds FDSource) (qapi.ChardevReturn, error) {
	duplicate := fmt.Sprintf("Chardev with id '%s' already exists", a.ID)
	err := r.add(ctx, a.ID, &a.Backend, takeNamedFD(fds), duplicate)
	return qapi.ChardevReturn{}, addError(a.ID, err, duplicate)
}

func addError(id string, err error, duplicate string) error {
	if err == nil || err.Error() == duplicate {
		return err
	}
	return qapi.Errorf("Failed to add chardev '%s': %s", id, err)
}

func takeNamedFD(fds FDSource) func(string) (int, error) {
	return func(name string) (int, error) {
		if fds == nil {
			return -1, qapi.Errorf("File descriptor named '%s' has not been found", name)
		}
		f, err := fds(name)
		if err != nil {
			return -1, err
		}
		defer f.Close()
		fd, err := dupFile(f)
		if err != nil {
			return -1, err
		}
		if _, err := checkSocket(fd, name); err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
}

func dupFile(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(n uintptr) { fd, err = dupCloexec(int(n)) })
	if cerr != nil {
		return -1, cerr
	}
	return fd, err
}

func (r *Registry) newDevice(id string) *Device {
	d := &Device{id: id, reg: r}
	d.life, d.end = context.WithCancel(context.Background())
	return d
}

func (r *Registry) add(ctx context.Context, id string, o *qapi.ChardevBackend, takeFD func(string) (int, error), duplicate string) error {
	d := r.newDevice(id)
	r.mu.Lock()
	if r.find(id) != nil {
		r.mu.Unlock()
		return qapi.Errorf("%s", duplicate)
	}
	r.devices = append(r.devices, d) // reserves the id while it opens
	r.mu.Unlock()
	if err := d.open(ctx, o, takeFD); err != nil {
		r.forget(d)
		return err
	}
	return nil
}

func (r *Registry) forget(d *Device) {
	r.mu.Lock()
	if i := slices.Index(r.devices, d); i >= 0 {
		r.devices = slices.Delete(r.devices, i, i+1)
	}
	r.mu.Unlock()
	d.close()
}

// openBackend opens what o describes; wait asks for the first client before
// the device is there.
func (r *Registry) openBackend(ctx context.Context, id string, o *qapi.ChardevBackend, takeFD func(string) (int, error)) (b backend, log *os.File, wait bool, err error) {
	var common *qapi.ChardevCommon
	switch o.Type {
	case qapi.ChardevBackendKindNull:
		common = o.Null
	case qapi.ChardevBackendKindFile:
		common = &o.File.ChardevCommon
	case qapi.ChardevBackendKindStdio:
		common = &o.Stdio.ChardevCommon
	case qapi.ChardevBackendKindSocket:
		common = &o.Socket.ChardevCommon
		err = checkSocketOptions(o.Socket)
	default:
		err = qapi.Errorf("'%s' is not a valid char driver name", o.Type)
	}
	if err != nil {
		return nil, nil, false, err
	}
	if isOn(common.Logtimestamp) {
		return nil, nil, false, qapi.Errorf("Parameter 'logtimestamp' is unexpected")
	}
	if log, err = openLog(common); err != nil {
		return nil, nil, false, err
	}
	switch o.Type {
	case qapi.ChardevBackendKindNull:
		b = nullBackend{}
	case qapi.ChardevBackendKindFile:
		b, err = openFile(r.cfg.Clock, o.File)
	case qapi.ChardevBackendKindStdio:
		b, err = r.takeStdio(o.Stdio)
	case qapi.ChardevBackendKindSocket:
		b, wait, err = r.openSocket(ctx, id, o.Socket, takeFD)
	}
	if err != nil {
		if log != nil {
			log.Close()
		}
		return nil, nil, false, err
	}
	return b, log, wait, nil
}

func (r *Registry) takeStdio(o *qapi.ChardevStdio) (backend, error) {
	if r.cfg.Daemonize {
		return nil, qapi.Errorf("cannot use stdio with -daemonize")
	}
	r.mu.Lock()
	taken := r.stdio
	r.stdio = true
	r.mu.Unlock()
	if taken {
		return nil, qapi.Errorf("cannot use stdio by multiple character devices")
	}
	free := func() {
		r.mu.Lock()
		r.stdio = false
		r.mu.Unlock()
	}
	b, err := openStdio(r.cfg.Clock, o)
	if err != nil {
		free()
		return nil, err
	}
	b.onEnd = free
	return b, nil
}

func (r *Registry) openSocket(ctx context.Context, id string, o *qapi.ChardevSocket, takeFD func(string) (int, error)) (backend, bool, error) {
	if o.Server == nil || *o.Server {
		ls, err := sockets.Listen(ctx, (*qapi.SocketAddress)(&o.Addr), sockets.ListenOptions{Backlog: listenBacklog, Access: r.cfg.Access}, takeFD)
		if err != nil {
			return nil, false, err
		}
		return &serverBackend{l: ls[0], options: o}, isOn(o.Wait), nil
	}
	b := &clientBackend{clk: r.cfg.Clock, options: o, takeFD: takeFD, warn: func(err error) {
		r.cfg.Warn(fmt.Sprintf("Unable to connect character device %s: %v", id, err))
	}}
	if o.ReconnectMs != nil && *o.ReconnectMs > 0 {
		b.reconnect = time.Duration(min(*o.ReconnectMs, maxReconnectMs)) * time.Millisecond
		return b, false, nil
	}
	c, err := dial(ctx, r.cfg.Clock, o, takeFD)
	if err != nil {
		return nil, false, err
	}
	b.first.Store(c)
	return b, false, nil
}

// maxReconnectMs keeps the pause within what a time.Duration can hold.
const maxReconnectMs = int64(1<<63-1) / int64(time.Millisecond)

// Attach claims a device for a front end, until Detach. Errors are those of
// --monitor.
func (r *Registry) Attach(id string) (*Device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.find(id)
	if d == nil {
		return nil, qapi.Errorf("chardev \"%s\" not found", id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.backend == nil {
		return nil, qapi.Errorf("chardev \"%s\" not found", id)
	}
	if d.attached {
		return nil, qapi.Errorf("Device '%s' is in use", id)
	}
	d.attached = true
	return d, nil
}

// ChardevRemove is the command chardev-remove.
func (r *Registry) ChardevRemove(a *qapi.ChardevIDArg) error {
	d, err := r.takeUnused(a.ID)
	if err != nil {
		return err
	}
	d.close()
	return nil
}

func (r *Registry) takeUnused(id string) (*Device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.devices, func(d *Device) bool { return d.id == id })
	if i < 0 {
		return nil, qapi.Errorf("Chardev '%s' not found", id)
	}
	d := r.devices[i]
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attached || d.backend == nil {
		return nil, qapi.Errorf("Chardev '%s' is busy", id)
	}
	r.devices = slices.Delete(r.devices, i, i+1)
	return d, nil
}

// ChardevChange is the command chardev-change: it replaces the back end of a
// device that no front end uses. It may block as ChardevAdd does.
func (r *Registry) ChardevChange(ctx context.Context, a *qapi.ChardevAddArg, fds FDSource) (qapi.ChardevReturn, error) {
	none := qapi.ChardevReturn{}
	r.mu.Lock()
	old := r.find(a.ID)
	if old == nil {
		r.mu.Unlock()
		return none, qapi.Errorf("Chardev '%s' does not exist", a.ID)
	}
	old.mu.Lock()
	busy := old.attached || old.backend == nil
	if !busy {
		old.attached = true // nobody may claim it meanwhile
	}
	old.mu.Unlock()
	r.mu.Unlock()
	if busy {
		return none, qapi.Errorf("Chardev user does not support chardev hotswap")
	}
	d := r.newDevice(a.ID)
	if err := d.open(ctx, &a.Backend, takeNamedFD(fds)); err != nil {
		old.Detach()
		return none, addError(a.ID, err, "")
	}
	r.mu.Lock()
	i := slices.Index(r.devices, old)
	if i >= 0 {
		r.devices[i] = d
	}
	r.mu.Unlock()
	old.close()
	if i < 0 { // closed with the whole registry
		d.close()
		return none, qapi.Errorf("Chardev '%s' does not exist", a.ID)
	}
	return none, nil
}

// ChardevSendBreak is the command chardev-send-break: no back end of ours has a
// break to send, which the field takes for success.
func (r *Registry) ChardevSendBreak(a *qapi.ChardevIDArg) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.find(a.ID) == nil {
		return qapi.Errorf("Chardev '%s' not found", a.ID)
	}
	return nil
}

// QueryChardev is the command query-chardev.
func (r *Registry) QueryChardev() []qapi.ChardevInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []qapi.ChardevInfo{}
	for _, d := range r.devices {
		d.mu.Lock()
		opening := d.backend == nil
		d.mu.Unlock()
		if !opening {
			list = append(list, d.info())
		}
	}
	return list
}

// backendKinds are the kinds in the field's order.
var backendKinds = []qapi.ChardevBackendKind{
	qapi.ChardevBackendKindNull, qapi.ChardevBackendKindStdio, qapi.ChardevBackendKindSocket, qapi.ChardevBackendKindFile,
}

// QueryChardevBackends is the command query-chardev-backends.
func (r *Registry) QueryChardevBackends() []qapi.ChardevBackendInfo {
	var list []qapi.ChardevBackendInfo
	for _, k := range backendKinds {
		list = append(list, qapi.ChardevBackendInfo{Name: string(k)})
	}
	return list
}

func helpText() string {
	var sb strings.Builder
	sb.WriteString("Available chardev backend types: \n")
	for _, k := range backendKinds {
		fmt.Fprintf(&sb, "  %s\n", k)
	}
	return sb.String()
}

// StopOpening ends what waits for a peer in Add, ChardevAdd and ChardevChange,
// and refuses more of it, with os.ErrClosed: a program that ends waits for its
// commands, but not for who may never come. Open devices go on until Close.
func (r *Registry) StopOpening() {
	r.mu.Lock()
	r.ending = true
	opening := slices.Clone(r.opening)
	r.mu.Unlock()
	for _, d := range opening {
		d.end()
	}
}

// beginOpening notes a device that may wait; the result ends that.
func (r *Registry) beginOpening(d *Device) (done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending {
		return nil, os.ErrClosed
	}
	r.opening = append(r.opening, d)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.opening = slices.DeleteFunc(r.opening, func(x *Device) bool { return x == d })
	}, nil
}

// Close closes every device and removes the socket files that it made. Front
// ends must have stopped, or find os.ErrClosed.
func (r *Registry) Close() {
	r.mu.Lock()
	devices := r.devices
	r.devices = nil
	r.mu.Unlock()
	for _, d := range devices {
		d.close()
	}
}
