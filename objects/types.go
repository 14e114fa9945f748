package objects

import (
	"slices"

	"blockd/qapi"
)

// property is one property of a type. get and set run with Registry.mu held,
// at once, and nil stands for what the property does not allow.
type property struct {
	name string
	typ  string // as clients see it
	get  func(Object) any
	set  func(o Object, value any) error
}

// class is a type of the field's object model.
type class struct {
	name      string
	parent    string // "" for a root
	abstract  bool
	creatable bool // by object-add: it or an ancestor says so
	iface     bool // an interface, which has no objects
	own       []property
}

// The names of types that are not object-add's.
const (
	typeObject        = "object"
	typeContainer     = "container"
	typeInterface     = "interface"
	typeUserCreatable = "user-creatable"
	typeEventLoopBase = "event-loop-base"
	typeSecretCommon  = "secret_common"
	typeAuthz         = "authz"
	typeTLSCreds      = "tls-creds"
)

// classes are the types, in the order in which the field lists them.
var classes = []*class{
	{name: string(qapi.ObjectTypeAuthzSimple), parent: typeAuthz, creatable: true, own: authzSimpleProperties},
	{name: typeSecretCommon, parent: typeObject, abstract: true, creatable: true, own: secretCommonProperties},
	{name: typeContainer, parent: typeObject},
	{name: typeInterface, abstract: true, iface: true},
	{name: string(qapi.ObjectTypeIothread), parent: typeEventLoopBase, own: ioThreadProperties},
	{name: string(qapi.ObjectTypeSecret), parent: typeSecretCommon, own: secretProperties},
	{name: typeAuthz, parent: typeObject, abstract: true},
	{name: typeTLSCreds, parent: typeObject, abstract: true, own: tlsCredsProperties},
	{name: string(qapi.ObjectTypeMainLoop), parent: typeEventLoopBase},
	{name: string(qapi.ObjectTypeAuthzListfile), parent: typeAuthz, creatable: true, own: authzListfileProperties},
	{name: typeEventLoopBase, parent: typeObject, abstract: true, creatable: true, own: eventLoopProperties},
	{name: string(qapi.ObjectTypeAuthzList), parent: typeAuthz, creatable: true, own: authzListProperties},
	{name: typeUserCreatable, parent: typeInterface, abstract: true, iface: true},
	{name: typeObject, abstract: true},
	{name: string(qapi.ObjectTypeTLSCredsX509), parent: typeTLSCreds, creatable: true, own: tlsCredsX509Properties},
	{name: string(qapi.ObjectTypeThrottleGroup), parent: typeObject, creatable: true, own: throttleGroupProperties},
}

func classOf(name string) *class {
	i := slices.IndexFunc(classes, func(c *class) bool { return c.name == name })
	if i < 0 {
		return nil
	}
	return classes[i]
}

// is tells whether c is the named type, descends from it or implements it.
func (c *class) is(name string) bool {
	for ; c != nil; c = classOf(c.parent) {
		if c.name == name || c.creatable && classOf(typeUserCreatable).is(name) {
			return true
		}
	}
	return false
}

// properties are those of c and its ancestors, the ancestors' first, without
// the `type` that every object has.
func (c *class) properties() []property {
	if p := classOf(c.parent); p != nil {
		return append(p.properties(), c.own...)
	}
	return slices.Clone(c.own)
}

// property finds one of c or its ancestors; nil: there is none.
func (c *class) property(name string) *property {
	for ; c != nil; c = classOf(c.parent) {
		for i := range c.own {
			if c.own[i].name == name {
				return &c.own[i]
			}
		}
	}
	return nil
}

// ListTypes is qom-list-types: all types, or those that are, descend from or
// implement the named one. Any goroutine.
func ListTypes(implements *string, abstract bool) []qapi.ObjectTypeInfo {
	list := []qapi.ObjectTypeInfo{}
	for _, c := range classes {
		if c.abstract && !abstract || implements != nil && !c.is(*implements) {
			continue
		}
		i := qapi.ObjectTypeInfo{Name: c.name}
		if c.abstract {
			i.Abstract = new(true)
		}
		if c.parent != "" {
			i.Parent = new(c.parent)
		}
		list = append(list, i)
	}
	return list
}

// ListProperties is qom-list-properties. Any goroutine. Errors are
// *qapi.Error.
func ListProperties(typename string) ([]qapi.ObjectPropertyInfo, error) {
	c := classOf(typename)
	switch {
	case c == nil:
		return nil, qapi.ClassErrorf(qapi.DeviceNotFound, "Class '%s' not found", typename)
	case c.iface:
		return nil, qapi.Errorf("Parameter 'typename' expects a QOM type")
	}
	return c.describe(), nil
}

func (c *class) describe() []qapi.ObjectPropertyInfo {
	list := []qapi.ObjectPropertyInfo{{Name: "type", Type: "string"}}
	for _, p := range c.properties() {
		list = append(list, qapi.ObjectPropertyInfo{Name: p.name, Type: p.typ})
	}
	return list
}

func wrongType(name, expected string) error {
	return qapi.Errorf("Invalid parameter type for '%s', expected: %s", name, expected)
}

func integer(name string, value any) (int64, error) {
	n, ok := value.(int64)
	if !ok {
		return 0, wrongType(name, "integer")
	}
	return n, nil
}
