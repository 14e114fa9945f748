package qapi

import (
	"fmt"
	"slices"
	"strings"
)

// Comparison of two schemas by structure. Type names are numbers without
// meaning, so types are compared where they are used, along a path of names:
//
//	blockdev-add/arg-type/driver=qcow2/file    a member, through a branch
//	block-job-cancel/arg-type/force            a member
//	.../^value                                 a value of an enum
//	.../=value                                 a branch of a union or alternate
//	.../*                                      the elements of a list
//	.../$feature                               a feature
//
// The paths are like those by which libvirt probes for features.

// SchemaDifference is one place where two schemas differ.
type SchemaDifference struct {
	Path string
	// Kind is "absent" when only the reference has the thing at Path, "extra"
	// when only ours has it, and otherwise says in words what differs.
	Kind string
}

func (d SchemaDifference) String() string { return d.Kind + " " + d.Path }

// CompareSchemas lists how ours differs from reference, sorted by path. Both are
// results of query-qmp-schema. A type that is used in several places is
// compared once per pair of types, so its differences are listed at the first
// place, in order of command names.
func CompareSchemas(ours, reference []SchemaInfo) []SchemaDifference {
	c := comparer{ours: index(ours), ref: index(reference), done: map[[2]string]bool{}}
	c.topLevel()
	slices.SortFunc(c.diffs, func(a, b SchemaDifference) int { return strings.Compare(a.Path, b.Path) })
	return c.diffs
}

func index(s []SchemaInfo) map[string]*SchemaInfo {
	m := make(map[string]*SchemaInfo, len(s))
	for i := range s {
		m[s[i].Name] = &s[i]
	}
	return m
}

type comparer struct {
	ours, ref map[string]*SchemaInfo
	done      map[[2]string]bool
	diffs     []SchemaDifference
}

func (c *comparer) add(kind, path string) {
	c.diffs = append(c.diffs, SchemaDifference{Path: path, Kind: kind})
}

