package blockgraph

import (
	"strings"

	"blockd/qapi"
)

// Options that have to be there and are not, in the field's older ways to open an image:
// there each driver asks for them itself, in its own words and order.

// RequiredOption is an option that a driver cannot do without.
type RequiredOption struct {
	Name string
	Text string // of the refusal without it
}

// RequiredChildren are options that say what a child is.
func RequiredChildren(names ...string) []RequiredOption {
	var list []RequiredOption
	for _, name := range names {
		list = append(list, RequiredOption{Name: name, Text: `A block device must be specified for "` + name + `"`})
	}
	return list
}

// checkNamed refuses a node without the file name that it needs, which is asked for before
// most other options are looked at.
func (g *Graph) checkNamed(o *qapi.Object) error {
	const option = "filename"
	driver, _ := stringOf(o, "driver")
	if typ := g.types[driver]; typ == nil || o.Has(option) || len(typ.Required) == 0 || typ.Required[0].Name != option {
		return nil
	}
	earlier := qapi.NewObject("driver", string(qapi.BlockdevDriverNullCo))
	for _, k := range []string{"node-name", "read-only", "auto-read-only", "force-share", "cache.direct", "cache.no-flush"} {
		if v, ok := o.Get(k); ok {
			earlier.Set(k, v)
		}
	}
	if err := qapi.DecodeFlat(earlier, new(qapi.BlockdevOptions)); err != nil {
		return err
	}
	return g.errMissing(o, option)
}

// errMissing refuses the innermost node around a path of decoding at which nothing is, by
// the first option that it lacks; nil: the driver has no words of its own.
func (g *Graph) errMissing(o *qapi.Object, path string) error {
	node := nodeAround(o, dotted(path))
	driver, _ := stringOf(o, node+"driver")
	typ := g.types[driver]
	if typ == nil {
		return nil
	}
	for _, r := range typ.Required {
		if !hasWithin(o, node+r.Name) {
			return qapi.Errorf("%s", r.Text)
		}
	}
	for _, whole := range decodedWhole {
		if rest, ok := strings.CutPrefix(dotted(path), node+whole); ok {
			return qapi.Errorf("Parameter '%s' is missing", rest)
		}
	}
	return nil
}

// hasWithin tells whether flat options have one of that name, or any that lies in it.
func hasWithin(o *qapi.Object, name string) bool {
	for _, key := range o.Keys() {
		if key == name || strings.HasPrefix(key, name+".") {
			return true
		}
	}
	return false
}
