package preallocate

import (
	"context"
	"syscall"

	"blockd/blockgraph"
	"blockd/filters/pass"
	"blockd/qapi"
)

const (
	defaultAlign = 1 << 20   // bytes
	defaultSize  = 128 << 20 // bytes
	sector       = 512
)

// Type returns the driver type for the graph's registry.
func Type() *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     string(qapi.BlockdevDriverPreallocate),
		Filter:   true,
		Required: blockgraph.RequiredChildren("file"),
		Children: func(o *qapi.BlockdevOptions) []blockgraph.ChildSpec {
			return []blockgraph.ChildSpec{{Name: "file", Role: blockgraph.RoleFiltered | blockgraph.RolePrimary, Ref: o.Preallocate.File}}
		},
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			f := &Filter{Through: pass.Through{Node: r.Node}}
			o, err := parse(r.Options.Preallocate, f.fileAlign())
			if err != nil {
				return nil, err
			}
			f.opts = o
			return f, nil
		},
		Reopenable: []string{"prealloc-align", "prealloc-size"},
	}
}

// options are in bytes.
type options struct{ align, size int64 }

// parse checks the options; fileAlign is the alignment of requests to the file.
func parse(p *qapi.BlockdevOptionsPreallocate, fileAlign int64) (options, error) {
	o := options{align: defaultAlign, size: defaultSize}
	for _, x := range []struct {
		name string
		v    *int64
		dst  *int64
	}{{"prealloc-align", p.PreallocAlign, &o.align}, {"prealloc-size", p.PreallocSize, &o.size}} {
		if x.v == nil {
			continue
		}
		if *x.v < 0 {
			return o, blockgraph.Errorf(syscall.EINVAL, "Parameter '%s' expects a non-negative number below 2^64", x.name)
		}
		*x.dst = *x.v
	}
	const text = "prealloc-align parameter of preallocate filter is not aligned to "
	if o.align%sector != 0 {
		return o, blockgraph.Errorf(syscall.EINVAL, text+"%d", sector)
	}
	if o.align%fileAlign != 0 {
		return o, blockgraph.Errorf(syscall.EINVAL, text+"underlying node request alignment (%d)", fileAlign)
	}
	return o, nil
}

func (f *Filter) fileAlign() int64 {
	return max(1, f.Below().Child().Limits().RequestAlignment)
}

// PrepareReopen implements blockgraph.Reopener.
func (f *Filter) PrepareReopen(_ context.Context, r *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	next, err := parse(r.Options.Preallocate, f.fileAlign())
	if err != nil {
		return nil, err
	}
	old := f.options()
	return &blockgraph.Reopening{
		Apply: func() { f.setOptions(next) },
		Undo:  func(context.Context) { f.setOptions(old) },
	}, nil
}

func (f *Filter) options() options {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opts
}

func (f *Filter) setOptions(o options) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opts = o
}
