//go:build manual

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The build of the manual has one more subcommand: writing it.
func init() { extras = append(extras, manualCommand) }

func manualCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "manual DIRECTORY", Short: "Write the manual pages", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o777); err != nil {
				return err
			}
			// The daemon is what the root does without a subcommand.
			root.Long = "Without a subcommand blockd is the daemon, with the options of qemu-storage-daemon:\n\n" +
				"```\n" + fmt.Sprintf(usage, "blockd") + "```\n"
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "BLOCKD", Section: "1", Source: "blockd " + version, Manual: "blockd"}, args[0])
		},
	}
}
