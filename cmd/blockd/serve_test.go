package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"blockd/serve"
)

// TestServeHasTheProcesssOptions holds the options of serve to those of the
// drop-in command line: each that is about the process is there, and the others
// have a counterpart or a key in the configuration file.
func TestServeHasTheProcesssOptions(t *testing.T) {
	other := map[string]string{
		"allow-path": "its own", "blockdev": "nodes", "chardev": "--qmp", "export": "exports", "help": "its own",
		"monitor": "--qmp", "nbd-server": "--nbd", "object": "objects", "version": "the program's", "web": "its own",
	}
	passed := map[string]bool{}
	for _, p := range serve.Passed {
		name, _, value := strings.Cut(p[0], "=")
		passed[name] = true
		spec, err := matchLong(name)
		if err != nil || spec.name != name || spec.value != value {
			t.Errorf("--%s of serve is none of the daemon's: %v", name, err)
		}
	}
	for _, s := range optionSpecs {
		if passed[s.name] == (other[s.name] != "") {
			t.Errorf("--%s: is it an option of serve, or what stands for it?", s.name)
		}
	}
}

// TestSignalBeforeTheDaemonBeginsEndsIt: by then the program has taken the signal
// for its subcommand, and nobody sends another.
func TestSignalBeforeTheDaemonBeginsEndsIt(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	ctx, end := context.WithCancel(t.Context())
	end()
	if code := serveMain(ctx, serve.Plan{}); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
