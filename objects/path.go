package objects

import (
	"maps"
	"slices"
	"strings"

	"blockd/qapi"
)

// The objects stand in a tree: the root, a container, has the container
// `objects`, which has the objects. An absolute path names each step. A
// partial one ("tg0", "objects/tg0") is looked for below every container, and
// must be found once.

const objectsName = "objects"

// place is a node of the tree. It is good while Registry.mu is held.
type place struct {
	path     string // absolute
	class    *class
	object   Object              // nil for a container
	children func() []string     // of a container, sorted
	child    func(string) *place // nil for one that is not there
}

func (r *Registry) rootPlace() *place {
	return &place{
		path: "/", class: classOf(typeContainer),
		children: func() []string { return []string{objectsName} },
		child: func(name string) *place {
			if name == objectsName {
				return r.objectsPlace()
			}
			return nil
		},
	}
}

func (r *Registry) objectsPlace() *place {
	return &place{
		path: "/" + objectsName, class: classOf(typeContainer),
		children: func() []string { return slices.Sorted(maps.Keys(r.entries)) },
		child: func(name string) *place {
			e := r.entries[name]
			if e == nil {
				return nil
			}
			return &place{
				path: "/" + objectsName + "/" + name, class: classOf(string(e.object.QOMType())), object: e.object,
				children: func() []string { return nil },
				child:    func(string) *place { return nil },
			}
		},
	}
}

// resolve finds what a path names. nil: nothing, or with ambiguous more than
// one place. Called with mu held.
func (r *Registry) resolve(path string) (found *place, ambiguous bool) {
	parts := strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
	if strings.HasPrefix(path, "/") {
		return r.rootPlace().descend(parts), false
	}
	if len(parts) == 0 { // every place
		return nil, true
	}
	for _, from := range []*place{r.rootPlace(), r.objectsPlace()} {
		p := from.descend(parts)
		switch {
		case p == nil:
		case found != nil:
			return nil, true
		default:
			found = p
		}
	}
	return found, false
}

func (p *place) descend(parts []string) *place {
	for _, name := range parts {
		if p = p.child(name); p == nil {
			return nil
		}
	}
	return p
}

// NotFound is the error for a path or an id that names nothing.
func NotFound(path string) error {
	return qapi.ClassErrorf(qapi.DeviceNotFound, "Device '%s' not found", path)
}

// describe lists the properties of a place, its children among them.
func (p *place) describe() []qapi.ObjectPropertyInfo {
	list := p.class.describe()
	for _, name := range p.children() {
		list = append(list, qapi.ObjectPropertyInfo{Name: name, Type: "child<" + p.child(name).class.name + ">"})
	}
	return list
}

// get returns the value of a property; false: there is none of that name, or
// it cannot be read.
func (p *place) get(name string) (any, bool) {
	if name == "type" {
		return p.class.name, true
	}
	if c := p.child(name); c != nil {
		return c.path, true
	}
	if q := p.class.property(name); q != nil && q.get != nil {
		return q.get(p.object), true
	}
	return nil, false
}

// List is qom-list. Errors are *qapi.Error.
func (r *Registry) List(path string) ([]qapi.ObjectPropertyInfo, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := r.resolveToList(path)
	if err != nil {
		return nil, err
	}
	return p.describe(), nil
}

func (r *Registry) resolveToList(path string) (*place, error) {
	p, ambiguous := r.resolve(path)
	switch {
	case ambiguous:
		return nil, qapi.Errorf("Path '%s' is ambiguous", path)
	case p == nil:
		return nil, NotFound(path)
	}
	return p, nil
}

// ListGet is qom-list-get: the properties of each path with their values.
// Errors are *qapi.Error.
func (r *Registry) ListGet(paths []string) ([]qapi.ObjectPropertiesValues, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]qapi.ObjectPropertiesValues, 0, len(paths))
	for _, path := range paths {
		p, err := r.resolveToList(path)
		if err != nil {
			return nil, err
		}
		values := qapi.ObjectPropertiesValues{Properties: []qapi.ObjectPropertyValue{}}
		for _, i := range p.describe() {
			v, _ := p.get(i.Name)
			values.Properties = append(values.Properties, qapi.ObjectPropertyValue{Name: i.Name, Type: i.Type, Value: v})
		}
		list = append(list, values)
	}
	return list, nil
}

// Get is qom-get. Errors are *qapi.Error.
func (r *Registry) Get(path, property string) (any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, _ := r.resolve(path)
	if p == nil {
		return nil, NotFound(path)
	}
	v, ok := p.get(property)
	if !ok {
		return nil, qapi.Errorf("Property '%s.%s' not found", p.class.name, property)
	}
	return v, nil
}

// Set is qom-set; value is as the JSON reader gives it. Errors are
// *qapi.Error.
func (r *Registry) Set(path, property string, value any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, _ := r.resolve(path)
	if p == nil {
		return NotFound(path)
	}
	q := p.class.property(property)
	switch {
	case q != nil && q.set != nil:
		return q.set(p.object, value)
	case q != nil || property == "type" || p.child(property) != nil:
		return qapi.Errorf("Property '%s.%s' is not writable", p.class.name, property)
	}
	return qapi.Errorf("Property '%s.%s' not found", p.class.name, property)
}
