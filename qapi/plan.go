package qapi

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// A typePlan is what the tags of a Go type say, worked out once: the decoder,
// the encoder and the schema walk plans and never look at tags.

type planKind uint8

const (
	planBool planKind = iota
	planInt
	planUint
	planNumber
	planString
	planEnum
	planAny
	planNull
	planList
	planStruct // also unions
	planAlternate
)

// Null is the type of an alternate's branch for JSON null.
type Null struct{}

type typePlan struct {
	kind planKind
	rt   reflect.Type
	bits int  // integers
	size bool // unsigned byte count

	values   []string // enum
	valueSet map[string]struct{}

	elem *typePlan // list

	fields        []*fieldPlan // struct: members, bases first
	byName        map[string]*fieldPlan
	discriminator *fieldPlan
	branches      []*branchPlan
	byValue       map[string]*branchPlan
	out           []outMember // struct: output order without a branch

	alternates []*fieldPlan // in order of declaration
}

type fieldPlan struct {
	name     string
	index    []int // for FieldByIndex, through embedded bases
	pointer  bool  // the Go field is a pointer to what plan describes
	optional bool
	plan     *typePlan
	features []string
}

type branchPlan struct {
	cases []string
	field *fieldPlan // pointer to the branch's struct
	wrap  bool
	out   []outMember // output order of base and branch together
}

// outMember is one member in output order.
type outMember struct {
	label  []byte // `"name": `
	field  *fieldPlan
	branch *fieldPlan // the pointer to go through first, for a branch's member
	order  keyOrder
}

var (
	planMu    sync.Mutex //blockd:short // guards building; finished plans are in planCache
	planCache sync.Map   // planKey -> *typePlan
)

type planKey struct {
	rt   reflect.Type
	size bool
}

var (
	anyType    = reflect.TypeFor[any]()
	nullType   = reflect.TypeFor[Null]()
	objectType = reflect.TypeFor[*Object]()
)

type enumType interface{ QAPIEnum() []string }

// planOf returns the plan of a type. It panics when the type's tags make no
// sense: that is a mistake in this program, which any test of the type finds.
func planOf(rt reflect.Type) *typePlan {
	if p, ok := planCache.Load(planKey{rt, false}); ok {
		return p.(*typePlan)
	}
	planMu.Lock()
	defer planMu.Unlock()
	b := planBuilder{pending: map[planKey]*typePlan{}}
	p := b.plan(planKey{rt, false})
	for _, union := range b.unions {
		union.orderBranches()
	}
	for k, v := range b.pending {
		planCache.LoadOrStore(k, v)
	}
	return p
}

// planBuilder builds a type and what it refers to; types may be recursive.
type planBuilder struct {
	pending map[planKey]*typePlan
	unions  []*typePlan
}

func (b *planBuilder) plan(key planKey) *typePlan {
	if p, ok := planCache.Load(key); ok {
		return p.(*typePlan)
	}
	if p, ok := b.pending[key]; ok {
		return p
	}
	rt := key.rt
	p := &typePlan{rt: rt, size: key.size}
	b.pending[key] = p
	switch {
	case rt == anyType || rt == objectType:
		p.kind = planAny
		return p
	case rt == nullType:
		p.kind = planNull
		return p
	}
	switch rt.Kind() {
	case reflect.Bool:
		p.kind = planBool
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		p.kind, p.bits = planInt, rt.Bits()
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		p.kind, p.bits = planUint, rt.Bits()
	case reflect.Float64:
		p.kind = planNumber
	case reflect.String:
		b.planString(p)
	case reflect.Slice:
		p.kind = planList
		p.elem = b.plan(planKey{rt.Elem(), false})
	case reflect.Struct:
		b.planStruct(p)
	default:
		panic(fmt.Sprintf("qapi: type %v has no JSON form", rt))
	}
	return p
}

func (b *planBuilder) planString(p *typePlan) {
	p.kind = planString
	if e, ok := reflect.Zero(p.rt).Interface().(enumType); ok {
		p.kind = planEnum
		p.values = e.QAPIEnum()
		p.valueSet = make(map[string]struct{}, len(p.values))
		for _, v := range p.values {
			p.valueSet[v] = struct{}{}
		}
	}
}

// tag is a parsed field tag.
type tag struct {
	name                                             string
	optional, required, size, disc, wrap, alt, iscas bool
	cases, features                                  []string
}

