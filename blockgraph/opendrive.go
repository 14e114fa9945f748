package blockgraph

import (
	"slices"
	"strings"

	"blockd/qapi"
)

// This file opens images as the field's older ways do: by a file name and flat
// options, most of which may be left out. The driver of a file comes from its
// name, the format from its content, and a backing file from the header, with
// whatever the options say of it put on top.

// partial is what is known of a node that is to be opened.
type partial struct {
	filename string       // as users and headers write it, or ""
	flat     *qapi.Object // flat options; the function that gets it may change it
	protocol bool         // the node is to be a protocol's, unless the options say otherwise
}

// OpenDrive opens a node by a file name, which may be empty, and options, which
// may be incomplete and written with dots. The options are copied.
func (tx *Tx) OpenDrive(filename string, options *qapi.Object) (*Node, error) {
	return tx.openPartial(partial{filename: filename, flat: options.Flatten()}, opening{files: map[string]struct{}{}})
}

// OpenHeader is OpenDrive for who only wants to know what the image says of
// itself. Reading its content may fail: nobody asks for its key.
func (tx *Tx) OpenHeader(filename string, options *qapi.Object) (*Node, error) {
	return tx.openPartial(partial{filename: filename, flat: options.Flatten()}, opening{files: map[string]struct{}{}, noIO: true})
}

// OpenToRepair is OpenDrive for who only checks and repairs the image.
func (tx *Tx) OpenToRepair(filename string, options *qapi.Object) (*Node, error) {
	return tx.openPartial(partial{filename: filename, flat: options.Flatten()}, opening{files: map[string]struct{}{}, repair: true})
}

func (tx *Tx) openPartial(p partial, w opening) (*Node, error) {
	if w.depth > tx.g.maxChain {
		return nil, tx.g.errTooDeep()
	}
	if strings.HasPrefix(p.filename, "json:") {
		if err := addJSON(p.flat, p.filename); err != nil {
			return nil, err
		}
		p.filename = ""
	}
	driver, _ := stringOf(p.flat, "driver")
	typ := tx.g.types[driver]
	if driver != "" && typ == nil {
		return nil, qapi.Errorf("Unknown driver '%s'", driver)
	}
	if name, ok := stringOf(p.flat, "filename"); ok && p.filename == "" && typ == nil && p.protocol {
		// A name among the options is a file's to the letter.
		driver = string(plainFile(name).Driver)
		p.flat.Set("driver", driver)
		typ = tx.g.types[driver]
	}
	switch {
	case typ == nil && p.protocol && p.filename == "":
		return nil, qapi.Errorf("Must specify either driver or file")
	case typ == nil && p.protocol, typ != nil && (typ.Protocol || typ.ParseFilename != nil):
		return tx.openProtocol(p, typ, w)
	}
	return tx.openPartialImage(p, typ, w)
}

// openProtocol opens a node of a driver that a file name can stand for.
func (tx *Tx) openProtocol(p partial, typ *DriverType, w opening) (*Node, error) {
	o := p.flat
	names := map[string]string{} // file names of children, by the child
	if p.filename != "" {
		name := p.filename
		if typ != nil && typ.ParseFilename == nil {
			o.Set("filename", stripFile(name))
		} else {
			ref, err := tx.g.parseFilename(name, func(child string) (qapi.BlockdevRef, error) {
				return qapi.BlockdevRef{Reference: &child}, nil
			})
			if err != nil {
				return nil, err
			}
			if typ == nil {
				typ = tx.g.types[string(ref.Definition.Driver)]
			}
			o = qapi.ToObject(ref.Definition).Flatten()
			for _, c := range typ.PartialChildren {
				names[c.Name], _ = stringOf(o, c.Name)
				o.Delete(c.Name)
			}
			for k, v := range p.flat.All() {
				if k != "filename" {
					o.Set(k, v)
				}
			}
		}
		o.Set("driver", typ.Name)
	}
	dropNoBacking(o, typ)
	w, err := tx.openPartialChildren(o, typ, names, w)
	if err != nil {
		return nil, err
	}
	return tx.openFlat(o, w)
}

