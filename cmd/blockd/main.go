// Command blockd manages disk images and speaks QMP. Its command line is that
// of qemu-storage-daemon; subcommands, which that one lacks, are cobra's.
//
//blockd:blocking
package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "devel"

func main() {
	signal.Ignore(syscall.SIGPIPE)
	code := 0
	root := &cobra.Command{
		Use:           "blockd",
		SilenceUsage:  true,
		SilenceErrors: true,
		// The daemon's options are worked off in their order, which no flag set
		// keeps.
		DisableFlagParsing: true,
		CompletionOptions:  cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:               cobra.ArbitraryArgs,
		Run:                func(_ *cobra.Command, args []string) { code = daemonMain(args) },
	}
	root.SetHelpCommand(&cobra.Command{Hidden: true})
	root.SetArgs(os.Args[1:])
	if err := root.Execute(); err != nil {
		complain(err.Error())
		code = 1
	}
	os.Exit(code)
}

// complain prints one line on stderr, the program's name before it. Names of
// files come from images and from the user: what would break the line, or
// speak to the terminal, is escaped.
//
//blockd:io
func complain(message string) {
	os.Stderr.WriteString(progName() + ": " + printable(message) + "\n")
}

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
