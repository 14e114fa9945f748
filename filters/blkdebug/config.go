package blkdebug

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"blockd/qapi"
)

// This file reads the config file: lines of the forms
//
//	[inject-error]
//	event = "read_aio"
//
// with one group per rule, of inject-error or set-state. Empty lines and lines
// that begin with # are skipped.

// maxLine and maxWord bound a line and a name in bytes, as in the field: what
// is longer is cut.
const (
	maxLine = 1023
	maxWord = 63
)

// group is one section of the file.
type group struct {
	name   string
	values map[string]string
	order  []string
}

func (g *group) set(key, value string) {
	if _, ok := g.values[key]; !ok {
		g.order = append(g.order, key)
	}
	g.values[key] = value
}

// parseConfig returns the rules of a config file: errors first, then changes
// of state, each in the order of the file.
func parseConfig(text []byte) ([]*rule, error) {
	groups, err := parseGroups(string(text))
	if err != nil {
		return nil, err
	}
	var rules []*rule
	for _, kind := range []string{"inject-error", "set-state"} {
		for _, g := range groups {
			if g.name != kind {
				continue
			}
			r, err := g.rule()
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

func parseGroups(text string) ([]*group, error) {
	var groups []*group
	ids := map[string]bool{}
	for text != "" {
		line := text
		if i := strings.IndexByte(text, '\n'); i >= 0 {
			line = text[:i+1]
		}
		line = line[:min(len(line), maxLine)]
		text = text[len(line):]
		if line == "\n" || line[0] == '#' {
			continue
		}
		if g := parseGroup(line); g != nil {
			if k := len(groups); k > 0 {
				if err := groups[k-1].check(ids); err != nil {
					return nil, err
				}
			}
			groups = append(groups, g)
			continue
		}
		key, value := parseAssignment(line)
		switch {
		case key == "":
			return nil, qapi.Errorf("parse error")
		case len(groups) == 0:
			return nil, qapi.Errorf("no group defined")
		}
		groups[len(groups)-1].set(key, value)
	}
	if k := len(groups); k > 0 {
		return groups, groups[k-1].check(ids)
	}
	return nil, nil
}

// parseGroup reads `[name]` or `[name "id"]`, or returns nil.
func parseGroup(line string) *group {
	rest, ok := strings.CutPrefix(line, "[")
	if !ok {
		return nil
	}
	g := &group{values: map[string]string{}}
	if name, tail := word(rest); name != "" {
		if id, ok := strings.CutPrefix(strings.TrimLeft(tail, blank), `"`); ok {
			if id, _, _ = strings.Cut(id, `"`); id != "" {
				g.name = name
				g.set("id", cut(id))
				return g
			}
		}
	}
	name, _, _ := strings.Cut(rest, "]")
	if name == "" {
		return nil
	}
	g.name = cut(name)
	return g
}

// parseAssignment reads `key = "value"`. A line of another form is a key with
// an empty value, one without a word has no key.
func parseAssignment(line string) (key, value string) {
	key, rest := word(line)
	rest, ok := strings.CutPrefix(strings.TrimLeft(rest, blank), "=")
	if !ok {
		return key, ""
	}
	if rest, ok = strings.CutPrefix(strings.TrimLeft(rest, blank), `"`); !ok {
		return key, ""
	}
	value, _, _ = strings.Cut(rest, `"`)
	return key, value
}

const blank = " \t\n\v\f\r"

func cut(s string) string { return s[:min(len(s), maxWord)] }

// word splits the first word off.
func word(s string) (first, rest string) {
	s = strings.TrimLeft(s, blank)
	n := strings.IndexAny(s, blank)
	if n < 0 {
		n = len(s)
	}
	n = min(n, maxWord)
	return s[:n], s[n:]
}

var groupKeys = map[string][]string{
	"inject-error": {"event", "state", "iotype", "errno", "sector", "once", "immediately"},
	"set-state":    {"event", "state", "new_state"},
}

// check refuses unknown names and values of the wrong kind.
func (g *group) check(ids map[string]bool) error {
	keys, ok := groupKeys[g.name]
	if !ok {
		return qapi.Errorf("There is no option group '%s'", g.name)
	}
	for _, key := range g.order {
		v := g.values[key]
		if key == "id" {
			switch {
			case !qapi.WellFormedID(v):
				return qapi.Errorf("Parameter 'id' expects an identifier")
			case ids[g.name+" "+v]:
				return qapi.Errorf("Duplicate ID '%s' for %s", v, g.name)
			}
			ids[g.name+" "+v] = true
			continue
		}
		if !slices.Contains(keys, key) {
			return qapi.Errorf("Invalid parameter '%s'", key)
		}
		switch key {
		case "event", "iotype":
		case "once", "immediately":
			if _, ok := boolean(v); !ok {
				return qapi.Errorf("Parameter '%s' expects 'on' or 'off'", key)
			}
		default:
			if _, err := number(key, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// rule makes a rule of a checked group.
func (g *group) rule() (*rule, error) {
	name, ok := g.values["event"]
	if !ok {
		return nil, qapi.Errorf("Missing event name for rule")
	}
	r := &rule{event: qapi.BlkdebugEvent(name), state: int32(g.number("state", 0))}
	if !slices.Contains(r.event.QAPIEnum(), name) {
		return nil, qapi.Errorf("invalid parameter value: %s", name)
	}
	if g.name == "set-state" {
		next := int32(g.number("new_state", 0))
		r.setState = &next
		return r, nil
	}
	r.inject = &injection{types: ioDefault, errno: int32(g.number("errno", 5)), off: -1}
	r.inject.once, _ = boolean(g.values["once"])
	if sector := g.number("sector", -1); sector != -1 {
		r.inject.setSector(sector)
	}
	if name, ok := g.values["iotype"]; ok {
		if r.inject.types, ok = ioTypes[qapi.BlkdebugIOType(name)]; !ok {
			return nil, qapi.Errorf("invalid parameter value: %s", name)
		}
	}
	return r, nil
}

func (g *group) number(key string, missing int64) int64 {
	v, ok := g.values[key]
	if !ok {
		return missing
	}
	n, _ := number(key, v)
	return n
}

// number reads a number in C's notation; a negative one counts modulo 2^64.
func number(key, text string) (int64, error) {
	text = strings.TrimLeft(text, blank)
	digits, negative := strings.CutPrefix(text, "-")
	if !negative {
		digits = strings.TrimPrefix(digits, "+")
	}
	n, err := strconv.ParseUint(digits, 0, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, qapi.Errorf("Value '%s' is too large for parameter '%s'", text, key)
	case err != nil || strings.Contains(digits, "_") || strings.HasPrefix(digits, "0b") || strings.HasPrefix(digits, "0o"):
		return 0, qapi.Errorf("Parameter '%s' expects a number", key)
	case negative:
		return -int64(n), nil
	}
	return int64(n), nil
}

func boolean(s string) (value, ok bool) {
	switch s {
	case "on", "yes", "true", "y":
		return true, true
	case "off", "no", "false", "n":
		return false, true
	}
	return false, false
}
