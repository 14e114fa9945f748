package qmp

import (
	"context"
	"reflect"
	"slices"

	"blockd/qapi"
)

// CommandOptions are the properties of a command beside its types.
type CommandOptions struct {
	// Deprecated and Unstable are announced in the schema.
	Deprecated, Unstable bool
	// Features are announced in the schema, too: behaviour that clients probe
	// for.
	Features []string
	// ReadOnly lets sessions with the role read-only run the command: it changes
	// nothing for anybody else, tells no secrets, and does not make the daemon read
	// or write images. All others need the role control.
	ReadOnly bool
	// AllowOOB lets exec-oob run the command at once, beside one that runs in
	// band. Its handler must be quick and never wait.
	AllowOOB bool
}

// command is one registered command.
type command struct {
	name string
	opts CommandOptions
	args reflect.Type // nil: none
	ret  reflect.Type // nil: an empty object
	run  func(c *Context, args *qapi.Object) (any, error)
}

// Registry holds the commands and events that monitors offer. It is filled at
// start-up and must not change once a monitor uses it; then any goroutine may
// read it.
type Registry struct {
	byName   map[string]*command
	commands []*command
	schema   *qapi.Schema
}

// NewRegistry returns an empty Registry.
func NewRegistry() *Registry {
	return &Registry{byName: map[string]*command{}, schema: qapi.NewSchema()}
}

var emptyObject = &qapi.Object{}

// Register adds a command. A is the struct of its arguments and R its result;
// struct{} and qapi.Empty stand for none; R may be a pointer to the struct. h runs on the session's dispatcher
// and may block; its error is answered as qapi.AsError sees it. It panics when
// the name is taken or a type has no JSON form.
func Register[A, R any](r *Registry, name string, o CommandOptions, h func(c *Context, a *A) (R, error)) {
	c := &command{name: name, opts: o, args: schemaType[A](), ret: schemaType[R]()}
	noReturn := c.ret == nil
	c.run = func(ctx *Context, args *qapi.Object) (any, error) {
		a := new(A)
		var into any = a
		if c.args == nil {
			into = new(qapi.Empty)
		}
		if args == nil {
			args = emptyObject
		}
		if err := qapi.Decode(args, into); err != nil {
			return nil, err
		}
		ret, err := h(ctx, a)
		if err != nil {
			return nil, err
		}
		if noReturn {
			return emptyObject, nil
		}
		return ret, nil
	}
	features := slices.Clone(o.Features)
	if o.Deprecated {
		features = append(features, "deprecated")
	}
	if o.Unstable {
		features = append(features, "unstable")
	}
	r.schema.Command(name, c.args, c.ret, features...)
	if o.AllowOOB {
		r.schema.AllowOOB(name)
	}
	r.byName[name] = c
	r.commands = append(r.commands, c)
}

// Extend has a registered command go through h, which may leave it to next, what
// the command did so far. A and R are those of Register. It panics when there is
// no such command.
func Extend[A, R any](r *Registry, name string, h func(c *Context, a *A, next func() (R, error)) (R, error)) {
	old := r.byName[name]
	c := *old
	noReturn := c.ret == nil
	c.run = func(ctx *Context, args *qapi.Object) (any, error) {
		a := new(A)
		if args == nil {
			args = emptyObject
		}
		if err := qapi.Decode(args, a); err != nil {
			return nil, err
		}
		ret, err := h(ctx, a, func() (R, error) {
			v, err := old.run(ctx, args)
			ret, _ := v.(R)
			return ret, err
		})
		if err != nil {
			return nil, err
		}
		if noReturn {
			return emptyObject, nil
		}
		return ret, nil
	}
	r.byName[name] = &c
	r.commands[slices.Index(r.commands, old)] = &c
}

// RegisterEvent announces an event in the schema. D is the type of its data,
// struct{} for none. It panics like Register.
func RegisterEvent[D any](r *Registry, name string) {
	r.schema.Event(name, schemaType[D]())
}

func schemaType[T any]() reflect.Type {
	rt := reflect.TypeFor[T]()
	if rt.Kind() == reflect.Pointer {
		rt = rt.Elem()
	}
	if rt == reflect.TypeFor[struct{}]() || rt == reflect.TypeFor[qapi.Empty]() {
		return nil
	}
	return rt
}

// Commands is the result of query-commands: newest first, as the field has it.
func (r *Registry) Commands() []qapi.CommandInfo {
	list := make([]qapi.CommandInfo, 0, len(r.commands))
	for _, c := range slices.Backward(r.commands) {
		list = append(list, qapi.CommandInfo{Name: c.name})
	}
	return list
}

// Call runs a registered command for the program itself, as if a client had sent
// it. It panics when there is no such command.
func Call[A, R any](ctx context.Context, r *Registry, name string, a *A) (R, error) {
	ret, err := r.byName[name].run(&Context{Context: ctx}, qapi.ToObject(a))
	v, _ := ret.(R)
	return v, err
}
