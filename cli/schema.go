package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"blockd/qapi"
	"blockd/qmpclient"
)

// schema is what a server says about its commands, for completion and to give
// the words of a command line their types. It is read leniently: a server may
// be of another version.
type schema struct {
	commands map[string]*qapi.Object
	types    map[string]*qapi.Object
}

// fetchSchema asks a server for its schema.
func fetchSchema(ctx context.Context, c *qmpclient.Client) (*schema, error) {
	answer, err := c.Execute(ctx, "query-qmp-schema", nil)
	if err != nil {
		return nil, err
	}
	s := &schema{commands: map[string]*qapi.Object{}, types: map[string]*qapi.Object{}}
	for _, info := range qmpclient.ObjectsOf(answer) {
		s.add(info)
	}
	return s, nil
}

// add takes one entity of the schema.
func (s *schema) add(info *qapi.Object) {
	name := qmpclient.String(info, "name")
	switch qmpclient.String(info, "meta-type") {
	case "command":
		s.commands[name] = info
	case "event":
	default:
		s.types[name] = info
	}
}

// commandNames returns all commands, sorted.
func (s *schema) commandNames() []string {
	names := make([]string, 0, len(s.commands))
	for name := range s.commands {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// argument returns the argument type of a command, nil for an unknown one.
func (s *schema) argument(command string) *qapi.Object {
	return s.types[qmpclient.String(s.commands[command], "arg-type")]
}

// member is one member of an object type.
type member struct {
	name     string
	typ      *qapi.Object
	optional bool
}

// members returns the members of an object type, those of the variant that
// the tag's value in given selects included, the required ones first.
func (s *schema) members(typ *qapi.Object, given *qapi.Object) []member {
	var list []member
	for _, m := range qmpclient.Objects(typ, "members") {
		list = append(list, member{
			name: qmpclient.String(m, "name"), typ: s.types[qmpclient.String(m, "type")], optional: m.Has("default"),
		})
	}
	tag := qmpclient.String(typ, "tag")
	for _, v := range qmpclient.Objects(typ, "variants") {
		if tag != "" && given != nil && qmpclient.String(v, "case") == qmpclient.String(given, tag) {
			list = append(list, s.members(s.types[qmpclient.String(v, "type")], given)...)
		}
	}
	slices.SortStableFunc(list, func(a, b member) int {
		return cmp.Compare(btoi(a.optional), btoi(b.optional))
	})
	return list
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// member returns the type of a member by its name.
func (s *schema) member(typ, given *qapi.Object, name string) *qapi.Object {
	for _, m := range s.members(typ, given) {
		if m.name == name {
			return m.typ
		}
	}
	return nil
}

// branches returns the types that a value may have: those of an alternate, or
// the type itself.
func (s *schema) branches(typ *qapi.Object) []*qapi.Object {
	if qmpclient.String(typ, "meta-type") != "alternate" {
		return []*qapi.Object{typ}
	}
	var list []*qapi.Object
	for _, m := range qmpclient.Objects(typ, "members") {
		list = append(list, s.types[qmpclient.String(m, "type")])
	}
	return list
}

// values returns the words that a value of the type can be.
func (s *schema) values(typ *qapi.Object) []string {
	var words []string
	for _, branch := range s.branches(typ) {
		switch {
		case qmpclient.String(branch, "meta-type") == "enum":
			list, _ := branch.Get("values")
			if list == nil { // what newer servers say
				for _, m := range qmpclient.Objects(branch, "members") {
					words = append(words, qmpclient.String(m, "name"))
				}
			}
			for _, v := range asList(list) {
				if word, ok := v.(string); ok {
					words = append(words, word)
				}
			}
		case qmpclient.String(branch, "json-type") == "boolean":
			words = append(words, "true", "false")
		}
	}
	return words
}

func asList(v any) []any {
	list, _ := v.([]any)
	return list
}

// typed gives a value of a command line, made of strings, objects and lists,
// the JSON types that the schema wants. What does not fit stays as it is, and
// the server says what is wrong in its own words.
func (s *schema) typed(typ *qapi.Object, v any) any {
	switch v := v.(type) {
	case *qapi.Object:
		for _, branch := range s.branches(typ) {
			if qmpclient.String(branch, "meta-type") == "object" {
				typ = branch
			}
		}
		o := qapi.NewObject()
		// The tag may stand anywhere and has to be known first.
		for key, m := range v.All() {
			o.Set(key, m)
		}
		for key, m := range v.All() {
			o.Set(key, s.typed(s.member(typ, o, key), m))
		}
		return o
	case []any:
		element := s.types[qmpclient.String(typ, "element-type")]
		list := make([]any, len(v))
		for i := range v {
			list[i] = s.typed(element, v[i])
		}
		return list
	case string:
		return s.scalar(typ, v)
	}
	return v
}

// scalar gives one word its type.
func (s *schema) scalar(typ *qapi.Object, word string) any {
	branches := s.branches(typ)
	// A string is what every other type could be written as, so it comes last,
	// but braces and brackets are no names.
	for _, b := range branches {
		switch qmpclient.String(b, "json-type") {
		case "int", "number":
			if n, err := strconv.ParseInt(word, 0, 64); err == nil {
				return n
			}
			if n, err := qapi.ParseSize(word); err == nil && n <= 1<<63-1 {
				return int64(n)
			}
			if f, err := strconv.ParseFloat(word, 64); err == nil && qmpclient.String(b, "json-type") == "number" {
				return f
			}
		case "boolean":
			switch word {
			case "on", "true", "yes":
				return true
			case "off", "false", "no":
				return false
			}
		case "null":
			if word == "null" {
				return nil
			}
		case "value":
			if v, err := qapi.ParseJSON([]byte(word)); err == nil && json.Valid([]byte(word)) {
				return v
			}
		}
		switch qmpclient.String(b, "meta-type") {
		case "object", "array":
			if strings.HasPrefix(word, "{") || strings.HasPrefix(word, "[") {
				if v, err := qapi.ParseJSON([]byte(word)); err == nil {
					return v
				}
			}
			if qmpclient.String(b, "meta-type") == "array" && len(branches) == 1 {
				return s.typed(b, splitWords(word))
			}
		}
	}
	return word
}

// splitWords reads a list without brackets, separated by commas.
func splitWords(word string) []any {
	if word == "" {
		return []any{}
	}
	var list []any
	for part := range strings.SplitSeq(word, ",") {
		list = append(list, part)
	}
	return list
}
