package qapi

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"unicode/utf8"
)

// AppendJSON appends v in the field's compact form: members in the field's
// order, one space after ':' and ',', ASCII only. v is a value of the data
// model, or a struct, union, alternate or slice with qapi tags (or a pointer to
// one, which saves an allocation). Of a struct, absent optional members are
// left out. It panics on a Go type that has no JSON form.
func AppendJSON(dst []byte, v any) []byte { return encoder{}.any(dst, v, 0) }

// AppendPretty is AppendJSON with one member or element per line, indented by
// four spaces.
func AppendPretty(dst []byte, v any) []byte { return encoder{pretty: true}.any(dst, v, 0) }

type encoder struct{ pretty bool }

// line starts a new element: first tells that none came before it in its
// object or list, depth is the depth of the element.
func (e encoder) line(dst []byte, first bool, depth int) []byte {
	if e.pretty {
		if !first {
			dst = append(dst, ',')
		}
		return e.indent(dst, depth)
	}
	if !first {
		dst = append(dst, ", "...)
	}
	return dst
}

func (e encoder) indent(dst []byte, depth int) []byte {
	dst = append(dst, '\n')
	for range depth {
		dst = append(dst, "    "...)
	}
	return dst
}

func (e encoder) close(dst []byte, c byte, depth int) []byte {
	if e.pretty {
		dst = e.indent(dst, depth)
	}
	return append(dst, c)
}

func (e encoder) any(dst []byte, v any, depth int) []byte {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...)
	case bool:
		return strconv.AppendBool(dst, v)
	case string:
		return appendString(dst, v)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case uint64:
		return strconv.AppendUint(dst, v, 10)
	case int:
		return strconv.AppendInt(dst, int64(v), 10)
	case float64:
		return appendFloat(dst, v)
	case []any:
		dst = append(dst, '[')
		for i, x := range v {
			dst = e.line(dst, i == 0, depth+1)
			dst = e.any(dst, x, depth+1)
		}
		return e.close(dst, ']', depth)
	case *Object:
		if v == nil {
			return append(dst, "null"...)
		}
		return e.object(dst, v, depth)
	case *Error:
		dst = e.line(append(dst, '{'), true, depth+1)
		dst = appendString(append(dst, `"class": `...), string(v.Class))
		dst = e.line(dst, false, depth+1)
		dst = appendString(append(dst, `"desc": `...), v.Desc)
		return e.close(dst, '}', depth)
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer {
		if rv.IsNil() {
			return append(dst, "null"...)
		}
		rv = rv.Elem()
	}
	return e.typed(dst, planOf(rv.Type()), rv, depth)
}

func (e encoder) object(dst []byte, o *Object, depth int) []byte {
	var small [24]keyOrder
	order := small[:0]
	if len(o.members) > len(small) {
		order = make([]keyOrder, 0, len(o.members))
	}
	for i := range o.members {
		order = append(order, keyOrder{keyBucket(o.members[i].key), i})
	}
	slices.SortFunc(order, compareKeyOrder)
	dst = append(dst, '{')
	for i, k := range order {
		m := &o.members[k.index]
		dst = e.line(dst, i == 0, depth+1)
		dst = appendString(dst, m.key)
		dst = append(dst, ": "...)
		dst = e.any(dst, m.value, depth+1)
	}
	return e.close(dst, '}', depth)
}

func (e encoder) typed(dst []byte, p *typePlan, v reflect.Value, depth int) []byte {
	switch p.kind {
	case planBool:
		return strconv.AppendBool(dst, v.Bool())
	case planInt:
		return strconv.AppendInt(dst, v.Int(), 10)
	case planUint:
		return strconv.AppendUint(dst, v.Uint(), 10)
	case planNumber:
		return appendFloat(dst, v.Float())
	case planString, planEnum:
		return appendString(dst, v.String())
	case planAny:
		return e.any(dst, v.Interface(), depth)
	case planNull:
		return append(dst, "null"...)
	case planList:
		dst = append(dst, '[')
		for i := range v.Len() {
			dst = e.line(dst, i == 0, depth+1)
			dst = e.typed(dst, p.elem, v.Index(i), depth+1)
		}
		return e.close(dst, ']', depth)
	case planAlternate:
		for _, f := range p.alternates {
			if fv, ok := f.present(v); ok {
				return e.typed(dst, f.plan, fv, depth)
			}
		}
		return append(dst, "null"...)
	case planStruct:
		return e.members(dst, p, v, depth)
	}
	panic(fmt.Sprintf("qapi: no encoding for %v", p.rt))
}

