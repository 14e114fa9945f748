package img

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/formats/qcow2"
	"blockd/qapi"
)

func createCommand(t *tool) *cobra.Command {
	var format, backing, backingFormat string
	var options []string
	var unsafe bool
	var cmd *cobra.Command
	cmd = t.command("create FILE [SIZE]", "Make an image", nil, func(s *session, args []string) error {
		switch {
		case wantsHelp(options):
			return s.explain(format, strings.Join(args[:min(len(args), 1)], ""))
		case len(args) == 0:
			return errors.New("Expecting image file name")
		case len(args) > 2:
			return fmt.Errorf("Unexpected argument: %s", args[2])
		}
		o, err := parseOptions(options)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		n := newImage{file: args[0], format: format, options: o, unchecked: unsafe, announced: true}
		if len(args) > 1 {
			if _, err := parseSize("image size", args[1]); err != nil {
				return err
			}
			n.sized = args[1]
		}
		n.backing, n.backingFormat = given(cmd, "backing", backing), given(cmd, "backing-format", backingFormat)
		if err := s.create(&n); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return nil
	})
	cmd.Flags().StringVarP(&format, "format", "f", "raw", "the image's format")
	cmd.Flags().StringVarP(&backing, "backing", "b", "", "the backing file")
	cmd.Flags().StringVarP(&backingFormat, "backing-format", "F", "", "the backing file's format")
	cmd.Flags().StringArrayVarP(&options, "options", "o", nil, "options of the format: NAME=VALUE,...; help lists them")
	cmd.Flags().BoolVarP(&unsafe, "unsafe", "u", false, "do not look at the backing file")
	allowEmpty(cmd.Flags(), "backing")
	return cmd
}

// newImage is an image that is to be made.
type newImage struct {
	file, format string
	path         string // of the file, within its name
	// options are in the words of qemu-img: with underscores.
	options *qapi.Object
	// sized is the length that was given beside them, "" for none; so are the other
	// two, nil for none.
	sized                  string
	backing, backingFormat *string
	unchecked              bool // the backing file is not looked at
	announced              bool
	size                   int64
}

