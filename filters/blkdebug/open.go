package blkdebug

import (
	"context"
	"fmt"
	"math"
	"strings"
	"syscall"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/qapi"
)

// ReadFile reads a config file; fromHeader: an image header named it. Its
// error wraps a syscall.Errno.
type ReadFile func(name string, fromHeader bool) ([]byte, error)

// Type returns the driver type for the graph's registry.
func Type(read ReadFile) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverBlkdebug),
		Filter:   true,
		Required: blockgraph.RequiredChildren("image"),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "image", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.Blkdebug.Image}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return open(r, read)
		},
		StrongOptions:   strongOptions,
		ExactFilename:   exactFilename,
		ParseFilename:   parseFilename,
		PartialChildren: []blockgraph.ChildSpec{{Name: "image", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary}},
	}
}

func open(r *blockgraph.OpenRequest, read ReadFile) (blockgraph.Driver, error) {
	o := r.Options.Blkdebug
	f := &Filter{Through: pass.Through{Node: r.Node}, rules: newRules()}
	var list []*rule
	if o.Config != nil {
		text, err := read(*o.Config, r.FromHeader)
		if err != nil {
			return nil, blockgraph.Errorf(blockgraph.Errno(err), "Could not read blkdebug config file: %s", blockgraph.Strerror(err))
		}
		if list, err = parseConfig(text); err != nil {
			return nil, err
		}
	}
	for _, r := range append(list, optionRules(o)...) {
		f.rules.add(r)
	}
	f.take, f.unshare = perms(o.TakeChildPerms), perms(o.UnshareChildPerms)
	if err := f.setLimits(o); err != nil {
		return nil, err
	}
	f.DebugEvent(string(qapi.BlkdebugEventNone))
	return f, nil
}

// optionRules returns the rules of the options: errors first, which is their
// order beside a config file's, too.
func optionRules(o *qapi.BlockdevOptionsBlkdebug) []*rule {
	var list []*rule
	for _, x := range o.InjectError {
		i := &injection{types: ioDefault, errno: int32(syscall.EIO), off: -1}
		if x.IOType != nil {
			i.types = ioTypes[*x.IOType]
		}
		set(&i.errno, x.Errno)
		if x.Sector != nil && *x.Sector != -1 {
			i.setSector(*x.Sector)
		}
		i.once = x.Once != nil && *x.Once
		list = append(list, &rule{event: x.Event, state: state(x.State), inject: i})
	}
	for _, x := range o.SetState {
		next := int32(x.NewState)
		list = append(list, &rule{event: x.Event, state: state(x.State), setState: &next})
	}
	return list
}

// setSector narrows an injection to a sector of 512 bytes. One past what an
// offset can say is never hit.
func (i *injection) setSector(sector int64) {
	if sector < 0 || sector > math.MaxInt64/512 {
		i.off, i.types = math.MaxInt64, 0
		return
	}
	i.off = sector * 512
}

func set(p *int32, v *int64) {
	if v != nil {
		*p = int32(*v)
	}
}

func state(v *int64) (s int32) {
	set(&s, v)
	return s
}

func perms(list []qapi.BlockPermission) (p blockgraph.Perm) {
	for _, x := range list {
		switch x {
		case qapi.BlockPermissionConsistentRead:
			p |= blockgraph.PermConsistentRead
		case qapi.BlockPermissionWrite:
			p |= blockgraph.PermWrite
		case qapi.BlockPermissionWriteUnchanged:
			p |= blockgraph.PermWriteUnchanged
		case qapi.BlockPermissionResize:
			p |= blockgraph.PermResize
		}
	}
	return p
}

