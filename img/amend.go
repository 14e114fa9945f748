package img

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmpclient"
)

func amendCommand(t *tool) *cobra.Command {
	var o source
	var words []string
	var force, show bool
	cmd := t.command("amend -o OPTIONS FILE", "Change what was decided when an image was made: its length, its keys, its version", nil, func(s *session, args []string) error {
		switch {
		case len(words) == 0:
			return errors.New("Must specify options (-o)")
		case o.format != "" && wantsHelp(words):
			return s.explainAmend(o.format)
		case len(args) != 1:
			return oneImage(nil, args)
		}
		o.name = args[0]
		n, err := s.openImage(o, mode{writable: true})
		if err != nil {
			return err
		}
		format := n.Type().Name
		if wantsHelp(words) {
			return s.explainAmend(format)
		}
		if _, ok := amended[format]; !ok {
			return errNoAmend(format)
		}
		given, err := parseOptions(words)
		if err != nil {
			return err
		}
		a := amendment{s: s, node: n, given: given.Flatten(), force: force, show: show}
		return a.run()
	})
	o.register(cmd)
	f := cmd.Flags()
	f.StringArrayVarP(&words, "options", "o", nil, "what to change: NAME=VALUE,...; help lists what can be")
	f.StringVarP(&o.cache, "cache", "t", "", "cache mode")
	f.BoolVarP(&show, "progress", "p", false, "show progress")
	f.BoolVar(&force, "force", false, "even where data may be lost, as with the last key")
	return cmd
}

func errNoAmend(format string) error {
	return fmt.Errorf("Format driver '%s' does not support option amendment", format)
}

// explainAmend prints what can be changed of a format.
func (s *session) explainAmend(format string) error {
	if s.d.Graph.DriverType(format) == nil {
		return fmt.Errorf("Unknown file format '%s'", format)
	}
	list, ok := amended[format]
	if !ok {
		return errNoAmend(format)
	}
	_, err := fmt.Fprint(s.env.Out, list.help(fmt.Sprintf("Amend options for '%s':", format)))
	return err
}

// amendment is what is to be changed of an image.
type amendment struct {
	s           *session
	node        *blockgraph.Node
	given       *qapi.Object
	force, show bool
}

// run refuses what cannot be changed before it changes anything.
func (a *amendment) run() error {
	format := a.node.Type().Name
	if err := amended[format].check(a.given); err != nil {
		if unknown := (*unknownOption)(nil); errors.As(err, &unknown) && created[format].have(unknown.name) {
			return blockgraph.WithHint(err, "This option is only supported for image creation")
		}
		return err
	}
	if err := a.keepsBacking(); err != nil {
		return err
	}
	size := int64(-1)
	if word, ok := a.given.Get("size"); ok {
		var err error
		if size, err = parseSize("image size", word.(string)); err != nil {
			return err
		}
	}
	layout, err := a.layout()
	if err != nil {
		return err
	}
	// What an older version does not know may only be gone with the other length.
	var last *qapi.Object
	if v, ok := layout.Get("x-compat"); ok && v == "v2" && size >= 0 {
		layout.Delete("x-compat")
		last = qapi.NewObject("x-compat", v)
	}
	keys := a.keys()
	if keys.Len() > 0 {
		if err := a.checkEncrypted(); err != nil {
			return err
		}
	}
	if err := a.job(keys); err != nil {
		return err
	}
	if err := a.job(layout); err != nil {
		return err
	}
	if size >= 0 && size != a.node.Size() {
		p := a.s.newProgress(a.show)
		err := a.s.d.Graph.Update(a.s.ctx, cause, func(tx *blockgraph.Tx) error {
			return tx.Resize(a.node, size, true, qapi.PreallocModeOff)
		})
		if p.end(err); err != nil {
			return err
		}
	}
	return a.job(last)
}

// keepsBacking holds that what lies below the image was given as it is.
func (a *amendment) keepsBacking() error {
	for key, member := range map[string]string{"backing_file": "backing-filename", "backing_fmt": "backing-filename-format"} {
		word, ok := a.given.Get(key)
		if !ok {
			continue
		}
		info, err := a.s.infoOf(a.node)
		if err != nil {
			return err
		}
		if word != qmpclient.String(info, member) {
			return blockgraph.WithHint(errors.New("Cannot amend the backing file"), "You can use 'blockd img rebase' instead.")
		}
	}
	return nil
}

// layout is what the job is to change of how the image is laid out.
func (a *amendment) layout() (*qapi.Object, error) {
	o := qapi.NewObject()
	for key, v := range a.given.All() {
		word := v.(string)
		switch key {
		case "compat":
			_, version := formatOption(key, word)
			if version != "v2" && version != "v3" {
				return nil, fmt.Errorf("Unknown compatibility level %s", word)
			}
			o.Set("x-compat", version)
		case "refcount_bits", "lazy_refcounts", "data_file", "data_file_raw":
			o.Set("x-"+strings.ReplaceAll(key, "_", "-"), word)
		}
	}
	return o, nil
}

// checkEncrypted refuses keys for an image that has none.
func (a *amendment) checkEncrypted() error {
	if a.node.Type().Name == "luks" {
		return nil
	}
	info, err := a.s.infoOf(a.node)
	if err != nil {
		return err
	}
	data := qmpclient.Member(qmpclient.Member(info, "format-specific"), "data")
	switch qmpclient.String(qmpclient.Member(data, "encrypt"), "format") {
	case "":
		return errors.New("Can't amend encryption options - encryption not present")
	case "luks":
		return nil
	}
	return errors.New("Only LUKS encryption options can be amended")
}

// keys is what it is to change of the keys.
func (a *amendment) keys() *qapi.Object {
	o := qapi.NewObject()
	format := a.node.Type().Name
	for key, v := range a.given.All() {
		switch {
		case format == "luks":
			o.Set(key, v)
		case strings.HasPrefix(key, "encrypt."):
			o.Set("encrypt.format", "luks")
			o.Set(key, v)
		}
	}
	return o
}

// job has the daemon's job change that much of the image.
func (a *amendment) job(words *qapi.Object) error {
	if words == nil || words.Len() == 0 {
		return nil
	}
	words.Set("driver", a.node.Type().Name)
	var typed qapi.BlockdevAmendOptions
	if err := qapi.DecodeFlat(words, &typed); err != nil {
		return err
	}
	arguments := qapi.NewObject("node-name", a.node.Name(), "options", qapi.ToObject(&typed), "force", a.force)
	return a.s.job("x-blockdev-amend", arguments, a.show)
}
