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

func ddCommand(t *tool) *cobra.Command {
	var from, to source
	cmd := t.command("dd [bs=SIZE] [count=N] [skip=N] if=FILE of=TARGET", "Copy a part of an image", cobra.ArbitraryArgs, func(s *session, args []string) error {
		p := part{block: 512, count: -1}
		for _, word := range args {
			if err := p.set(word); err != nil {
				return err
			}
		}
		if p.from == "" || p.to == "" {
			return errors.New("Must specify both input and output files")
		}
		from.name, to.name = p.from, p.to
		return p.copy(s, from, to)
	})
	from.register(cmd)
	from.registerShare(cmd)
	cmd.Flags().StringVarP(&to.format, "output-format", "O", "raw", "the target's format")
	return cmd
}

// part is which part of what is copied.
type part struct {
	from, to    string
	block       int64 // bytes
	count, skip int64 // blocks; -1: to the end
}

func (p *part) set(word string) error {
	key, value, ok := strings.Cut(word, "=")
	if !ok {
		return fmt.Errorf("unrecognized operand %s", key)
	}
	switch key {
	case "if":
		p.from = value
		return nil
	case "of":
		p.to = value
		return nil
	}
	var err error
	switch key {
	case "bs":
		p.block, err = parseWithin(key, value, 1, math.MaxInt32)
	case "count":
		p.count, err = parseSize(key, value)
	case "skip":
		p.skip, err = parseSize(key, value)
	default:
		err = fmt.Errorf("unrecognized operand %s", key)
	}
	return err
}

// copy makes the target, and copies by a job over views of that part.
func (p *part) copy(s *session, from, to source) error {
	if s.d.Graph.DriverType(to.format) == nil {
		return errors.New("Unknown file format")
	}
	n, err := s.openImage(from, mode{})
	if err != nil {
		return err
	}
	begin := n.Size()
	if p.skip <= n.Size()/p.block {
		begin = min(begin, p.skip*p.block)
	} else {
		fmt.Fprintf(s.env.Err, "%s: cannot skip to specified offset\n", from.name)
	}
	length := n.Size() - begin
	if p.count >= 0 && p.count <= length/p.block {
		length = min(length, p.count*p.block)
	}
	made := newImage{file: p.to, format: to.format, options: qapi.NewObject("size", fmt.Sprint(length))}
	if err := s.create(&made); err != nil {
		return fmt.Errorf("%s: error while creating output image of type '%s': %w", p.to, to.format, err)
	}
	if length == 0 {
		return nil
	}
	target, err := s.openImage(to, mode{writable: true, discard: true})
	if err != nil {
		return err
	}
	if begin == 0 && length == n.Size() {
		return s.job("blockdev-backup", qapi.NewObject("device", n.Name(), "target", target.Name(), "sync", "full"), false)
	}
	return s.copyPart(n, target, begin, length)
}

// copyPart copies what no view can be put over, since views begin and end at
// sectors.
func (s *session) copyPart(from, to *blockgraph.Node, begin, length int64) error {
	in, err := s.root(from, blockgraph.PermConsistentRead)
	if err != nil {
		return err
	}
	defer s.closeRoot(in)
	out, err := s.root(to, blockgraph.PermWrite)
	if err != nil {
		return err
	}
	defer s.closeRoot(out)
	b, err := s.buffer()
	if err != nil {
		return err
	}
	defer b.Release()
	for done := int64(0); done < length; {
		e, err := extentAt(s.ctx, in, begin+done, length-done)
		if err != nil {
			return err
		}
		if !e.data() { // the target is new
			done += e.N
			continue
		}
		v := blockgraph.MakeIOVec(b.Bytes()[:min(e.N, chunk)])
		if err := in.ReadV(s.ctx, begin+done, v, 0); err != nil {
			return fmt.Errorf("error while reading from input image file: %s", blockgraph.Strerror(err))
		}
		if err := out.WriteV(s.ctx, done, v, 0); err != nil {
			return fmt.Errorf("error while writing to output image file: %s", blockgraph.Strerror(err))
		}
		done += int64(v.Len())
	}
	return out.Flush(s.ctx)
}
