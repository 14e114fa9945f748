// Command qemu-adapter lets QEMU's own test-suite, which starts an emulator, run
// against blockd: it takes an emulator's command line, speaks QMP with the
// commands that only an emulator has and HMP with its qemu-io, and pretends that
// there are guest devices. What moves data or changes the graph is done by
// blockd's packages; nothing of this program is in blockd itself.
//
// The tests see the adapter's standard output and error as they see an
// emulator's: nothing may be printed that an emulator would not print.
//
// Imports: package daemon and what lies below it, but no format, protocol or
// filter.
//
//blockd:blocking
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"blockd/blockgraph"
)

func main() {
	signal.Ignore(syscall.SIGPIPE)
	slog.SetDefault(slog.New(errorsTold{slog.NewTextHandler(logFile(), nil)}))
	os.Exit(run(os.Args[1:]))
}

// logEnv names a file for what blockd would log, for whoever looks for a test's
// failure.
const logEnv = "QEMU_ADAPTER_LOG"

func logFile() io.Writer {
	if name := os.Getenv(logEnv); name != "" {
		if f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err == nil {
			return f
		}
	}
	return io.Discard
}

// errorsTold prints what an operator is told of in whole sentences, as an emulator
// does.
type errorsTold struct{ slog.Handler }

// Handle implements slog.Handler.
func (h errorsTold) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level < slog.LevelError || r.NumAttrs() > 0:
	case strings.HasPrefix(r.Message, "qcow2: "): // it says itself who speaks
		fmt.Fprintln(os.Stderr, r.Message)
	default:
		complain(r.Message)
	}
	return h.Handler.Handle(ctx, r)
}

// complain prints one line on stderr with the program's name before it, by which
// tests know messages.
//
//blockd:io
func complain(message string) {
	fmt.Fprintf(os.Stderr, "%s: %s\n", filepath.Base(os.Args[0]), message)
}

func run(args []string) int {
	opts, err := parseOptions(args)
	if err != nil {
		complain(err.Error())
		return 1
	}
	if text, ok := helpFor(opts); ok {
		fmt.Print(text)
		return 0
	}
	m := newMachine(opts)
	err = m.setUp(opts)
	if err == nil {
		m.start()
		m.wait()
	}
	m.close()
	if err != nil {
		complain(err.Error())
		if hint := blockgraph.Hint(err); hint != "" {
			os.Stderr.WriteString(hint + "\n")
		}
		return 1
	}
	return 0
}
