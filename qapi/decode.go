package qapi

import (
	"fmt"
	"reflect"
	"strings"
)

// Decoding visits members in the order of the schema, so the first mistake in
// that order is the one reported, and looks for unexpected members last. Error
// texts name nested members by path, except where the field itself does not:
// enum values, ranges of narrow integers and alternates give the last name
// alone.

// Decode fills the struct that into points to from a value by the rules of QMP
// arguments. Numbers, strings and booleans are not converted into each other.
// Errors are *Error; into may then be partly filled. It panics when into is no
// pointer to a type with qapi tags.
func Decode(v any, into any) error {
	return decodeInto(&decoder{}, v, into)
}

// DecodeKeyval is Decode for what ParseKeyval returns: every scalar is a string
// and is converted to the member's type.
func DecodeKeyval(obj *Object, into any) error {
	return decodeInto(&decoder{keyval: true}, obj, into)
}

// DecodeOption decodes the argument of a command line option: JSON if it starts
// with '{', else key=value pairs (see ParseKeyval).
func DecodeOption(s, impliedKey string, into any) error {
	if strings.HasPrefix(s, "{") {
		v, err := ParseJSON([]byte(s))
		if err != nil {
			return err
		}
		return Decode(v, into)
	}
	obj, err := ParseKeyval(s, impliedKey)
	if err != nil {
		return err
	}
	return DecodeKeyval(obj, into)
}

func decodeInto(d *decoder, v any, into any) error {
	rv := reflect.ValueOf(into)
	if rv.Kind() != reflect.Pointer || rv.IsNil() {
		panic(fmt.Sprintf("qapi: cannot decode into %T", into))
	}
	rv = rv.Elem()
	if err := d.value(planOf(rv.Type()), v, rv, ""); err != nil {
		return err.final(d)
	}
	return nil
}

type decoder struct {
	keyval bool // every scalar is a string
	flat   bool // a scalar may be a string
}

// decodeError is an error under way from the member to the root; each level
// that it passes puts its name in front.
type decodeError struct {
	format string // with one %s for the path, unless text is set
	text   string
	path   string
	// unexpected: nobody knows the member at path.
	unexpected bool
	// missing: there is no member at path.
	missing bool
}

func (e *decodeError) final(*decoder) *Error {
	if e.text != "" {
		return &Error{Class: GenericError, Desc: e.text}
	}
	path := e.path
	if path == "" {
		path = "<anonymous>"
	}
	err := Errorf(e.format, path)
	if e.unexpected {
		err.unexpected = path
	}
	if e.missing {
		err.missing = path
	}
	return err
}

func (e *decodeError) within(name string) *decodeError {
	if e.text != "" {
		return e
	}
	switch {
	case e.path == "" || e.path[0] == '[':
		e.path = name + e.path
	default:
		e.path = name + "." + e.path
	}
	return e
}

func wrongType(expected string) *decodeError {
	return &decodeError{format: "Invalid parameter type for '%s', expected: " + expected}
}

func expects(what string) *decodeError {
	return &decodeError{format: "Parameter '%s' expects " + what}
}

func local(name, format string, args ...any) *decodeError {
	if name == "" {
		name = "null" // the field prints list elements and roots like this
	}
	return &decodeError{text: fmt.Sprintf(format, append([]any{name}, args...)...)}
}

// value decodes v into dst. name is the member's own name, empty for a list
// element.
func (d *decoder) value(p *typePlan, v any, dst reflect.Value, name string) *decodeError {
	switch p.kind {
	case planStruct:
		o, ok := v.(*Object)
		if !ok {
			return wrongType("object")
		}
		return d.members(p, o, dst)
	case planList:
		list, ok := v.([]any)
		if !ok {
			return wrongType("array")
		}
		return d.list(p, list, dst)
	case planAlternate:
		return d.alternate(p, v, dst, name)
	case planAny:
		return d.anyValue(p, v, dst)
	case planNull:
		if v != nil {
			return wrongType("null")
		}
		return nil
	}
	if d.keyval {
		s, ok := v.(string)
		if !ok {
			return &decodeError{format: "Parameters '%s.*' are unexpected"}
		}
		return keyvalScalar(p, s, dst, name)
	}
	if s, ok := v.(string); ok && d.flat {
		return keyvalScalar(p, s, dst, name)
	}
	return scalar(p, v, dst, name)
}

func (d *decoder) anyValue(p *typePlan, v any, dst reflect.Value) *decodeError {
	if p.rt == objectType {
		o, ok := v.(*Object)
		if !ok {
			return wrongType("object")
		}
		dst.Set(reflect.ValueOf(o))
		return nil
	}
	if v == nil {
		dst.SetZero()
		return nil
	}
	dst.Set(reflect.ValueOf(v))
	return nil
}

func (d *decoder) list(p *typePlan, list []any, dst reflect.Value) *decodeError {
	out := reflect.MakeSlice(p.rt, len(list), len(list))
	for i, v := range list {
		if err := d.value(p.elem, v, out.Index(i), ""); err != nil {
			if d.keyval {
				return err.within(fmt.Sprint(i))
			}
			return err.within(fmt.Sprintf("[%d]", i))
		}
	}
	dst.Set(out)
	return nil
}

