package blockgraph

import (
	"strings"

	"blockd/qapi"
)

// Options that nobody knows, in the field's older ways to open an image: there each
// driver takes the flat options that are its own, and what is left over at the end is
// refused by name, as an option of the node that it was given for.

// decodedWhole begin the options that the field decodes as we do, each group by itself.
var decodedWhole = []string{"server.", "encrypt."}

// decodeFlat fills typed from flat options. Those that no driver knows are left out,
// and are taken from o; unknown refuses the first of them.
//
// header: only what the image says of itself is wanted, and no backing file.
func (g *Graph) decodeFlat(o *qapi.Object, typed *qapi.BlockdevOptions, header bool) (unknown, err error) {
	leaveOut := func(option, node string) {
		switch {
		case g.isBacking(o, option, node) && !(header && node == ""):
			unknown = errNoBacking
		case unknown == nil:
			unknown = g.errUnknown(o, option, node)
		}
		o.Delete(option)
	}
	if err := g.checkNamed(o); err != nil {
		return nil, err
	}
	if err := g.modernise(o); err != nil {
		return nil, err
	}
	if v, ok := o.Get("backing"); ok && v == nil {
		for _, key := range o.Keys() {
			if strings.HasPrefix(key, "backing.") {
				leaveOut(key, "") // nobody takes what is said of a file that is not to be
			}
		}
	}
	for {
		*typed = qapi.BlockdevOptions{}
		err := qapi.DecodeFlat(o, typed)
		if err == nil {
			return unknown, nil
		}
		if path := qapi.AsError(err).Missing(); path != "" {
			if text := g.errMissing(o, path); text != nil {
				return nil, text
			}
			return nil, err
		}
		option, node := optionAt(o, qapi.AsError(err).Unexpected())
		if option == "" {
			return nil, err
		}
		for _, whole := range decodedWhole {
			if rest, ok := strings.CutPrefix(option, node+whole); ok {
				return nil, qapi.Errorf("Parameter '%s' is unexpected", rest)
			}
		}
		leaveOut(option, node)
	}
}

// modernise has the drivers of all nodes that flat options describe replace their older ones.
func (g *Graph) modernise(o *qapi.Object) error {
	for _, key := range o.Keys() {
		node, ok := strings.CutSuffix(key, "driver")
		driver, _ := stringOf(o, key)
		if typ := g.types[driver]; ok && (node == "" || strings.HasSuffix(node, ".")) && typ != nil && typ.Modernise != nil {
			if err := typ.Modernise(o, node); err != nil {
				return err
			}
		}
	}
	return nil
}

// optionAt returns which flat option lies at a path of decoding's or within it, ""
// if none does, and what goes before the name in the innermost node around it.
func optionAt(o *qapi.Object, path string) (option, node string) {
	path = dotted(path)
	for _, key := range o.Keys() {
		if key == path || path != "" && strings.HasPrefix(key, path+".") {
			option = key
			break
		}
	}
	return option, nodeAround(o, path)
}

// dotted spells a path of decoding as flat options do.
func dotted(path string) string { return strings.NewReplacer("[", ".", "]", "").Replace(path) }

// nodeAround returns what goes before the names of the innermost node around a path.
func nodeAround(o *qapi.Object, path string) (node string) {
	for at, c := range path {
		if c == '.' && o.Has(path[:at]+".driver") {
			node = path[:at+1]
		}
	}
	return node
}

// errNoBacking is the field's text for whoever says what the backing file of a node is that
// cannot have one.
var errNoBacking = qapi.Errorf("Driver doesn't support backing files")

// isBacking tells whether an option is about the backing file of such a node.
func (g *Graph) isBacking(o *qapi.Object, option, node string) bool {
	driver, _ := stringOf(o, node+"driver")
	typ := g.types[driver]
	name, _, _ := strings.Cut(strings.TrimPrefix(option, node), ".")
	return name == "backing" && typ != nil && typ.BackingOption == nil
}

// errUnknown refuses an option of the node whose options begin so.
func (g *Graph) errUnknown(o *qapi.Object, option, node string) error {
	driver, _ := stringOf(o, node+"driver")
	name := strings.TrimPrefix(option, node)
	if typ := g.types[driver]; typ != nil && (typ.Protocol || typ.ParseFilename != nil) {
		return qapi.Errorf("Block protocol '%s' doesn't support the option '%s'", driver, name)
	}
	return qapi.Errorf("Block format '%s' does not support the option '%s'", driver, name)
}
