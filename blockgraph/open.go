package blockgraph

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"blockd/ioengine"
	"blockd/qapi"
)

// opening is the way by which a node is being opened.
type opening struct {
	parent     *qapi.BlockdevOptions // whose defaults are inherited, or nil
	role       Role
	depth      int
	fromHeader bool
	probed     bool
	noIO       bool                // of the node itself; its children have content to read
	repair     bool                // the same
	files      map[string]struct{} // of the chain so far, to find loops
	// adopted are children that were opened ahead for the node, to look at their
	// content for instance, and are given as references.
	adopted []*Node
	// backing are flat options for the backing file, which may be incomplete.
	backing *qapi.Object
	spelt   *qapi.Object // what the options were made of; see NodeState
}

// Open opens a node with everything below it. The options are copied. A node
// without a name gets a generated one. Nobody can reach it before the commit.
func (tx *Tx) Open(o *qapi.BlockdevOptions) (*Node, error) {
	return tx.open(o, opening{files: map[string]struct{}{}})
}

// OpenType opens a node of a type that no options name: a filter that a job puts
// into the graph for itself. Otherwise it is like Open.
func (tx *Tx) OpenType(typ *DriverType, o *qapi.BlockdevOptions) (*Node, error) {
	return tx.openType(typ, o, opening{files: map[string]struct{}{}})
}

// OpenRef opens what the reference defines, or finds the node that it names.
func (tx *Tx) OpenRef(ref *qapi.BlockdevRef) (*Node, error) {
	return tx.openRef(ref, opening{files: map[string]struct{}{}})
}

// OpenImage opens the image in a file with the given format driver, or with
// the one that its content tells when driver is "". edit may add options.
func (tx *Tx) OpenImage(file qapi.BlockdevRef, driver string, edit func(o *qapi.BlockdevOptions)) (*Node, error) {
	o, w, err := tx.imageOptions(file, driver, opening{files: map[string]struct{}{}})
	if err != nil {
		return nil, err
	}
	if edit != nil {
		edit(o)
	}
	return tx.open(o, w)
}

func (tx *Tx) openRef(ref *qapi.BlockdevRef, w opening) (*Node, error) {
	if ref.Reference != nil {
		return tx.LookUp(ref.Reference, ref.Reference)
	}
	return tx.open(ref.Definition, w)
}

func (tx *Tx) open(given *qapi.BlockdevOptions, w opening) (*Node, error) {
	if w.depth > tx.g.maxChain {
		return nil, tx.g.errTooDeep()
	}
	typ := tx.g.types[string(given.Driver)]
	if typ == nil {
		return nil, qapi.Errorf("Unknown driver '%s'", given.Driver)
	}
	return tx.openType(typ, given, w)
}

func (tx *Tx) openType(typ *DriverType, given *qapi.BlockdevOptions, w opening) (*Node, error) {
	o := effective(given, w.parent, w.role, nil)
	n := &Node{graph: tx.g, typ: typ}
	explicit := *given
	s := &NodeState{Options: o, Explicit: &explicit, ReadOnly: *o.ReadOnly, Inactive: o.Active != nil && !*o.Active, DetectZeroes: *o.DetectZeroes, spelt: w.spelt}
	children, err := tx.openChildren(typ, o, w)
	if err != nil {
		return nil, err
	}
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	if err := tx.nameNode(n, given); err != nil {
		return nil, err
	}
	tx.g.seq++
	n.seq = tx.g.seq
	n.state.Store(s)
	tx.newNodes = append(tx.newNodes, n)
	for _, c := range children {
		if err := tx.SetChild(n, c.spec.Name, c.spec.Role, c.node); err != nil {
			return nil, err
		}
		if c.spec.Ref.Definition != nil || slices.Contains(w.adopted, c.node) {
			tx.setInherits(c.node, n)
		}
	}
	// The children's locks are taken before the driver touches them.
	if err := tx.refresh([]*Node{n}); err != nil {
		return nil, err
	}
	marked, err := tx.bitmapFor(typ, o)
	if err != nil {
		return nil, err
	}
	drv, err := typ.Open(tx.ctx, &OpenRequest{Node: n, Options: o, ReadOnly: s.ReadOnly || s.Inactive, AutoReadOnly: *o.AutoReadOnly, FromHeader: w.fromHeader, Probed: w.probed, NoIO: w.noIO, Repair: w.repair, Bitmap: marked, tx: tx, way: w})
	if err != nil {
		return nil, err
	}
	n.setDriver(drv)
	n.headerOnly = w.noIO
	slog.DebugContext(tx.ctx, "node_opened", "node", n.name, "driver", typ.Name)
	tx.g.watchCorruption(n)
	if err := n.refreshSize(tx.ctx); err != nil {
		return nil, err
	}
	if err := tx.loadBitmaps(n); err != nil {
		return nil, err
	}
	if typ.BackingOption != nil {
		if err := tx.openBacking(n, o, w); err != nil {
			return nil, err
		}
	}
	if n.state.Load().ReadOnly != s.ReadOnly || tx.states[n] != nil {
		tx.Stage(n).ReadOnly = n.state.Load().ReadOnly
	}
	return n, tx.refresh([]*Node{n})
}