func parseTag(rt reflect.Type, f reflect.StructField) (tag, bool) {
	text, ok := f.Tag.Lookup("qapi")
	if !ok {
		return tag{}, false
	}
	parts := strings.Split(text, ",")
	t := tag{name: parts[0]}
	for _, opt := range parts[1:] {
		key, value, _ := strings.Cut(opt, "=")
		switch key {
		case "optional":
			t.optional = true
		case "required":
			t.required = true
		case "size":
			t.size = true
		case "discriminator":
			t.disc = true
		case "wrap":
			t.wrap = true
		case "alt":
			t.alt = true
		case "case":
			t.iscas, t.cases = true, strings.Split(value, "|")
		case "features":
			t.features = strings.Split(value, "|")
		default:
			panic(fmt.Sprintf("qapi: %v.%s: unknown tag option %q", rt, f.Name, key))
		}
	}
	return t, true
}

func (b *planBuilder) planStruct(p *typePlan) {
	p.kind = planStruct
	p.byName = map[string]*fieldPlan{}
	b.addFields(p, p.rt, nil)
	switch {
	case len(p.alternates) > 0:
		p.kind = planAlternate
		if len(p.fields) > 0 || len(p.branches) > 0 {
			panic(fmt.Sprintf("qapi: %v mixes alternate branches with members", p.rt))
		}
		return
	case len(p.branches) > 0 && p.discriminator == nil:
		panic(fmt.Sprintf("qapi: %v has branches but no discriminator", p.rt))
	}
	p.out = make([]outMember, 0, len(p.fields))
	for i, f := range p.fields {
		p.out = append(p.out, newOutMember(f, nil, i))
	}
	sortOut(p.out)
	if p.discriminator != nil {
		b.unions = append(b.unions, p)
	}
}

func (b *planBuilder) addFields(p *typePlan, rt reflect.Type, index []int) {
	for i := range rt.NumField() {
		sf := rt.Field(i)
		at := append(slices.Clone(index), i)
		if sf.Anonymous && sf.Type.Kind() == reflect.Struct {
			b.addFields(p, sf.Type, at)
			continue
		}
		t, ok := parseTag(rt, sf)
		if !ok {
			continue
		}
		if !sf.IsExported() {
			panic(fmt.Sprintf("qapi: %v.%s is tagged but not exported", rt, sf.Name))
		}
		f := &fieldPlan{name: t.name, index: at, features: t.features}
		ft := sf.Type
		if ft.Kind() == reflect.Pointer && ft != objectType {
			f.pointer = true
			ft = ft.Elem()
		}
		f.optional = t.optional || f.pointer && !t.required
		f.plan = b.plan(planKey{ft, t.size})
		switch {
		case t.iscas:
			b.addBranch(p, f, t)
		case t.alt:
			p.alternates = append(p.alternates, f)
		default:
			if p.byName[f.name] != nil || f.name == "" {
				panic(fmt.Sprintf("qapi: %v has a duplicate or empty member %q", rt, f.name))
			}
			p.fields = append(p.fields, f)
			p.byName[f.name] = f
			if t.disc {
				p.discriminator = f
				p.byValue = map[string]*branchPlan{}
			}
		}
	}
}

func (b *planBuilder) addBranch(p *typePlan, f *fieldPlan, t tag) {
	if !f.pointer || f.plan.rt.Kind() != reflect.Struct || p.discriminator == nil {
		panic(fmt.Sprintf("qapi: %v: branch %v must be a pointer to a struct, after the discriminator", p.rt, t.cases))
	}
	br := &branchPlan{cases: t.cases, field: f, wrap: t.wrap}
	if t.wrap {
		f.name = "data"
	}
	p.branches = append(p.branches, br)
	for _, c := range t.cases {
		if _, ok := p.discriminator.plan.valueSet[c]; !ok || p.byValue[c] != nil {
			panic(fmt.Sprintf("qapi: %v: case %q is no value of the discriminator, or taken", p.rt, c))
		}
		p.byValue[c] = br
	}
}

// orderBranches merges base and branch members, once both are planned.
func (p *typePlan) orderBranches() {
	for _, br := range p.branches {
		br.out = slices.Clone(p.out)
		n := len(p.fields)
		if br.wrap {
			br.out = append(br.out, newOutMember(br.field, nil, n))
		} else {
			if br.field.plan.discriminator != nil || br.field.plan.kind != planStruct {
				panic(fmt.Sprintf("qapi: %v: a branch must be a plain struct", p.rt))
			}
			for i, f := range br.field.plan.fields {
				if p.byName[f.name] != nil {
					panic(fmt.Sprintf("qapi: %v: branch repeats the member %q", p.rt, f.name))
				}
				br.out = append(br.out, newOutMember(f, br.field, n+i))
			}
		}
		sortOut(br.out)
	}
}

func newOutMember(f, branch *fieldPlan, i int) outMember {
	label := append(appendString(nil, f.name), ": "...)
	return outMember{label, f, branch, keyOrder{keyBucket(f.name), i}}
}

func sortOut(out []outMember) {
	slices.SortFunc(out, func(a, b outMember) int { return compareKeyOrder(a.order, b.order) })
}
