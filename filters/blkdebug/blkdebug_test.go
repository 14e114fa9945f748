package blkdebug_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/filters/blkdebug"
	"blockd/qapi"
)

const mib = 1 << 20

// world has a node `f` in memory and blkdebug with config files by name.
func world(t *testing.T, files map[string]string) (*graphtest.World, *graphtest.Memory) {
	t.Helper()
	w := graphtest.New(t, blkdebug.Type(func(name string, _ bool) ([]byte, error) {
		text, ok := files[name]
		if !ok {
			return nil, syscall.ENOENT
		}
		return []byte(text), nil
	}))
	_, m := w.Mem("f", mib)
	return w, m
}

// options are those of a node `d` over `f`.
func options(t *testing.T, text string) *qapi.BlockdevOptions {
	t.Helper()
	v, err := qapi.ParseJSON([]byte(`{"driver":"blkdebug","node-name":"d","image":"f"` + text + `}`))
	if err != nil {
		t.Fatal(err)
	}
	o := &qapi.BlockdevOptions{}
	if err := qapi.Decode(v, o); err != nil {
		t.Fatal(err)
	}
	return o
}

func (u *user) open(t *testing.T, w *graphtest.World, text string) *blockgraph.Node {
	t.Helper()
	n := w.Add(options(t, text))
	u.Root = w.Root(n, graphtest.ReadWrite, blockgraph.PermAll)
	return n
}

type user struct{ *blockgraph.Root }

func (u *user) read(t *testing.T, off int64) error {
	return u.ReadV(t.Context(), off, graphtest.Vec(make([]byte, 4096)), 0)
}

func (u *user) write(t *testing.T, off int64) error {
	return u.WriteV(t.Context(), off, graphtest.Vec(bytes.Repeat([]byte{1}, 4096)), 0)
}

func TestErrorHitsItsKindOfRequest(t *testing.T) {
	kinds := map[string]func(u *user) error{
		"read":         func(u *user) error { return u.read(t, 0) },
		"write":        func(u *user) error { return u.write(t, 0) },
		"write-zeroes": func(u *user) error { return u.WriteZeroes(t.Context(), 0, 4096, 0) },
		"discard":      func(u *user) error { return u.Discard(t.Context(), 0, 4096) },
		"flush": func(u *user) error {
			_ = u.write(t, 0) // a failed one is something to flush, too
			return u.Flush(t.Context())
		},
		"block-status": func(u *user) error {
			_, _, err := u.BlockStatus(t.Context(), 0, 4096, blockgraph.StatusPrecise)
			return err
		},
	}
	for hit := range kinds {
		w, _ := world(t, nil)
		var u user
		u.open(t, w, fmt.Sprintf(`,"discard":"unmap","inject-error":[{"event":"none","iotype":"%s","errno":28}]`, hit))
		for kind, do := range kinds {
			err := do(&u)
			if kind == hit && !errors.Is(err, syscall.ENOSPC) || kind != hit && err != nil {
				t.Errorf("error for %s: %s gives %v", hit, kind, err)
			}
		}
	}
}

