package qapi

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
)

// The schema that query-qmp-schema shows is drawn from the argument types
// themselves, so it cannot say anything that the decoder does not do. Names of
// types are numbers, as in the field, since clients may not rely on them.

// CommandInfoSchema describes one command of a Schema.
type CommandInfoSchema struct {
	Name     string
	Args     reflect.Type // nil: none
	Ret      reflect.Type // nil: an empty object
	Features []string
	AllowOOB bool
}

// EventInfoSchema describes one event of a Schema.
type EventInfoSchema struct {
	Name string
	Data reflect.Type // nil: none
}

// Schema collects commands and events. Build it once at start-up; it may then be
// read from anywhere, and is not safe for concurrent changes.
type Schema struct {
	commands []CommandInfoSchema
	events   []EventInfoSchema
}

// NewSchema makes an empty schema.
func NewSchema() *Schema { return &Schema{} }

// Command adds a command. args is its argument struct and ret its result; nil
// stands for no arguments, and for an empty object. features are names such as
// "deprecated". It panics on a name given twice or a type without a JSON form.
func (s *Schema) Command(name string, args, ret reflect.Type, features ...string) {
	if slices.ContainsFunc(s.commands, func(c CommandInfoSchema) bool { return c.Name == name }) {
		panic("qapi: command twice in the schema: " + name)
	}
	for _, rt := range []reflect.Type{args, ret} {
		if rt != nil {
			planOf(rt)
		}
	}
	s.commands = append(s.commands, CommandInfoSchema{Name: name, Args: args, Ret: ret, Features: features})
}

// Event adds an event with the type of its data, nil for none. It panics like
// Command.
func (s *Schema) Event(name string, data reflect.Type) {
	if slices.ContainsFunc(s.events, func(e EventInfoSchema) bool { return e.Name == name }) {
		panic("qapi: event twice in the schema: " + name)
	}
	if data != nil {
		planOf(data)
	}
	s.events = append(s.events, EventInfoSchema{name, data})
}

// AllowOOB marks a command as one that may run out of band. It panics when the
// command is unknown.
func (s *Schema) AllowOOB(name string) {
	i := slices.IndexFunc(s.commands, func(c CommandInfoSchema) bool { return c.Name == name })
	if i < 0 {
		panic("qapi: no such command: " + name)
	}
	s.commands[i].AllowOOB = true
}

// Commands lists the commands in the order in which they were added.
func (s *Schema) Commands() []CommandInfoSchema { return slices.Clone(s.commands) }

// Introspect makes the array that query-qmp-schema returns. Everything that it
// mentions it also describes.
func (s *Schema) Introspect() []SchemaInfo {
	in := introspector{names: map[planKey]string{}, builtins: map[string]bool{}}
	in.emptyName = in.newName()

	in.types = append(in.types, SchemaInfo{Name: in.emptyName, MetaType: SchemaMetaTypeObject,
		Object: &SchemaInfoObject{Members: []SchemaInfoObjectMember{}}})
	var out []SchemaInfo
	for _, e := range s.events {
		out = append(out, SchemaInfo{Name: e.Name, MetaType: SchemaMetaTypeEvent,
			Event: &SchemaInfoEvent{ArgType: in.typeName(e.Data)}})
	}
	for _, c := range s.commands {
		cmd := &SchemaInfoCommand{ArgType: in.typeName(c.Args), RetType: in.typeName(c.Ret)}
		if c.AllowOOB {
			yes := true
			cmd.AllowOOB = &yes
		}
		out = append(out, SchemaInfo{Name: c.Name, MetaType: SchemaMetaTypeCommand, Features: c.Features, Command: cmd})
	}
	return append(out, in.types...)
}

// introspector gives names to types and describes each once.
type introspector struct {
	next      int
	emptyName string
	names     map[planKey]string
	builtins  map[string]bool
	types     []SchemaInfo
}

func (in *introspector) newName() string {
	in.next++
	return strconv.Itoa(in.next - 1)
}

func (in *introspector) typeName(rt reflect.Type) string {
	if rt == nil {
		return in.emptyName
	}
	return in.nameOf(planOf(rt))
}

// builtinJSON maps the built-in types to their kind in JSON.
var builtinJSON = map[string]JSONType{
	"str": JSONTypeString, "int": JSONTypeInt, "number": JSONTypeNumber,
	"bool": JSONTypeBoolean, "null": JSONTypeNull, "any": JSONTypeValue,
}

