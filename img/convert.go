package img

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmpclient"
)

// conversion is what convert is asked to do.
type conversion struct {
	sources       []source
	to            source
	options       []string
	backing       string
	backingFormat string
	snapshot      string
	sparse, rate  string
	coroutines    string
	compress      bool
	copyRange     bool // -C
	existing      bool // -n
	blank         bool // --target-is-zero
	bitmaps       bool
	skipBroken    bool
	salvage       bool
	show          bool

	parsed *qapi.Object // options
	least  int64        // bytes of zeroes that are not written as data
	speed  int64        // bytes per second, 0 for no limit
}

func convertCommand(t *tool) *cobra.Command {
	var c conversion
	var from source
	cmd := t.command("convert FILE... TARGET", "Copy an image, or several one after the other, into another one of any format", nil, func(s *session, args []string) error {
		switch {
		case wantsHelp(c.options):
			return s.explain(c.to.format, strings.Join(args[max(0, len(args)-1):], ""))
		case len(args) < 2:
			return errors.New("Must specify image file name")
		}
		c.to.name = args[len(args)-1]
		for _, name := range args[:len(args)-1] {
			one := from
			one.name = name
			c.sources = append(c.sources, one)
		}
		return c.run(s)
	})
	f := cmd.Flags()
	from.register(cmd)
	from.registerShare(cmd)
	f.StringVarP(&c.to.format, "output-format", "O", "", "the target's format (default: raw)")
	f.StringArrayVarP(&c.options, "options", "o", nil, "options of the target's format: NAME=VALUE,...")
	f.StringVarP(&c.backing, "backing", "B", "", "the target's backing file, of the same content as the source's")
	f.StringVarP(&c.backingFormat, "backing-format", "F", "", "the backing file's format")
	f.StringVarP(&c.snapshot, "snapshot", "l", "", "what an internal snapshot holds: its id or name, or snapshot.id=ID,snapshot.name=NAME")
	f.BoolVarP(&c.compress, "compress", "c", false, "compress")
	f.BoolVarP(&c.copyRange, "copy-range", "C", false, "accepted: bytes are moved by whatever way is fast")
	f.BoolVarP(&c.existing, "no-create", "n", false, "the target is there")
	f.BoolVar(&c.to.imageOpts, "target-image-opts", false, "TARGET is options")
	f.BoolVar(&c.blank, "target-is-zero", false, "the target reads as zeroes already")
	f.BoolVar(&c.bitmaps, "bitmaps", false, "copy the stored dirty bitmaps, too")
	f.BoolVar(&c.skipBroken, "skip-broken-bitmaps", false, "but not the inconsistent ones")
	f.BoolVar(&c.salvage, "salvage", false, "go on where the source cannot be read, with zeroes")
	f.StringVarP(&c.to.cache, "target-cache", "t", "", "cache mode of the target")
	f.StringVarP(&from.readCache, "source-cache", "T", "", "cache mode of the source")
	f.BoolVarP(&c.show, "progress", "p", false, "show progress")
	f.StringVarP(&c.sparse, "sparse", "S", "4k", "bytes of zeroes in a row that are not written as data, 0 to write everything")
	f.StringVarP(&c.rate, "rate", "r", "", "bytes per second, 0 for no limit")
	f.BoolP("out-of-order", "W", false, "accepted: writes never keep an order")
	f.StringVarP(&c.coroutines, "parallel", "m", "8", "accepted, 1 to 16: requests in flight follow the storage")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return c.check(cmd.Flags().Changed) }
	return cmd
}

// Limits of the options, as the field has them.
const (
	maxSparse     = 16 << 20 // bytes
	maxCoroutines = 16
)

