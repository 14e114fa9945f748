package img

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
)

func resizeCommand(t *tool) *cobra.Command {
	var o source
	var prealloc string
	var shrink bool
	cmd := t.command("resize FILE [+|-]SIZE", "Make an image longer or shorter", nil, func(s *session, args []string) error {
		o.name = args[0]
		if !slices.Contains(qapi.PreallocMode("").QAPIEnum(), prealloc) {
			return fmt.Errorf("Invalid preallocation mode '%s'", prealloc)
		}
		if err := checkSize("size", unsigned(args[1])); err != nil {
			return err
		}
		n, err := s.openImage(o, mode{writable: true})
		if err != nil {
			return err
		}
		size, err := newSize(n.Size(), args[1])
		if err != nil {
			return err
		}
		switch {
		case size <= n.Size() && prealloc != "off":
			return errors.New("Preallocation can only be used for growing images")
		case size < n.Size() && !shrink:
			return errors.Join(errors.New("Use the --shrink option to perform a shrink operation."),
				errors.New("warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make sure there is no important data there."))
		}
		err = s.d.Graph.Update(s.ctx, cause, func(tx *blockgraph.Tx) error {
			return tx.Resize(n, size, true, qapi.PreallocMode(prealloc))
		})
		if err != nil {
			return err
		}
		return s.say("Image resized.")
	})
	o.register(cmd)
	cmd.Flags().StringVar(&prealloc, "preallocation", "off", "what is allocated of the new part: off, metadata, falloc, full")
	cmd.Flags().BoolVar(&shrink, "shrink", false, "what is beyond the new end may be lost")
	// The last word is the size, which may begin with a minus.
	cmd.DisableFlagParsing = true
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		size := len(args) - 1
		switch {
		case size >= 0 && (args[size] == "-h" || args[size] == "--help"):
			return cmd.Help()
		case size < 1:
			return errors.New("Not enough arguments")
		}
		if err := cmd.Flags().Parse(args[:size]); err != nil {
			return unknownFlag(cmd, err)
		}
		args = append(cmd.Flags().Args(), args[size])
		if len(args) != 2 {
			return errors.New("Expecting image file name and size")
		}
		return run(cmd, args)
	}
	return cmd
}

// unsigned is the number within a size, which may be relative.
func unsigned(word string) string { return strings.TrimPrefix(strings.TrimPrefix(word, "+"), "-") }

// newSize reads a size, which may be relative to the present one.
func newSize(size int64, word string) (int64, error) {
	sign := int64(0)
	switch {
	case strings.HasPrefix(word, "+"):
		sign = 1
	case strings.HasPrefix(word, "-"):
		sign = -1
	}
	n, err := qapi.ParseSize(unsigned(word))
	if err != nil {
		return 0, err
	}
	to := int64(n) // beyond the longest it is negative, as the sum is
	if sign != 0 {
		to = size + sign*to
	}
	if to <= 0 {
		return 0, errors.New("New image size must be positive")
	}
	return to, nil
}
