// Command blockd manages disk images and speaks QMP. Its command line is that
// of qemu-storage-daemon; subcommands, which that one lacks, are cobra's.
//
//blockd:blocking
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"blockd/blockgraph"
	"blockd/cli"
	"blockd/clock"
	"blockd/daemon"
	"blockd/img"
	"blockd/serve"
)

// version is set by the build.
var version = "devel"

func main() {
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args[1:]))
}

// run runs the daemon, or the subcommand that the first argument names. Any
// other argument belongs to the daemon, whose options are worked off in their
// order, which no flag set keeps.
func run(args []string) int {
	env := environment()
	if len(args) == 0 && env.Terminal {
		os.Stdout.WriteString(welcome)
		return 0
	}
	root := commands(env)
	if len(args) == 0 || !isSubcommand(root, args[0]) {
		return daemonMain(args)
	}
	// A second signal is not caught.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return 128 + int(syscall.SIGINT)
	}
	for _, one := range separate(err) {
		if text := one.Error(); text != "" {
			complain(text)
		}
		if hint := blockgraph.Hint(one); hint != "" {
			os.Stderr.WriteString(hint + "\n")
		}
	}
	if exit := (*cli.Exit)(nil); errors.As(err, &exit) {
		return exit.Code
	}
	return 1
}

// separate returns the errors that were joined into one, each of which is told on a
// line of its own.
func separate(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// extras make the subcommands that only some builds have.
var extras []func(root *cobra.Command) *cobra.Command

// commands returns the root of the subcommands.
func commands(env *cli.Environment) *cobra.Command {
	root := &cobra.Command{
		Use:           "blockd",
		Short:         "A storage daemon: QMP in, jobs over disk images, events out",
		Long:          "Without a subcommand blockd is the daemon, with the options of qemu-storage-daemon: see blockd --help.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(env.Out)
	root.AddCommand(cli.Commands(env)...)
	root.AddCommand(img.Command(env, func() *daemon.Daemon { return newDaemon(nil, daemon.Config{}) }))
	root.AddCommand(serve.Command(env, serveMain))
	for _, extra := range extras {
		root.AddCommand(extra(root))
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// isSubcommand tells whether a word names a subcommand. The hidden ones are
// those that the scripts of shell completion call.
func isSubcommand(root *cobra.Command, word string) bool {
	if word == cobra.ShellCompRequestCmd || word == cobra.ShellCompNoDescRequestCmd {
		return true
	}
	return slices.ContainsFunc(root.Commands(), func(c *cobra.Command) bool { return c.Name() == word })
}

// environment is where subcommands run.
func environment() *cli.Environment {
	state := os.Getenv("XDG_STATE_HOME")
	if home, err := os.UserHomeDir(); state == "" && err == nil {
		state = filepath.Join(home, ".local", "state")
	}
	if state != "" {
		state = filepath.Join(state, "blockd")
	}
	return &cli.Environment{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Complain: complain, Clock: clock.Real(), State: state,
		Terminal: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("TERM") != "dumb",
		Width: func() int {
			width, _, err := term.GetSize(int(os.Stdout.Fd()))
			if err != nil {
				return 80
			}
			return width
		},
	}
}

// complain prints one line on stderr, the program's name before it. Names of
// files come from images and from the user: what would break the line, or
// speak to the terminal, is escaped.
//
//blockd:io
func complain(message string) { complainAt(": " + message) }

// complainAt is complain for a message that stands right behind the name.
//
//blockd:io
func complainAt(message string) { os.Stderr.WriteString(progName() + printable(message) + "\n") }

// printable returns text with its control characters escaped.
func printable(text string) string {
	var sb strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) {
			quoted := strconv.QuoteRuneToASCII(r)
			sb.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		sb.WriteRune(r)
	}
	return sb.String()
}

func progName() string { return filepath.Base(os.Args[0]) }
