// Package daemon puts blockd together: the loop, the graph with its drivers,
// jobs, exports, objects, character devices and the QMP server with the
// commands of package monitor. A program reads its command line, makes a Daemon,
// has it work off options, calls Start, and Close at the end.
//
// Imports: everything below; only programs import it.
//
//blockd:blocking
package daemon

import (
	"context"
	"fmt"

	"blockd/blockgraph"
	"blockd/chardev"
	"blockd/clock"
	"blockd/exports"
	"blockd/jobs"
	"blockd/jobs/scratch"
	"blockd/logs"
	"blockd/monitor"
	"blockd/objects"
	"blockd/qapi"
	"blockd/qmp"
	"blockd/sockets"
	"blockd/web"
)

// Config says how a daemon differs from program to program.
type Config struct {
	// Version is what the greeting and query-version tell.
	Version qapi.VersionInfo
	// Complain tells a person one line of text, on any goroutine.
	Complain func(message string)
	// AllowedPaths are the files and directories of which images may be; none:
	// all.
	AllowedPaths []string
	// History is how many changes of the graph are remembered.
	History int
	// Scratch is where backups keep what guests overwrite; nil: nowhere.
	Scratch *scratch.Pool
	// Daemonize: the program goes to the background, where no terminal is.
	Daemonize bool
	// Access says who may connect to the unix sockets that are opened. The web
	// address is this user's alone unless it says otherwise.
	Access sockets.Access
	// Activated are the sockets that the service manager has handed over; nil: none.
	Activated *sockets.Activated
	// Devices are what guests' disks are attached to; nil: none.
	Devices Devices
	// Making is told of each image that a command is about to make; nil: nobody is.
	Making func(monitor.NewImage)
	// Ending is called when somebody has asked for the end, before exports and jobs
	// are ended; nil: nothing is.
	Ending func()
	// LetGo gives up what else uses nodes, before images are closed; nil: nothing
	// does.
	LetGo func(ctx context.Context) error
	// Log is where the records of slog go, if the program has made it slog's
	// default; nil: one that nothing goes to.
	Log *logs.Log
	// BitmapsOnClose is x-bitmaps=on-close for qcow2 nodes that have no x-bitmaps.
	BitmapsOnClose bool
}

// Devices are those of an emulator, by name for commands and as queries list
// them.
type Devices interface {
	blockgraph.Devices
	monitor.Devices
}

// Daemon is everything that runs. Its parts are for the program that extends
// it: commands of its own go to the Registry before Start.
type Daemon struct {
	Loop     *blockgraph.Loop
	Graph    *blockgraph.Graph
	Jobs     *jobs.Set
	Exports  *exports.Registry
	Objects  *objects.Registry
	Chardevs *chardev.Registry
	QMP      *qmp.Server
	Registry *qmp.Registry
	Monitor  *monitor.Monitor

	version  string
	access   sockets.Access
	web      *web.Server // nil: none
	complain func(message string)
	ending   func()
	letGo    func(ctx context.Context) error
	ready    chan struct{} // closed when set-up is complete
	quit     chan struct{}
	stopped  chan struct{} // closed when jobs and exports have ended
	stop     chan struct{} // capacity 1: whose turn it is to end them
}

