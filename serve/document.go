package serve

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"blockd/qapi"
	"blockd/sockets"
)

// A configuration file is one YAML document, of which JSON is a part. This file
// reads it into the values that QMP arguments have, and remembers where each
// stands. Anchors, aliases, merges and tags of one's own are refused: what a
// member says is where it stands, and a small file is not a large value.

const (
	// maxConfig is the longest configuration in bytes.
	maxConfig = 4 << 20
	// maxDepth is how deep its values may be nested, as in a QMP message.
	maxDepth = 1024
)

// Mistake is an error of a configuration file, at a line of it.
type Mistake struct {
	File string
	Line int    // 0: of the whole
	Key  string // the path of the member, "" for the whole
	Err  error
}

func (m *Mistake) Error() string {
	var b strings.Builder
	b.WriteString(m.File)
	if m.Line > 0 {
		fmt.Fprintf(&b, ":%d", m.Line)
	}
	if m.Key != "" {
		b.WriteString(": " + m.Key)
	}
	return b.String() + ": " + m.Err.Error()
}

func (m *Mistake) Unwrap() error { return m.Err }

// value is one of a configuration, with where it stands.
type value struct {
	file string
	key  string // its path
	node *yaml.Node
}

func (v value) mistake(format string, args ...any) error {
	return &Mistake{v.file, v.node.Line, v.key, fmt.Errorf(format, args...)}
}

// yamlLine finds the line in the library's errors.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// readDocument reads a file; nil: it has nothing.
func readDocument(path string) (*value, error) {
	whole := func(err error) error { return &Mistake{File: path, Err: err} }
	f, err := os.Open(path)
	if err != nil {
		return nil, whole(errors.New(sockets.Reason(err)))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, whole(errors.New(sockets.Reason(err)))
	}
	if len(text) > maxConfig {
		return nil, whole(errors.New("it is too long"))
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		m := &Mistake{File: path, Err: err}
		if found := yamlLine.FindStringSubmatch(err.Error()); found != nil {
			m.Line, _ = strconv.Atoi(found[1])
			m.Err = errors.New(found[2])
		}
		return nil, m
	}
	var more yaml.Node
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, whole(errors.New("more than one document is there"))
	}
	root := &value{file: path, node: doc.Content[0]}
	if err := root.check(0); err != nil {
		return nil, err
	}
	return root, nil
}

// check refuses what is no value of QMP.
func (v value) check(depth int) error {
	n := v.node
	switch {
	case depth > maxDepth:
		return v.mistake("it is nested too deeply")
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return v.mistake("anchors and aliases are not supported")
	case n.Kind == yaml.MappingNode && n.ShortTag() == "!!map":
		lines := map[string]int{}
		for _, m := range v.members() {
			switch before, twice := lines[m.name]; {
			case m.plain == yaml.AliasNode || m.tag != "!!str":
				return m.mistake("a key is to be a string")
			case twice:
				return m.mistake("the key is there twice, first in line %d", before)
			}
			lines[m.name] = m.line
			if err := m.check(depth + 1); err != nil {
				return err
			}
		}
		return nil
	case n.Kind == yaml.SequenceNode && n.ShortTag() == "!!seq":
		for _, e := range v.elements() {
			if err := e.check(depth + 1); err != nil {
				return err
			}
		}
		return nil
	case n.Kind == yaml.ScalarNode:
		_, err := v.scalar()
		return err
	}
	return v.mistake("the tag %s is not supported", n.Tag)
}

// entry is a member of a mapping. Its node is that of the value.
type entry struct {
	value
	name  string
	line  int // of the key
	tag   string
	plain yaml.Kind
}

// mistake is at the key.
func (e entry) mistake(format string, args ...any) error {
	return &Mistake{e.file, e.line, e.key, fmt.Errorf(format, args...)}
}

func (v value) members() []entry {
	var list []entry
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k := v.node.Content[i]
		list = append(list, entry{
			value: value{v.file, join(v.key, k.Value), v.node.Content[i+1]},
			name:  k.Value, line: k.Line, tag: k.ShortTag(), plain: k.Kind,
		})
	}
	return list
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (v value) elements() []value {
	var list []value
	for i, n := range v.node.Content {
		list = append(list, value{v.file, fmt.Sprintf("%s[%d]", v.key, i), n})
	}
	return list
}

// scalar is the value of a scalar as QMP has it.
func (v value) scalar() (any, error) {
	n := v.node
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return n.Value, nil
	case "!!null":
		return nil, nil
	case "!!bool":
		var b bool
		if n.Decode(&b) != nil {
			return nil, v.mistake("true or false is expected")
		}
		return b, nil
	case "!!int":
		var i int64
		if n.Decode(&i) == nil {
			return i, nil
		}
		var u uint64
		if n.Decode(&u) == nil {
			return u, nil
		}
		return nil, v.mistake("the number is too large")
	case "!!float":
		var f float64
		if err := n.Decode(&f); err != nil || f-f != 0 { // no number, or infinite
			return nil, v.mistake("no such number is supported")
		}
		return f, nil
	}
	return nil, v.mistake("the tag %s is not supported", n.Tag)
}

// argument is the whole as QMP has it. check has found no fault.
func (v value) argument() any {
	switch v.node.Kind {
	case yaml.MappingNode:
		o := qapi.NewObject()
		for _, m := range v.members() {
			o.Set(m.name, m.argument())
		}
		return o
	case yaml.SequenceNode:
		list := []any{}
		for _, e := range v.elements() {
			list = append(list, e.argument())
		}
		return list
	}
	s, _ := v.scalar()
	return s
}

// named finds the name of a member in an error of QMP's.
var named = regexp.MustCompile(`^(?:Invalid parameter type for|Parameters?) '([^']+)'`)

// place returns where in the value an error of its argument comes from: the line
// and the path of the member that the error names, or of the value itself.
func (v value) place(err error) (line int, key string) {
	line, key = v.node.Line, v.key
	found := named.FindStringSubmatch(err.Error())
	if found == nil {
		return line, key
	}
	name := strings.TrimSuffix(found[1], ".*")
	missing := strings.HasSuffix(err.Error(), "is missing")
	best := 0
	var look func(w value)
	look = func(w value) {
		switch w.node.Kind {
		case yaml.MappingNode:
			for _, m := range w.members() {
				// The field names a member by its path or, for some mistakes, alone; one
				// that is missing is where what lacks it is.
				path := strings.TrimPrefix(m.key[len(v.key):], ".")
				rank := 0
				switch {
				case path == name:
					rank = 2 * maxConfig
				case m.name == name:
					rank = maxConfig
				case missing && strings.HasPrefix(name, path+"."):
					rank = len(path)
				}
				if rank > best {
					best, line, key = rank, m.line, m.key
				}
				look(m.value)
			}
		case yaml.SequenceNode:
			for _, e := range w.elements() {
				look(e)
			}
		}
	}
	look(v)
	return line, key
}