// create makes an image. What it had begun is removed when it fails.
func (s *session) create(n *newImage) error {
	if err := s.checkFormat(n.format); err != nil {
		return err
	}
	var err error
	if n.path, err = s.pathOf(n.file); err != nil {
		return err
	}
	if err := n.takeOptions(); err != nil {
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
	if n.size, err = parseSize("image size", word.(string)); err != nil {
		return err
	}
	if n.announced {
		if err := s.say("%s", n.announcement()); err != nil {
			return err
		}
	}
	err = n.make(s, flat)
	if err != nil && strings.HasSuffix(err.Error(), blockgraph.Strerror(syscall.EFBIG)) {
		err = fmt.Errorf("The image size is too large for file format '%s'", n.format)
		if created[n.format].have("cluster_size") {
			err = fmt.Errorf("%w (try using a larger cluster size)", err)
		}
	}
	return err
}

// pathOf is the path of a file that is to be made, whose name may have a protocol
// before it.
func (s *session) pathOf(name string) (string, error) {
	if strings.HasPrefix(name, "json:") {
		return "", errors.New("Unknown protocol 'json'") // options name what is there
	}
	ref, _, err := s.d.Graph.ParseFilename(name)
	if err != nil {
		return "", err
	}
	if ref.Definition.File == nil {
		return "", fmt.Errorf("Protocol driver '%s' does not support image creation", ref.Definition.Driver)
	}
	return ref.Definition.File.Filename, nil
}

// takeOptions has what was given beside the options among them, and refuses what
// the format does not know before anything is made.
func (n *newImage) takeOptions() error {
	known := ofImage(n.format)
	if err := known.check(n.options.Flatten()); err != nil {
		return err
	}
	if n.sized != "" {
		if n.options.Has("size") {
			return errors.New("The image size must be specified only once")
		}
		n.options.Set("size", n.sized)
	}
	if n.backing != nil {
		if !known.have("backing_file") {
			return fmt.Errorf("Backing file not supported for file format '%s'", n.format)
		}
		n.options.Set("backing_file", *n.backing)
	}
	if n.backingFormat != nil {
		if !known.have("backing_fmt") {
			return fmt.Errorf("Backing file format not supported for file format '%s'", n.format)
		}
		n.options.Set("backing_fmt", *n.backingFormat)
	}
	return nil
}

// make makes the image and, before it, the files that it is in. Those that it made
// are gone again when it fails.
func (n *newImage) make(s *session, flat *qapi.Object) (err error) {
	file := qapi.NewObject("driver", "file", "filename", n.path)
	size := n.size
	if n.format != "luks" { // whose field's tool takes it as it is
		size = roundUp(size, 512)
	}
	format := qapi.NewObject("driver", n.format, "size", size)
	for key, v := range flat.All() {
		switch {
		case key == "size":
		case ofFile.have(key) && !created[n.format].have(key):
			file.Set(strings.ReplaceAll(key, "_", "-"), v)
		default:
			if key, v = formatOption(key, v); key != "" {
				format.Set(key, v)
			}
		}
	}
	if n.format == "raw" {
		file.Set("size", size)
		return s.createTyped(file)
	}
	below := "file"
	if detached, ok := format.Get("detached-header"); ok {
		format.Delete("detached-header")
		if detached == "on" {
			below = "header"
		}
	}
	format.Set(below, qapi.NewObject("driver", "file", "filename", n.path))
	name, external := format.Get("data-file")
	data, _ := name.(string)
	if external {
		format.Set("data-file", qapi.NewObject("driver", "file", "filename", data))
	}
	typed, err := typedOptions(format)
	if err != nil {
		return err
	}
	// What is there already keeps its content until the options are known to be right.
	if typed.Qcow2 != nil {
		if _, _, err := qcow2.Measure(typed.Qcow2, 0); err != nil {
			return err
		}
	}
	if isOn(flat, "encryption") && flat.Has("encrypt.format") {
		return errors.New("'encrypt.format' and its alias 'encryption' can't be used at the same time")
	}
	if external && sameFile(data, n.path) {
		return fmt.Errorf("The data file '%s' is the image itself", data)
	}
	var made []string
	defer func() {
		if err != nil {
			for _, name := range made {
				os.Remove(name)
			}
		}
	}()
	empty := func(o *qapi.Object, name string) error {
		_, missing := os.Lstat(name)
		o.Set("size", int64(0))
		err := s.createTyped(o)
		if err == nil && missing != nil {
			made = append(made, name)
		}
		return err
	}
	if external {
		if err := empty(qapi.NewObject("driver", "file", "filename", data), data); err != nil {
			return err
		}
	}
	if err := empty(file, n.path); err != nil {
		return err
	}
	return s.createBy(typed)
}

// sameFile tells whether two names, of files that need not be there, are of one.
func sameFile(a, b string) bool {
	if x, err := os.Stat(a); err == nil {
		y, err := os.Stat(b)
		return err == nil && os.SameFile(x, y)
	}
	x, err := filepath.Abs(a)
	y, err2 := filepath.Abs(b)
	return err == nil && err2 == nil && x == y
}

// typedOptions reads options whose values may be words.
func typedOptions(o *qapi.Object) (*qapi.BlockdevCreateOptions, error) {
	var typed qapi.BlockdevCreateOptions
	if err := qapi.DecodeFlat(o.Flatten(), &typed); err != nil {
		return nil, err
	}
	return &typed, nil
}

// createTyped runs blockdev-create with options whose values may be words.
func (s *session) createTyped(o *qapi.Object) error {
	typed, err := typedOptions(o)
	if err != nil {
		return err
	}
	return s.createBy(typed)
}

func (s *session) createBy(o *qapi.BlockdevCreateOptions) error {
	return s.job("blockdev-create", qapi.NewObject("options", qapi.ToObject(o)), false)
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
	name, ok := n.options.Get("backing_file")
	if !ok {
		return nil
	}
	backing, _ := name.(string)
	format, _ := n.options.Get("backing_fmt")
	known, _ := format.(string)
	switch {
	case backing == n.file:
		return errors.New("Error: Trying to create an image with the same filename as the backing file")
	case backing == "":
		return errors.New("Expected backing file name, got empty string")
	case n.unchecked && known == "":
		return errors.New("Backing file specified without backing format")
	case n.unchecked:
		return nil
	}
	// Its content is not read: somebody else may write it, and it needs no key.
	node, err := s.openNode(source{name: resolve(n.file, backing), format: known, share: true}, mode{headerOnly: true})
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
	if filepath.IsAbs(name) || blockgraph.HasProtocol(name) {
		return name
	}
	if blockgraph.HasProtocol(image) {
		_, image, _ = strings.Cut(image, ":")
	}
	return image[:strings.LastIndexByte(image, '/')+1] + name
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

// announcement is the line that says what was made.
func (n *newImage) announcement() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Formatting '%s', fmt=%s", n.file, n.format)
	flat := n.options.Flatten()
	for _, o := range ofImage(n.format) {
		v, given := flat.Get(o.key)
		switch {
		case o.key == "size":
			fmt.Fprintf(&b, " size=%d", n.size)
		case given:
			b.WriteString(" " + o.key + "=" + o.shown(fmt.Sprint(v)))
		case o.value != "":
			b.WriteString(" " + o.key + "=" + o.value)
		}
	}
	return b.String()
}
