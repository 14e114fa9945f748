package serve

import (
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
		return doc.mistake("a mapping is expected, with any of: dir, qmp, nbd, web, socket-group, allow-uid, allow-path, objects, nodes, exports")
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

// list is one value or a list of them.
func (v value) list(one func(value) (string, error)) ([]string, error) {
	all := []value{v}
	if v.node.Kind == yaml.SequenceNode {
		all = v.elements()
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
	return daemon.Option{Name: name, Value: text, Explain: func(err error) error {
		line, key := v.place(err)
		return &Mistake{v.file, line, key, err}
	}}
}
