package file

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

func isFdset(name string) bool { return strings.HasPrefix(name, fdsetPrefix) }

// reopenable are the options of a file that may change while it is open: what
// means nothing here. Its name, locking, aio and the rest may not.
var reopenable = []string{"drop-cache", "x-check-cache-dropped", "aio-max-batch"}

// reopened is how a file is open, so that it can be so again.
type reopened struct {
	opened // a descriptor of its own, or none
	settings
	flags int
	align alignment
}

// PrepareReopen takes new values of read-only, auto-read-only and cache. The
// roots above are drained: no write is in flight, and a change of cache.direct
// changes the limits. Where the file has to be opened anew, the old one stays
// open until the change is for good; it has no locks meanwhile.
func (d *driver) PrepareReopen(ctx context.Context, r *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	now := newSettings(r.Options, r.ReadOnly, isSet(r.Options.AutoReadOnly))
	if err := checkAIO(r.Options.File, now.direct); err != nil {
		return nil, err
	}
	was := &reopened{opened: none, settings: d.settings, flags: d.flags, align: alignment{d.requestAlign.Load(), d.memAlign.Load()}}
	p := &prepared{opened: none, flags: now.openFlags(d.perm)}
	if p.flags != d.flags {
		var err error
		if p.opened, p.align, err = d.again(p.flags); err != nil {
			return nil, err
		}
		if was.fd, err = unix.FcntlInt(uintptr(d.file.Fd()), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			d.discard(p)
			return nil, openError("open", d.name, err)
		}
		if d.useLocks {
			if p.locks, err = lockMore(p.fd, lockSet{}, d.locks); err != nil {
				d.discard(p)
				was.drop()
				return nil, err
			}
		}
		d.settle(ctx, p)
	}
	applied := false
	return &blockgraph.Reopening{
		Apply: func() {
			applied = true
			if p.fd >= 0 {
				was.release, d.fromSet.release = d.fromSet.release, nil
				if !d.swap(p) {
					was.release, d.fromSet.release = nil, was.release
				}
			}
			d.settings = now
		},
		Keep: was.close,
		Undo: func(context.Context) {
			if applied {
				d.restore(was)
				return
			}
			d.discard(p)
			was.drop()
		},
	}, nil
}

// drop closes the descriptor, but what it was made of stays in use.
func (r *reopened) drop() {
	r.release = nil
	r.close()
}

// restore has the file open as it was. Permissions may have changed since, and
// the file been opened once more for them: they are computed again after this.
func (d *driver) restore(was *reopened) {
	if was.fd >= 0 {
		var err error
		p := &prepared{opened: was.opened, flags: was.flags, align: was.align}
		if d.useLocks {
			p.locks, err = lockMore(p.fd, lockSet{}, d.locks)
		}
		if err != nil {
			d.host.cfg.Warn("Could not lock the file of '" + d.name + "' again: " + blockgraph.Strerror(err))
		}
		d.swap(p)
	}
	d.settings = was.settings
}

func valueOr[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}