// setLimits checks the limits, in the field's order.
func (f *Filter) setLimits(o *qapi.BlockdevOptionsBlkdebug) error {
	sizes := []struct {
		name string
		v    int64
	}{
		{"align", value(o.Align)}, {"max-transfer", value(o.MaxTransfer)},
		{"opt-write-zero", value(o.OptWriteZero)}, {"max-write-zero", value(o.MaxWriteZero)},
		{"opt-discard", value(o.OptDiscard)}, {"max-discard", value(o.MaxDiscard)},
	}
	for _, s := range sizes {
		if s.v < 0 {
			return blockgraph.Errorf(syscall.EINVAL, "Parameter '%s' expects a non-negative number below 2^64", s.name)
		}
	}
	l := &f.limits
	align := int64(0)
	check := func(i int, unit int64, dst *int64) error {
		v := sizes[i].v
		bad := unit > 0 && v%unit != 0 || unit == 0 && v&(v-1) != 0
		if v != 0 && (v >= math.MaxInt32 || bad) {
			return blockgraph.Errorf(syscall.EINVAL, "Cannot meet constraints with %s %d", sizes[i].name, v)
		}
		*dst = v
		return nil
	}
	if err := check(0, 0, &l.RequestAlignment); err != nil {
		return err
	}
	align = max(l.RequestAlignment, f.Below().Child().Limits().RequestAlignment, 1)
	if err := check(1, align, &l.MaxTransfer); err != nil {
		return err
	}
	if err := check(2, align, &l.ZeroAlignment); err != nil {
		return err
	}
	if err := check(3, max(align, l.ZeroAlignment), &l.MaxZero); err != nil {
		return err
	}
	if err := check(4, align, &l.DiscardAlignment); err != nil {
		return err
	}
	return check(5, max(align, l.DiscardAlignment), &l.MaxDiscard)
}

func value[T int32 | int64](p *T) int64 {
	if p == nil {
		return 0
	}
	return int64(*p)
}

// strongOptions gives all options but the permissions, lists flattened as the
// field prints them.
func strongOptions(o *qapi.BlockdevOptions) *qapi.Object {
	b := o.Blkdebug
	s := qapi.NewObject()
	put(s, "config", b.Config)
	put(s, "align", b.Align)
	put(s, "max-transfer", b.MaxTransfer)
	put(s, "opt-write-zero", b.OptWriteZero)
	put(s, "max-write-zero", b.MaxWriteZero)
	put(s, "opt-discard", b.OptDiscard)
	put(s, "max-discard", b.MaxDiscard)
	for i, x := range b.InjectError {
		at := fmt.Sprintf("inject-error.%d.", i)
		s.Set(at+"event", string(x.Event))
		put(s, at+"state", x.State)
		if x.IOType != nil {
			s.Set(at+"iotype", string(*x.IOType))
		}
		put(s, at+"errno", x.Errno)
		put(s, at+"sector", x.Sector)
		put(s, at+"once", x.Once)
		put(s, at+"immediately", x.Immediately)
	}
	for i, x := range b.SetState {
		at := fmt.Sprintf("set-state.%d.", i)
		s.Set(at+"event", string(x.Event))
		put(s, at+"state", x.State)
		s.Set(at+"new_state", x.NewState)
	}
	if s.Len() == 0 {
		return nil
	}
	return s
}

func put[T string | bool | int32 | int64](s *qapi.Object, key string, v *T) {
	if v == nil {
		return
	}
	if n, ok := any(*v).(int32); ok {
		s.Set(key, int64(n))
		return
	}
	s.Set(key, *v)
}

// exactFilename is blkdebug:CONFIG:IMAGE, when that says it all.
func exactFilename(o *qapi.BlockdevOptions, child func(name string) string) string {
	image := child("image")
	strong := strongOptions(o)
	config := ""
	if c := o.Blkdebug.Config; c != nil {
		config = *c
		strong.Delete("config")
	}
	if image == "" || strong.Len() > 0 {
		return ""
	}
	return "blkdebug:" + config + ":" + image
}

// parseFilename reads blkdebug:CONFIG:IMAGE; an empty config is none.
func parseFilename(name string, parse func(string) (qapi.BlockdevRef, error)) (*qapi.BlockdevOptions, error) {
	config, image, ok := strings.Cut(strings.TrimPrefix(name, "blkdebug:"), ":")
	if !ok {
		return nil, qapi.Errorf("blkdebug requires both config file and image path")
	}
	ref, err := parse(image)
	if err != nil {
		return nil, err
	}
	o := &qapi.BlockdevOptionsBlkdebug{Image: ref}
	if config != "" {
		o.Config = &config
	}
	return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverBlkdebug, Blkdebug: o}, nil
}
