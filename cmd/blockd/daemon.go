package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/term"

	"blockd/blockgraph"
	"blockd/chardev"
	"blockd/clock"
	"blockd/daemon"
	"blockd/jobs/copy"
	"blockd/objects"
	"blockd/qapi"
	"blockd/serve"
	"blockd/servicemanager"
	"blockd/sockets"
)

// process is how a daemon runs that serve has set up. The zero value is the
// drop-in command line's.
type process struct {
	access sockets.Access
	// enter goes to the directory that the daemon works in; nil: there is none,
	// and with --daemonize it is /.
	enter func() error
	// reload: SIGHUP reads tokens and credentials again and opens the log's file
	// anew, instead of ending the daemon.
	reload bool
	// warnings are for who starts the daemon, a line each.
	warnings []string
	// started is called when clients are served; nil: nothing is.
	started func()
}

// serveMain runs the daemon that serve has planned, and returns the exit code.
// The end of ctx ends it, which a signal may have brought before it began.
func serveMain(ctx context.Context, p serve.Plan) int {
	how := process{access: p.Access, reload: true, warnings: p.Warnings, started: func() {
		if term.IsTerminal(int(os.Stderr.Fd())) {
			for _, line := range p.Started {
				complain(line)
			}
		}
	}}
	if p.Dir != "" {
		how.enter = p.Enter
	}
	return runDaemon(ctx, p.Options, how)
}

// daemonMain runs the daemon of the drop-in command line and returns the exit
// code.
func daemonMain(args []string) int {
	opts, err := readOptions(args)
	if err != nil {
		complain(err.Error())
		return 1
	}
	return runDaemon(context.Background(), opts, process{})
}

// runDaemon runs the daemon until the end of ctx at most, and returns the exit
// code.
func runDaemon(ctx context.Context, opts []daemon.Option, how process) int {
	// Options about the process come first, as in the field, wherever they
	// stand.
	var pidPath string
	daemonize, givenPid := false, false
	for _, o := range opts {
		switch o.Name {
		case "help":
			fmt.Printf(usage, progName())
			return 0
		case "version":
			fmt.Printf("%s version %s (stands in for qemu-storage-daemon %s)\n", progName(), version, compatible())
			return 0
		case "daemonize":
			daemonize = true
		case "pidfile":
			pidPath, givenPid = o.Value, true
		case "trace":
			if asksForEvents(o) {
				fmt.Print(eventList())
				return 0
			}
		case "graph-history":
			if err := checkHistory(o); err != nil {
				complain(err.Error())
				return 1
			}
		case "":
			complain(o.Given + ": Unexpected argument")
			return 1
		}
	}
	var child *daemonChild
	if daemonize {
		if child = daemonized(); child == nil {
			return daemonizeParent()
		}
	}
	for _, line := range how.warnings {
		complain(line)
	}
	copy.KeepProcessorFree()
	if how.enter != nil {
		if err := how.enter(); err != nil {
			complain(err.Error())
			return 1
		}
	}
	log, err := openLog(opts)
	if at := placeError(""); errors.As(err, &at) {
		complainAt(err.Error())
		return 1
	} else if err != nil {
		complain(err.Error())
		return 1
	}
	defer log.close()
	room, err := scratchRoom(opts)
	if err != nil {
		complain(err.Error())
		return 1
	}
	// A signal ends the set-up, too: it may wait for a client or for a peer.
	ends := []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP}
	hangups := make(chan os.Signal, 1)
	if how.reload {
		ends = ends[:2]
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
	}
	life, stop := signal.NotifyContext(ctx, ends...)
	defer stop()

	manager, err := servicemanager.FromEnvironment(clock.Real(), complain)
	if err != nil {
		complain(err.Error())
		return 1
	}
	activated, err := activatedSockets(child != nil)
	if err != nil {
		complain(err.Error())
		return 1
	}
	d := newDaemon(opts, daemon.Config{Scratch: room, Log: log.Log, Daemonize: daemonize, Activated: activated, Access: how.access})
	err = setUp(life, d, opts)
	var pid *pidFile
	if err == nil && givenPid {
		pid, err = writePidFile(pidPath)
	}
	if err == nil {
		log.flush() // before stderr is cut off
		err = child.tellReady(how.enter == nil)
	}
	if err != nil {
		d.Close()
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
	d.Start()
	manager.Ready(d.Loop.Post)
	if how.started != nil {
		how.started()
	}
	for running := true; running; {
		select {
		case <-hangups:
			log.reopen()
			d.Reload()
			slog.Info("SIGHUP: log, tokens and credentials are read anew")
		case <-life.Done():
			running = false
		case <-d.Quit():
			running = false
		}
	}
	manager.Stopping()
	d.Close()
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

func compatible() string { return fmt.Sprintf("%d.%d.%d", compatMajor, compatMinor, compatMicro) }

// The release of QEMU whose commands blockd has.
const compatMajor, compatMinor, compatMicro = 10, 2, 0

// activatedSockets are those that a service manager has handed over to this
// process or, with --daemonize, to the one that started it.
func activatedSockets(daemonized bool) (*sockets.Activated, error) {
	pids := []int{os.Getpid()}
	if daemonized {
		pids = append(pids, os.Getppid())
	}
	a, err := sockets.FromServiceManager(os.Getenv, pids...)
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	return a, err
}

// newDaemon puts a daemon together; c has what the options do not say.
func newDaemon(opts []daemon.Option, c daemon.Config) *daemon.Daemon {
	c.Version = qapi.VersionInfo{
		QEMU:    qapi.VersionTriple{Major: compatMajor, Minor: compatMinor, Micro: compatMicro},
		Package: "blockd-" + version,
	}
	c.Complain, c.AllowedPaths, c.History = complain, allowedPaths(opts), historySteps(opts)
	return daemon.New(c)
}

// allowedPaths returns the directories and files of --allow-path; none: all.
func allowedPaths(opts []daemon.Option) []string {
	var paths []string
	for _, o := range opts {
		if o.Name == "allow-path" {
			paths = append(paths, o.Value)
		}
	}
	return paths
}

// historySteps returns the value of --graph-history, which checkHistory has
// found good.
func historySteps(opts []daemon.Option) int {
	steps := blockgraph.DefaultHistory
	for _, o := range opts {
		if o.Name == "graph-history" {
			steps, _ = strconv.Atoi(o.Value)
		}
	}
	return steps
}

// maxHistory is the largest value of --graph-history.
const maxHistory = 1 << 20

func checkHistory(o daemon.Option) error {
	if k, err := strconv.Atoi(o.Value); err != nil || k < 1 || k > maxHistory {
		return fmt.Errorf("%s: a number of steps from 1 to %d is expected", o.Given, maxHistory)
	}
	return nil
}

// setUp works the options off in their order. Its errors name the option. The
// end of ctx ends what waits.
func setUp(ctx context.Context, d *daemon.Daemon, opts []daemon.Option) error {
	for _, o := range opts {
		if err := d.Apply(ctx, o); err != nil {
			if _, help := helpText(err); help {
				return err
			}
			return o.Wrong(err)
		}
	}
	return nil
}