// OpenFile opens a file that the image's own header names, and attaches it to
// the node that is being opened. The name is a path and nothing else, relative
// to the working directory as in the field: an image chooses no protocol. Only
// within DriverType.Open.
//
//blockd:blocking
func (r *OpenRequest) OpenFile(child string, role Role, name string) error {
	tx := r.tx
	if tx == nil {
		// Opened again in its place: its children are what they were.
		return Errorf(syscall.EINVAL, "The image names another %s than before", child)
	}
	o := plainFile(name)
	n, err := tx.open(o, opening{parent: r.Options, role: role, depth: r.way.depth + 1, fromHeader: true, files: r.way.files})
	if err != nil {
		return err
	}
	if err := tx.SetChild(r.Node, child, role, n); err != nil {
		return err
	}
	tx.setInherits(n, r.Node)
	return tx.refresh([]*Node{r.Node})
}

// plainFile returns the options of a file at a path.
func plainFile(name string) *qapi.BlockdevOptions {
	o := &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverFile, File: &qapi.BlockdevOptionsFile{Filename: name}}
	if isBlockDevice(name) {
		o.Driver = qapi.BlockdevDriverHostDevice
	}
	return o
}

// FallBackReadOnly is called by a driver's Open under AutoReadOnly when the
// image can only be read.
func (n *Node) FallBackReadOnly() {
	s := n.state.Load().clone()
	s.ReadOnly = true
	n.state.Store(s)
}

// watchCorruption has damage that a node's driver finds reported.
//
//blockd:blocking
func (g *Graph) watchCorruption(n *Node) {
	if r, ok := n.drv.(CorruptionReporter); ok && g.corruption != nil {
		r.OnCorruption(func(msg string, off, size int64, fatal bool) { g.corruption(n.name, msg, off, size, fatal) })
	}
}

//blockd:global
func (n *Node) setDriver(drv Driver) {
	n.drv = drv
	n.truncater, _ = drv.(Truncater)
	n.debug, _ = drv.(DebugEventer)
	n.refreshLimits()
}

//blockd:global
func (n *Node) refreshLimits() {
	switch l, ok := n.drv.(LimitsReader); {
	case ok:
		n.limits, n.caps = l.Limits(), l.Caps()
	case n.Filtered() != nil:
		c := n.Filtered().child
		n.limits, n.caps = c.limits, c.caps
		n.caps.Backing = false
	}
	n.caps.Filter = n.typ.Filter
	n.tracker.refresh(n.limits.RequestAlignment)
}

// limitsChanged has a node and those above it look at their limits again, but
// for dead ones, which may have lost their children. No request is under way in
// them. Control plane.
//
//blockd:global
func (n *Node) limitsChanged(dead []*Node) {
	limits, caps := n.limits, n.caps
	n.refreshLimits()
	if n.limits == limits && n.caps == caps {
		return
	}
	for _, e := range n.parents {
		if e.node != nil && e.node.drv != nil && !slices.Contains(dead, e.node) {
			e.node.limitsChanged(dead)
		}
	}
}

type openedChild struct {
	spec ChildSpec
	node *Node
}

func (tx *Tx) openChildren(typ *DriverType, o *qapi.BlockdevOptions, w opening) ([]openedChild, error) {
	if typ.Children == nil {
		return nil, nil
	}
	var opened []openedChild
	for _, c := range typ.Children(o) {
		// Of two mistakes a file's comes before the node's own, and that before the other children's.
		if c.Name != "file" {
			if err := checkOptions(o); err != nil {
				return nil, err
			}
			if err := tx.checkName(o.NodeName); err != nil {
				return nil, err
			}
		}
		child, err := tx.openRef(&c.Ref, opening{parent: o, role: c.Role, depth: w.depth + 1, fromHeader: w.fromHeader, files: w.files})
		if err != nil {
			return nil, err
		}
		opened = append(opened, openedChild{c, child})
	}
	return opened, nil
}

// nameNode gives the node the name that the user chose, or a generated one.
func (tx *Tx) nameNode(n *Node, o *qapi.BlockdevOptions) error {
	if o.NodeName == nil {
		n.name, n.auto = tx.NewName(), true
		return nil
	}
	if err := tx.checkName(o.NodeName); err != nil {
		return err
	}
	n.name = *o.NodeName
	return nil
}

