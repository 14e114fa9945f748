package blockgraph

import (
	"context"
	"path"
	"strings"
	"testing"

	"blockd/clock"
	"blockd/qapi"
)

// headerDriver is a toy format whose header names a backing file.
type headerDriver struct {
	passDriver
	backing string
}

func (d *headerDriver) BackingFile() (string, string) { return d.backing, "img" }

// newNamingGraph has files and images; headers says which image file names
// which backing file.
func newNamingGraph(headers map[string]string) *Graph {
	img := &DriverType{Name: "img", Children: fileChild(RoleData | RoleMetadata | RolePrimary),
		Open: func(_ context.Context, r *OpenRequest) (Driver, error) {
			file := r.Node.File().Child().State().Options.File.Filename
			return &headerDriver{passDriver{r.Node}, headers[path.Base(file)]}, nil
		},
		BackingOption: func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull {
			if o.Qcow2 == nil {
				o.Qcow2 = &qapi.BlockdevOptionsQcow2{}
			}
			return &o.Qcow2.Backing
		},
		WithFile: func(file qapi.BlockdevRef) *qapi.BlockdevOptions {
			return &qapi.BlockdevOptions{Driver: "img", Raw: &qapi.BlockdevOptionsRaw{File: file}}
		}}
	file := &DriverType{Name: "file", Protocol: true,
		Open: func(context.Context, *OpenRequest) (Driver, error) {
			return &memDriver{b: make([]byte, 512)}, nil
		},
		StrongOptions: func(o *qapi.BlockdevOptions) *qapi.Object {
			return qapi.NewObject("filename", o.File.Filename)
		},
		PlainFilename: func(o *qapi.BlockdevOptions) (string, bool) { return o.File.Filename, true }}
	named := &DriverType{Name: "copy-before-write", Filter: true, NamedByChild: true, Children: fileChild(RoleFiltered | RolePrimary), Open: openPass}
	return NewGraph(NewLoop(), clock.Real(), file, img, named)
}

func imgOptions(name, file string, backing *qapi.BlockdevRefOrNull) *qapi.BlockdevOptions {
	return &qapi.BlockdevOptions{Driver: "img", NodeName: &name, Qcow2: &qapi.BlockdevOptionsQcow2{Backing: backing},
		Raw: &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Definition: &qapi.BlockdevOptions{
			Driver: qapi.BlockdevDriverFile, File: &qapi.BlockdevOptionsFile{Filename: file}}}}}
}

// TestRelativeBackingNameStartsFromTheFile: the directory comes from the file
// below, never from the image's own name, which depends on the backing file's.
func TestRelativeBackingNameStartsFromTheFile(t *testing.T) {
	g := newNamingGraph(map[string]string{"top": "mid", "mid": "sub/base"})
	top := add(t, g, imgOptions("top", "d/top", nil))
	mid := top.Backing().Child()
	base := mid.Backing().Child()
	for n, want := range map[*Node]string{top: "d/top", mid: "d/mid", base: "d/sub/base"} {
		if got := n.Filename(); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}

// TestOverriddenBackingFileShowsInTheName compares names as they are spelt:
// a node that the user put in the place of a relative name overrides it.
func TestOverriddenBackingFileShowsInTheName(t *testing.T) {
	g := newNamingGraph(map[string]string{"rel": "base", "abs": "/d/base"})
	add(t, g, imgOptions("base", "/d/base", nil))
	ref := &qapi.BlockdevRefOrNull{Reference: ptr("base")}
	for _, c := range []struct {
		file    string
		backing *qapi.BlockdevRefOrNull
		want    string
	}{
		{"/d/abs", ref, "/d/abs"},
		{"/d/rel", ref, `json:{"backing": {"driver": "img", "file": {"driver": "file", "filename": "/d/base"}}, "driver": "img", "file": {"driver": "file", "filename": "/d/rel"}}`},
		{"/d/rel", &qapi.BlockdevRefOrNull{Null: &qapi.Null{}}, `json:{"backing": null, "driver": "img", "file": {"driver": "file", "filename": "/d/rel"}}`},
		{"/d/rel", nil, "/d/rel"},
	} {
		o := imgOptions("", c.file, c.backing)
		o.NodeName = nil
		if got := add(t, g, o).Filename(); got != c.want {
			t.Errorf("%s, not %s", got, c.want)
		}
	}
}

// TestNameOfLongChainIsWorkedOutOnce would not end in a lifetime otherwise.
func TestNameOfLongChainIsWorkedOutOnce(t *testing.T) {
	g := newNamingGraph(nil)
	n := add(t, g, imgOptions("n0", "f", nil))
	for range 100 {
		o := imgOptions("", "f", &qapi.BlockdevRefOrNull{Reference: ptr(n.Name())})
		o.NodeName = nil
		n = add(t, g, o)
	}
	if name := n.Filename(); len(name) != maxFilename || !strings.HasSuffix(name, "...") {
		t.Errorf("%d bytes: %s", len(name), name)
	}
}

func TestCopyBeforeWriteGoesByItsChildsName(t *testing.T) {
	g := newNamingGraph(nil)
	add(t, g, imgOptions("n", "f", nil))
	if name := add(t, g, overOptions("copy-before-write", "over", "n", "")).Filename(); name != "f" {
		t.Error(name)
	}
}
