package img

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmpclient"
)

// conversion is what convert is asked to do.
type conversion struct {
	from, to      source
	options       []string
	backing       string
	backingFormat string
	compress      bool
	existing      bool // -n
	bitmaps       bool
	skipBroken    bool
	show          bool
}

func convertCommand(t *tool) *cobra.Command {
	var c conversion
	var outOfOrder, zero bool
	var parallel int
	var sparse string
	cmd := t.command("convert FILE TARGET", "Copy an image into another one, of any format", cobra.ExactArgs(2), func(s *session, args []string) error {
		if sparse != "" {
			if _, err := parseSize("-S", sparse); err != nil {
				return err
			}
		}
		c.from.name, c.to.name = args[0], args[1]
		return c.run(s)
	})
	f := cmd.Flags()
	c.from.register(cmd)
	c.from.registerShare(cmd)
	f.StringVarP(&c.to.format, "output-format", "O", "raw", "the target's format")
	f.StringArrayVarP(&c.options, "options", "o", nil, "options of the target's format: NAME=VALUE,...")
	f.StringVarP(&c.backing, "backing", "B", "", "the target's backing file, of the same content as the source's")
	f.StringVarP(&c.backingFormat, "backing-format", "F", "", "the backing file's format")
	f.BoolVarP(&c.compress, "compress", "c", false, "compress")
	f.BoolVarP(&c.existing, "no-create", "n", false, "the target is there")
	f.BoolVar(&c.to.imageOpts, "target-image-opts", false, "TARGET is options")
	f.BoolVar(&c.bitmaps, "bitmaps", false, "copy the stored dirty bitmaps, too")
	f.BoolVar(&c.skipBroken, "skip-broken-bitmaps", false, "but not the inconsistent ones")
	f.StringVarP(&c.to.cache, "target-cache", "t", "", "cache mode of the target")
	f.StringVarP(&c.from.cache, "source-cache", "T", "", "cache mode of the source")
	f.BoolVarP(&c.show, "progress", "p", false, "show progress")
	f.StringVarP(&sparse, "sparse", "S", "", "accepted: what the source does not tell to be zero is data")
	f.BoolVarP(&outOfOrder, "out-of-order", "W", false, "accepted: writes never keep an order")
	f.IntVarP(&parallel, "parallel", "m", 0, "accepted: requests in flight follow the storage")
	f.BoolVar(&zero, "target-is-zero", false, "accepted: what the target has is asked for")
	return cmd
}

func (c *conversion) run(s *session) error {
	from, err := s.openImage(c.from, mode{})
	if err != nil {
		return err
	}
	if c.existing && (c.backing != "" || len(c.options) > 0) {
		return errors.New("-n goes neither with -o nor with -B")
	}
	if !c.existing {
		if err := c.create(s, from.Size()); err != nil {
			return err
		}
	}
	to, err := s.openImage(c.to, mode{writable: true, discard: true, noBacking: c.backing != ""})
	if err != nil {
		return err
	}
	if to.Size() < from.Size() {
		return errors.New("output file is smaller than input file")
	}
	o := qapi.NewObject("device", from.Name(), "target", to.Name(), "sync", "full")
	if c.backing != "" {
		o.Set("sync", "top")
	}
	if c.compress {
		o.Set("compress", true)
	}
	if to.Size() != from.Size() {
		// A job wants equal lengths; what is beyond the source stays.
		if to, err = s.window(to, from.Size()); err != nil {
			return err
		}
		o.Set("target", to.Name())
	}
	if err := s.job("blockdev-backup", o, c.show); err != nil {
		return fmt.Errorf("error while converting %s: %w", c.from.name, err)
	}
	if c.bitmaps {
		return c.copyBitmaps(s, from, to)
	}
	return nil
}

// window puts a view of the first size bytes over a node.
func (s *session) window(n *blockgraph.Node, size int64) (*blockgraph.Node, error) {
	name := nodeName(s.nodes)
	s.nodes++
	if _, err := s.execute("blockdev-add", qapi.NewObject("driver", "raw", "node-name", name, "file", n.Name(), "offset", int64(0), "size", size, "discard", "unmap")); err != nil {
		return nil, err
	}
	var w *blockgraph.Node
	s.d.Loop.Do(func() { w = s.d.Graph.Node(name) })
	return w, nil
}

// create makes the target.
func (c *conversion) create(s *session, size int64) error {
	if c.to.imageOpts {
		return errors.New("--target-image-opts requires use of -n flag")
	}
	o, err := parseOptions(c.options)
	if err != nil {
		return err
	}
	if c.backing != "" {
		o.Set("backing_file", c.backing)
		if c.backingFormat != "" {
			o.Set("backing_fmt", c.backingFormat)
		}
	}
	if !o.Has("size") {
		o.Set("size", fmt.Sprint(size))
	}
	_, existed := os.Lstat(c.to.name)
	if c.from.name == c.to.name && existed == nil {
		return fmt.Errorf("%s is the source", c.to.name)
	}
	n := newImage{file: c.to.name, format: c.to.format, options: o}
	c.to.secrets = qapi.NewObject()
	for key, v := range o.Flatten().All() {
		if strings.HasSuffix(key, "key-secret") {
			c.to.secrets.Set(key, v)
		}
	}
	if err := s.create(&n); err != nil {
		if unknown := (*unknownOption)(nil); errors.As(err, &unknown) {
			return err
		}
		return fmt.Errorf("%s: error while converting %s: %w", c.to.name, c.to.format, err)
	}
	return nil
}

// copyBitmaps copies the stored bitmaps of one image into another.
func (c *conversion) copyBitmaps(s *session, from, to *blockgraph.Node) error {
	info, err := s.infoOf(from)
	if err != nil {
		return err
	}
	data := qmpclient.Member(qmpclient.Member(info, "format-specific"), "data")
	// The last one added comes first in the target.
	for _, b := range slices.Backward(qmpclient.Objects(data, "bitmaps")) {
		name := qmpclient.String(b, "name")
		flags, _ := b.Get("flags")
		if has(flags, "in-use") {
			if c.skipBroken {
				continue
			}
			return blockgraph.WithHint(fmt.Errorf("Cannot copy inconsistent bitmap '%s'", name), "Try --skip-broken-bitmaps, or use 'blockd img bitmap --remove'")
		}
		add := qapi.NewObject("node", to.Name(), "name", name, "granularity", qmpclient.Int(b, "granularity"), "persistent", true, "disabled", !has(flags, "auto"))
		if _, err := s.execute("block-dirty-bitmap-add", add); err != nil {
			return fmt.Errorf("Failed to create bitmap %s: %w", name, err)
		}
		bitmap := qapi.NewObject("node", from.Name(), "name", name)
		if _, err := s.execute("block-dirty-bitmap-merge", qapi.NewObject("node", to.Name(), "target", name, "bitmaps", []any{bitmap})); err != nil {
			return fmt.Errorf("Failed to populate bitmap %s: %w", name, err)
		}
	}
	return nil
}

// has tells whether a list holds a word.
func has(list any, word string) bool {
	words, _ := list.([]any)
	for _, w := range words {
		if w == word {
			return true
		}
	}
	return false
}