// checkName tells whether a node can be given that name; nil is a generated one.
func (tx *Tx) checkName(name *string) error {
	switch {
	case name == nil:
		return nil
	case !qapi.WellFormedID(*name):
		return qapi.Errorf("Invalid node-name: '%s'", *name)
	case tx.g.isDevice(*name):
		return qapi.Errorf("node-name=%s is conflicting with a device id", *name)
	case tx.named(*name) != nil:
		return qapi.Errorf("Duplicate nodes with node-name='%s'", *name)
	case len(*name) > MaxNodeName:
		return qapi.Errorf("Node name too long")
	}
	return nil
}

// MaxNodeName is the longest node-name in bytes.
const MaxNodeName = 31

// openBacking attaches what the options or the image's header say is the
// backing file.
func (tx *Tx) openBacking(n *Node, o *qapi.BlockdevOptions, w opening) error {
	s := tx.Stage(n)
	img, ok := n.drv.(BackingImage)
	if !ok {
		return nil
	}
	s.BackingName, s.BackingFormat = img.BackingFile()
	s.AutoBacking = s.BackingName
	ref := *n.typ.BackingOption(o)
	inner := opening{parent: o, role: RoleCOW, depth: w.depth + 1, files: w.files}
	switch {
	case ref == nil && w.backing != nil:
		base, err := tx.openPartialBacking(n, s, w.backing, inner)
		if err != nil {
			return prefix("Could not open backing file: ", err)
		}
		if !s.ExplicitBacking {
			s.AutoBacking = tx.Filename(base)
		}
		tx.setInherits(base, n)
		return tx.SetChild(n, "backing", RoleCOW, base)
	case ref == nil && s.BackingName == "":
		return nil
	case ref == nil:
		base, err := tx.openHeaderBacking(n, s, inner)
		if err != nil {
			return prefix("Could not open backing file: ", err)
		}
		s.AutoBacking = tx.Filename(base)
		tx.setInherits(base, n)
		return tx.SetChild(n, "backing", RoleCOW, base)
	case ref.Null != nil, ref.Reference != nil && *ref.Reference == "":
		// The empty name is the old way to say that there is none.
		s.ExplicitBacking = true
		return nil
	default:
		s.ExplicitBacking = true
		base, err := tx.openRef(&qapi.BlockdevRef{Definition: ref.Definition, Reference: ref.Reference}, inner)
		if err != nil {
			return prefix("Could not open backing file: ", err)
		}
		if ref.Definition != nil {
			tx.setInherits(base, n)
		}
		return tx.SetChild(n, "backing", RoleCOW, base)
	}
}

// openHeaderBacking opens the backing file that the image itself names.
func (tx *Tx) openHeaderBacking(n *Node, s *NodeState, w opening) (*Node, error) {
	w.fromHeader = true
	name, err := n.ResolveName(s.BackingName)
	if err != nil {
		return nil, err
	}
	w.files[absolute(n.ExactFilename())] = struct{}{}
	if _, loop := w.files[absolute(name)]; loop {
		return nil, qapi.Errorf("Backing file '%s' creates an infinite loop.", name)
	}
	file, whole, err := tx.g.ParseFilename(name)
	if err != nil {
		return nil, err
	}
	if whole != nil && tx.g.types[string(whole.Driver)] != nil && !tx.g.types[string(whole.Driver)].Protocol {
		return tx.open(whole, w) // json: names a complete node
	}
	o, w, err := tx.imageOptions(file, s.BackingFormat, w)
	if err != nil {
		return nil, err
	}
	return tx.open(o, w)
}

// imageOptions returns options to open the image in a file, of the given
// driver or of the one that its content tells, and the way by which to.
func (tx *Tx) imageOptions(file qapi.BlockdevRef, driver string, w opening) (*qapi.BlockdevOptions, opening, error) {
	if driver == "" {
		// The file node is opened by name below, once, and probed through.
		fw := w
		fw.role = RoleData | RoleMetadata | RolePrimary
		if w.role&RoleCOW != 0 {
			fw.parent = effective(&qapi.BlockdevOptions{}, w.parent, w.role, nil)
		}
		n, err := tx.openRef(&file, fw)
		if err != nil {
			return nil, w, err
		}
		driver, err = tx.probe(n)
		if err != nil {
			return nil, w, err
		}
		if file.Definition != nil {
			w.adopted = append(w.adopted, n)
		}
		file = qapi.BlockdevRef{Reference: ptr(n.name)}
		w.probed = true
	}
	typ := tx.g.types[driver]
	switch {
	case typ != nil && typ.WithFile != nil:
		return typ.WithFile(file), w, nil
	case typ != nil && typ.Protocol && file.Definition != nil && string(file.Definition.Driver) == driver:
		return file.Definition, w, nil // no format over it: a snapshot of such a node says so in its header
	}
	return nil, w, qapi.Errorf("Unknown driver '%s'", driver)
}