func (p *typePlan) builtin() string {
	switch p.kind {
	case planBool:
		return "bool"
	case planInt, planUint:
		return "int"
	case planNumber:
		return "number"
	case planString:
		return "str"
	case planAny:
		return "any"
	case planNull:
		return "null"
	}
	return ""
}

// nameOf names a type and, the first time, describes it.
func (in *introspector) nameOf(p *typePlan) string {
	if b := p.builtin(); b != "" {
		if !in.builtins[b] {
			in.builtins[b] = true
			in.types = append(in.types, SchemaInfo{Name: b, MetaType: SchemaMetaTypeBuiltin,
				Builtin: &SchemaInfoBuiltin{JSONType: builtinJSON[b]}})
		}
		return b
	}
	if p.kind == planStruct && len(p.fields) == 0 && len(p.features()) == 0 {
		return in.emptyName
	}
	key := planKey{p.rt, p.size}
	if name, ok := in.names[key]; ok {
		return name
	}
	if p.kind == planList {
		elem := in.nameOf(p.elem)
		name := "[" + elem + "]"
		if _, ok := in.names[key]; !ok {
			in.names[key] = name
			in.types = append(in.types, SchemaInfo{Name: name, MetaType: SchemaMetaTypeArray,
				Array: &SchemaInfoArray{ElementType: elem}})
		}
		return name
	}
	name := in.newName()
	in.names[key] = name
	at := len(in.types)
	in.types = append(in.types, SchemaInfo{}) // parents before children, as in the field
	in.types[at] = in.describe(name, p)
	return name
}

func (in *introspector) describe(name string, p *typePlan) SchemaInfo {
	info := SchemaInfo{Name: name, Features: p.features()}
	switch p.kind {
	case planEnum:
		features := map[string][]string{}
		if f, ok := reflect.Zero(p.rt).Interface().(interface{ QAPIEnumFeatures() map[string][]string }); ok {
			features = f.QAPIEnumFeatures()
		}
		e := &SchemaInfoEnum{Values: p.values}
		for _, v := range p.values {
			e.Members = append(e.Members, SchemaInfoEnumMember{Name: v, Features: features[v]})
		}
		info.MetaType, info.Enum = SchemaMetaTypeEnum, e
	case planAlternate:
		a := &SchemaInfoAlternate{}
		for _, f := range p.alternates {
			a.Members = append(a.Members, SchemaInfoAlternateMember{Type: in.nameOf(f.plan)})
		}
		info.MetaType, info.Alternate = SchemaMetaTypeAlternate, a
	case planStruct:
		o := &SchemaInfoObject{Members: in.members(p.fields)}
		if d := p.discriminator; d != nil {
			o.Tag = &d.name
			for _, v := range d.plan.values {
				o.Variants = append(o.Variants, SchemaInfoObjectVariant{Case: v, Type: in.variant(p.byValue[v])})
			}
		}
		info.MetaType, info.Object = SchemaMetaTypeObject, o
	default:
		panic(fmt.Sprintf("qapi: no schema for %v", p.rt))
	}
	return info
}

func (in *introspector) variant(br *branchPlan) string {
	if br == nil {
		return in.emptyName
	}
	if !br.wrap {
		return in.nameOf(br.field.plan)
	}
	name := in.newName()
	at := len(in.types)
	in.types = append(in.types, SchemaInfo{})
	in.types[at] = SchemaInfo{Name: name, MetaType: SchemaMetaTypeObject, Object: &SchemaInfoObject{
		Members: []SchemaInfoObjectMember{{Name: br.field.name, Type: in.nameOf(br.field.plan)}}}}
	return name
}

func (in *introspector) members(fields []*fieldPlan) []SchemaInfoObjectMember {
	out := make([]SchemaInfoObjectMember, 0, len(fields))
	for _, f := range fields {
		m := SchemaInfoObjectMember{Name: f.name, Type: in.nameOf(f.plan), Features: f.features}
		if f.optional {
			m.Default = new(any)
		}
		out = append(out, m)
	}
	return out
}

// features gives the features that a type declares for itself.
func (p *typePlan) features() []string {
	if f, ok := reflect.Zero(p.rt).Interface().(interface{ QAPIFeatures() []string }); ok {
		return f.QAPIFeatures()
	}
	return nil
}
