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
	cmd := t.command("amend -o OPTIONS FILE", "Change what was decided when an image was made: its length, its keys", nil, func(s *session, args []string) error {
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
	if err := a.keepsTheRest(); err != nil {
		return err
	}
	size := int64(-1)
	if word, ok := a.given.Get("size"); ok {
		var err error
		if size, err = parseSize("image size", word.(string)); err != nil {
			return err
		}
	}
	if err := a.keys(); err != nil {
		return err
	}
	if size < 0 || size == a.node.Size() {
		return nil
	}
	p := a.s.newProgress(a.show)
	err := a.s.d.Graph.Update(a.s.ctx, cause, func(tx *blockgraph.Tx) error {
		return tx.Resize(a.node, size, true, qapi.PreallocModeOff)
	})
	p.end(err)
	return err
}

// keepsTheRest holds that options which cannot change in an image that is there were
// given as they are.
func (a *amendment) keepsTheRest() error {
	info, err := a.s.infoOf(a.node)
	if err != nil {
		return err
	}
	data := qmpclient.Member(qmpclient.Member(info, "format-specific"), "data")
	for key, v := range a.given.All() {
		word := v.(string)
		switch key {
		case "compat":
			_, given := formatOption(key, word)
			_, now := formatOption(key, qmpclient.String(data, "compat"))
			if given != "v2" && given != "v3" {
				return fmt.Errorf("Unknown compatibility level %s", word)
			}
			if given != now {
				return errFixed(key)
			}
		case "refcount_bits":
			if word != fmt.Sprint(qmpclient.Int(data, "refcount-bits")) {
				return errFixed(key)
			}
		case "lazy_refcounts":
			if switches[word] != qmpclient.Bool(data, "lazy-refcounts") {
				return errFixed(key)
			}
		case "data_file":
			switch qmpclient.String(data, "data-file") {
			case "":
				return errors.New("data-file can only be set for images that use an external data file")
			case word:
			default:
				return errFixed(key)
			}
		case "data_file_raw":
			if switches[word] && !qmpclient.Bool(data, "data-file-raw") {
				return errors.New("data-file-raw cannot be set on existing images")
			}
			if !switches[word] && qmpclient.Bool(data, "data-file-raw") {
				return errFixed(key)
			}
		case "backing_file", "backing_fmt":
			member := map[string]string{"backing_file": "backing-filename", "backing_fmt": "backing-filename-format"}[key]
			if word != qmpclient.String(info, member) {
				return blockgraph.WithHint(errors.New("Cannot amend the backing file"), "You can use 'blockd img rebase' instead.")
			}
		}
	}
	return nil
}

// errFixed: the field can change that in place. Here a copy can have it otherwise.
func errFixed(key string) error {
	return blockgraph.WithHint(fmt.Errorf("Cannot amend the option '%s'", key), "You can use 'blockd img convert' to make an image with another value.")
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

// keys changes keys, by the daemon's job.
func (a *amendment) keys() error {
	format := a.node.Type().Name
	words := qapi.NewObject("driver", format)
	for key, v := range a.given.All() {
		switch {
		case format == "luks":
			words.Set(key, v)
		case strings.HasPrefix(key, "encrypt."):
			words.Set("encrypt.format", "luks")
			words.Set(key, v)
		}
	}
	if format != "luks" && words.Len() == 1 {
		return nil
	}
	if err := a.checkEncrypted(); err != nil {
		return err
	}
	var typed qapi.BlockdevAmendOptions
	if err := qapi.DecodeFlat(words, &typed); err != nil {
		return err
	}
	job := qapi.NewObject("node-name", a.node.Name(), "options", qapi.ToObject(&typed), "force", a.force)
	return a.s.job("x-blockdev-amend", job, a.show)
}
