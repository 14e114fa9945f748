package img

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// source says which image, and how it is to be read.
type source struct {
	name      string // a file name, or options
	format    string // "": what it looks like
	imageOpts bool   // name is options
	share     bool   // -U
	cache     string // -t
	readCache string // -T
	// secrets are options that name secrets, for an image that was just made.
	secrets *qapi.Object
}

// register adds the flags of an image that is opened.
func (o *source) register(cmd *cobra.Command) {
	o.registerFormat(cmd.Flags(), "format", "f")
	cmd.Flags().BoolVar(&o.imageOpts, "image-opts", false, "file names are options, such as driver=qcow2,file.filename=PATH")
}

func (o *source) registerFormat(f *pflag.FlagSet, name, short string) {
	f.StringVarP(&o.format, name, short, "", "the image's format (default: what it looks like)")
}

func (o *source) registerShare(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&o.share, "force-share", "U", false, "read even what somebody else writes")
}

// mode says what an image is opened for.
type mode struct {
	writable  bool
	noBacking bool // without its backing file
	discard   bool // what is given up is given back to the host
	// headerOnly: the content is not read, so an encrypted image needs no key.
	headerOnly bool
	// repair: it is checked and repaired, and nothing else.
	repair bool
}

// openImage opens an image, and returns its node. Its error says which image.
func (s *session) openImage(o source, m mode) (*blockgraph.Node, error) {
	if err := o.checkCache(); err != nil {
		return nil, err
	}
	if o.imageOpts && o.format != "" {
		return nil, errors.New("--image-opts and --format are mutually exclusive")
	}
	n, err := s.openNode(o, m)
	if err != nil {
		return nil, fmt.Errorf("Could not open '%s': %w", o.name, err)
	}
	return n, nil
}

func (s *session) openNode(o source, m mode) (*blockgraph.Node, error) {
	options := qapi.NewObject()
	filename := o.name
	if o.imageOpts {
		parsed, err := qapi.ParseKeyval(o.name, "")
		if err != nil {
			return nil, err
		}
		if options, err = sizesRead(parsed); err != nil {
			return nil, err
		}
		filename = ""
	}
	if o.format != "" {
		options.Set("driver", o.format)
	}
	if o.secrets != nil {
		for key, v := range o.secrets.All() {
			options.Set(key, v)
		}
	}
	setCache(options, cmp.Or(o.cache, o.readCache))
	name := s.newName()
	options.Set("node-name", name)
	options.Set("read-only", !m.writable)
	if o.share {
		options.Set("force-share", true)
	}
	if m.discard {
		options.Set("discard", "unmap")
	}
	// What is said of a backing file is judged although none is opened.
	if given, ok := givenBacking(filename, options); given == "" && ok {
		s.warn(`Use of "backing": "" is deprecated; use "backing": null instead`)
	} else if ok {
		m.noBacking = false
	}
	if m.noBacking {
		options.Set("backing", nil)
	}
	return s.openEncrypted(filename, options, m)
}

// givenBacking is the node that options, which may be within a file name, name as the
// backing file, if they do.
func givenBacking(filename string, options *qapi.Object) (string, bool) {
	if text, ok := strings.CutPrefix(filename, "json:"); ok {
		v, _ := qapi.ParseJSON([]byte(text))
		if options, ok = v.(*qapi.Object); !ok {
			return "", false // which opening it says
		}
	}
	given, _ := options.Get("backing")
	name, ok := given.(string)
	return name, ok
}

// sized are options that take a suffix among image options, as they do not in QMP.
var sized = []string{
	"offset", "size", "cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size",
	"align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard",
}

// sizesRead are options with counts of bytes as numbers.
func sizesRead(o *qapi.Object) (*qapi.Object, error) {
	flat := o.Flatten()
	read := qapi.NewObject()
	for key, v := range flat.All() {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if word, ok := v.(string); ok && slices.Contains(sized, name) {
			if err := checkSize(name, word); err != nil {
				return nil, err
			}
			n, _ := qapi.ParseSize(word)
			v = fmt.Sprint(n)
		}
		read.Set(key, v)
	}
	return read, nil
}

// How images refuse the newer encryption: one that has the older, and one that has
// none.
const (
	isOlder = "Header reported 'aes' encryption format but options specify 'luks'"
	isClear = "No encryption in image header, but options specified format 'luks'"
)