// openPartialImage opens a node that has its content in another one.
func (tx *Tx) openPartialImage(p partial, typ *DriverType, w opening) (*Node, error) {
	o := p.flat
	sub := within(o, "file")
	ref, byName := stringOf(o, "file")
	if p.filename == "" && !byName && sub.Len() == 0 {
		if typ == nil {
			return nil, qapi.Errorf("Must specify either driver or file")
		}
		dropNoBacking(o, typ)
		w, err := tx.openPartialChildren(o, typ, nil, w)
		if err != nil {
			return nil, err
		}
		return tx.openFlat(o, w)
	}
	var file *Node
	var err error
	if byName {
		file, err = tx.LookUp(&ref, &ref)
	} else {
		fw := opening{role: RoleData | RoleMetadata | RolePrimary, depth: w.depth + 1, fromHeader: w.fromHeader, files: w.files}
		if typ != nil && typ.Filter {
			fw.role = RoleFiltered | RolePrimary
		}
		if fw.parent, err = tx.commonOptions(o, w); err == nil {
			file, err = tx.openPartial(partial{filename: p.filename, flat: sub, protocol: true}, fw)
		}
	}
	if err != nil {
		return nil, err
	}
	if typ == nil {
		name, err := tx.probe(file)
		if err != nil {
			return nil, err
		}
		typ, w.probed = tx.g.types[name], true
	}
	o.Set("driver", typ.Name)
	o.Set("file", file.name)
	if !byName {
		w.adopted = append(w.adopted, file)
	}
	dropNoBacking(o, typ)
	if typ.BackingOption != nil && !o.Has("backing") {
		if b := within(o, "backing"); b.Len() > 0 {
			w.backing = b
		}
	}
	if w, err = tx.openPartialChildren(o, typ, nil, w); err != nil {
		return nil, err
	}
	return tx.openFlat(o, w)
}

// openPartialChildren opens the children that have a file name, by names, or that options
// describe without a driver, or without that of a node below, and refers to them.
func (tx *Tx) openPartialChildren(o *qapi.Object, typ *DriverType, names map[string]string, w opening) (opening, error) {
	for _, c := range partialChildren(o, typ) {
		if _, byReference := o.Get(c.Name); byReference || names[c.Name] == "" && tx.g.complete(o, c.Name) {
			continue
		}
		p := partial{filename: names[c.Name], flat: within(o, c.Name), protocol: c.Role&RoleFiltered != 0}
		if p.filename == "" && p.flat.Len() == 0 {
			continue
		}
		cw := opening{role: c.Role, depth: w.depth + 1, fromHeader: w.fromHeader, files: w.files}
		var err error
		if cw.parent, err = tx.commonOptions(o, w); err != nil {
			return w, err
		}
		n, err := tx.openPartial(p, cw)
		if err != nil {
			return w, err
		}
		o.Set(c.Name, n.name)
		w.adopted = append(w.adopted, n)
	}
	return w, nil
}

// complete tells whether flat options say which drivers a child and the nodes below it
// have, backing files left aside.
func (g *Graph) complete(o *qapi.Object, child string) bool {
	driver, ok := stringOf(o, child+".driver")
	if !ok {
		return false
	}
	typ := g.types[driver]
	if typ == nil {
		return true // which is refused
	}
	for _, k := range o.Keys() {
		rest, ok := strings.CutPrefix(k, child+".")
		if !ok {
			continue
		}
		name, rest, dotted := strings.Cut(rest, ".")
		if name == typ.ChildList {
			var n string
			n, _, dotted = strings.Cut(rest, ".")
			name += "." + n
		} else if name != "file" && !slices.ContainsFunc(typ.PartialChildren, func(c ChildSpec) bool { return c.Name == name }) {
			continue
		}
		if dotted && !g.complete(o, child+"."+name) {
			return false
		}
	}
	return true
}

// partialChildren lists the children of a driver that options may describe without a
// driver. Those that are filtered are a protocol's unless the options say otherwise.
func partialChildren(o *qapi.Object, typ *DriverType) []ChildSpec {
	list := slices.Clone(typ.PartialChildren)
	if typ.ChildList == "" {
		return list
	}
	seen := map[string]bool{}
	for _, k := range o.Keys() {
		rest, ok := strings.CutPrefix(k, typ.ChildList+".")
		n, _, dotted := strings.Cut(rest, ".")
		if ok && dotted && !seen[n] {
			seen[n] = true
			list = append(list, ChildSpec{Name: typ.ChildList + "." + n, Role: RoleData})
		}
	}
	return list
}

