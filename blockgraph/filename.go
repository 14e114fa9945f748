package blockgraph

import (
	"cmp"
	"strings"

	"blockd/qapi"
)

// This file holds the field's rules for the names of nodes, once, for queries,
// for header write-back and for look-up by name.
//
// The name of an image depends on its backing file's, and that on the next
// one's; so whoever wants several names uses one Naming, which works each out
// once. Without that the cost would double with every image of a chain.

// ExactFilename returns a name that opens the node again with default options,
// or "" when there is none: options that decide about the content, a filter,
// or a backing file that is not the header's.
func (n *Node) ExactFilename() string { return NewNaming(nil).of(n).exact }

// Filename returns the node's name for people and headers: the exact one, or
// `json:` and the full options. An implicit filter has its child's name.
func (n *Node) Filename() string { return NewNaming(nil).Filename(n) }

// Filename returns a node's name as of this change.
func (tx *Tx) Filename(n *Node) string { return tx.Naming().Filename(n) }

// Naming returns a Naming of the nodes as of this change, good until the next
// one is staged.
func (tx *Tx) Naming() *Naming { return NewNaming(tx.states) }

// FullOptions returns options that open the same node again with all its
// children. The caller must not change them.
func (n *Node) FullOptions() *qapi.Object { return NewNaming(nil).of(n).full }

// maxFilename is the longest name of a node in bytes; a longer one is cut, as
// in the field.
const maxFilename = 4095

// Naming works out names of nodes. It is used by one goroutine.
type Naming struct {
	states map[*Node]*NodeState
	known  map[*Node]*names
}

type names struct {
	exact string
	full  *qapi.Object
	file  string
}

// NewNaming returns a Naming for nodes in the given states, and for others in
// the state in which it finds them.
func NewNaming(states map[*Node]*NodeState) *Naming {
	return &Naming{states: states, known: map[*Node]*names{}}
}

// Filename is Node.Filename.
func (g *Naming) Filename(n *Node) string { return g.of(n).file }

// BackingOverridden tells whether opening the image by name would find another
// backing file than the node has.
func (g *Naming) BackingOverridden(n *Node) bool { return g.backingOverridden(n, g.state(n)) }

func (g *Naming) state(n *Node) *NodeState {
	if s := g.states[n]; s != nil {
		return s
	}
	return n.State()
}

func (g *Naming) of(n *Node) *names {
	if known := g.known[n]; known != nil {
		return known
	}
	s := g.state(n)
	var r *names
	if f := n.filteredIn(s); n.implicit && f != nil {
		r = g.of(f.child)
	} else {
		overridden := g.backingOverridden(n, s)
		r = &names{exact: g.exact(n, s, overridden), full: g.full(n, s, overridden)}
		if r.file = r.exact; r.file == "" {
			r.file = "json:" + string(qapi.AppendJSON(nil, r.full))
		}
		if len(r.file) > maxFilename {
			r.file = r.file[:maxFilename-3] + "..."
		}
	}
	g.known[n] = r
	return r
}

func (g *Naming) exact(n *Node, s *NodeState, overridden bool) string {
	if n.typ.Protocol {
		if n.typ.PlainFilename != nil {
			if name, ok := n.typ.PlainFilename(s.Options); ok {
				return name
			}
		}
		return ""
	}
	if n.typ.ExactFilename != nil {
		return n.typ.ExactFilename(s.Options, func(name string) string {
			for _, e := range s.Edges {
				if e.name == name {
					return g.of(e.child).exact
				}
			}
			return ""
		})
	}
	if n.typ.NamedByChild {
		if f := cmp.Or(n.filteredIn(s), s.file); f != nil {
			return g.of(f.child).file
		}
	}
	if n.typ.Filter || s.file == nil || !s.file.child.typ.named() || overridden || n.strong(s) != nil {
		return ""
	}
	return g.of(s.file.child).exact
}

func (g *Naming) full(n *Node, s *NodeState, overridden bool) *qapi.Object {
	o := qapi.NewObject("driver", n.typ.Name)
	if strong := n.strong(s); strong != nil {
		for k, v := range strong.All() {
			o.Set(k, asSpelt(v, s.spelt, k))
		}
	}
	var list []any
	for _, e := range s.Edges {
		// A filter has no header that would name what is below it.
		if e.name == "backing" && !overridden && n.typ.BackingOption != nil {
			continue
		}
		if n.typ.ChildList != "" && strings.HasPrefix(e.name, n.typ.ChildList+".") {
			list = append(list, g.of(e.child).full)
			continue
		}
		o.Set(e.name, g.of(e.child).full)
	}
	if n.typ.ChildList != "" {
		o.Set(n.typ.ChildList, list)
	}
	if overridden && s.backing == nil {
		o.Set("backing", nil)
	}
	return o
}

// asSpelt returns an option's value in the word that the user gave it in, as long as it
// has that value. spelt may be nil.
func asSpelt(value any, spelt *qapi.Object, option string) any {
	if spelt == nil {
		return value
	}
	word, ok := stringOf(spelt, option)
	if on, isBool := value.(bool); ok && isBool && (word == "on" && on || word == "off" && !on) {
		return word
	}
	return value
}

// named tells whether a format may go by the name of a file of this driver.
func (t *DriverType) named() bool { return t.Protocol || t.ExactFilename != nil }

func (n *Node) strong(s *NodeState) *qapi.Object {
	if n.typ.StrongOptions == nil {
		return nil
	}
	return n.typ.StrongOptions(s.Options)
}

// backingOverridden compares names as they are spelt, as the field does.
func (g *Naming) backingOverridden(n *Node, s *NodeState) bool {
	switch {
	case n.typ.BackingOption == nil, n.headerOnly:
		return false
	case s.backing == nil:
		return s.AutoBacking != ""
	default:
		return s.AutoBacking != g.of(s.backing.child).file
	}
}

// dirname returns the directory, with its slash, that relative names in the
// image's header start from: that of the file which holds the image. It asks
// the child first, because a format's own name depends on its backing file's,
// and that on this directory. without, unless empty, names the nodes that have
// none.
func (n *Node) dirname() (dir, without string) {
	e := n.State().file
	if f := n.Filtered(); f != nil {
		e = f
	}
	if e != nil {
		return e.child.dirname()
	}
	if n.typ.NoDirectory != "" {
		return "", n.typ.NoDirectory
	}
	name := n.ExactFilename()
	if name == "" {
		return "", n.typ.Name
	}
	name = stripFile(name)
	return name[:strings.LastIndexByte(name, '/')+1], ""
}