// openEncrypted opens by options that, as in the field's tools, need not say how
// an image is encrypted, or whether at all.
func (s *session) openEncrypted(filename string, options *qapi.Object, m mode) (*blockgraph.Node, error) {
	flat := options.Flatten()
	formats := []string{}
	for key := range flat.All() {
		if within, ok := strings.CutSuffix(key, "encrypt.key-secret"); ok && !flat.Has(within+"encrypt.format") {
			formats = append(formats, within+"encrypt.format")
		}
	}
	if len(formats) == 0 {
		return s.openOptions(filename, options, m)
	}
	with := func(name string) *qapi.Object {
		o := qapi.NewObject()
		for key, v := range flat.All() {
			o.Set(key, v)
		}
		for _, key := range formats {
			o.Set(key, name)
		}
		return o
	}
	n, err := s.openOptions(filename, with("luks"), m)
	switch {
	case err != nil && err.Error() == isOlder:
		return s.openOptions(filename, with("aes"), m)
	case err != nil && err.Error() == isClear && len(formats) == 1:
		flat.Delete(strings.TrimSuffix(formats[0], "format") + "key-secret")
		return s.openOptions(filename, flat, m)
	}
	return n, err
}

func (s *session) openOptions(filename string, options *qapi.Object, m mode) (*blockgraph.Node, error) {
	var n *blockgraph.Node
	err := s.d.Graph.Update(s.ctx, cause, func(tx *blockgraph.Tx) error {
		open := tx.OpenDrive
		switch {
		case m.headerOnly:
			open = tx.OpenHeader
		case m.repair:
			open = tx.OpenToRepair
		}
		var err error
		if n, err = open(filename, options); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	return n, err
}

// cacheModes are what cache modes of qemu-img stand for.
var cacheModes = map[string]struct{ direct, noFlush bool }{
	"": {}, "writeback": {}, "writethrough": {}, "none": {direct: true}, "off": {direct: true}, "directsync": {direct: true}, "unsafe": {noFlush: true},
}

// checkCache refuses cache modes that there are not.
func (o *source) checkCache() error {
	if _, ok := cacheModes[o.cache]; !ok {
		return fmt.Errorf("Invalid cache option: %s", o.cache)
	}
	if _, ok := cacheModes[o.readCache]; !ok {
		return fmt.Errorf("Invalid source cache option: %s", o.readCache)
	}
	return nil
}

// setCache sets what a cache mode stands for.
func setCache(o *qapi.Object, name string) {
	if cacheModes[name].direct {
		o.Set("cache.direct", true)
	}
	if cacheModes[name].noFlush {
		o.Set("cache.no-flush", true)
	}
}

// root opens a way to a node's content for this process, which ends with
// closeRoot.
func (s *session) root(n *blockgraph.Node, perm blockgraph.Perm) (*blockgraph.Root, error) {
	var r *blockgraph.Root
	err := s.d.Graph.Update(s.ctx, cause, func(tx *blockgraph.Tx) error {
		var err error
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: perm, Shared: blockgraph.PermAll})
		return err
	})
	return r, err
}

func (s *session) closeRoot(r *blockgraph.Root) error {
	return s.d.Graph.Update(context.WithoutCancel(s.ctx), cause, func(tx *blockgraph.Tx) error { return tx.CloseRoot(r) })
}

// extent is a run of bytes of one kind, as the chain below a root decides it.
type extent struct {
	blockgraph.Status
	depth int // of the image that decides, 0 for the uppermost
}

// data tells that the run has to be read to be known.
func (e *extent) data() bool {
	return e.Flags&blockgraph.StatusZero == 0 && e.Flags&blockgraph.StatusAllocated != 0
}

// extentAt describes the run at off, at most n bytes.
func extentAt(ctx context.Context, r *blockgraph.Root, off, n int64) (extent, error) {
	a, err := r.Enter(ctx)
	if err != nil {
		return extent{}, err
	}
	defer a.Leave()
	node := r.Node()
	st, depth, err := node.StatusAbove(ctx, nil, off, n, blockgraph.StatusPrecise)
	if err != nil {
		return extent{}, err
	}
	if depth == 0 { // nobody decides: the last of the chain reads as zeroes
		depth = 1
		for b := node.BackingChain(); b != nil; b = b.BackingChain() {
			depth++
		}
		st.Flags |= blockgraph.StatusZero
	}
	return extent{Status: st, depth: depth - 1}, nil
}

// chunk is how much is read at once.
const chunk = 2 << 20

// buffer is memory for chunk bytes, from the process's budget.
func (s *session) buffer() (*ioengine.Buffer, error) {
	return ioengine.Process.Acquire(s.ctx, chunk)
}
