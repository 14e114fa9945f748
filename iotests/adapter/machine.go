package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/daemon"
	"blockd/img"
	"blockd/monitor"
	"blockd/qapi"
	"blockd/qmp"
)

// machine is the emulator that the tests believe in.
type machine struct {
	daemon   *daemon.Daemon
	graph    *blockgraph.Graph
	backends *backends
	devices  *devices
	stepped  *clock.Virtual // under qtest; nil: time passes by itself
	incoming bool           // the images may be somebody else's still
	qtest    *qtest
	aio      requests
	hmp      *hmp // on standard input and output, or nil

	life   context.Context // ends with a signal
	stop   context.CancelFunc
	caught chan os.Signal
	reason string // of the end
}

// release is the release whose suite is run.
var release = qapi.VersionInfo{QEMU: qapi.VersionTriple{Major: 7, Minor: 2, Micro: 22}, Package: "blockd"}

// printf prints to standard output, where QMP may be, too: after what clients
// have been sent by then.
func (m *machine) printf(format string, args ...any) {
	m.daemon.QMP.Hub().Flush(m.life)
	fmt.Printf(format, args...)
}

// announce prints what an emulator prints about an image that it makes.
func (m *machine) announce(i monitor.NewImage) {
	m.printf("%s\n", img.Announce(i.File, i.Format, i.Size, i.Backing, i.BackingFormat))
}

func newMachine(opts []option) *machine {
	m := &machine{reason: "host-qmp-quit", caught: make(chan os.Signal, 1)}
	m.life, m.stop = context.WithCancel(context.Background())
	m.backends = newBackends(m)
	m.devices = newDevices(m)
	c := daemon.Config{
		Version: release, Complain: complain, History: blockgraph.DefaultHistory,
		Devices: m.backends, Making: m.announce, Ending: m.ending, LetGo: m.backends.letGo,
		BitmapsOnClose: true, // what the tests look at in images
	}
	m.incoming = len(values(opts, "incoming")) > 0
	// The first accelerator wins.
	if a := values(opts, "accel"); len(a) > 0 && a[0] == "qtest" {
		m.stepped = clock.NewVirtual()
	}
	m.daemon = daemon.New(c)
	m.graph = m.daemon.Graph
	m.register(m.daemon.Registry)
	return m
}

// setUp works the options off in the emulator's order, not in that of the
// command line.
func (m *machine) setUp(opts []option) error {
	signal.Notify(m.caught, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	for _, step := range []struct {
		names []string
		apply func(name, value string) error
	}{
		{[]string{"add-fd"}, func(_, v string) error { return m.addFD(v) }},
		{[]string{"chardev"}, m.apply},
		{[]string{"mon", "qmp", "qmp-pretty", "monitor"}, m.addMonitor},
		{[]string{"qtest"}, func(_, v string) (err error) {
			m.qtest, err = connectQtest(v, m.stepped, func() { m.backends.settle(m.life) })
			return err
		}},
		{[]string{"object", "blockdev"}, m.apply},
		{[]string{"drive", "hda", "fda", "fdb"}, func(n, v string) error { return m.backends.addDrive(n, v) }},
		{[]string{"device"}, func(_, v string) error { return m.devices.addOption(v) }},
	} {
		for _, o := range opts {
			for _, n := range step.names {
				if o.name != n {
					continue
				}
				if err := step.apply(n, o.value); err != nil {
					return fmt.Errorf("-%s %s: %w", o.name, o.value, err)
				}
			}
		}
	}
	return nil
}

// apply hands an option to blockd that both have.
func (m *machine) apply(name, value string) error {
	return m.daemon.Apply(m.life, daemon.Option{Name: name, Value: value, Given: "-" + name + " " + value})
}

// addMonitor serves QMP on a character device or on standard input and output,
// or HMP there.
func (m *machine) addMonitor(name, value string) error {
	switch {
	case name == "mon":
		return m.apply("monitor", value)
	case name == "monitor" && value == "stdio":
		m.hmp = newHMP(m, os.Stdin, os.Stdout)
		return nil
	case name == "monitor":
		return nil // none, null
	}
	const id = "compat_monitor0"
	if err := m.apply("chardev", value+",id="+id); err != nil {
		return err
	}
	return m.apply("monitor", "chardev="+id+",pretty="+onOff(name == "qmp-pretty"))
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// addFD puts an inherited descriptor into a set.
func (m *machine) addFD(value string) error {
	var fd, set int64
	var opaque *string
	for _, p := range parsePairs(value, "") {
		switch p.key {
		case "fd":
			fd, _ = strconv.ParseInt(p.value, 10, 32)
		case "set":
			set, _ = strconv.ParseInt(p.value, 10, 64)
		case "opaque":
			opaque = &p.value
		}
	}
	dup, err := syscall.Dup(int(fd))
	if err != nil {
		return qapi.Errorf("error duplicating fd: %s", blockgraph.Strerror(err))
	}
	_, err = m.daemon.QMP.FdSets().Add(os.NewFile(uintptr(dup), "add-fd"), &set, opaque)
	return err
}

func (m *machine) start() {
	if m.stepped != nil {
		// Those of the command line were there before the accelerator.
		m.daemon.Objects.SetClock(m.stepped)
	}
	m.daemon.Start()
	if m.hmp != nil {
		m.hmp.serve()
	}
}

// wait returns when a client or a signal has asked for the end.
func (m *machine) wait() {
	select {
	case s := <-m.caught:
		m.reason = "host-signal"
		complain("terminating on signal " + strconv.Itoa(int(s.(syscall.Signal))))
	case <-m.daemon.Quit():
	}
}

func (m *machine) close() {
	m.stop()
	m.daemon.Close()
	m.qtest.close()
}

// ending tells clients that the machine is off.
func (m *machine) ending() {
	m.emit("SHUTDOWN", &shutdownEvent{Guest: false, Reason: m.reason})
}

func (m *machine) emit(event string, data any) { m.daemon.QMP.Hub().Emit(event, data) }

// update makes a graph change in the name of a command.
func (m *machine) update(ctx context.Context, command string, f func(tx *blockgraph.Tx) error) error {
	return m.graph.Update(ctx, blockgraph.Cause{Command: command}, f)
}

// register adds the commands that only an emulator has.
func (m *machine) register(r *qmp.Registry) {
	m.registerMachine(r)
	m.registerMedia(r)
	m.registerThrottle(r)
	m.registerRelease(r)
	m.devices.register(r)
	registerHMP(r, m)
}
