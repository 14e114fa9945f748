package blockgraph

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"blockd/clock"
	"blockd/qapi"
)

// The reopen of several nodes, with drivers that write down what is asked of
// them. They go by the names of real ones, whose options can be read.

type reopenLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *reopenLog) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *reopenLog) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.lines, " ")
	l.lines = nil
	return s
}

// loggedDriver can be reopened, unless its node's name is among the refused.
type loggedDriver struct {
	Driver
	n       *Node
	log     *reopenLog
	refuse  map[string]string // node to the step that fails
	backing string
}

func (d *loggedDriver) PrepareReopen(_ context.Context, r *ReopenRequest) (*Reopening, error) {
	if d.refuse[d.n.name] == "prepare" {
		return nil, errors.New("refused")
	}
	d.log.add("prepare(%s)", d.n.name)
	return &Reopening{
		Apply: func() { d.log.add("apply(%s)", d.n.name) },
		Start: func(context.Context) error {
			if d.refuse[d.n.name] == "start" {
				return errors.New("refused")
			}
			d.log.add("start(%s)", d.n.name)
			return nil
		},
		Keep: func() { d.log.add("keep(%s)", d.n.name) },
		Undo: func(context.Context) { d.log.add("undo(%s)", d.n.name) },
	}, nil
}

func (d *loggedDriver) Flush(ctx context.Context) error {
	if d.refuse[d.n.name] == "flush" {
		return errors.New("refused")
	}
	return d.Driver.Flush(ctx)
}

func (d *loggedDriver) BackingFile() (string, string)                           { return d.backing, "" }
func (d *loggedDriver) ChangeBackingFile(context.Context, string, string) error { return nil }

type reopenWorld struct {
	*testing.T
	g      *Graph
	log    *reopenLog
	refuse map[string]string
	header map[string]string // node to what its header says
}

func newReopenWorld(t *testing.T) *reopenWorld {
	w := &reopenWorld{T: t, log: &reopenLog{}, refuse: map[string]string{}, header: map[string]string{}}
	logged := func(r *OpenRequest, d Driver) (Driver, error) {
		if w.refuse[r.Node.name] == "open" {
			return nil, errors.New("refused")
		}
		return &loggedDriver{d, r.Node, w.log, w.refuse, w.header[r.Node.name]}, nil
	}
	w.g = NewGraph(NewLoop(), clock.Real(),
		&DriverType{Name: "null-co", Protocol: true, Open: func(_ context.Context, r *OpenRequest) (Driver, error) {
			return logged(r, &memDriver{b: make([]byte, 4096)})
		}},
		&DriverType{Name: "raw", Reopenable: []string{"offset"}, Children: fileChild(RoleData | RolePrimary),
			Open: func(_ context.Context, r *OpenRequest) (Driver, error) { return logged(r, &passDriver{r.Node}) }},
		&DriverType{Name: "qcow2", Reopenable: []string{"lazy-refcounts"}, Remembers: true,
			Children: func(o *qapi.BlockdevOptions) []ChildSpec {
				return []ChildSpec{{Name: "file", Role: RoleData | RoleMetadata | RolePrimary, Ref: o.Qcow2.File}}
			},
			Open:          func(_ context.Context, r *OpenRequest) (Driver, error) { return logged(r, &passDriver{r.Node}) },
			BackingOption: func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull { return &o.Qcow2.Backing },
		},
		&DriverType{Name: "copy-on-read", Filter: true, Open: openPass,
			Children: func(o *qapi.BlockdevOptions) []ChildSpec {
				return []ChildSpec{{Name: "file", Role: RoleFiltered | RolePrimary, Ref: o.CopyOnRead.File}}
			}},
	)
	t.Cleanup(w.g.loop.Stop)
	return w
}

func (w *reopenWorld) options(text string) *qapi.BlockdevOptions {
	w.Helper()
	v, err := qapi.ParseJSON([]byte(text))
	if err != nil {
		w.Fatal(err)
	}
	o := &qapi.BlockdevOptions{}
	if err := qapi.Decode(v, o); err != nil {
		w.Fatalf("%s: %v", text, err)
	}
	return o
}

