package qapi

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// key=value syntax of command line options: pairs separated by commas, a comma
// in a value doubled, keys with dots for members of members, and whole numbers
// for list elements.

// maxKeyFragment bounds one dot-separated part of a key, in bytes.
const maxKeyFragment = 127

// maxListIndex is what larger numbers in keys are taken for; such a list always
// has elements missing.
const maxListIndex = math.MaxInt32

var errNoHelp = Errorf("Help is not available for this option")

// ParseKeyval reads key=value pairs into an object of strings, objects and
// lists. When impliedKey is not empty, the first pair may be a value alone and
// is that key's. A later pair overrides an earlier one of the same key. "help"
// or "?" alone in place of a pair is refused with an error for which
// IsHelpRequest is true. Errors are *Error.
func ParseKeyval(s, impliedKey string) (*Object, error) {
	root := &Object{}
	help := false
	for s != "" {
		rest, isHelp, err := keyvalPair(root, s, impliedKey)
		if err != nil {
			return nil, err
		}
		help = help || isHelp
		s, impliedKey = rest, ""
	}
	if help {
		return nil, errNoHelp
	}
	v, err := listify(root, "")
	if err != nil {
		return nil, err
	}
	return v.(*Object), nil
}

// IsHelpRequest tells whether ParseKeyval or DecodeOption failed only because
// the option asked for help.
func IsHelpRequest(err error) bool { return err == error(errNoHelp) }

// keyvalPair stores the first pair of s and returns what follows it.
func keyvalPair(root *Object, s, impliedKey string) (rest string, help bool, err error) {
	n := strings.IndexAny(s, "=,")
	if n < 0 {
		n = len(s)
	}
	key, after := s[:n], s[n:]
	if n > 0 && !strings.HasPrefix(after, "=") {
		if key == "help" || key == "?" {
			return strings.TrimPrefix(after, ","), true, nil
		}
		if impliedKey != "" {
			// Here a doubled comma is no comma of the value.
			return strings.TrimPrefix(after, ","), false, keyvalPut(root, impliedKey, key)
		}
	}
	if err := checkKey(key); err != nil {
		return "", false, err
	}
	if !strings.HasPrefix(after, "=") {
		return "", false, Errorf("Expected '=' after parameter '%s'", key)
	}
	value, rest := keyvalValue(after[1:])
	return rest, false, keyvalPut(root, key, value)
}

// keyvalValue reads a value up to its comma, undoubling commas.
func keyvalValue(s string) (value, rest string) {
	var sb strings.Builder
	for {
		i := strings.IndexByte(s, ',')
		if i < 0 {
			sb.WriteString(s)
			return sb.String(), ""
		}
		sb.WriteString(s[:i])
		if i+1 >= len(s) || s[i+1] != ',' {
			return sb.String(), s[i+1:]
		}
		sb.WriteByte(',')
		s = s[i+2:]
	}
}

// checkKey refuses a key whose fragments are not QAPI names or, past the first,
// list indexes. A name of the form __RFQDN_name holds dots of its own.
func checkKey(key string) error {
	for at, depth := 0, 1; ; depth++ {
		n := fragmentLen(key[at:], at > 0)
		if n < 0 || at+n < len(key) && key[at+n] != '.' {
			return Errorf("Invalid parameter '%s'", key)
		}
		if n > maxKeyFragment {
			fragment := ""
			if at > 0 || at+n < len(key) {
				fragment = " fragment"
			}
			return Errorf("Parameter%s '%s' is too long", fragment, key[at:at+n])
		}
		if depth > maxNesting {
			return Errorf("Parameter '%s' is too long", key)
		}
		if at += n; at == len(key) {
			return nil
		}
		at++
	}
}

// fragmentLen is the length of the fragment at the start of s, or -1.
func fragmentLen(s string, indexAllowed bool) int {
	if indexAllowed {
		if _, n := parseIndex(s); n > 0 {
			return n
		}
	}
	i := 0
	if strings.HasPrefix(s, "__") {
		for i = 2; i < len(s) && (isAlnum(s[i]) || s[i] == '-' || s[i] == '.'); i++ {
		}
		if i >= len(s) || s[i] != '_' {
			return -1
		}
		i++
	}
	if i >= len(s) || !isAlpha(s[i]) {
		return -1
	}
	for i < len(s) && (isAlnum(s[i]) || s[i] == '-' || s[i] == '_') {
		i++
	}
	return i
}

func isAlpha(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isAlnum(c byte) bool { return isAlpha(c) || isDigit(c) }

// parseIndex reads the digits at the start of s; n is their count.
func parseIndex(s string) (index, n int) {
	for n < len(s) && isDigit(s[n]) {
		if index = index*10 + int(s[n]-'0'); index > maxListIndex {
			index = maxListIndex
		}
		n++
	}
	return index, n
}

// isIndex tells whether a whole fragment is a list index.
func isIndex(s string) (int, bool) {
	i, n := parseIndex(s)
	return i, n > 0 && n == len(s)
}

// keyvalPut stores a value under a checked key.
func keyvalPut(root *Object, key string, value any) error {
	cur := root
	for at := 0; ; {
		n := fragmentLen(key[at:], at > 0)
		end := at + n
		fragment := key[at:end]
		old, exists := cur.Get(fragment)
		sub, isObject := old.(*Object)
		last := end == len(key)
		if exists && isObject == last {
			return Errorf("Parameters '%s.*' used inconsistently", key[:end])
		}
		if last {
			cur.Set(fragment, value)
			return nil
		}
		if !exists {
			sub = &Object{}
			cur.Set(fragment, sub)
		}
		cur, at = sub, end+1
	}
}

// listify turns objects whose keys are all indexes into lists, from the leaves
// up. prefix is the path of o with a dot at its end. Keys are checked, so the
// depth is at most maxNesting.
func listify(o *Object, prefix string) (any, error) {
	type element struct {
		index int
		value any
	}
	var (
		elements []element
		names    bool
	)
	for i := range o.members {
		m := &o.members[i]
		if sub, ok := m.value.(*Object); ok {
			v, err := listify(sub, prefix+m.key+".")
			if err != nil {
				return nil, err
			}
			m.value = v
		}
		if index, ok := isIndex(m.key); ok {
			elements = append(elements, element{index, m.value})
		} else {
			names = true
		}
	}
	if len(elements) == 0 {
		return o, nil
	}
	if names {
		return nil, Errorf("Parameters '%s*' used inconsistently", prefix)
	}
	slices.SortStableFunc(elements, func(a, b element) int { return a.index - b.index })
	list := make([]any, 0, len(elements))
	for _, e := range elements {
		switch {
		case e.index == len(list)-1: // the same number spelt twice, as 0 and 00
			list[e.index] = e.value
		case e.index > len(list):
			return nil, Errorf("Parameter '%s' missing", fmt.Sprint(prefix, len(list)))
		default:
			list = append(list, e.value)
		}
	}
	return list, nil
}
