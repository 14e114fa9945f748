package serve

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"blockd/daemon"
	"blockd/qapi"
)

// The members of a configuration file. Those that the command line has, too, it
// may replace there.

// readConfig reads a file into the settings. Errors are *Mistake.
func readConfig(path string, s *settings) error {
	doc, err := readDocument(path)
	if err != nil || doc == nil {
		return err
	}
	if doc.node.Kind != yaml.MappingNode {
		return doc.mistake("a mapping is expected, with any of: dir, qmp, nbd, web, socket-group, allow-uid, allow-path, objects, nodes, exports, log, trace")
	}
	for _, m := range doc.members() {
		var err error
		switch m.name {
		case "dir":
			s.dir, err = m.text()
		case "socket-group":
			s.group, err = m.identity()
		case "allow-uid":
			s.users, err = m.list(value.identity)
		case "allow-path":
			s.paths, err = m.list(value.text)
		case "qmp":
			s.qmp, err = m.list(value.text)
		case "nbd":
			s.nbd, err = m.setting()
		case "web":
			s.web, err = m.setting()
		case "objects":
			s.objects, err = m.options("object")
		case "nodes":
			s.nodes, err = m.options("blockdev")
		case "exports":
			s.exports, err = m.options("export")
		case "log":
			s.log, err = m.passed("log", true)
		case "trace":
			s.trace, err = m.passed("trace", false)
		default:
			err = m.mistake("there is no such key")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// text is a string that is not empty.
func (v value) text() (string, error) {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" && v.node.Value != "" {
		return v.node.Value, nil
	}
	return "", v.mistake("a string is expected")
}

// identity is a user or a group: a name or a number.
func (v value) identity() (string, error) {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!int" {
		return v.node.Value, nil
	}
	return v.text()
}

// some are one value or a list of them, which is not empty: nobody means all by
// an empty allow-path.
func (v value) some() ([]value, error) {
	if v.node.Kind != yaml.SequenceNode {
		return []value{v}, nil
	}
	if len(v.node.Content) == 0 {
		return nil, v.mistake("the list is empty: leave the key out")
	}
	return v.elements(), nil
}

// list are some texts.
func (v value) list(one func(value) (string, error)) ([]string, error) {
	all, err := v.some()
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, e := range all {
		text, err := one(e)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

// setting is the value of an option that may be its text or its members.
func (v value) setting() (*setting, error) {
	if v.node.Kind == yaml.MappingNode {
		return &setting{text: string(qapi.AppendJSON(nil, v.argument())), from: &v}, nil
	}
	text, err := v.text()
	if err != nil {
		return nil, v.mistake("a string or a mapping is expected")
	}
	return &setting{text: text, from: &v}, nil
}

// passed are some options of the process, each as the command line has it or,
// where members are, by them.
func (v value) passed(name string, members bool) ([]daemon.Option, error) {
	all, err := v.some()
	if err != nil {
		return nil, err
	}
	var list []daemon.Option
	for _, e := range all {
		var text string
		if members && e.node.Kind == yaml.MappingNode {
			text = string(qapi.AppendJSON(nil, e.argument()))
		} else if text, err = e.text(); err != nil {
			return nil, err
		}
		list = append(list, e.option(name, text))
	}
	return list, nil
}

// options are those that a list of arguments stands for.
func (v value) options(name string) ([]daemon.Option, error) {
	if v.node.Kind != yaml.SequenceNode {
		return nil, v.mistake("a list is expected")
	}
	var list []daemon.Option
	for _, e := range v.elements() {
		if e.node.Kind != yaml.MappingNode {
			return nil, e.mistake("a mapping is expected, the arguments of %s", commandOf[name])
		}
		list = append(list, e.option(name, string(qapi.AppendJSON(nil, e.argument()))))
	}
	return list, nil
}

// commandOf says which command has the arguments of an option.
var commandOf = map[string]string{"object": "object-add", "blockdev": "blockdev-add", "export": "block-export-add"}

// option is one that stands in the file. What goes wrong with it is said with
// the line of the member that it is about.
func (v value) option(name, text string) daemon.Option {
	given := fmt.Sprintf("%s:%d: %s", v.file, v.node.Line, v.key)
	return daemon.Option{Name: name, Value: text, Given: given, Explain: func(err error) error {
		line, key := v.place(err)
		return &Mistake{v.file, line, key, err}
	}}
}
