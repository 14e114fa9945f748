package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/chardev"
	"blockd/clock"
	"blockd/exports"
	"blockd/jobs"
	"blockd/jobs/scratch"
	"blockd/monitor"
	"blockd/objects"
	"blockd/qapi"
	"blockd/qmp"
)

// daemonMain runs the daemon and returns the exit code.
func daemonMain(args []string) int {
	opts, err := readOptions(args)
	if err != nil {
		complain(err.Error())
		return 1
	}
	// Options about the process come first, as in the field, wherever they
	// stand.
	var pidPath string
	daemonize, givenPid := false, false
	for _, o := range opts {
		switch o.name {
		case "help":
			fmt.Printf(usage, progName())
			return 0
		case "version":
			fmt.Printf("%s version %s (stands in for qemu-storage-daemon %s)\n", progName(), version, compatible())
			return 0
		case "daemonize":
			daemonize = true
		case "pidfile":
			pidPath, givenPid = o.value, true
		case "graph-history":
			if err := checkHistory(o); err != nil {
				complain(err.Error())
				return 1
			}
		case "":
			complain(o.given + ": Unexpected argument")
			return 1
		}
	}
	var child *daemonChild
	if daemonize {
		if child = daemonized(); child == nil {
			return daemonizeParent()
		}
	}
	room, err := scratchRoom(opts)
	if err != nil {
		complain(err.Error())
		return 1
	}
	// A signal ends the set-up, too: it may wait for a client or for a peer.
	life, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	defer stop()

	d := newDaemon(opts, room, daemonize)
	err = d.setUp(life, opts)
	var pid *pidFile
	if err == nil && givenPid {
		pid, err = writePidFile(pidPath)
	}
	if err == nil {
		err = child.tellReady()
	}
	if err != nil {
		d.close()
		pid.remove()
		if life.Err() != nil {
			return 0 // what it interrupted is no mistake of the user's
		}
		if text, ok := helpText(err); ok {
			fmt.Print(text)
			return 0
		}
		complain(err.Error())
		if hint := blockgraph.Hint(err); hint != "" {
			os.Stderr.WriteString(hint + "\n")
		}
		return 1
	}
	close(d.ready)
	d.qmp.Start()
	select {
	case <-life.Done():
	case <-d.quit:
	}
	d.close()
	pid.remove()
	return 0
}

// helpText returns the text when an option asked for help.
func helpText(err error) (string, bool) {
	var c *chardev.Help
	var o *objects.Help
	switch {
	case errors.As(err, &c):
		return c.Text, true
	case errors.As(err, &o):
		return o.Text, true
	}
	return "", false
}

// daemon is everything that runs, in the order in which it is torn down.
type daemon struct {
	loop     *blockgraph.Loop
	graph    *blockgraph.Graph
	jobs     *jobs.Set
	exports  *exports.Registry
	objects  *objects.Registry
	chardevs *chardev.Registry
	qmp      *qmp.Server
	monitor  *monitor.Monitor

	ready   chan struct{} // closed when set-up is complete
	quit    chan struct{}
	stopped chan struct{} // closed when jobs and exports have ended
	stop    chan struct{} // capacity 1: whose turn it is to end them
}

func compatible() string { return fmt.Sprintf("%d.%d.%d", compatMajor, compatMinor, compatMicro) }

// The release of QEMU whose commands blockd has.
const compatMajor, compatMinor, compatMicro = 10, 2, 0

func newDaemon(opts []option, room *scratch.Pool, daemonize bool) *daemon {
	real := clock.Real()
	d := &daemon{loop: blockgraph.NewLoop(), ready: make(chan struct{}), quit: make(chan struct{}), stopped: make(chan struct{}), stop: make(chan struct{}, 1)}
	d.stop <- struct{}{}
	d.chardevs = chardev.NewRegistry(chardev.Config{Clock: real, Warn: func(m string) { complain("warning: " + m) }, Daemonize: daemonize})
	registry := qmp.NewRegistry()
	d.qmp = qmp.NewServer(qmp.Config{
		Registry: registry, Chardevs: d.chardevs, Clock: real, Hold: true,
		Version: qapi.VersionInfo{
			QEMU:    qapi.VersionTriple{Major: compatMajor, Minor: compatMinor, Micro: compatMicro},
			Package: "blockd-" + version,
		},
		Quit: func(context.Context) error {
			d.endWork()
			return nil
		},
	})
	emit := d.qmp.Hub().Emit
	d.objects = objects.New(real)
	drivers := newDrivers(d, allowedPaths(opts), real)
	d.graph = blockgraph.NewGraph(d.loop, real, drivers.types...)
	d.graph.KeepHistory(historySteps(opts), real, func(s *blockgraph.Step) { d.monitor.TellStep(d.qmp.Hub(), s) })
	d.graph.OnCorruption(func(node, msg string, off, n int64, fatal bool) {
		e := &qapi.BlockImageCorrupted{NodeName: &node, Msg: msg, Fatal: fatal}
		if off >= 0 {
			e.Offset = &off
		}
		if n >= 0 {
			e.Size = &n
		}
		emit("BLOCK_IMAGE_CORRUPTED", e)
	})
	d.graph.OnWriteThreshold(func(node string, exceeded, threshold uint64) {
		emit("BLOCK_WRITE_THRESHOLD", &qapi.BlockWriteThreshold{NodeName: node, AmountExceeded: exceeded, WriteThreshold: threshold})
	})
	d.jobs = jobs.New(d.graph, real, emit)
	d.exports = exports.New(exports.Options{
		Graph: d.graph, Clock: real, Ready: d.ready,
		Deleted:  func(id string) { emit("BLOCK_EXPORT_DELETED", &qapi.BlockExportDeleted{ID: id}) },
		Iothread: d.useIothread,
		TakeFD:   takeSocket,
		TLS:      d.objects.TLSServer,
	})
	d.monitor = monitor.New(monitor.Config{
		Graph: d.graph, Jobs: d.jobs, Exports: d.exports, Scratch: room,
		CreateFile: drivers.createFile, Formats: drivers.formats, Iothread: d.useIothread,
	})
	qmp.RegisterCommands(registry)
	objects.RegisterCommands(registry, d.objects)
	d.monitor.Register(registry)
	return d
}

