package img

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
)

func createCommand(t *tool) *cobra.Command {
	var format, backing, backingFormat string
	var options []string
	var unsafe bool
	cmd := t.command("create FILE [SIZE]", "Make an image", cobra.RangeArgs(1, 2), func(s *session, args []string) error {
		o, err := parseOptions(options)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		n := newImage{file: args[0], format: format, options: o, unchecked: unsafe, announced: true}
		if backing != "" {
			o.Set("backing_file", backing)
		}
		if backingFormat != "" {
			o.Set("backing_fmt", backingFormat)
		}
		if len(args) > 1 {
			if o.Has("size") {
				return fmt.Errorf("%s: Image size was given twice", args[0])
			}
			size, err := qapi.ParseSize(args[1])
			if err != nil || size > 1<<63-1 {
				return errSize
			}
			o.Set("size", args[1])
		}
		if err := s.create(&n); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return nil
	})
	cmd.Flags().StringVarP(&format, "format", "f", "raw", "the image's format")
	cmd.Flags().StringVarP(&backing, "backing", "b", "", "the backing file")
	cmd.Flags().StringVarP(&backingFormat, "backing-format", "F", "", "the backing file's format")
	cmd.Flags().StringArrayVarP(&options, "options", "o", nil, "options of the format: NAME=VALUE,...")
	cmd.Flags().BoolVarP(&unsafe, "unsafe", "u", false, "do not look at the backing file")
	return cmd
}

var errSize = errors.New("Invalid image size specified. You may use k, M, G, T, P or E suffixes for kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.")

// newImage is an image that is to be made.
type newImage struct {
	file, format string
	// options are in the words of qemu-img: with underscores.
	options   *qapi.Object
	unchecked bool // the backing file is not looked at
	announced bool
	size      int64
}

// ofFile are the options that belong to the file below the format.
var ofFile = []string{"nocow", "extent_size_hint"}

// create makes an image. What it had begun is removed when it fails.
func (s *session) create(n *newImage) error {
	if err := s.checkFormat(n.format); err != nil {
		return err
	}
	if err := s.checkBacking(n); err != nil {
		return err
	}
	flat := n.options.Flatten()
	word, ok := flat.Get("size")
	if !ok {
		return errors.New("Image creation needs a size parameter")
	}
	size, err := qapi.ParseSize(word.(string))
	if err != nil || size > 1<<63-1 {
		return errSize
	}
	n.size = int64(size)

	if err := s.checkOptions(n, flat); err != nil {
		return err
	}
	if n.announced {
		if err := s.say("%s", n.announcement()); err != nil {
			return err
		}
	}
	file := qapi.NewObject("driver", "file", "filename", n.file)
	format := qapi.NewObject("driver", n.format, "size", n.size)
	for key, v := range flat.All() {
		switch {
		case key == "size":
		case slices.Contains(ofFile, key), n.format == "raw":
			file.Set(strings.ReplaceAll(key, "_", "-"), v)
		default:
			key, v = formatOption(key, v)
			format.Set(key, v)
		}
	}
	if n.format == "raw" {
		file.Set("size", n.size)
		return s.createTyped(file)
	}
	if name, ok := format.Get("data-file"); ok {
		data := qapi.NewObject("driver", "file", "filename", name, "size", int64(0))
		if err := s.createTyped(data); err != nil {
			return err
		}
		format.Set("data-file", qapi.NewObject("driver", "file", "filename", name))
	}
	_, existed := os.Lstat(n.file)
	file.Set("size", int64(0))
	if err := s.createTyped(file); err != nil {
		return err
	}
	format.Set("file", qapi.NewObject("driver", "file", "filename", n.file))
	err = s.createTyped(format)
	if err != nil && existed != nil {
		os.Remove(n.file)
	}
	return err
}

// createTyped runs blockdev-create with options whose values may be words.
func (s *session) createTyped(o *qapi.Object) error {
	var typed qapi.BlockdevCreateOptions
	words := qapi.NewObject()
	for key, v := range o.Flatten().All() {
		words.Set(key, v)
	}
	if err := qapi.DecodeFlat(words, &typed); err != nil {
		return err
	}
	return s.job("blockdev-create", qapi.NewObject("options", qapi.ToObject(&typed)), false)
}

// checkOptions refuses options that nobody knows, before anything is made.
func (s *session) checkOptions(n *newImage, flat *qapi.Object) error {
	for key := range flat.All() {
		known := slices.ContainsFunc(shown, func(o option) bool { return o.key == key })
		switch n.format {
		case "raw":
			known = slices.Contains(ofFile, key) || key == "size" || key == "preallocation"
		case "luks":
			known = slices.Contains(ofLUKS, key) || slices.Contains(ofFile, key)
		}
		if !known {
			return &unknownOption{key}
		}
	}
	return nil
}