// check reads the options, and refuses those that do not go together; given
// tells which are there.
func (c *conversion) check(given func(option string) bool) (err error) {
	if c.least, err = parseSize("buffer size for sparse output", c.sparse); err != nil {
		return err
	}
	if c.least%512 != 0 || c.least > maxSparse {
		return fmt.Errorf("Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to %d. Select 0 to disable sparse detection (fully allocates output).", maxSparse)
	}
	if c.rate != "" {
		if c.speed, err = parseSize("rate limit", c.rate); err != nil {
			return err
		}
	}
	if err := checkLists(c.options); err != nil {
		return err
	}
	coroutines, err := strconv.ParseUint(c.coroutines, 10, 64)
	switch {
	case err != nil || coroutines < 1 || coroutines > maxCoroutines:
		return fmt.Errorf("Invalid number of coroutines. Allowed number of coroutines is between 1 and %d", maxCoroutines)
	case c.skipBroken && !c.bitmaps:
		return errors.New("Use of --skip-broken-bitmaps requires --bitmaps")
	case c.compress && c.copyRange:
		return errors.New("Cannot enable copy offloading when -c is used")
	case given("sparse") && c.copyRange:
		return errors.New("Cannot enable copy offloading when -S is used")
	case c.copyRange && c.salvage:
		return errors.New("Cannot use copy offloading in salvaging mode")
	case c.to.imageOpts && !c.existing:
		return errors.New("--target-image-opts requires use of -n flag")
	case c.existing && len(c.options) > 0:
		return errors.New("-o has no effect when skipping image creation")
	case c.blank && !c.existing:
		return errors.New("--target-is-zero requires use of -n flag")
	}
	if !given("output-format") && !c.to.imageOpts {
		c.to.format = "raw"
	}
	if !wantsHelp(c.options) {
		c.parsed, err = parseOptions(c.options)
	}
	return err
}

func (c *conversion) run(s *session) error {
	sources, err := c.openSources(s)
	if err != nil {
		return err
	}
	size := int64(0)
	for _, n := range sources {
		size += n.Size()
	}
	if err := c.checkTarget(s, size); err != nil {
		return err
	}
	if c.bitmaps {
		if err := c.checkBitmaps(s, sources[0]); err != nil {
			return err
		}
	}
	if !c.existing {
		if err := c.create(s); err != nil {
			return err
		}
	}
	to, err := s.openImage(c.to, mode{writable: true, discard: c.least > 0})
	if err != nil {
		return err
	}
	switch {
	case c.bitmaps && to.Type().Name != "qcow2":
		return fmt.Errorf("Format driver '%s' does not support bitmaps", to.Type().Name)
	case c.compress && to.Caps().Compressed == blockgraph.CapNone:
		return errNoCompression
	case to.Size() < size:
		return errors.New("output file is smaller than input file")
	}
	var noted fault
	if err := c.copy(s, sources, to, &noted); err != nil {
		if text := noted.first(); text != "" && s.ctx.Err() == nil {
			return errors.New(text)
		}
		return fmt.Errorf("error while converting %s: %w", c.sources[0].name, err)
	}
	if c.bitmaps {
		return c.copyBitmaps(s, sources[0], to)
	}
	return nil
}