// probeSize is how much of a file probing looks at, in bytes.
const probeSize = 2048

func (tx *Tx) probe(n *Node) (string, error) {
	if n.Size() == 0 {
		return "raw", nil
	}
	b := ioengine.Bounce(probeSize)
	defer b.Release()
	if err := n.readV(tx.ctx, 0, MakeIOVec(b.Bytes()), 0); err != nil {
		return "", Errorf(Errno(err), "Could not read image for determining its format: %s", Strerror(err))
	}
	return tx.g.Probe(b.Bytes()), nil
}

// Probe returns the name of the driver that the first bytes of a file tell.
// Any goroutine.
func (g *Graph) Probe(head []byte) string {
	best, score := "raw", 0
	for _, d := range g.ordered {
		if d.Probe != nil {
			if s := d.Probe(head); s > score {
				best, score = d.Name, s
			}
		}
	}
	return best
}

// ParseFilename turns a file name as users and image headers write it into the
// options of a protocol node: a path, `file:` and a path, what a driver has a
// syntax for, or `json:` and options, which are returned as such, too. Any
// goroutine.
func (g *Graph) ParseFilename(name string) (file qapi.BlockdevRef, whole *qapi.BlockdevOptions, err error) {
	if text, ok := strings.CutPrefix(name, "json:"); ok {
		v, err := qapi.ParseJSON([]byte(text))
		if err != nil {
			return file, nil, qapi.Errorf("Could not parse the JSON options: %s", err)
		}
		obj, ok := v.(*qapi.Object)
		if !ok {
			return file, nil, qapi.Errorf("Invalid JSON object given")
		}
		o := &qapi.BlockdevOptions{}
		unknown, err := g.decodeFlat(obj.Flatten(), o, false)
		if err == nil {
			err = unknown
		}
		if err != nil {
			return file, nil, err
		}
		return qapi.BlockdevRef{Definition: o}, o, nil
	}
	file, err = g.parseFilename(name, func(child string) (qapi.BlockdevRef, error) {
		ref, _, err := g.ParseFilename(child)
		return ref, err
	})
	return file, nil, err
}

// parseFilename is ParseFilename for what is no `json:`; child reads what names a child.
func (g *Graph) parseFilename(name string, child func(name string) (qapi.BlockdevRef, error)) (file qapi.BlockdevRef, err error) {
	proto := protocolOf(name)
	scheme, _, _ := strings.Cut(proto, "+") // as in nbd+unix://
	if proto == "file" {
		name = stripFile(name)
	} else if typ := g.types[scheme]; proto != "" && typ != nil && typ.ParseFilename != nil {
		o, err := typ.ParseFilename(name, child)
		return qapi.BlockdevRef{Definition: o}, err
	} else if proto != "" {
		return file, qapi.Errorf("Unknown protocol '%s'", proto)
	}
	return qapi.BlockdevRef{Definition: plainFile(name)}, nil
}

// protocolOf returns what stands before the first colon, unless a slash comes
// first.
func protocolOf(name string) string {
	i := strings.IndexAny(name, ":/")
	if i < 0 || name[i] == '/' {
		return ""
	}
	return name[:i]
}

// stripFile returns a file name without `file:` before it. What is left is no other
// protocol's, even if there is a colon in it.
func stripFile(name string) string {
	path, explicit := strings.CutPrefix(name, "file:")
	if explicit && protocolOf(path) != "" {
		return "./" + path
	}
	return path
}

// HasProtocol tells whether a file name begins with a protocol, as "json:" does.
func HasProtocol(name string) bool { return protocolOf(name) != "" }

// ResolveName resolves a file name that an image header holds, relative to the
// image.
func (n *Node) ResolveName(name string) (string, error) {
	if name == "" || protocolOf(name) != "" || filepath.IsAbs(name) {
		return name, nil
	}
	dir, without := n.dirname()
	if without != "" {
		return "", qapi.Errorf("Cannot generate a base directory for %s nodes", without)
	}
	return dir + name, nil
}

// absolute spells a file name in one way, to tell whether two are the same.
func absolute(name string) string {
	abs, err := filepath.Abs(stripFile(name))
	if err != nil {
		return name
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real
	}
	return abs
}

func isBlockDevice(name string) bool {
	var st syscall.Stat_t
	return syscall.Stat(name, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFBLK
}

// prefix puts text before an error's message and keeps what it stands for.
func prefix(text string, err error) error {
	e := *qapi.AsError(err)
	e.Desc = text + e.Desc
	return &prefixed{qapi: &e, err: err}
}

type prefixed struct {
	qapi *qapi.Error
	err  error
}

func (p *prefixed) Error() string   { return p.qapi.Desc }
func (p *prefixed) Unwrap() []error { return []error{p.qapi, p.err} }
