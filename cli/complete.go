package cli

import (
	"slices"
	"strings"

	"blockd/qapi"
	"blockd/qmpclient"
)

// complete returns the ways in which the last word of a line can go on: whole
// words, sorted. A word that may be followed by more of itself ends in '=' or
// '.'.
func (s *schema) complete(line string) []string {
	words := strings.Split(line, " ")
	last := words[len(words)-1]
	words = slices.DeleteFunc(words[:len(words)-1], func(w string) bool { return w == "" })
	var list []string
	switch {
	case len(words) == 0:
		list = s.commandNames()
	case strings.Contains(last, "="):
		key, _, _ := strings.Cut(last, "=")
		for _, v := range s.values(s.at(words, key)) {
			list = append(list, key+"="+v)
		}
	default:
		list = s.keys(words, last)
	}
	list = slices.DeleteFunc(list, func(w string) bool { return !strings.HasPrefix(w, last) })
	slices.Sort(list)
	return slices.Compact(list)
}

// given is the object that the words of a line make so far, as far as it can
// be read.
func (s *schema) given(words []string) *qapi.Object {
	if v, err := s.arguments(words[0], words[1:]); err == nil {
		if o, ok := v.(*qapi.Object); ok {
			return o
		}
	}
	return qapi.NewObject()
}

// at returns the type of the member that a key with dots names.
func (s *schema) at(words []string, key string) *qapi.Object {
	typ, given := s.argument(words[0]), s.given(words)
	for part := range strings.SplitSeq(key, ".") {
		typ, given = s.step(typ, given, part)
	}
	return typ
}

// step goes from an object to its member, or from a list to an element.
func (s *schema) step(typ, given *qapi.Object, part string) (*qapi.Object, *qapi.Object) {
	for _, b := range s.branches(typ) {
		switch qmpclient.String(b, "meta-type") {
		case "object":
			return s.member(b, given, part), qmpclient.Member(given, part)
		case "array":
			return s.types[qmpclient.String(b, "element-type")], qapi.NewObject()
		}
	}
	return nil, nil
}

// keys returns the keys that may come at the end of a line.
func (s *schema) keys(words []string, last string) []string {
	typ, given := s.argument(words[0]), s.given(words)
	lead := ""
	if i := strings.LastIndexByte(last, '.'); i >= 0 {
		lead = last[:i+1]
		for part := range strings.SplitSeq(last[:i], ".") {
			typ, given = s.step(typ, given, part)
		}
	}
	var list []string
	for _, b := range s.branches(typ) {
		if qmpclient.String(b, "meta-type") != "object" {
			continue
		}
		for _, m := range s.members(b, given) {
			if given.Has(m.name) && lead == "" {
				continue
			}
			list = append(list, lead+m.name+s.tail(m.typ))
		}
	}
	return list
}

// tail is what follows a key of that type.
func (s *schema) tail(typ *qapi.Object) string {
	scalar := false
	for _, b := range s.branches(typ) {
		scalar = scalar || qmpclient.String(b, "meta-type") != "object"
	}
	if scalar {
		return "="
	}
	return "."
}