// openSources opens what is to be copied.
func (c *conversion) openSources(s *session) ([]*blockgraph.Node, error) {
	var list []*blockgraph.Node
	for _, o := range c.sources {
		n, err := s.openImage(o, mode{})
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	if c.snapshot != "" {
		ask, err := parseSnapshot(c.snapshot)
		if err != nil {
			return nil, err
		}
		if len(list) > 1 && !ask.exact {
			return nil, errors.New("No support for concatenating multiple snapshot")
		}
		if err := s.loadSnapshot(list[0], ask); err != nil {
			return nil, fmt.Errorf("Failed to load snapshot: %w", err)
		}
	}
	return list, nil
}

// errNoCompression: the target's format stores nothing compressed.
var errNoCompression = errors.New("Compression not supported for this file format")

// checkTarget holds that the options fit each other and the format, before
// anything is made. What they say of a backing file is taken over.
func (c *conversion) checkTarget(s *session, size int64) error {
	if !c.existing {
		if err := s.checkFormat(c.to.format); err != nil {
			return err
		}
		known := ofImage(c.to.format)
		if err := known.check(c.parsed.Flatten()); err != nil {
			return err
		}
		for _, word := range []struct{ value, option, text string }{
			{c.backing, "backing_file", "Backing file not supported for file format '%s'"},
			{c.backingFormat, "backing_fmt", "Backing file format not supported for file format '%s'"},
		} {
			switch {
			case word.value == "":
			case !known.have(word.option):
				return fmt.Errorf(word.text, c.to.format)
			default:
				c.parsed.Set(word.option, word.value)
			}
		}
		c.parsed.Set("size", fmt.Sprint(size))
	}
	flat := c.parsed.Flatten()
	if name, ok := flat.Get("backing_file"); ok {
		c.backing, _ = name.(string)
	}
	prealloc, _ := flat.Get("preallocation")
	switch {
	case c.blank && c.backing != "":
		return errors.New("Cannot use --target-is-zero when the destination image has a backing file")
	case len(c.sources) > 1 && c.backing != "":
		return errors.New("Having a backing file for the target makes no sense when concatenating multiple input images")
	case flat.Has("backing_file") && !flat.Has("backing_fmt"):
		return errors.New("Use of backing file requires explicit backing format")
	case !c.compress:
	case !c.existing && c.to.format != "qcow2":
		return errNoCompression
	case flat.Has("encrypt.format") || isOn(flat, "encryption"):
		return errors.New("Compression and encryption not supported at the same time")
	case prealloc != nil && prealloc != "off":
		return errors.New("Compression and preallocation not supported at the same time")
	}
	if c.bitmaps && len(c.sources) > 1 {
		return errors.New("Copying bitmaps only possible with single source")
	}
	return nil
}

// copy copies the sources, one after the other, by a job. What went wrong with their
// content, or the target's, is noted.
func (c *conversion) copy(s *session, sources []*blockgraph.Node, to *blockgraph.Node, noted *fault) error {
	blank := c.blank || !c.existing && c.backing == "" && c.newIsZero()
	if c.salvage {
		for i, n := range sources {
			var err error
			if sources[i], err = s.salvaging(n); err != nil {
				return err
			}
		}
	}
	from, err := s.concatenate(sources)
	if err != nil {
		return err
	}
	if from.Size() == 0 {
		s.newProgress(c.show).end(nil)
		return nil
	}
	target := to
	// A job wants equal lengths; what is beyond the sources stays.
	if to, err = s.sparsely(to, from.Size(), c.least, blank && c.least > 0, noted); err != nil {
		return err
	}
	if from, err = s.watch(from, noted); err != nil {
		return err
	}
	o := qapi.NewObject("device", from.Name(), "target", to.Name(), "sync", "full", "speed", c.speed)
	// What a source without a backing file leaves unallocated is zeroes, which the
	// target's would show through.
	top := c.backing != "" && from.BackingChain() != nil
	if top {
		o.Set("sync", "top")
	}
	if c.compress {
		o.Set("compress", true)
	}
	if err := s.job("blockdev-backup", o, c.show); err != nil || !top {
		return err
	}
	return s.hide(from, target)
}

// newIsZero tells whether the image that was just made reads as zeroes.
func (c *conversion) newIsZero() bool {
	flat := c.parsed.Flatten()
	prealloc, _ := flat.Get("preallocation")
	switch c.to.format {
	case "qcow2":
		return !flat.Has("encrypt.format") && !isOn(flat, "encryption") || prealloc == nil || prealloc == "off"
	case "raw":
		info, err := os.Stat(c.to.name)
		return err == nil && info.Mode().IsRegular()
	}
	return false
}

// create makes the target.
func (c *conversion) create(s *session) error {
	_, err := os.Lstat(c.to.name)
	for _, from := range c.sources {
		if from.name == c.to.name && err == nil {
			return fmt.Errorf("%s is the source", c.to.name)
		}
	}
	n := newImage{file: c.to.name, format: c.to.format, options: c.parsed}
	c.to.secrets = qapi.NewObject()
	for key, v := range c.parsed.Flatten().All() {
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

// checkBitmaps refuses a source with bitmaps that cannot be copied.
func (c *conversion) checkBitmaps(s *session, from *blockgraph.Node) error {
	if c.skipBroken {
		return nil
	}
	list, err := s.bitmapsOf(from)
	if err != nil {
		return err
	}
	for _, b := range list {
		if flags, _ := b.Get("flags"); has(flags, "in-use") {
			return blockgraph.WithHint(fmt.Errorf("Cannot copy inconsistent bitmap '%s'", qmpclient.String(b, "name")),
				"Try --skip-broken-bitmaps, or use 'blockd img bitmap --remove' to delete it")
		}
	}
	return nil
}

// bitmapsOf returns what is known of the bitmaps that an image stores.
func (s *session) bitmapsOf(n *blockgraph.Node) ([]*qapi.Object, error) {
	info, err := s.infoOf(n)
	if err != nil {
		return nil, err
	}
	return qmpclient.Objects(qmpclient.Member(qmpclient.Member(info, "format-specific"), "data"), "bitmaps"), nil
}

// copyBitmaps copies the stored bitmaps of one image into another.
func (c *conversion) copyBitmaps(s *session, from, to *blockgraph.Node) error {
	list, err := s.bitmapsOf(from)
	if err != nil {
		return err
	}
	// The last one added comes first in the target.
	for _, b := range slices.Backward(list) {
		name := qmpclient.String(b, "name")
		flags, _ := b.Get("flags")
		if has(flags, "in-use") {
			s.warn("Skipping inconsistent bitmap '%s'", name) // checkBitmaps let it pass
			continue
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