func (e encoder) members(dst []byte, p *typePlan, v reflect.Value, depth int) []byte {
	out := p.out
	if d := p.discriminator; d != nil {
		if dv, ok := d.present(v); ok {
			if br := p.byValue[dv.String()]; br != nil && !v.FieldByIndex(br.field.index).IsNil() {
				out = br.out
			}
		}
	}
	dst = append(dst, '{')
	first := true
	for i := range out {
		m := &out[i]
		from := v
		if m.branch != nil {
			from = v.FieldByIndex(m.branch.index).Elem()
		}
		fv, ok := m.field.present(from)
		if !ok {
			continue
		}
		dst = e.line(dst, first, depth+1)
		first = false
		dst = append(dst, m.label...)
		dst = e.typed(dst, m.field.plan, fv, depth+1)
	}
	return e.close(dst, '}', depth)
}

// present gives the member's value within its struct, past the pointer, and
// whether it is there.
func (f *fieldPlan) present(v reflect.Value) (reflect.Value, bool) {
	fv := v.Field(f.index[0])
	for _, i := range f.index[1:] {
		fv = fv.Field(i)
	}
	if f.pointer {
		if fv.IsNil() {
			return fv, false
		}
		return fv.Elem(), true
	}
	if f.optional {
		switch fv.Kind() {
		case reflect.Slice, reflect.Interface, reflect.Pointer:
			return fv, !fv.IsNil()
		}
		return fv, !fv.IsZero()
	}
	return fv, true
}

// appendFloat prints like C's %.17g.
func appendFloat(dst []byte, f float64) []byte {
	switch {
	case math.IsInf(f, 1):
		return append(dst, "inf"...)
	case math.IsInf(f, -1):
		return append(dst, "-inf"...)
	case math.IsNaN(f):
		return append(dst, "nan"...)
	}
	return strconv.AppendFloat(dst, f, 'g', 17, 64)
}

const hexDigits = "0123456789ABCDEF"

func appendUnicode(dst []byte, u uint16) []byte {
	return append(dst, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}

// plainByte tells which bytes stand for themselves in a string.
var plainByte = func() (t [256]bool) {
	for c := 0x20; c < 0x7F; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// appendString prints a string in ASCII; what is not valid UTF-8 becomes the
// replacement character.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plainByte[c] {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		if c < utf8.RuneSelf {
			dst = appendEscaped(dst, c)
			i++
		} else {
			var n int
			dst, n = appendRune(dst, s[i:])
			i += n
		}
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func appendEscaped(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, '\\', 'b')
	case '\f':
		return append(dst, '\\', 'f')
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return appendUnicode(dst, uint16(c))
}

func appendRune(dst []byte, s string) ([]byte, int) {
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n <= 1 {
		if len(s) > 1 && s[0] == 0xC0 && s[1] == 0x80 {
			return appendUnicode(dst, 0), 2 // modified UTF-8 for U+0000
		}
		return appendUnicode(dst, 0xFFFD), invalidLen(s)
	}
	if isNonCharacter(r) {
		return appendUnicode(dst, 0xFFFD), n
	}
	if r > 0xFFFF {
		r -= 0x10000
		dst = appendUnicode(dst, uint16(0xD800+r>>10))
		return appendUnicode(dst, uint16(0xDC00+r&0x3FF)), n
	}
	return appendUnicode(dst, uint16(r)), n
}

// invalidLen is how much of s one replacement character stands for: a lead byte
// with those continuation bytes that its length promises.
func invalidLen(s string) int {
	want := 1
	switch c := s[0]; {
	case c >= 0xFE || c < 0xC0:
	case c >= 0xFC:
		want = 6
	case c >= 0xF8:
		want = 5
	case c >= 0xF0:
		want = 4
	case c >= 0xE0:
		want = 3
	default:
		want = 2
	}
	n := 1
	for n < want && n < len(s) && s[n]&0xC0 == 0x80 {
		n++
	}
	return n
}
