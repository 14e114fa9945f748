// Package cli is blockd's subcommands for people and scripts: they connect to
// the monitor of a daemon that runs, this one or another that speaks QMP, and
// show or start what it does.
//
// On a terminal they draw and colour, on a pipe they print plain lines or
// JSON. What goes wrong is the error of the command, and the exit code says
// which kind it is (see Exit).
//
// Imports clock, qapi, qmpclient and tlscreds of this module: a subcommand is a client
// like any other.
//
//blockd:blocking
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"blockd/clock"
	"blockd/qapi"
	"blockd/qmpclient"
)

// Environment is where subcommands run.
type Environment struct {
	In       io.Reader
	Out, Err io.Writer
	// Complain prints a line on Err, the program's name before it.
	Complain func(message string)
	// Terminal: Out is one, so that it may be drawn on.
	Terminal bool
	// Width returns the terminal's width in columns.
	Width func() int
	Clock clock.Clock
	// State is the folder for what is remembered from one run to the next, ""
	// for none.
	State string
}

// Exit is an error with the exit code that it stands for. Errors of other
// types are 1.
type Exit struct {
	Code int
	Err  error // nil: nothing is to be said
}

// Exit codes beside 0 and 1, for a job that was waited for.
const (
	ExitJobFailed    = 2
	ExitJobCancelled = 3
)

func (e *Exit) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

func (e *Exit) Unwrap() error { return e.Err }

// Commands returns the subcommands.
func Commands(env *Environment) []*cobra.Command {
	return []*cobra.Command{
		qmpCommand(env), shellCommand(env), eventsCommand(env), jobsCommand(env), graphCommand(env),
		backupCommand(env), mirrorCommand(env), streamCommand(env), commitCommand(env),
	}
}

const socketHelp = "SOCKET is the path of a monitor's unix socket, tcp:HOST:PORT or, for a web\naddress, ws://HOST:PORT, wss://HOST:PORT or ws+unix:PATH."

// command makes a subcommand whose first argument is a monitor's address.
func command(env *Environment, use, short, long string, args cobra.PositionalArgs,
	run func(ctx context.Context, c *qmpclient.Client, args []string) error) *cobra.Command {
	var f webFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Long: strings.TrimSpace(long + "\n\n" + socketHelp), Args: args,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := env.options(&f)
			if err != nil {
				return err
			}
			c, err := env.dial(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			defer c.Close()
			return said(run(cmd.Context(), c, args[1:]))
		},
	}
	f.register(cmd.Flags())
	return cmd
}

// greetingWithin is how long a server may take to greet.
const greetingWithin = 5 * time.Second

// dial connects to a monitor. One that is busy with another client says
// nothing until that one has gone, as in the field.
func (env *Environment) dial(ctx context.Context, address string, o qmpclient.Options) (*qmpclient.Client, error) {
	bounded, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := env.Clock.AfterFunc(greetingWithin, cancel)
	defer timer.Stop()
	c, err := qmpclient.Dial(bounded, address, o)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%s does not answer: a monitor serves one client at a time, give the daemon another --chardev and --monitor", address)
	}
	return c, err
}

// said makes an error of the server sound like one: with its class where that
// says something.
func said(err error) error {
	var e *qapi.Error
	if errors.As(err, &e) && e.Class != qapi.GenericError {
		return errors.New(string(e.Class) + ": " + e.Desc)
	}
	return err
}

// printJSON prints a value, over several lines on a terminal.
func (env *Environment) printJSON(v any) error {
	var text []byte
	if env.Terminal {
		text = qapi.AppendPretty(nil, v)
	} else {
		text = qapi.AppendJSON(nil, v)
	}
	_, err := env.Out.Write(append(text, '\n'))
	return err
}