func (d *decoder) members(p *typePlan, o *Object, dst reflect.Value) *decodeError {
	seen, err := d.fields(p, o, dst)
	if err != nil {
		return err
	}
	var br *branchPlan
	if p.discriminator != nil {
		if dv, ok := p.discriminator.present(dst); ok {
			br = p.byValue[dv.String()]
		}
	}
	if br != nil {
		n, err := d.branch(br, o, dst)
		if err != nil {
			return err
		}
		seen += n
	}
	if seen == o.Len() {
		return nil
	}
	return unexpected(o, func(key string) bool {
		switch {
		case p.byName[key] != nil:
			return true
		case br == nil:
			return false
		case br.wrap:
			return key == br.field.name
		}
		return br.field.plan.byName[key] != nil
	})
}

func (d *decoder) fields(p *typePlan, o *Object, dst reflect.Value) (seen int, err *decodeError) {
	for _, f := range p.fields {
		v, ok := o.Get(f.name)
		if !ok {
			if !f.optional {
				return 0, missing(f.name)
			}
			continue
		}
		seen++
		if err := d.value(f.plan, v, f.target(dst), f.name); err != nil {
			return 0, err.within(f.name)
		}
	}
	return seen, nil
}

func (d *decoder) branch(br *branchPlan, o *Object, dst reflect.Value) (int, *decodeError) {
	target := br.field.target(dst)
	if !br.wrap {
		return d.fields(br.field.plan, o, target)
	}
	v, ok := o.Get(br.field.name)
	if !ok {
		return 0, missing(br.field.name)
	}
	if err := d.value(br.field.plan, v, target, br.field.name); err != nil {
		return 0, err.within(br.field.name)
	}
	return 1, nil
}

// target is the place to decode the member into, behind a new pointer if the
// field is one.
func (f *fieldPlan) target(dst reflect.Value) reflect.Value {
	fv := dst.FieldByIndex(f.index)
	if !f.pointer {
		return fv
	}
	fv.Set(reflect.New(fv.Type().Elem()))
	return fv.Elem()
}

func missing(name string) *decodeError {
	return &decodeError{format: "Parameter '%s' is missing", path: name, missing: true}
}

func (d *decoder) alternate(p *typePlan, v any, dst reflect.Value, name string) *decodeError {
	for _, f := range p.alternates {
		if f.plan.takes(v) {
			return d.value(f.plan, v, f.target(dst), name)
		}
	}
	return local(name, "Invalid parameter type for '%s', expected: "+p.rt.Name())
}

// takes tells whether an alternate's branch of this type is the one for v.
func (p *typePlan) takes(v any) bool {
	switch v.(type) {
	case nil:
		return p.kind == planNull
	case string:
		return p.kind == planString || p.kind == planEnum
	case bool:
		return p.kind == planBool
	case int64, uint64, float64:
		return p.kind == planInt || p.kind == planUint || p.kind == planNumber
	case []any:
		return p.kind == planList
	case *Object:
		return p.kind == planStruct
	}
	return false
}

func scalar(p *typePlan, v any, dst reflect.Value, name string) *decodeError {
	switch p.kind {
	case planBool:
		b, ok := v.(bool)
		if !ok {
			return wrongType("boolean")
		}
		dst.SetBool(b)
	case planString:
		s, ok := v.(string)
		if !ok {
			return wrongType("string")
		}
		dst.SetString(s)
	case planEnum:
		s, ok := v.(string)
		if !ok {
			return wrongType("string")
		}
		return setEnum(p, s, dst, name)
	case planNumber:
		switch n := v.(type) {
		case float64:
			dst.SetFloat(n)
		case int64:
			dst.SetFloat(float64(n))
		case uint64:
			dst.SetFloat(float64(n))
		default:
			return wrongType("number")
		}
	case planInt:
		n, ok := v.(int64)
		if !ok {
			return wrongType("integer")
		}
		return setInt(p, n, dst, name)
	case planUint:
		switch n := v.(type) {
		case uint64:
			return setUint(p, n, dst, name)
		case int64:
			return setUint(p, uint64(n), dst, name) // negative wraps, as in the field
		}
		return expects("uint64")
	}
	return nil
}

func setEnum(p *typePlan, s string, dst reflect.Value, name string) *decodeError {
	if _, ok := p.valueSet[s]; !ok {
		return local(name, "Parameter '%s' does not accept value '%s'", s)
	}
	dst.SetString(s)
	return nil
}

func setInt(p *typePlan, n int64, dst reflect.Value, name string) *decodeError {
	if dst.OverflowInt(n) {
		return local(name, "Parameter '%s' expects int%d_t", p.bits)
	}
	dst.SetInt(n)
	return nil
}

func setUint(p *typePlan, n uint64, dst reflect.Value, name string) *decodeError {
	if dst.OverflowUint(n) {
		return local(name, "Parameter '%s' expects uint%d_t", p.bits)
	}
	dst.SetUint(n)
	return nil
}

// unexpected reports the member of o that is not known. Of several, it names
// the one that comes first in the output order, so the choice is stable.
func unexpected(o *Object, known func(string) bool) *decodeError {
	var (
		worst string
		order keyOrder
		found bool
	)
	for i := range o.members {
		key := o.members[i].key
		if known(key) {
			continue
		}
		if k := (keyOrder{keyBucket(key), i}); !found || k.before(order) {
			worst, order, found = key, k, true
		}
	}
	return &decodeError{format: "Parameter '%s' is unexpected", path: worst, unexpected: true}
}