// takeSocket finds the socket of an address of type fd: one that the client of
// the command passed, or one inherited by its number for the command line.
//
//blockd:io
func takeSocket(ctx context.Context, name string) (int, error) {
	if c := qmp.FromContext(ctx); c != nil {
		return chardev.SocketFD(name, c.TakeNamedFD)
	}
	return chardev.SocketFD(name, nil)
}

// allowedPaths returns the directories and files of --allow-path; none: all.
func allowedPaths(opts []option) []string {
	var paths []string
	for _, o := range opts {
		if o.name == "allow-path" {
			paths = append(paths, o.value)
		}
	}
	return paths
}

// historySteps returns the value of --graph-history, which checkHistory has
// found good.
func historySteps(opts []option) int {
	steps := blockgraph.DefaultHistory
	for _, o := range opts {
		if o.name == "graph-history" {
			steps, _ = strconv.Atoi(o.value)
		}
	}
	return steps
}

// maxHistory is the largest value of --graph-history.
const maxHistory = 1 << 20

func checkHistory(o option) error {
	if k, err := strconv.Atoi(o.value); err != nil || k < 1 || k > maxHistory {
		return fmt.Errorf("%s: a number of steps from 1 to %d is expected", o.given, maxHistory)
	}
	return nil
}

// setUp works the options off in their order. Its errors name the option. The
// end of ctx ends what waits.
func (d *daemon) setUp(ctx context.Context, opts []option) error {
	for _, o := range opts {
		if err := d.apply(qapi.WithOrigin(ctx, qapi.Origin{Option: o.name}), o); err != nil {
			if _, help := helpText(err); help {
				return err
			}
			return fmt.Errorf("%s: %w", o.given, err)
		}
	}
	return nil
}

func (d *daemon) apply(ctx context.Context, o option) error {
	switch o.name {
	case "blockdev":
		var b qapi.BlockdevOptions
		if err := qapi.DecodeOption(o.value, "driver", &b); err != nil {
			return err
		}
		return d.monitor.AddNode(ctx, &b)
	case "chardev":
		c, err := chardev.ParseOption(o.value)
		if err != nil {
			return err
		}
		for _, w := range c.Warnings {
			complain(o.given + ": warning: " + w)
		}
		return d.chardevs.Add(ctx, c)
	case "export":
		var e qapi.BlockExportOptions
		if err := qapi.DecodeOption(o.value, "type", &e); err != nil {
			return err
		}
		return d.exports.Add(ctx, &e)
	case "monitor":
		m, err := qmp.ParseMonitorOption(o.value)
		if err != nil {
			return err
		}
		return d.qmp.AddMonitor(m)
	case "nbd-server":
		var n qapi.NbdServerOptions
		if err := qapi.DecodeOption(o.value, "", &n); err != nil {
			return err
		}
		return d.exports.StartNBD(ctx, &n)
	case "object":
		return d.objects.AddOption(ctx, o.value)
	}
	return nil
}

// closeTime is how long the end waits at most for exports, for jobs, for images
// to close, and for clients to read their last replies, each.
const closeTime = 30 * time.Second

// endContext is what an end runs in.
func endContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(qapi.WithOrigin(context.Background(), qapi.Origin{Shutdown: true}), closeTime)
}

// endWork ends exports and jobs, once; whoever comes second waits for the
// first. Then the daemon ends.
func (d *daemon) endWork() {
	select {
	case <-d.stop:
	case <-d.stopped:
		return
	}
	ctx, cancel := endContext()
	defer cancel()
	if err := d.exports.Close(ctx); err != nil {
		complain(err.Error())
	}
	rest, cancel := endContext() // what exports took is not the jobs' fault
	defer cancel()
	if err := d.jobs.Shutdown(rest); err != nil {
		complain(err.Error())
	}
	close(d.stopped)
	close(d.quit)
}

// close ends everything: jobs cancelled, images flushed and closed, sockets
// removed. Storage that hangs delays it, but not for ever: what can be flushed
// and closed is, and the rest ends with the process.
func (d *daemon) close() {
	d.endWork()
	ctx, cancel := endContext()
	defer cancel()
	closed := within(ctx, func() {
		if err := d.monitor.CloseNodes(ctx); err != nil {
			complain(err.Error())
			d.flush()
		}
	})
	if !closed {
		complain("images did not close in time")
		d.flush()
	}
	d.chardevs.StopOpening()
	late, cancel := endContext()
	defer cancel()
	if !within(late, func() { d.qmp.Close(ctx) }) {
		complain("commands did not end in time")
	}
	d.chardevs.Close()
	d.qmp.FdSets().Close()
	d.loop.Stop()
}

// flush makes durable what the images hold, when they cannot be closed.
func (d *daemon) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	d.graph.Flush(ctx)
}

// flushTime is how long that may take.
const flushTime = 5 * time.Second

// within runs f, and returns false when it has not ended before ctx does; f
// then goes on until the process ends.
func within(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
}

// useIothread finds an iothread, which cannot be deleted until release.
func (d *daemon) useIothread(id string) (release func(), ok bool) {
	_, release, ok = objects.Acquire[*objects.IOThread](d.objects, id)
	return release, ok
}
