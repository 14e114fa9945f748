// Package img is `blockd img`: it makes, inspects and changes disk images from
// the command line, with the names, options, output and exit codes of
// qemu-img. There is no second way to do anything: each subcommand starts a
// daemon within its own process, talks QMP to it and runs its jobs. Only what
// QMP does not show, the content and the allocation of images, is read through
// roots of the graph.
//
// Errors are whole messages without the program's name; exit codes other than
// 1 come as *cli.Exit.
//
// Imports: package daemon and what it puts together; only programs import it.
//
//blockd:blocking
package img

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/cli"
	"blockd/daemon"
	"blockd/qapi"
	"blockd/qmpclient"
)

// NewDaemon makes a daemon that no client is served by yet.
type NewDaemon func() *daemon.Daemon

// Command returns the subcommand img.
func Command(env *cli.Environment, start NewDaemon) *cobra.Command {
	t := &tool{env: env, start: start}
	cmd := &cobra.Command{
		// What a daemon notes in its log is no news to somebody at a terminal.
		PersistentPreRun: func(*cobra.Command, []string) { slog.SetLogLoggerLevel(slog.LevelWarn) },
		Use:              "img", Short: "Make, inspect and change disk images",
		Long: "Works on images that no daemon has open, with the options and the output of qemu-img.",
		Args: cobra.ArbitraryArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("Command not found: %s", args[0])
			}
			return cmd.Help()
		},
	}
	cmd.SetFlagErrorFunc(unknownFlag)
	cmd.AddCommand(
		createCommand(t), amendCommand(t), infoCommand(t), checkCommand(t), mapCommand(t), compareCommand(t), convertCommand(t), resizeCommand(t),
		snapshotCommand(t), commitCommand(t), rebaseCommand(t), bitmapCommand(t), measureCommand(t), ddCommand(t),
	)
	return cmd
}

// tool is what all subcommands share.
type tool struct {
	env   *cli.Environment
	start NewDaemon
}

// session is a daemon within the process, and a client of it.
type session struct {
	*tool
	ctx     context.Context
	d       *daemon.Daemon
	c       *qmpclient.Client
	nodes   int // named so far
	quiet   bool
	objects []string // options
}

// command makes a cobra command whose run has a session. --object and -q are
// everybody's.
func (t *tool) command(use, short string, args cobra.PositionalArgs, run func(s *session, args []string) error) *cobra.Command {
	s := &session{tool: t}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			s.ctx = cmd.Context()
			if err := checkGiven(cmd, args); err != nil {
				return err
			}
			if err := s.open(); err != nil {
				return err
			}
			err := run(s, args)
			if closing := s.close(); err == nil {
				err = closing
			}
			return err
		},
	}
	cmd.Flags().StringArrayVar(&s.objects, "object", nil, "an object, such as secret,id=ID,file=PATH")
	cmd.Flags().BoolVarP(&s.quiet, "quiet", "q", false, "print nothing but errors")
	return cmd
}

// open starts the daemon and connects to it.
func (s *session) open() error {
	s.d = s.start()
	for _, o := range s.objects {
		if err := s.d.Apply(s.ctx, daemon.Option{Name: "object", Value: o, Given: "--object " + o}); err != nil {
			s.d.Close()
			return err
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.d.Close()
		return os.NewSyscallError("socketpair", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "monitor")
	conn, err := net.FileConn(ours) // has a descriptor of its own
	ours.Close()
	if err == nil {
		for _, o := range []daemon.Option{
			{Name: "chardev", Value: "socket,id=img,fd=" + strconv.Itoa(pair[1])}, // the device owns it
			{Name: "monitor", Value: "img"},
		} {
			if err = s.d.Apply(s.ctx, o); err != nil {
				break
			}
		}
	}
	if err == nil {
		s.d.Start()
		s.c, err = qmpclient.New(s.ctx, conn)
	}
	if err != nil {
		s.d.Close()
	}
	return err
}

// close closes the images; what cannot be written then is an error.
func (s *session) close() error {
	// Whatever the user interrupted, images are left whole.
	var err error
	for _, n := range s.named() {
		if _, failed := s.c.Execute(context.WithoutCancel(s.ctx), "blockdev-del", qapi.NewObject("node-name", n)); failed != nil && err == nil {
			err = failed
		}
	}
	s.c.Close()
	s.d.Close()
	return err
}

// named returns the nodes of this session that are still there, the newest
// first.
func (s *session) named() []string {
	var names []string
	for i := s.nodes - 1; i >= 0; i-- {
		name := nodeName(i)
		var there bool
		s.d.Loop.Do(func() {
			n := s.d.Graph.Node(name)
			there = n != nil && n.MonitorOwned()
		})
		if there {
			names = append(names, name)
		}
	}
	return names
}

// newName returns a name for one more node.
func (s *session) newName() string {
	s.nodes++
	return nodeName(s.nodes - 1)
}

func nodeName(i int) string { return "image" + strconv.Itoa(i) }

// execute sends a command to the daemon.
func (s *session) execute(command string, arguments *qapi.Object) (any, error) {
	if arguments == nil {
		return s.c.Execute(s.ctx, command, nil)
	}
	return s.c.Execute(s.ctx, command, arguments)
}

// say prints a line for a person, unless told to be quiet.
func (s *session) say(format string, args ...any) error {
	if s.quiet {
		return nil
	}
	_, err := fmt.Fprintf(s.env.Out, format+"\n", args...)
	return err
}

// warn tells a person on stderr what may not be as wanted.
//
//blockd:io
func (s *session) warn(format string, args ...any) {
	s.env.Complain("warning: " + fmt.Sprintf(format, args...))
}

// cause is that of all graph changes which are no command's.
var cause = blockgraph.Cause{Option: "img"}