func topNames(m map[string]*SchemaInfo) []string {
	var names []string
	for n, e := range m {
		if e.MetaType == SchemaMetaTypeCommand || e.MetaType == SchemaMetaTypeEvent {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

func (c *comparer) topLevel() {
	c.sets("", "", topNames(c.ours), topNames(c.ref), func(name string) {
		o, r := c.ours[name], c.ref[name]
		if o.MetaType != r.MetaType {
			c.add("another meta-type", name)
			return
		}
		c.features(name, o.Features, r.Features)
		if o.Event != nil {
			c.types(name+"/arg-type", o.Event.ArgType, r.Event.ArgType)
			return
		}
		c.types(name+"/arg-type", o.Command.ArgType, r.Command.ArgType)
		c.types(name+"/ret-type", o.Command.RetType, r.Command.RetType)
		if isTrue(o.Command.AllowOOB) != isTrue(r.Command.AllowOOB) {
			c.add("another allow-oob", name)
		}
	})
}

func isTrue(b *bool) bool { return b != nil && *b }

// sets compares two sets of names and calls both for what they share.
func (c *comparer) sets(prefix, mark string, ours, ref []string, both func(string)) {
	for _, n := range ref {
		if !slices.Contains(ours, n) {
			c.add("absent", prefix+mark+n)
		}
	}
	for _, n := range ours {
		if !slices.Contains(ref, n) {
			c.add("extra", prefix+mark+n)
		} else if both != nil {
			both(n)
		}
	}
}

func (c *comparer) features(path string, ours, ref []string) {
	c.sets(path, "/$", ours, ref, nil)
}

func (c *comparer) types(path, ours, ref string) {
	pair := [2]string{ours, ref}
	if c.done[pair] {
		return
	}
	c.done[pair] = true
	o, r := c.ours[ours], c.ref[ref]
	switch {
	case o == nil || r == nil:
		c.add("a type that is not described", path)
		return
	case o.MetaType != r.MetaType:
		c.add(fmt.Sprintf("%s instead of %s", o.MetaType, r.MetaType), path)
		return
	}
	c.features(path, o.Features, r.Features)
	switch o.MetaType {
	case SchemaMetaTypeBuiltin:
		if ours != ref || o.Builtin.JSONType != r.Builtin.JSONType {
			c.add(fmt.Sprintf("%s instead of %s", ours, ref), path)
		}
	case SchemaMetaTypeArray:
		c.types(path+"/*", o.Array.ElementType, r.Array.ElementType)
	case SchemaMetaTypeEnum:
		c.enums(path, o.Enum, r.Enum)
	case SchemaMetaTypeAlternate:
		c.alternates(path, o.Alternate, r.Alternate)
	case SchemaMetaTypeObject:
		c.objects(path, o.Object, r.Object)
	}
}

func (c *comparer) enums(path string, ours, ref *SchemaInfoEnum) {
	om, rm := map[string][]string{}, map[string][]string{}
	names := func(e *SchemaInfoEnum, features map[string][]string) (n []string) {
		for _, m := range e.Members {
			n = append(n, m.Name)
			features[m.Name] = m.Features
		}
		if !slices.Equal(n, e.Values) {
			c.add("members that are not the values", path)
		}
		return n
	}
	c.sets(path, "/^", names(ours, om), names(ref, rm), func(n string) {
		c.features(path+"/^"+n, om[n], rm[n])
	})
}

// alternates pairs branches by their meta-type and, of built-ins, their name.
func (c *comparer) alternates(path string, ours, ref *SchemaInfoAlternate) {
	branches := func(m map[string]*SchemaInfo, a *SchemaInfoAlternate, to map[string]string) (n []string) {
		for _, b := range a.Members {
			label := b.Type
			if t := m[b.Type]; t != nil && t.MetaType != SchemaMetaTypeBuiltin {
				label = string(t.MetaType)
			}
			to[label] = b.Type
			n = append(n, label)
		}
		return n
	}
	om, rm := map[string]string{}, map[string]string{}
	c.sets(path, "/=", branches(c.ours, ours, om), branches(c.ref, ref, rm), func(n string) {
		c.types(path+"/="+n, om[n], rm[n])
	})
}

func (c *comparer) objects(path string, ours, ref *SchemaInfoObject) {
	om, rm := map[string]SchemaInfoObjectMember{}, map[string]SchemaInfoObjectMember{}
	members := func(o *SchemaInfoObject, to map[string]SchemaInfoObjectMember) (n []string) {
		for _, m := range o.Members {
			n = append(n, m.Name)
			to[m.Name] = m
		}
		return n
	}
	on, rn := members(ours, om), members(ref, rm)
	c.sets(path, "/", on, rn, func(n string) {
		at, o, r := path+"/"+n, om[n], rm[n]
		if (o.Default == nil) != (r.Default == nil) {
			c.add("another optionality", at)
		}
		c.features(at, o.Features, r.Features)
		c.types(at, o.Type, r.Type)
	})
	shared := func(n, other []string) []string {
		return slices.DeleteFunc(slices.Clone(n), func(s string) bool { return !slices.Contains(other, s) })
	}
	if !slices.Equal(shared(on, rn), shared(rn, on)) {
		c.add("another order of members", path)
	}
	c.variants(path, ours, ref)
}

func (c *comparer) variants(path string, ours, ref *SchemaInfoObject) {
	tag := func(o *SchemaInfoObject) string {
		if o.Tag == nil {
			return ""
		}
		return *o.Tag
	}
	if tag(ours) != tag(ref) {
		c.add("another tag", path)
		return
	}
	// A branch goes with its value of the tag; the enum tells of absent ones.
	values := c.ours[ours.memberType(tag(ours))].values()
	om, rm := map[string]string{}, map[string]string{}
	cases := func(o *SchemaInfoObject, to map[string]string) (n []string) {
		for _, v := range o.Variants {
			n = append(n, v.Case)
			to[v.Case] = v.Type
		}
		return n
	}
	inRef := slices.DeleteFunc(cases(ref, rm), func(v string) bool { return !slices.Contains(values, v) })
	c.sets(path, "/"+tag(ours)+"=", cases(ours, om), inRef, func(n string) {
		c.types(path+"/"+tag(ours)+"="+n, om[n], rm[n])
	})
}

func (o *SchemaInfoObject) memberType(name string) string {
	for _, m := range o.Members {
		if m.Name == name {
			return m.Type
		}
	}
	return ""
}

// values are the values of an enum; other types have none.
func (e *SchemaInfo) values() []string {
	if e == nil || e.Enum == nil {
		return nil
	}
	return e.Enum.Values
}
