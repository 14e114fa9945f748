package file

import (
	"context"
	"strings"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

func isFdset(name string) bool { return strings.HasPrefix(name, fdsetPrefix) }

// PrepareReopen takes new values of read-only, auto-read-only and cache; the
// other options of a file cannot change, except drop-cache and aio-max-batch,
// which mean nothing here. The roots above are drained: no write is in flight,
// and a change of cache.direct changes the limits at the commit.
func (d *driver) PrepareReopen(ctx context.Context, o *qapi.BlockdevOptions, readOnly bool) (commit, abort func(), err error) {
	if err := d.unchanged(o); err != nil {
		return nil, nil, err
	}
	next := &driver{readOnly: readOnly, autoReadOnly: isSet(o.AutoReadOnly), direct: cacheDirect(o)}
	if err := checkAIO(o.File, next.direct); err != nil {
		return nil, nil, err
	}
	p := &prepared{opened: none, flags: next.openFlags(d.perm)}
	if p.flags != d.flags {
		if p.opened, p.align, err = d.again(p.flags); err != nil {
			return nil, nil, err
		}
		if d.useLocks {
			if p.locks, err = lockMore(p.fd, lockSet{}, d.locks); err != nil {
				d.discard(p)
				return nil, nil, err
			}
		}
		d.settle(ctx, p)
	}
	commit = func() {
		d.options = o
		d.readOnly, d.autoReadOnly, d.direct = next.readOnly, next.autoReadOnly, next.direct
		d.forceShare = isSet(o.ForceShare)
		if p.fd >= 0 {
			d.swap(p)
		}
	}
	return commit, func() { d.discard(p) }, nil
}

// unchanged refuses new values of options that cannot change.
func (d *driver) unchanged(o *qapi.BlockdevOptions) error {
	was, is := d.options.File, o.File
	refuse := func(option string) error {
		return blockgraph.Errorf(syscall.EINVAL, "Cannot change the option '%s'", option)
	}
	switch {
	case is == nil || is.Filename != was.Filename:
		return refuse("filename")
	case valueOr(is.Locking, qapi.OnOffAutoAuto) != valueOr(was.Locking, qapi.OnOffAutoAuto):
		return refuse("locking")
	case valueOr(is.AIO, qapi.BlockdevAioOptionsThreads) != valueOr(was.AIO, qapi.BlockdevAioOptionsThreads):
		return refuse("aio")
	case valueOr(is.PRManager, "") != valueOr(was.PRManager, ""):
		return refuse("pr-manager")
	}
	return nil
}

func valueOr[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}
