package blockgraph

import (
	"strings"

	"blockd/qapi"
)

// This file knows how a node's options come about and when two sets of them are
// the same. A node has explicit options, those that somebody chose for it, and
// effective ones, with what it inherits from the parent that it was defined
// within, and defaults.

// effective copies options and fills in what they leave open: as in parent,
// under whose role the node is, then as in old, then with defaults. parent and
// old may be nil.
func effective(given, parent *qapi.BlockdevOptions, role Role, old *qapi.BlockdevOptions) *qapi.BlockdevOptions {
	o := *given
	cache := qapi.BlockdevCacheOptions{}
	if o.Cache != nil {
		cache = *o.Cache
	}
	o.Cache = &cache
	if parent != nil {
		inherit(&o, parent, role)
	}
	if old != nil {
		if old.Cache != nil {
			fill(&cache.Direct, old.Cache.Direct)
			fill(&cache.NoFlush, old.Cache.NoFlush)
		}
		fill(&o.ForceShare, old.ForceShare)
		fill(&o.ReadOnly, old.ReadOnly)
		fill(&o.AutoReadOnly, old.AutoReadOnly)
		fill(&o.Discard, old.Discard)
		fill(&o.DetectZeroes, old.DetectZeroes)
	}
	fill(&cache.Direct, ptr(false))
	fill(&cache.NoFlush, ptr(false))
	fill(&o.ReadOnly, ptr(false))
	fill(&o.AutoReadOnly, ptr(false))
	fill(&o.Discard, ptr(qapi.BlockdevDiscardOptionsIgnore))
	fill(&o.DetectZeroes, ptr(qapi.BlockdevDetectZeroesOptionsOff))
	return &o
}

// inherit fills in what a child has from its parent. Backing files are opened
// for reading only, whatever the parent.
func inherit(o, parent *qapi.BlockdevOptions, role Role) {
	if parent.Cache != nil {
		fill(&o.Cache.Direct, parent.Cache.Direct)
		fill(&o.Cache.NoFlush, parent.Cache.NoFlush)
	}
	fill(&o.ForceShare, parent.ForceShare)
	if parent.Active != nil && !*parent.Active {
		o.Active = ptr(false) // nothing else would do
	}
	if role&RoleCOW != 0 {
		fill(&o.ReadOnly, ptr(true))
		fill(&o.AutoReadOnly, ptr(false))
	} else {
		fill(&o.ReadOnly, parent.ReadOnly)
		fill(&o.AutoReadOnly, parent.AutoReadOnly)
	}
	// The parent decides what it passes on.
	fill(&o.Discard, ptr(qapi.BlockdevDiscardOptionsUnmap))
}

func ptr[T any](v T) *T { return &v }

func fill[T any](p **T, from *T) {
	if *p == nil && from != nil {
		*p = ptr(*from)
	}
}

func checkDetectZeroes(o *qapi.BlockdevOptions) error {
	if *o.DetectZeroes == qapi.BlockdevDetectZeroesOptionsUnmap && *o.Discard != qapi.BlockdevDiscardOptionsUnmap {
		return qapi.Errorf("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
	}
	return nil
}

func checkOptions(o *qapi.BlockdevOptions) error {
	if err := checkDetectZeroes(o); err != nil {
		return err
	}
	if forceShare(o) && !*o.ReadOnly {
		return qapi.Errorf("force-share=on can only be used with read-only images")
	}
	return nil
}

// sharedOptions are the options that every driver's node can change while it is
// open; left out, they get their default values.
var sharedOptions = map[string]bool{
	"discard": true, "cache.direct": true, "cache.no-flush": true, "read-only": true, "auto-read-only": true, "detect-zeroes": true,
}

// mayChange tells whether a node's option, in flat form, may change while the
// node is open.
func (n *Node) mayChange(option string) bool {
	if sharedOptions[option] {
		return true
	}
	for _, name := range n.typ.Reopenable {
		if rest, ok := strings.CutPrefix(option, name); ok && (rest == "" || rest[0] == '.') {
			return true
		}
	}
	return false
}

// ownOptions returns a node's options in flat form, without its children.
func (n *Node) ownOptions(o *qapi.BlockdevOptions, s *NodeState) *qapi.Object {
	return n.withoutChildren(qapi.ToObject(o), o, s).Flatten()
}

// withoutChildren takes what is said of children out of options, which stand
// for o.
func (n *Node) withoutChildren(options *qapi.Object, o *qapi.BlockdevOptions, s *NodeState) *qapi.Object {
	options.Delete("backing")
	options.Delete("active") // Node.State knows
	for _, e := range s.Edges {
		options.Delete(e.name)
	}
	if n.typ.Children != nil {
		for _, c := range n.typ.Children(o) {
			options.Delete(c.Name)
		}
	}
	return options
}

// sameOptions tells whether two sets of flat options are equal.
func sameOptions(a, b *qapi.Object) bool {
	if a.Len() != b.Len() {
		return false
	}
	for k, v := range a.All() {
		if w, ok := b.Get(k); !ok || v != w {
			return false
		}
	}
	return true
}

// joinOptions adds to options those of old that they do not have.
func joinOptions(options, old *qapi.Object) {
	for k, was := range old.All() {
		switch is, ok := options.Get(k); {
		case !ok:
			options.Set(k, was)
		default:
			inner, a := is.(*qapi.Object)
			oldInner, b := was.(*qapi.Object)
			if a && b {
				joinOptions(inner, oldInner)
			}
		}
	}
}