func (w *reopenWorld) add(text string) *Node {
	w.Helper()
	return add(w.T, w.g, w.options(text))
}

func (w *reopenWorld) try(list ...string) error {
	w.Helper()
	return w.g.Update(w.Context(), Cause{}, func(tx *Tx) error { return tx.Reopen(w.list(list)) })
}

func (w *reopenWorld) list(texts []string) []*qapi.BlockdevOptions {
	var list []*qapi.BlockdevOptions
	for _, text := range texts {
		list = append(list, w.options(text))
	}
	return list
}

func (w *reopenWorld) reopen(list ...string) {
	w.Helper()
	if err := w.try(list...); err != nil {
		w.Fatal(err)
	}
}

// refused requires an error, a graph as before, and that every driver that has
// prepared has undone, the last first.
func (w *reopenWorld) refused(want string, f func(tx *Tx) error) {
	w.Helper()
	before := w.picture()
	w.log.take()
	err := w.g.Update(w.Context(), Cause{}, f)
	if err == nil || err.Error() != want {
		w.Fatalf("got %v, want %s", err, want)
	}
	if after := w.picture(); after != before {
		w.Errorf("%s: before:\n%s\nafter:\n%s", want, before, after)
	}
	var prepared, undone []string
	for _, l := range strings.Fields(w.log.take()) {
		step, node, _ := strings.Cut(strings.TrimSuffix(l, ")"), "(")
		switch step {
		case "prepare":
			prepared = append(prepared, node)
		case "undo":
			undone = append(undone, node)
		case "keep":
			w.Errorf("%s: %s", want, l)
		}
	}
	slices.Reverse(undone)
	if !slices.Equal(prepared, undone) {
		w.Errorf("%s: prepared %v, undone %v", want, prepared, undone)
	}
}

// picture is dump, with options, inheritance and limits.
func (w *reopenWorld) picture() string {
	var b strings.Builder
	b.WriteString(dump(w.g))
	w.g.Loop().Do(func() {
		for _, n := range w.g.Nodes() {
			from := ""
			if n.inherits != nil {
				from = n.inherits.name
			}
			s := n.State()
			fmt.Fprintf(&b, "%s from %q size %d inactive %v %s %s %+v\n", n.name, from, n.Size(), s.Inactive, qapi.AppendJSON(nil, s.Options), qapi.AppendJSON(nil, s.Explicit), n.limits)
		}
	})
	return b.String()
}

// img is an image over a file that is defined within it, with further options.
func img(name, more string) string {
	return fmt.Sprintf(`{"driver": "qcow2", "node-name": "%s", "file": {"driver": "null-co", "node-name": "%s-file"}%s}`, name, name, more)
}

// TestReopenAppliesChildrenFirst: parents are prepared first, while they can
// still write to their children; then children are applied first.
func TestReopenAppliesChildrenFirst(t *testing.T) {
	w := newReopenWorld(t)
	w.add(img("top", ""))
	w.reopen(img("top", `, "read-only": true`))
	want := "prepare(top) prepare(top-file) apply(top-file) apply(top) start(top-file) start(top) keep(top) keep(top-file)"
	if got := w.log.take(); got != want {
		t.Errorf("got %s", got)
	}
	for _, name := range []string{"top", "top-file"} {
		if n := w.g.names[name]; !n.ReadOnly() {
			t.Errorf("%s is writable", name)
		}
	}
}