// New puts a daemon together. No client is served before Start.
func New(c Config) *Daemon {
	real := clock.Real()
	if c.Log == nil {
		c.Log = logs.New(1)
	}
	d := &Daemon{
		version: c.Version.Package, access: c.Access,
		Loop: blockgraph.NewLoop(), Registry: qmp.NewRegistry(), complain: c.Complain, ending: c.Ending, letGo: c.LetGo,
		ready: make(chan struct{}), quit: make(chan struct{}), stopped: make(chan struct{}), stop: make(chan struct{}, 1),
	}
	d.stop <- struct{}{}
	d.Chardevs = chardev.NewRegistry(chardev.Config{Clock: real, Warn: func(m string) { d.complain("warning: " + m) }, Daemonize: c.Daemonize, Activated: c.Activated, Access: c.Access})
	d.QMP = qmp.NewServer(qmp.Config{
		Registry: d.Registry, Chardevs: d.Chardevs, Clock: real, Hold: true,
		Version: c.Version,
		Quit: func(context.Context) error {
			d.endWork()
			return nil
		},
	})
	emit := d.QMP.Hub().Emit
	d.Objects = objects.New(real)
	drivers := newDrivers(d, c, real)
	d.Graph = blockgraph.NewGraph(d.Loop, real, drivers.types...)
	d.Graph.KeepHistory(c.History, real, func(s *blockgraph.Step) { d.Monitor.TellStep(d.QMP.Hub(), s) })
	if c.Devices != nil {
		d.Graph.UseDevices(c.Devices)
	}
	d.Graph.OnCorruption(func(node, msg string, off, n int64, fatal bool) {
		e := &qapi.BlockImageCorrupted{NodeName: &node, Msg: msg, Fatal: fatal}
		if off >= 0 {
			e.Offset = &off
		}
		if n >= 0 {
			e.Size = &n
		}
		emit("BLOCK_IMAGE_CORRUPTED", e)
	})
	d.Graph.OnWriteThreshold(func(node string, exceeded, threshold uint64) {
		emit("BLOCK_WRITE_THRESHOLD", &qapi.BlockWriteThreshold{NodeName: node, AmountExceeded: exceeded, WriteThreshold: threshold})
	})
	d.Jobs = jobs.New(d.Graph, real, emit)
	d.Exports = exports.New(exports.Options{
		Graph: d.Graph, Clock: real, Ready: d.ready,
		Deleted:   func(id string) { emit("BLOCK_EXPORT_DELETED", &qapi.BlockExportDeleted{ID: id}) },
		Iothread:  d.UseIothread,
		TakeFD:    d.takeSocket,
		Access:    c.Access,
		TLS:       d.Objects.TLSServer,
		AllowFile: func(name string) error { return pathPolicy(c.AllowedPaths).AllowOpen(name, false) },
	})
	d.Monitor = monitor.New(monitor.Config{
		Graph: d.Graph, Jobs: d.Jobs, Exports: d.Exports, Scratch: c.Scratch,
		CreateFile: drivers.createFile, Formats: drivers.formats, Iothread: d.UseIothread,
		Devices: devicesOf(c), Making: c.Making,
		Log: c.Log,
	})
	d.Monitor.FollowLog(d.QMP.Hub())
	qmp.RegisterCommands(d.Registry)
	objects.RegisterCommands(d.Registry, d.Objects)
	d.Monitor.Register(d.Registry)
	return d
}

// devicesOf returns nil, not an interface that holds nil.
func devicesOf(c Config) monitor.Devices {
	if c.Devices == nil {
		return nil
	}
	return c.Devices
}

// Start lets clients in: set-up is complete.
func (d *Daemon) Start() {
	close(d.ready)
	d.QMP.Start()
	if d.web != nil {
		d.web.Serve()
	}
}

// Quit is closed when a client has asked for the end, and jobs and exports have
// ended.
func (d *Daemon) Quit() <-chan struct{} { return d.quit }

// takeSocket finds the socket of an address of type fd: one that the client of
// the command passed, or one inherited, for the command line.
//
//blockd:io
func (d *Daemon) takeSocket(ctx context.Context, name string) (int, error) {
	if c := qmp.FromContext(ctx); c != nil {
		return chardev.SocketFD(name, c.TakeNamedFD)
	}
	return d.Chardevs.InheritedSocket(name)
}

// UseIothread finds an iothread, which cannot be deleted until release.
func (d *Daemon) UseIothread(id string) (release func(), ok bool) {
	_, release, ok = objects.Acquire[*objects.IOThread](d.Objects, id)
	return release, ok
}

// Option is an option of the command line.
type Option struct {
	Name  string // without dashes
	Value string
	Given string // as it stood on the command line, for messages
	// Explain adds to an error where the option stands; nil: it is on the command
	// line.
	Explain func(error) error
}

// Wrong is an error of the option, with where it stands.
func (o *Option) Wrong(err error) error {
	if o.Explain != nil {
		return o.Explain(err)
	}
	return fmt.Errorf("%s: %w", o.Given, err)
}

// Apply works off an option that configures a part: blockdev, chardev, export,
// monitor, nbd-server, object, web; any other does nothing. The end of ctx ends what
// waits.
func (d *Daemon) Apply(ctx context.Context, o Option) error {
	ctx = qapi.WithOrigin(ctx, qapi.Origin{Option: o.Name})
	switch o.Name {
	case "blockdev":
		var b qapi.BlockdevOptions
		if err := qapi.DecodeOption(o.Value, "driver", &b); err != nil {
			return err
		}
		return d.Monitor.AddNode(ctx, &b)
	case "chardev":
		c, err := chardev.ParseOption(o.Value)
		if err != nil {
			return err
		}
		for _, w := range c.Warnings {
			d.complain(o.Given + ": warning: " + w)
		}
		return d.Chardevs.Add(ctx, c)
	case "export":
		var e qapi.BlockExportOptions
		if err := qapi.DecodeOption(o.Value, "type", &e); err != nil {
			return err
		}
		return d.Exports.Add(ctx, &e)
	case "monitor":
		m, err := qmp.ParseMonitorOption(o.Value)
		if err != nil {
			return err
		}
		return d.QMP.AddMonitor(m)
	case "nbd-server":
		var n qapi.NbdServerOptions
		if err := qapi.DecodeOption(o.Value, "", &n); err != nil {
			return err
		}
		return d.Exports.StartNBD(ctx, &n)
	case "object":
		return d.Objects.AddOption(ctx, o.Value)
	case "web":
		return d.openWeb(ctx, o.Value)
	}
	return nil
}
