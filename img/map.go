package img

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
)

func mapCommand(t *tool) *cobra.Command {
	var o source
	var out output
	var start, most string
	cmd := t.command("map FILE", "Tell where an image has its data", oneImage, func(s *session, args []string) error {
		json, err := out.json()
		if err != nil {
			return err
		}
		o.name = args[0]
		n, err := s.openImage(o, mode{})
		if err != nil {
			return err
		}
		from, end := int64(0), n.Size()
		if start != "" {
			if from, err = parseSize("start offset", start); err != nil {
				return err
			}
		}
		if most != "" {
			length, err := parseSize("max length", most)
			if err != nil {
				return err
			}
			if length < end-from {
				end = from + length
			}
		}
		return s.printMap(n, from, end, json)
	})
	o.register(cmd)
	o.registerShare(cmd)
	out.register(cmd)
	cmd.Flags().StringVarP(&start, "start-offset", "s", "", "begin here")
	cmd.Flags().StringVarP(&most, "max-length", "l", "", "go on for so long")
	return cmd
}

// parseSize reads a count of bytes with a suffix.
func parseSize(what, word string) (int64, error) { return parseWithin(what, word, 0, math.MaxInt64) }

// parseWithin reads a count with a suffix, between least and most.
func parseWithin(what, word string, least, most uint64) (int64, error) {
	n, err := qapi.ParseSize(word)
	if errors.Is(err, qapi.ErrSizeRange) || err == nil && (n < least || n > most) {
		return 0, fmt.Errorf("Invalid %s specified. Must be between %d and %d.", what, least, most)
	}
	if err != nil {
		return 0, errors.Join(
			fmt.Errorf("Invalid %s specified. You may use k, M, G, T, P or E suffixes for", what),
			errors.New("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."))
	}
	return int64(n), nil
}

// run is a line of a map.
type run struct {
	start int64
	extent
}

// follows tells whether next is the same kind of run, right behind r.
func (r *run) follows(next *run) bool {
	kind := blockgraph.StatusData | blockgraph.StatusZero | blockgraph.StatusAllocated | blockgraph.StatusOffsetValid | blockgraph.StatusCompressed
	return r.Flags&kind == next.Flags&kind && r.depth == next.depth && r.File == next.File &&
		(r.Flags&blockgraph.StatusOffsetValid == 0 || r.Offset+r.N == next.Offset)
}

// printMap prints the runs of [from, end).
func (s *session) printMap(n *blockgraph.Node, from, end int64, json bool) error {
	r, err := s.root(n, blockgraph.PermConsistentRead)
	if err != nil {
		return err
	}
	defer s.closeRoot(r)
	if !json {
		fmt.Fprintf(s.env.Out, "%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File")
	}
	var last *run
	first := true
	flush := func() error {
		if last == nil {
			return nil
		}
		defer func() { first = false }()
		return s.printRun(last, json, first)
	}
	for off := from; off < end; {
		e, err := extentAt(s.ctx, r, off, end-off)
		if err != nil {
			return fmt.Errorf("Could not read file metadata: %s", blockgraph.Strerror(err))
		}
		next := &run{start: off, extent: e}
		off += e.N
		if last != nil && last.follows(next) {
			last.N += next.N
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		last = next
	}
	if err := flush(); err != nil {
		return err
	}
	if json {
		if first { // the field has one line even where there is nothing
			if err := s.printRun(&run{start: from}, json, first); err != nil {
				return err
			}
		}
		_, err = fmt.Fprintln(s.env.Out, "]")
	}
	return err
}

func (s *session) printRun(r *run, json, first bool) error {
	data := r.Flags&blockgraph.StatusData != 0
	zero := r.Flags&blockgraph.StatusZero != 0
	valid := r.Flags&blockgraph.StatusOffsetValid != 0
	if json {
		lead := ",\n"
		if first {
			lead = "["
		}
		var b strings.Builder
		fmt.Fprintf(&b, `%s{ "start": %d, "length": %d, "depth": %d, "present": %t, "zero": %t, "data": %t, "compressed": %t`,
			lead, r.start, r.N, r.depth, r.Flags&blockgraph.StatusAllocated != 0, zero, data, r.Flags&blockgraph.StatusCompressed != 0)
		if valid {
			fmt.Fprintf(&b, `, "offset": %d`, r.Offset)
		}
		b.WriteString("}")
		_, err := s.env.Out.Write([]byte(b.String()))
		return err
	}
	if data && !valid {
		return fmt.Errorf("File contains external, encrypted or compressed clusters.")
	}
	if !data || zero {
		return nil
	}
	name := ""
	if r.File != nil {
		name = r.File.Filename()
	}
	_, err := fmt.Fprintf(s.env.Out, "%-16s%-16s%-16s%s\n", hex(r.start), hex(r.N), hex(r.Offset), name)
	return err
}

// hex is a number as C's %#x prints it.
func hex(n int64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", n)
}