func TestErrorWithoutKindHitsAllButStatus(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	u.open(t, w, `,"inject-error":[{"event":"none"}]`)
	if err := u.read(t, 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if _, _, err := u.BlockStatus(t.Context(), 0, 4096, blockgraph.StatusPrecise); err != nil {
		t.Error(err)
	}
}

func TestErrorOfASectorHitsRequestsThatTouchIt(t *testing.T) {
	w, m := world(t, nil)
	var u user
	u.open(t, w, `,"inject-error":[{"event":"none","sector":15}]`)
	if err := u.write(t, 0); err != nil {
		t.Error(err)
	}
	if err := u.write(t, 4096); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if err := u.write(t, 8192); err != nil {
		t.Error(err)
	}
	if b := m.Bytes(); b[4096] != 0 || b[0] != 1 {
		t.Error("a failed write reached the image, or another did not")
	}
}

func TestOnceHitsOnce(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	u.open(t, w, `,"inject-error":[{"event":"none","once":true},{"event":"none","once":true,"errno":28}]`)
	if err := u.read(t, 0); !errors.Is(err, syscall.EIO) {
		t.Error("the first rule comes first:", err)
	}
	if err := u.read(t, 0); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if err := u.read(t, 0); err != nil {
		t.Error(err)
	}
}

// TestAnEventReplacesTheActiveErrors: they stay active until another event
// brings others.
func TestAnEventReplacesTheActiveErrors(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	n := u.open(t, w, `,"inject-error":[{"event":"l2_load","errno":5},{"event":"l2_update","errno":28},{"event":"l1_update","errno":0}]`)
	event := n.Driver().(blockgraph.DebugEventer).DebugEvent
	for _, step := range []struct {
		event string
		want  error
	}{
		{"read_aio", nil}, {"l2_load", syscall.EIO}, {"read_aio", syscall.EIO},
		{"l2_update", syscall.ENOSPC}, {"l1_update", nil}, {"l2_load", syscall.EIO},
	} {
		event(step.event)
		if err := u.read(t, 0); !errors.Is(err, step.want) {
			t.Errorf("after %s: %v", step.event, err)
		}
	}
}

func TestRulesFollowTheState(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	n := u.open(t, w, `,"inject-error":[{"event":"cow_read","state":3}],
		"set-state":[{"event":"l2_load","new_state":2},{"event":"cow_write","state":2,"new_state":3}]`)
	event := n.Driver().(blockgraph.DebugEventer).DebugEvent
	for i, step := range []struct {
		event string
		want  error
	}{
		{"cow_read", nil}, {"cow_write", nil}, {"cow_read", nil},
		{"l2_load", nil}, {"cow_read", nil}, {"cow_write", nil}, {"cow_read", syscall.EIO},
	} {
		event(step.event)
		if err := u.read(t, 0); !errors.Is(err, step.want) {
			t.Errorf("step %d, %s: %v", i, step.event, err)
		}
	}
}

func TestFlushWithNothingToDoNeverFails(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	u.open(t, w, `,"inject-error":[{"event":"none","iotype":"flush"}]`)
	if err := u.Flush(t.Context()); err != nil {
		t.Error("before the first write:", err)
	}
	if err := u.write(t, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := u.Flush(t.Context()); !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
	}
}

func TestEventsOfTheWrapper(t *testing.T) {
	for _, c := range []struct {
		do   func(u *user) error
		want string
	}{
		{func(u *user) error { return u.write(t, 0) }, "pwritev pwritev_done"},
		{func(u *user) error { return u.WriteZeroes(t.Context(), 0, 8192, 0) }, "pwritev_zero pwritev_done"},
		{func(u *user) error { return u.WriteV(t.Context(), 100, graphtest.Vec(make([]byte, 100)), 0) },
			"pwritev_rmw_head pwritev_rmw_tail pwritev_rmw_after_head pwritev_rmw_after_tail pwritev pwritev_done"},
		{func(u *user) error { return u.WriteV(t.Context(), 0, graphtest.Vec(make([]byte, 100)), 0) },
			"pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_done"},
		{func(u *user) error { return u.WriteV(t.Context(), 100, graphtest.Vec(make([]byte, 8092)), 0) },
			"pwritev_rmw_head pwritev_rmw_after_head pwritev pwritev_done"},
		{func(u *user) error { return u.WriteV(t.Context(), 100, graphtest.Vec(make([]byte, 8000)), 0) },
			"pwritev_rmw_head pwritev_rmw_tail pwritev_rmw_after_head pwritev_rmw_after_tail pwritev pwritev_done"},
		{func(u *user) error { return u.WriteV(t.Context(), 100, graphtest.Vec(make([]byte, 12000)), 0) },
			"pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_done"},
	} {
		w, _ := world(t, nil)
		var u user
		n := u.open(t, w, `,"align":4096`)
		if got := strings.Join(trace(t, n, func() { check(t, c.do(&u)) }), " "); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// trace returns the events that f brings, by a breakpoint on each.
func trace(t *testing.T, n *blockgraph.Node, f func()) (events []string) {
	all := qapi.BlkdebugEvent("").QAPIEnum()
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, e := range all {
		check(t, n.Breakpoint(e, e))
		wg.Go(func() {
			for n.AwaitSuspended(ctx, e) == nil {
				mu.Lock()
				events = append(events, e)
				mu.Unlock()
				check(t, n.Breakpoint(e, e))
				check(t, n.ResumeBreakpoint(e))
			}
		})
	}
	go func() { f(); close(done) }()
	<-done
	cancel()
	wg.Wait()
	return events
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestBreakpointStopsAndResumes(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	n := u.open(t, w, "")
	top := w.Pass("p", "d") // breakpoints travel down
	guest := w.Root(top, graphtest.ReadWrite, blockgraph.PermAll)
	check(t, top.Breakpoint("pwritev", "A"))
	if top.Suspended("A") || n.ResumeBreakpoint("A") != syscall.ENOENT {
		t.Error("suspended too early")
	}
	done := make(chan error, 1)
	go func() { done <- guest.WriteV(context.Background(), 0, graphtest.Vec(make([]byte, 512)), 0) }()
	check(t, top.AwaitSuspended(t.Context(), "A"))
	if !top.Suspended("A") || guest.InFlight() != 1 {
		t.Error("not suspended")
	}
	check(t, u.write(t, 4096)) // a breakpoint works once
	check(t, top.ResumeBreakpoint("A"))
	check(t, <-done)
	if top.Suspended("A") {
		t.Error("still suspended")
	}
}

func TestRemoveBreakpointResumesAll(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	n := u.open(t, w, "")
	for range 3 {
		check(t, n.Breakpoint("pwritev", "A"))
	}
	done := make(chan error, 1)
	go func() { done <- u.write(t, 0) }() // stops at all three at once
	check(t, n.AwaitSuspended(t.Context(), "A"))
	check(t, n.RemoveBreakpoint("A"))
	check(t, <-done)
	check(t, u.write(t, 0))
	if err := n.RemoveBreakpoint("A"); err != syscall.ENOENT {
		t.Error(err)
	}
}

func TestBreakpointsThatAreRefused(t *testing.T) {
	w, _ := world(t, nil)
	var u user
	n := u.open(t, w, "")
	if err := n.Breakpoint("nonsense", "A"); err != syscall.ENOENT {
		t.Error(err)
	}
	f, _ := w.Mem("g", mib)
	if err := f.Breakpoint("pwritev", "A"); err != syscall.ENOTSUP {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.AwaitSuspended(ctx, "A"); err != context.Canceled {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	w, m := world(t, nil)
	m.Edit(func(b []byte) { b[0] = 1 })
	var u user
	n := u.open(t, w, `,"discard":"unmap","align":512,"max-transfer":65536,"opt-write-zero":4096,"max-write-zero":8192,"opt-discard":4096,"max-discard":16384`)
	want := blockgraph.Limits{RequestAlignment: 512, MaxTransfer: 65536, ZeroAlignment: 4096, MaxZero: 8192, DiscardAlignment: 4096, MaxDiscard: 16384}
	if got := n.Limits(); got != want {
		t.Errorf("%+v", got)
	}
	check(t, u.ReadV(t.Context(), 0, graphtest.Vec(make([]byte, 256<<10)), 0))
	check(t, u.WriteZeroes(t.Context(), 0, 32<<10, 0))
	check(t, u.Discard(t.Context(), 0, 64<<10))
	if r, z, d := m.Reads.Load(), m.Zeroes.Load(), m.Discards.Load(); r != 4 || z != 4 || d != 4 {
		t.Error("pieces:", r, z, d)
	}
	// A piece below the optimal alignment is written as data.
	check(t, u.WriteZeroes(t.Context(), 512, 512, 0))
	if w, z := m.Writes.Load(), m.Zeroes.Load(); w != 1 || z != 4 {
		t.Error("unaligned zeroes:", w, z)
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	files := map[string]string{
		"group": "[foo]\na = \"b\"\n", "none": "a = \"b\"\n", "key": "[inject-error]\nfoo = \"x\"\n",
		"event": "[inject-error]\nevent = \"foo\"\n", "missing": "[inject-error]\nstate = \"1\"\n",
		"number": "[inject-error]\nevent = \"none\"\nstate = \"x\"\n", "word": "bla\n", "blank": "   \n",
		"bool":    "[inject-error]\nevent = \"none\"\nonce = \"x\"\n",
		"iotype":  "[inject-error]\nevent = \"none\"\niotype = \"x\"\n",
		"comment": "[inject-error]\n  event = \"none\"  trail\n\n#c\n  #d\n",
		"same":    "[inject-error] event = \"none\"\nevent=\"none\"\n",
		"large":   "[inject-error]\nevent = \"none\"\nstate = \"99999999999999999999\"\n",
		"id":      "[inject-error \"a\"]\nevent = \"none\"\n[inject-error \"a\"]\nevent = \"none\"\n",
	}
	w, _ := world(t, files)
	before := w.Dump()
	for _, c := range [][2]string{
		{`,"align":3`, "Cannot meet constraints with align 3"},
		{`,"align":-1`, "Parameter 'align' expects a non-negative number below 2^64"},
		{`,"align":2147483648`, "Cannot meet constraints with align 2147483648"},
		{`,"max-transfer":-1`, "Parameter 'max-transfer' expects a non-negative number below 2^64"},
		{`,"align":4096,"max-transfer":512`, "Cannot meet constraints with max-transfer 512"},
		{`,"opt-write-zero":65536,"max-write-zero":4096`, "Cannot meet constraints with max-write-zero 4096"},
		{`,"opt-discard":65536,"max-discard":4096`, "Cannot meet constraints with max-discard 4096"},
		{`,"align":1048576,"opt-discard":65536`, "Cannot meet constraints with opt-discard 65536"},
		{`,"config":"no"`, "Could not read blkdebug config file: No such file or directory"},
		{`,"config":"group"`, "There is no option group 'foo'"},
		{`,"config":"none"`, "no group defined"},
		{`,"config":"key"`, "Invalid parameter 'foo'"},
		{`,"config":"event"`, "invalid parameter value: foo"},
		{`,"config":"missing"`, "Missing event name for rule"},
		{`,"config":"number"`, "Parameter 'state' expects a number"},
		{`,"config":"word"`, "no group defined"},
		{`,"config":"blank"`, "parse error"},
		{`,"config":"bool"`, "Parameter 'once' expects 'on' or 'off'"},
		{`,"config":"iotype"`, "invalid parameter value: x"},
		{`,"config":"comment"`, "Invalid parameter '#d'"},
		{`,"config":"same"`, `Invalid parameter 'event="none"'`},
		{`,"config":"large"`, "Value '99999999999999999999' is too large for parameter 'state'"},
		{`,"config":"id"`, "Duplicate ID 'a' for inject-error"},
	} {
		if _, err := w.TryAdd(options(t, c[0])); err == nil || err.Error() != c[1] {
			t.Errorf("%s: %v, want %s", c[0], err, c[1])
		}
	}
	if after := w.Dump(); after != before {
		t.Errorf("the graph changed from\n%s to\n%s", before, after)
	}
}

func TestConfigFile(t *testing.T) {
	w, _ := world(t, map[string]string{"c": "# a comment\n" +
		"[set-state]\nevent = \"l2_load\"\nstate = \"1\"\nnew_state = \"0x2\"\n\n" +
		"[inject-error \"name\"]\n  event = \"pwritev\"  trailing\nstate=\"1\"\nstate = \"2\"\nerrno = \"28\"\nonce = \"on\"\nsector = \"8\"\niotype = \"write\"\n"})
	if _, err := w.TryAdd(options(t, `,"config":"c"`)); err == nil || err.Error() != `Invalid parameter 'state="1"'` {
		t.Fatal(err)
	}
	w, _ = world(t, map[string]string{"c": "# a comment\n" +
		"[set-state]\nevent = \"l2_load\"\nstate = \"1\"\nnew_state = \"0x2\"\n\n" +
		"[inject-error \"name\"]\n  event = \"pwritev\"  trailing\nstate = \"1\"\nstate = \"2\"\nerrno = \"28\"\nonce = \"on\"\nsector = \"8\"\niotype = \"write\"\n"})
	var u user
	n := u.open(t, w, `,"config":"c"`)
	check(t, u.write(t, 4096)) // state 1
	n.Driver().(blockgraph.DebugEventer).DebugEvent("l2_load")
	check(t, u.write(t, 0))
	if err := u.write(t, 4096); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	check(t, u.write(t, 4096))
}

func TestPermissionsTakenAndUnshared(t *testing.T) {
	w, m := world(t, nil)
	w.Add(options(t, `,"take-child-perms":["write","consistent-read"],"unshare-child-perms":["resize"]`))
	perm, shared := m.Locks()
	if perm != blockgraph.PermConsistentRead|blockgraph.PermWrite || shared != blockgraph.PermAll&^blockgraph.PermResize {
		t.Error(perm, "shared", shared)
	}
	_, err := w.TryAdd(func() *qapi.BlockdevOptions {
		o := options(t, `,"unshare-child-perms":["write"]`)
		name := "e"
		o.NodeName = &name
		return o
	}())
	want := "Permission conflict on node 'f': permissions 'write' are both required by node 'd' (uses node 'f' as 'image' child) and unshared by node 'e' (uses node 'f' as 'image' child)."
	if err == nil || err.Error() != want {
		t.Error(err)
	}
}

func TestFilenames(t *testing.T) {
	for _, c := range [][2]string{
		{`,"align":512`, `json:{"image": {"driver": "mem"}, "driver": "blkdebug", "align": 512}`},
		{`,"inject-error":[{"event":"none"},{"event":"l2_load","once":false,"sector":-1}],"set-state":[{"event":"cow_read","new_state":2}]`,
			`json:{"set-state.0.event": "cow_read", "image": {"driver": "mem"}, "driver": "blkdebug", "set-state.0.new_state": 2, "inject-error.0.event": "none", "inject-error.1.event": "l2_load", "inject-error.1.once": false, "inject-error.1.sector": -1}`},
	} {
		w, _ := world(t, nil)
		n := w.Add(options(t, c[0]))
		if got := n.Filename(); sortedMembers(got) != sortedMembers(c[1]) {
			t.Errorf("%s\nwant %s", got, c[1])
		}
		// What is printed can be opened.
		_, o, err := w.Graph.ParseFilename(strings.Replace(n.Filename(), `"image": {"driver": "mem"}`, `"image": "f", "node-name": "again"`, 1))
		if err != nil {
			t.Fatal(err)
		}
		again := w.Add(o)
		if again.Filename() != n.Filename() {
			t.Errorf("opened again: %s", again.Filename())
		}
	}
}

func sortedMembers(s string) string {
	v, err := qapi.ParseJSON([]byte(strings.TrimPrefix(s, "json:")))
	if err != nil {
		return err.Error()
	}
	m := map[string]any{}
	for k, x := range v.(*qapi.Object).All() {
		m[k] = fmt.Sprint(x)
		if o, ok := x.(*qapi.Object); ok {
			m[k] = string(qapi.AppendJSON(nil, o))
		}
	}
	return fmt.Sprint(m)
}

func TestFilenameSyntax(t *testing.T) {
	w, _ := world(t, nil)
	config := "conf"
	image := func(name string) qapi.BlockdevRef {
		return qapi.BlockdevRef{Definition: &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverFile, File: &qapi.BlockdevOptionsFile{Filename: name}}}
	}
	for name, want := range map[string]*qapi.BlockdevOptionsBlkdebug{
		"blkdebug:conf:a/b.img": {Config: &config, Image: image("a/b.img")},
		"blkdebug::a:b":         nil,
		"blkdebug::/a:b":        {Image: image("/a:b")},
		"blkdebug::file:a:b":    {Image: image("./a:b")},
		"blkdebug:conf":         nil,
	} {
		ref, _, err := w.Graph.ParseFilename(name)
		if want == nil {
			if err == nil {
				t.Errorf("%s was taken", name)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(ref.Definition.Blkdebug, want) {
			t.Errorf("%s: %+v %v", name, ref.Definition, err)
		}
	}
	if _, _, err := w.Graph.ParseFilename("blkdebug:conf"); err.Error() != "blkdebug requires both config file and image path" {
		t.Error(err)
	}
}