// openPartialBacking opens the backing file that a header names, or that
// options replace it with.
func (tx *Tx) openPartialBacking(n *Node, s *NodeState, options *qapi.Object, w opening) (*Node, error) {
	p := partial{flat: options}
	whole := false
	for k := range options.All() {
		child, _, _ := strings.Cut(k, ".")
		whole = whole || child == "file" || child == "filename"
	}
	if t, ok := stringOf(options, "driver"); ok && !whole {
		typ := tx.g.types[t]
		whole = typ != nil && (typ.Protocol || typ.WithFile == nil)
	}
	if whole {
		s.ExplicitBacking = true
		return tx.openPartial(p, w)
	}
	w.fromHeader = true
	var err error
	if p.filename, err = n.ResolveName(s.BackingName); err != nil {
		return nil, err
	}
	w.files[absolute(n.ExactFilename())] = struct{}{}
	if _, loop := w.files[absolute(p.filename)]; loop {
		return nil, qapi.Errorf("Backing file '%s' creates an infinite loop.", p.filename)
	}
	if s.BackingFormat != "" && !options.Has("driver") {
		options.Set("driver", s.BackingFormat)
	}
	return tx.openPartial(p, w)
}

// dropNoBacking: any node can be told that it has no backing file, also where it never
// could have one.
func dropNoBacking(o *qapi.Object, typ *DriverType) {
	if v, ok := o.Get("backing"); ok && (v == nil || v == "") && (typ == nil || typ.BackingOption == nil) {
		o.Delete("backing")
	}
}

// openFlat opens a node whose options are complete by now. Which of them nobody
// knows is told once everything else was right.
func (tx *Tx) openFlat(o *qapi.Object, w opening) (*Node, error) {
	var typed qapi.BlockdevOptions
	unknown, err := tx.g.decodeFlat(o, &typed, w.noIO)
	if err != nil {
		return nil, err
	}
	w.spelt = o
	n, err := tx.open(&typed, w)
	if err == nil && unknown != nil {
		return nil, unknown
	}
	return n, err
}

// commonOptions returns what a node will pass on to its children.
func (tx *Tx) commonOptions(o *qapi.Object, w opening) (*qapi.BlockdevOptions, error) {
	common := qapi.NewObject("driver", string(qapi.BlockdevDriverNullCo))
	for _, k := range []string{"read-only", "auto-read-only", "cache.direct", "cache.no-flush", "force-share", "discard", "detect-zeroes"} {
		if v, ok := o.Get(k); ok {
			common.Set(k, v)
		}
	}
	var typed qapi.BlockdevOptions
	if err := qapi.DecodeFlat(common, &typed); err != nil {
		return nil, err
	}
	return effective(&typed, w.parent, w.role, nil), nil
}

// addJSON adds the options of a `json:` file name to flat ones, which count more.
func addJSON(flat *qapi.Object, name string) error {
	v, err := qapi.ParseJSON([]byte(strings.TrimPrefix(name, "json:")))
	if err != nil {
		return qapi.Errorf("Could not parse the JSON options: %s", err)
	}
	obj, ok := v.(*qapi.Object)
	if !ok {
		return qapi.Errorf("Invalid JSON object given")
	}
	for k, v := range obj.Flatten().All() {
		if !flat.Has(k) {
			flat.Set(k, v)
		}
	}
	return nil
}

// within takes the options of a child out of flat ones.
func within(o *qapi.Object, child string) *qapi.Object {
	sub := &qapi.Object{}
	for _, k := range o.Keys() {
		if rest, ok := strings.CutPrefix(k, child+"."); ok {
			v, _ := o.Get(k)
			sub.Set(rest, v)
			o.Delete(k)
		}
	}
	return sub
}

func stringOf(o *qapi.Object, key string) (string, bool) {
	v, _ := o.Get(key)
	s, ok := v.(string)
	return s, ok
}
