package blockgraph

import (
	"strings"

	"blockd/qapi"
)

// Options that nobody knows, in the field's older ways to open an image: there each
// driver takes the flat options that are its own, and what is left over at the end is
// refused by name, as an option of the node that it was given for.

// decodeFlat fills typed from flat options. Those that no driver knows are left out,
// and are taken from o; unknown refuses the first of them.
func (g *Graph) decodeFlat(o *qapi.Object, typed *qapi.BlockdevOptions) (unknown, err error) {
	leaveOut := func(option, node string) {
		if unknown == nil {
			unknown = g.errUnknown(o, option, node)
		}
		o.Delete(option)
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
		option, node := optionAt(o, qapi.AsError(err).Unexpected())
		if option == "" {
			return nil, err
		}
		for _, whole := range []string{"server.", "encrypt."} { // which the field decodes as we do
			if rest, ok := strings.CutPrefix(option, node+whole); ok {
				return nil, qapi.Errorf("Parameter '%s' is unexpected", rest)
			}
		}
		leaveOut(option, node)
	}
}

// optionAt returns which flat option lies at a path of decoding's or within it, ""
// if none does, and what goes before the name in the innermost node around it.
func optionAt(o *qapi.Object, path string) (option, node string) {
	path = strings.NewReplacer("[", ".", "]", "").Replace(path)
	for _, key := range o.Keys() {
		if key == path || path != "" && strings.HasPrefix(key, path+".") {
			option = key
			break
		}
	}
	for at, c := range path {
		if c == '.' && o.Has(path[:at]+".driver") {
			node = path[:at+1]
		}
	}
	return option, node
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
