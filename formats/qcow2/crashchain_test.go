package qcow2

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// Chains of images in the crash tests, and what the jobs do to them: stream and
// commit write the same requests, in the same order.

func named(name string, format qapi.BlockdevDriver) imageOption {
	return func(o *qapi.BlockdevCreateOptionsQcow2) { o.BackingFile, o.BackingFmt = &name, &format }
}

// newCommitChain makes a chain of three images, the lower two of which have
// data.
func newCommitChain(t *testing.T, tc *crashCase) *crashDisk {
	set := tc.set
	base := newImage(t, tc.size, set.create()...)
	mid := newImage(t, tc.size, set.create(named("base", "qcow2"))...)
	top := newImage(t, tc.size, set.create(named("mid", "qcow2"))...)
	for i, f := range []*memFile{base, mid} {
		d := openImage(t, f, nil)
		for s := range tc.size / sector {
			// Each image has parts of its own.
			if s/7%4 != int64(i) {
				continue
			}
			put(t, d, s*sector, graphtest.Sector(uint64(s)|1<<(40+i)))
		}
		closeImage(t, d)
	}
	return newCrashChain(t, top, &tc.set.run, &crashFile{name: "mid", f: mid, qcow2: true}, &crashFile{name: "base", f: base, qcow2: true})
}

// streaming copies everything into the top image, which then needs nobody; it
// runs alone.
var streaming = crashStep{"stream", 2, func(c *crashDisk, r *crashRange) {
	if c.below.s == nil {
		return
	}
	for s := r.lo; s < r.hi; s += 64 {
		c.populate(s, min(64, r.hi-s))
	}
	c.flush()
	c.fail("change of the backing file", c.d.ChangeBackingFile(ctxb, "", ""))
	c.below.s, c.below.under = nil, nil
}}

// committing moves what the middle image has into the lowest one, which the top
// image has below it then; it runs alone.
var committing = crashStep{"commit", 1, func(c *crashDisk, _ *crashRange) {
	mid := c.below
	if mid.under == nil || mid.under.s == nil {
		return
	}
	from, to := mid.s.(imageBelow), mid.under.s.(imageBelow)
	c.commit(from.d, to.d)
	c.fail("change of the backing file", c.d.ChangeBackingFile(ctxb, "base", "qcow2"))
	c.below.s, c.below.under = to, mid.under.under
}}

// committingActive moves what the top image has into the one below it, which is
// the top image then; it runs alone.
var committingActive = crashStep{"commit of the active layer", 1, func(c *crashDisk, _ *crashRange) {
	if c.below.s == nil {
		return
	}
	to := c.below.s.(imageBelow)
	start := c.vals.FlushBegins()
	c.commit(c.d, to.d)
	closeImage(c.t, c.d)
	for i, x := range c.files {
		if x.f == to.memFile {
			c.tops = append(c.tops, crashTop{i, c.now()})
		}
	}
	c.d, c.f, c.below = to.d, to.memFile, c.below.under
	c.vals.Flushed(start)
}}

// commit copies what is allocated in one image to another, and flushes that.
func (c *crashDisk) commit(from, to *Driver) {
	c.t.Helper()
	size := from.size.Load()
	for off := int64(0); off < size; {
		st, err := from.BlockStatus(ctxb, off, min(size-off, 32<<10), blockgraph.StatusPrecise)
		if err != nil {
			c.t.Error(err)
			return
		}
		switch {
		case st.Flags&blockgraph.StatusZero != 0 && to.WriteZeroes(ctxb, off, st.N, blockgraph.MayUnmap) == nil:
		case st.Flags&(blockgraph.StatusData|blockgraph.StatusZero) != 0:
			c.fail("write to the base", to.WriteV(ctxb, off, blockgraph.MakeIOVec(get(c.t, from, off, st.N)), 0))
		}
		off += st.N
	}
	c.fail("flush of the base", to.Flush(ctxb))
}

// stringsInSources returns all string literals of the package's own files.
func stringsInSources(t *testing.T) []string {
	t.Helper()
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range files {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if s, err := strconv.Unquote(l.Value); err == nil {
					list = append(list, s)
				}
			}
			return true
		})
	}
	return list
}