// unknownOption: a format has no option of that name.
type unknownOption struct{ name string }

func (e *unknownOption) Error() string { return fmt.Sprintf("Invalid parameter '%s'", e.name) }

func (s *session) checkFormat(format string) error {
	typ := s.d.Graph.DriverType(format)
	if typ == nil {
		return fmt.Errorf("Unknown file format '%s'", format)
	}
	var o qapi.BlockdevCreateOptions
	err := qapi.Decode(qapi.NewObject("driver", format), &o)
	if format != "raw" && (typ.Protocol || typ.Filter || err == nil) {
		return fmt.Errorf("Format driver '%s' does not support image creation", format)
	}
	return nil
}

// checkBacking looks at the backing file, and takes the size from it when none
// is given.
func (s *session) checkBacking(n *newImage) error {
	name, _ := n.options.Get("backing_file")
	backing, _ := name.(string)
	if backing == "" {
		return nil
	}
	format, _ := n.options.Get("backing_fmt")
	known, _ := format.(string)
	if n.unchecked && (known != "" || n.options.Has("size")) {
		return nil
	}
	o := source{name: resolve(n.file, backing), format: known}
	node, err := s.openNode(o, mode{})
	if err != nil {
		return blockgraph.WithHint(err, "Could not open backing image.")
	}
	if known == "" {
		return blockgraph.WithHint(errors.New("Backing file specified without backing format"), fmt.Sprintf("Detected format of %s.", node.Type().Name))
	}
	if !n.options.Has("size") {
		n.options.Set("size", fmt.Sprint(node.Size()))
	}
	_, err = s.execute("blockdev-del", qapi.NewObject("node-name", node.Name()))
	return err
}

// resolve returns the file that a name in an image's header means.
func resolve(image, name string) string {
	if filepath.IsAbs(name) || strings.Contains(name, ":") {
		return name
	}
	return filepath.Join(filepath.Dir(image), name)
}

// option is one that can be announced, with its default if that is, too.
type option struct{ key, value string }

// shown are the options in the order in which they are announced, with the
// defaults of those that always are.
var shown = []option{
	{"encrypt.format", ""}, {"encrypt.key-secret", ""}, {"encrypt.cipher-alg", ""}, {"encrypt.cipher-mode", ""},
	{"encrypt.ivgen-alg", ""}, {"encrypt.ivgen-hash-alg", ""}, {"encrypt.hash-alg", ""}, {"encrypt.iter-time", ""},
	{"cluster_size", "65536"}, {"extended_l2", "off"}, {"preallocation", ""}, {"compression_type", "zlib"}, {"size", ""},
	{"compat", ""}, {"backing_file", ""}, {"backing_fmt", ""}, {"data_file", ""}, {"data_file_raw", ""},
	{"lazy_refcounts", "off"}, {"refcount_bits", "16"}, {"nocow", ""}, {"extent_size_hint", ""},
}

// Announce returns the line that the field prints about an image with default
// options.
func Announce(file, format string, size int64, backing, backingFormat string) string {
	n := &newImage{file: file, format: format, size: size, options: &qapi.Object{}}
	if backing != "" {
		n.options = qapi.NewObject("backing_file", backing, "backing_fmt", backingFormat)
	}
	return n.announcement()
}

// ofLUKS are the options of luks, in the order in which they are announced.
var ofLUKS = []string{"size", "key-secret", "cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg", "iter-time", "preallocation"}

// announcement is the line that says what was made.
func (n *newImage) announcement() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Formatting '%s', fmt=%s", n.file, n.format)
	flat := n.options.Flatten()
	options := shown
	if n.format == "luks" {
		options = nil
		for _, key := range append(ofLUKS[:len(ofLUKS):len(ofLUKS)], ofFile...) {
			options = append(options, option{key: key})
		}
	}
	for _, o := range options {
		v, given := flat.Get(o.key)
		switch {
		case o.key == "size":
			fmt.Fprintf(&b, " size=%d", n.size)
		case given:
			text := fmt.Sprint(v)
			if size, err := qapi.ParseSize(text); o.key == "cluster_size" && err == nil {
				text = fmt.Sprint(size)
			}
			b.WriteString(" " + o.key + "=" + text)
		case o.value != "" && n.format == "qcow2":
			b.WriteString(" " + o.key + "=" + o.value)
		}
	}
	return b.String()
}
