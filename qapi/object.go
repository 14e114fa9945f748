package qapi

import (
	"iter"
	"slices"
	"strconv"
)

// objectIndexMin is the number of members from which an Object keeps a map
// beside its list: below it, comparing keys in turn is faster.
const objectIndexMin = 12

// objectFirstCap is the room for members that the first one brings.
const objectFirstCap = 4

type member struct {
	key   string
	value any
}

// Object is a JSON object that remembers the order of insertion, which decides
// the order of output among keys of one hash bucket (see order.go). The zero
// value and nil are empty objects; nil must not be written to. Not safe for
// concurrent writes.
type Object struct {
	members []member
	index   map[string]int
}

// NewObject builds an object from alternating keys and values. It panics when a
// key is not a string or has no value: that is a mistake in the caller.
func NewObject(keysAndValues ...any) *Object {
	if len(keysAndValues)%2 != 0 {
		panic("qapi.NewObject: key without a value")
	}
	o := &Object{members: make([]member, 0, len(keysAndValues)/2)}
	for i := 0; i < len(keysAndValues); i += 2 {
		o.Set(keysAndValues[i].(string), keysAndValues[i+1])
	}
	return o
}

func (o *Object) find(key string) int {
	if o == nil {
		return -1
	}
	if o.index != nil {
		if i, ok := o.index[key]; ok {
			return i
		}
		return -1
	}
	for i := range o.members {
		if o.members[i].key == key {
			return i
		}
	}
	return -1
}

// Get returns the value of key and whether the object has it.
func (o *Object) Get(key string) (any, bool) {
	i := o.find(key)
	if i < 0 {
		return nil, false
	}
	return o.members[i].value, true
}

// Has tells whether the object has key.
func (o *Object) Has(key string) bool { return o.find(key) >= 0 }

// Set adds a member, or replaces the value in place when the key exists.
func (o *Object) Set(key string, value any) {
	if i := o.find(key); i >= 0 {
		o.members[i].value = value
		return
	}
	if o.members == nil {
		o.members = make([]member, 0, objectFirstCap)
	}
	o.members = append(o.members, member{key, value})
	if o.index != nil {
		o.index[key] = len(o.members) - 1
	} else if len(o.members) >= objectIndexMin {
		o.reindex()
	}
}

// Delete removes a member; a key that is absent is no error.
func (o *Object) Delete(key string) {
	i := o.find(key)
	if i < 0 {
		return
	}
	o.members = append(o.members[:i], o.members[i+1:]...)
	if o.index != nil {
		o.reindex()
	}
}

func (o *Object) reindex() {
	o.index = make(map[string]int, 2*len(o.members))
	for i := range o.members {
		o.index[o.members[i].key] = i
	}
}

// Len is the number of members.
func (o *Object) Len() int {
	if o == nil {
		return 0
	}
	return len(o.members)
}

// Keys lists the keys in the order of insertion.
func (o *Object) Keys() []string {
	keys := make([]string, 0, o.Len())
	for k := range o.All() {
		keys = append(keys, k)
	}
	return keys
}

// All walks the members in the order of insertion. The object must not be
// changed meanwhile, except by Set of an existing key.
func (o *Object) All() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		if o == nil {
			return
		}
		for i := range o.members {
			if !yield(o.members[i].key, o.members[i].value) {
				return
			}
		}
	}
}

// InOrder walks the members in the field's order (see order.go), in which the
// field looks for the first mistake, too.
func (o *Object) InOrder() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		order := make([]keyOrder, o.Len())
		for i := range order {
			order[i] = keyOrder{keyBucket(o.members[i].key), i}
		}
		slices.SortFunc(order, compareKeyOrder)
		for _, k := range order {
			if m := o.members[k.index]; !yield(m.key, m.value) {
				return
			}
		}
	}
}

// Flatten returns a flat object: a member b of member a becomes `a.b`, an
// element of list a `a.0` and so on. Empty objects and lists leave nothing.
func (o *Object) Flatten() *Object {
	flat := &Object{}
	var put func(key string, value any)
	put = func(key string, value any) {
		switch v := value.(type) {
		case *Object:
			for k, m := range v.All() {
				put(key+"."+k, m)
			}
		case []any:
			for i, m := range v {
				put(key+"."+strconv.Itoa(i), m)
			}
		default:
			flat.Set(key, v)
		}
	}
	for k, v := range o.All() {
		put(k, v)
	}
	return flat
}

// ToObject returns the object that a value of an object type with qapi tags, or
// a pointer to one, is on the wire.
func ToObject(v any) *Object {
	parsed, err := ParseJSON(AppendJSON(nil, v))
	if err != nil {
		panic("qapi: own output does not parse: " + err.Error())
	}
	return parsed.(*Object)
}