// TestReopenLeavesAloneWhatDoesNotChange: no driver is asked, no gate closes.
func TestReopenLeavesAloneWhatDoesNotChange(t *testing.T) {
	w := newReopenWorld(t)
	w.add(img("top", ""))
	r := newRoot(t, w.g, w.g.names["top"], PermConsistentRead, PermAll)
	before := w.picture()
	if err := w.g.Update(t.Context(), Cause{}, func(tx *Tx) error {
		err := tx.Reopen(w.list([]string{img("top", "")}))
		if len(tx.drained) != 0 {
			t.Error("a gate was closed")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := w.log.take(); got != "" || w.picture() != before {
		t.Errorf("%s\n%s", got, w.picture())
	}
	if r.Waits() != 0 {
		t.Error("a request waited")
	}
}

// TestReopenKeepingLeavesWhatIsNotNamed: what is not said stays, and children
// follow their parent where they have nothing of their own.
func TestReopenKeepingLeavesWhatIsNotNamed(t *testing.T) {
	w := newReopenWorld(t)
	w.add(img("top", `, "discard": "unmap"`))
	keep := func(options ...any) error {
		return w.g.Update(t.Context(), Cause{}, func(tx *Tx) error {
			return tx.ReopenKeeping(w.g.names["top"], qapi.NewObject(options...))
		})
	}
	expect := func(top, file string) {
		t.Helper()
		for name, want := range map[string]string{"top": top, "top-file": file} {
			o := w.g.names[name].State().Options
			if got := fmt.Sprintf("%v %v %s %s", *o.Cache.Direct, *o.Cache.NoFlush, *o.Discard, *o.DetectZeroes); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
	}
	expect("false false unmap off", "false false unmap off")
	if err := keep("file.detect-zeroes", "on", "file.cache.no-flush", "on"); err != nil {
		t.Fatal(err)
	}
	expect("false false unmap off", "false true unmap on")
	if err := keep("cache.direct", "on", "cache.no-flush", "off"); err != nil {
		t.Fatal(err)
	}
	expect("true false unmap off", "true true unmap on")
	before := w.picture()
	if err := keep("cache.direct", "maybe"); err == nil || err.Error() != "Parameter 'cache.direct' expects 'on' or 'off'" {
		t.Error(err)
	}
	if err := keep("driver", "raw"); err == nil || err.Error() != "Cannot change the option 'driver'" {
		t.Error(err)
	}
	if w.picture() != before {
		t.Errorf("before:\n%safter:\n%s", before, w.picture())
	}
}

// TestReopenPausesOnlyWhoCanSeeIt: the users of a shared backing file that
// stays as it is go on.
func TestReopenPausesOnlyWhoCanSeeIt(t *testing.T) {
	w := newReopenWorld(t)
	w.add(img("base", `, "read-only": true`))
	w.add(img("b", `, "backing": "base"`))
	w.add(img("a", `, "backing": "b"`))
	w.add(img("c", `, "backing": "base"`))
	a, c := newRoot(t, w.g, w.g.names["a"], PermConsistentRead, PermAll), newRoot(t, w.g, w.g.names["c"], PermConsistentRead, PermAll)
	for _, backing := range []string{"base", "b"} {
		if err := w.g.Update(t.Context(), Cause{}, func(tx *Tx) error {
			if err := tx.Reopen(w.list([]string{img("a", `, "backing": "`+backing+`"`)})); err != nil {
				return err
			}
			if _, ok := tx.drained[a]; !ok || len(tx.drained) != 1 {
				t.Errorf("backing %s: %d gates closed, a's: %v", backing, len(tx.drained), ok)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if c.Waits() != 0 {
		t.Error("c has waited")
	}
}

// TestFailedReopenLeavesEverythingAsItWas, whatever step fails and wherever in
// the list, and when the change fails later.
func TestFailedReopenLeavesEverythingAsItWas(t *testing.T) {
	w := newReopenWorld(t)
	for _, name := range []string{"a", "b"} {
		w.add(img(name, ""))
	}
	w.add(`{"driver": "copy-on-read", "node-name": "cor", "file": "b"}`)
	ro := `, "read-only": true`
	reopen := func(texts ...string) func(tx *Tx) error {
		return func(tx *Tx) error { return tx.Reopen(w.list(texts)) }
	}
	for _, step := range []string{"flush", "prepare", "start"} {
		w.refuse["b"] = step
		want := "refused"
		if step == "flush" {
			want = "Error flushing drive: Input/output error"
		}
		w.refused(want, reopen(img("a", ro), img("b", ro)))
		delete(w.refuse, "b")
	}
	w.refused("no", func(tx *Tx) error {
		if err := tx.Reopen(w.list([]string{img("a", ro), img("b", `, "detect-zeroes": "on"`)})); err != nil {
			return err
		}
		return errors.New("no")
	})
	writer := newRoot(t, w.g, w.g.names["b"], PermWrite, PermAll)
	w.refused("Read-only block node 'b' cannot support read-write users", reopen(img("a", ro), img("b", ro)))
	update(t, w.g, func(tx *Tx) error { return tx.CloseRoot(writer) })
	for want, list := range map[string][]string{
		"Cannot change the option 'driver'":                                                        {img("a", ro), `{"driver": "raw", "node-name": "b", "file": "b-file"}`},
		"Cannot change the option 'size'":                                                          {img("a", ro), `{"driver": "null-co", "node-name": "b-file", "size": 512}`},
		"Failed to find node with node-name='zz'":                                                  {img("a", ro), img("zz", "")},
		"Cannot find device='' nor node-name='zz'":                                                 {img("a", ro), `{"driver": "qcow2", "node-name": "b", "file": "zz"}`},
		"Making 'b' a backing child of 'a' would create a cycle":                                   {img("b", `, "backing": "a"`), img("a", `, "backing": "b"`)},
		"Making 'a' a backing child of 'a' would create a cycle":                                   {img("b", ro), img("a", `, "backing": "a"`)},
		"Making 'a' a file child of 'a' would create a cycle":                                      {`{"driver": "qcow2", "node-name": "a", "file": "a"}`},
		"Making 'cor' a backing child of 'b' would create a cycle":                                 {img("a", ro), img("b", `, "backing": "cor"`)},
		"Block format 'copy-on-read' used by node 'cor' does not support reopening files":          {img("a", ro), `{"driver": "copy-on-read", "node-name": "cor", "file": "b"}`},
		"setting detect-zeroes to unmap is not allowed without setting discard operation to unmap": {img("a", ro), img("b", `, "detect-zeroes": "unmap"`)},
		"Permission conflict on node 'a-file': permissions 'write, resize' are both required by node 'a' (uses node 'a-file' as 'file' child) and unshared by node 'b' (uses node 'a-file' as 'file' child).": {`{"driver": "qcow2", "node-name": "b", "file": "a-file"}`},
	} {
		w.refused(want, reopen(list...))
	}
	w.refused("node-name not specified", func(tx *Tx) error {
		o := w.options(img("a", ""))
		o.NodeName = nil
		return tx.Reopen(append(w.list([]string{img("b", ro)}), o))
	})
}

// TestReopenNamesTheMistakeOfTheNewestChild: of those of several children.
func TestReopenNamesTheMistakeOfTheNewestChild(t *testing.T) {
	w := newReopenWorld(t)
	const text = `{"driver": "qcow2", "node-name": "a", "file": {"driver": "null-co", "node-name": "%s"}, "backing": {"driver": "null-co", "node-name": "back"%s}}`
	w.add(fmt.Sprintf(text, "file", ""))
	w.refused("Cannot change the option 'size'", func(tx *Tx) error {
		return tx.Reopen(w.list([]string{fmt.Sprintf(text, "other", `, "size": 512`)}))
	})
}

// TestReopenSwapsChildrenOfTwoNodes, which neither could have alone.
func TestReopenSwapsChildrenOfTwoNodes(t *testing.T) {
	w := newReopenWorld(t)
	a, b := w.add(img("a", "")), w.add(img("b", ""))
	af, bf := a.File().Child(), b.File().Child()
	w.reopen(`{"driver": "qcow2", "node-name": "a", "file": "b-file"}`, `{"driver": "qcow2", "node-name": "b", "file": "a-file"}`)
	if a.File().Child() != bf || b.File().Child() != af {
		t.Error("not swapped")
	}
	// Defined within a and b, and now within neither.
	if af.inherits != nil || bf.inherits != nil {
		t.Error("the files still inherit")
	}
}

// TestReopenFrozenLink is refused; a filter that a job put there itself is
// passed over.
func TestReopenFrozenLink(t *testing.T) {
	w := newReopenWorld(t)
	w.add(img("base", `, "read-only": true`))
	w.add(img("other", `, "read-only": true`))
	top := w.add(img("top", `, "backing": "base"`))
	var c *FrozenChain
	update(t, w.g, func(tx *Tx) (err error) {
		c, err = tx.FreezeChain(top, w.g.names["base"])
		return err
	})
	for _, backing := range []string{`null`, `"other"`} {
		w.refused("Cannot change frozen 'backing' link from 'top' to 'base'", func(tx *Tx) error {
			return tx.Reopen(w.list([]string{img("top", `, "backing": `+backing)}))
		})
	}
	w.reopen(img("top", `, "backing": "base", "detect-zeroes": "on"`))
	update(t, w.g, func(tx *Tx) error {
		tx.Thaw(c)
		f, err := tx.Open(w.options(`{"driver": "copy-on-read", "node-name": "job", "file": "base", "read-only": true}`))
		if err != nil {
			return err
		}
		tx.SetImplicit(f)
		return tx.ReplaceNode(w.g.names["base"], f)
	})
	w.reopen(img("top", `, "backing": "base"`))
	if top.Backing().Child().name != "job" {
		t.Error("the job's filter is gone")
	}
	w.refused("Cannot replace implicit backing child of top", func(tx *Tx) error {
		return tx.Reopen(w.list([]string{img("top", `, "backing": null`)}))
	})
}

// TestInheritanceFollowsTheGraph: a node below that takes the place of one that
// was defined within the parent is within the parent from then on, and one that
// leaves is not.
func TestInheritanceFollowsTheGraph(t *testing.T) {
	w := newReopenWorld(t)
	chain := img("top", `, "backing": `+img("mid", `, "backing": `+img("base", "")))
	top := w.add(chain)
	base := w.g.names["base"]
	update(t, w.g, func(tx *Tx) error { return tx.SetChild(top, "backing", RoleCOW, base) })
	if base.inherits != top || w.g.names["mid"] != nil {
		t.Fatal("base is not within top")
	}
	w.reopen(img("top", `, "cache": {"no-flush": true}, "backing": `+img("base", "")))
	if !*base.State().Options.Cache.NoFlush {
		t.Error("base does not inherit")
	}
	tops := newRoot(t, w.g, base, PermConsistentRead, PermAll) // keeps base
	w.reopen(img("top", `, "backing": null`))
	if base.inherits != nil {
		t.Error("base is still within top")
	}
	w.reopen(img("top", `, "backing": "base"`))
	if *base.State().Options.Cache.NoFlush != true {
		t.Error("base was reopened as a stranger's child")
	}
	update(t, w.g, func(tx *Tx) error { return tx.CloseRoot(tops) })
}

// TestReopenOfAHeadersBackingFile: it must be named once the header does.
func TestReopenOfAHeadersBackingFile(t *testing.T) {
	w := newReopenWorld(t)
	w.header["top"] = "somewhere"
	w.add(img("top", `, "backing": null`))
	w.refused("backing is missing for 'top'", func(tx *Tx) error { return tx.Reopen(w.list([]string{img("top", "")})) })
	w.reopen(img("top", `, "backing": null, "lazy-refcounts": true`))
}

// TestOptionsThatAreLeftOutAreReset, where they may change.
func TestOptionsThatAreLeftOutAreReset(t *testing.T) {
	w := newReopenWorld(t)
	n := w.add(img("n", `, "lazy-refcounts": true, "discard": "unmap", "detect-zeroes": "unmap", "cache": {"direct": true}, "auto-read-only": true`))
	w.reopen(img("n", ""))
	o := n.State().Options
	if o.Qcow2.LazyRefcounts != nil || *o.Discard != "ignore" || n.State().DetectZeroes != "off" || *o.Cache.Direct || *o.AutoReadOnly {
		t.Errorf("%s", qapi.AppendJSON(nil, o))
	}
	w.add(`{"driver": "null-co", "node-name": "z", "size": 512}`)
	w.refused("Option 'size' cannot be reset to its default value", func(tx *Tx) error {
		return tx.Reopen(w.list([]string{`{"driver": "null-co", "node-name": "z"}`}))
	})
}

func (d *loggedDriver) PreparePerms(ctx context.Context, perm, shared Perm) error {
	if p, ok := d.Driver.(Permissioner); ok {
		return p.PreparePerms(ctx, perm, shared)
	}
	return nil
}

func (d *loggedDriver) CommitPerms(perm, shared Perm) {
	if p, ok := d.Driver.(Permissioner); ok {
		p.CommitPerms(perm, shared)
	}
}

func (d *loggedDriver) AbortPerms() {}
