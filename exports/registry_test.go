package exports

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
	"blockd/sockets"
)

func (w *world) start() string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "s")
	a := &qapi.NbdServerStartArg{Addr: qapi.SocketAddressLegacy{Type: "unix", Unix: &qapi.UnixSocketAddress{Path: path}}}
	if err := w.StartNBDLegacy(w.t.Context(), a); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func ptr[T any](v T) *T { return &v }

func options(id, node string) *qapi.BlockExportOptions {
	return &qapi.BlockExportOptions{Type: "nbd", ID: id, NodeName: node, NBD: &qapi.BlockExportOptionsNbd{}}
}

func (w *world) mustAdd(o *qapi.BlockExportOptions) {
	w.t.Helper()
	if err := w.Add(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) refused(want string, err error) {
	w.t.Helper()
	if err == nil || err.Error() != want {
		w.t.Errorf("got %v, want %q", err, want)
	}
}

// guest connects to an export by NBD_OPT_EXPORT_NAME.
func (w *world) guest(path, name string) net.Conn {
	w.t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(clock.Real().Now().Add(2 * time.Minute))
	msg := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00" + string(rune(len(name))) + name
	if _, err := io.WriteString(c, msg); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 18+10)); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func TestErrorsAreTheFields(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	w.node("ro", true)
	ctx := t.Context()
	w.refused("NBD server not running", w.StopNBD(ctx))
	w.refused("NBD server not running", w.Add(ctx, options("e", "n")))
	path := w.start()
	w.refused("NBD server already running", w.StartNBD(ctx, &qapi.NbdServerOptions{Addr: qapi.SocketAddress{Type: "unix", Unix: &qapi.UnixSocketAddress{Path: path + "2"}}}))
	w.refused("Cannot find device='' nor node-name='zz'", w.Add(ctx, options("e", "zz")))
	for _, bad := range []string{"", "1 bad", "1", "a b", "-a", "ä"} {
		w.refused("Invalid block export id", w.Add(ctx, options(bad, "n")))
	}
	w.mustAdd(options("e", "n"))
	w.refused("Block export id 'e' is already in use", w.Add(ctx, options("e", "n")))
	w.refused("NBD server already has export named 'n'", w.Add(ctx, options("e2", "n")))
	w.refused("Export 'zz' is not found", w.Del(ctx, "zz", nil))
	o := options("e3", "n")
	o.Iothread = ptr("zz")
	w.refused(`iothread "zz" not found`, w.Add(ctx, o))
	o = options("e4", "ro")
	o.Writable = ptr(true)
	w.refused("Cannot export read-only node as writable", w.Add(ctx, o))
	long := strings.Repeat("x", 4097)
	o = options("e5", "ro")
	o.NBD.Name = &long
	w.refused("export name '"+long+"' too long", w.Add(ctx, o))
	o.NBD.Name = nil
	o.NBD.Description = &long
	w.refused("description '"+long+"' too long", w.Add(ctx, o))
	o.NBD.Description = nil
	o.NBD.Bitmaps = []qapi.BlockDirtyBitmapOrStr{{Local: ptr("zz")}}
	w.refused("Bitmap 'zz' is not found", w.Add(ctx, o))
	w.refused("Cannot find device='zz' nor node-name='zz'", w.AddNBD(ctx, &qapi.NbdServerAddArg{Device: "zz"}))
	if got := w.Query(); len(got) != 1 || got[0].ID != "e" {
		t.Errorf("what was refused left something behind: %+v", got)
	}
	// Nothing that was refused holds the nodes.
	w.Graph.Loop().Do(func() {
		if n := len(w.Graph.Node("ro").Parents()); n != 0 {
			t.Errorf("%d users of the node", n)
		}
	})
}

func TestServerRefusesUnknownTLSCredentialsAndLeavesNoSocket(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "s")
	o := &qapi.NbdServerOptions{Addr: qapi.SocketAddress{Type: "unix", Unix: &qapi.UnixSocketAddress{Path: path}}}
	o.TLSCreds = ptr("tls0")
	w.refused("No TLS credentials with id 'tls0'", w.StartNBD(t.Context(), o))
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if w.Running() {
		t.Error("the server runs")
	}
}

func TestExportsUseAndShareWhatTheLockTableSays(t *testing.T) {
	w := newWorld(t)
	d := w.node("n", false)
	w.start()
	w.mustAdd(options("ro", "n"))
	all := blockgraph.PermAll
	if perm, shared := d.Locks(); perm != blockgraph.PermConsistentRead || shared != all&^blockgraph.PermResize {
		t.Errorf("read-only export: uses %v, shares %v", perm, shared)
	}
	o := options("rw", "n")
	o.Writable, o.NBD.Name = ptr(true), ptr("x")
	w.mustAdd(o)
	if perm, shared := d.Locks(); perm != blockgraph.PermConsistentRead|blockgraph.PermWrite || shared != all&^blockgraph.PermResize {
		t.Errorf("writable export: uses %v, shares %v", perm, shared)
	}
	for _, id := range []string{"ro", "rw"} {
		if err := w.Del(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
	}
	if perm, shared := d.Locks(); perm != 0 || shared != all {
		t.Errorf("after the exports: uses %v, shares %v", perm, shared)
	}
}

func TestUnusedExportIsGoneAndReportedWhenDelReturns(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	w.start()
	for range 3 { // the id and the name are free again at once
		w.mustAdd(options("e", "n"))
		if err := w.Del(t.Context(), "e", nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.Query(); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
	if got := w.events(); !slices.Equal(got, []string{"e", "e", "e"}) {
		t.Errorf("events: %v", got)
	}
	w.Graph.Loop().Do(func() {
		if len(w.Graph.Roots()) != 0 {
			t.Error("a root is left")
		}
	})
}

func TestSafeDelOfUsedExportIsRefusedAndHardDisconnects(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	path := w.start()
	w.mustAdd(options("e", "n"))
	c := w.guest(path, "n")
	w.refused("export 'e' still in use", w.Del(t.Context(), "e", nil))
	w.refused("export 'e' still in use", w.Del(t.Context(), "e", ptr(qapi.BlockExportRemoveModeSafe)))
	if len(w.events()) != 0 {
		t.Error("an event without an end")
	}
	e := w.exports[0]
	if err := w.Del(t.Context(), "e", ptr(qapi.BlockExportRemoveModeHard)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Logf("the client sees %v", err)
	}
	<-e.gone
	if got := w.events(); !slices.Equal(got, []string{"e"}) {
		t.Errorf("events: %v", got)
	}
}

func TestQueryListsTheNewestFirst(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	w.start()
	w.mustAdd(options("a", "n"))
	o := options("b", "n")
	o.NBD.Name = ptr("other")
	w.mustAdd(o)
	want := []qapi.BlockExportInfo{{ID: "b", Type: "nbd", NodeName: "n"}, {ID: "a", Type: "nbd", NodeName: "n"}}
	if got := w.Query(); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestStopEndsAllExportsBeforeItReturns(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	path := w.start()
	w.mustAdd(options("a", "n"))
	o := options("b", "n")
	o.NBD.Name = ptr("other")
	w.mustAdd(o)
	w.guest(path, "n")
	if err := w.StopNBD(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := w.events()
	slices.Sort(got)
	if !slices.Equal(got, []string{"a", "b"}) || len(w.Query()) != 0 {
		t.Errorf("events %v, left %v", got, w.Query())
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	w.start() // and again
	w.mustAdd(options("a", "n"))
}

func TestEndLeavesTheSocketsFileThatOthersKnowOf(t *testing.T) {
	ready, starting := make(chan struct{}), make(chan struct{})
	close(ready)
	for name, c := range map[string]struct {
		ready  <-chan struct{}
		access sockets.Access
		stays  bool
	}{
		"as in the field":            {ready, sockets.Access{}, true},
		"for a group":                {ready, sockets.Access{Private: true}, true},
		"nobody else's":              {ready, sockets.Access{Private: true, Exclusive: true}, false},
		"of a start that has failed": {starting, sockets.Access{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Ready, w.Access = c.ready, c.access
			path := w.start()
			if err := w.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); os.IsNotExist(err) == c.stays {
				t.Errorf("the socket: %v, want it to stay: %v", err, c.stays)
			}
			if w.Running() {
				t.Error("the server runs")
			}
		})
	}
}

func TestOldCommandDowngradesReadOnlyNode(t *testing.T) {
	w := newWorld(t)
	w.node("ro", true)
	w.start()
	if err := w.AddNBD(t.Context(), &qapi.NbdServerAddArg{Device: "ro", Writable: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	if got := w.Query(); len(got) != 1 || got[0].ID != "ro" {
		t.Errorf("got %+v", got)
	}
	if err := w.RemoveNBD(t.Context(), "ro", nil); err != nil {
		t.Fatal(err)
	}
	w.refused("Export 'ro' is not found", w.RemoveNBD(t.Context(), "ro", nil))
}

func TestQemuIOWritesAndReadsThroughTheGraph(t *testing.T) {
	tool, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("needs qemu-io")
	}
	w := newWorld(t)
	d := w.node("n", false)
	path := w.start()
	o := options("e", "n")
	o.Writable = ptr(true)
	w.mustAdd(o)
	cmd := exec.Command(tool, "-f", "raw", "nbd+unix:///n?socket="+path, "-c", "write -P 7 1000 300k", "-c", "write -z 64k 64k", "-c", "read -P 7 1000 4k", "-c", "flush", "-c", "discard 0 4k")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "fail") {
		t.Fatalf("%v\n%s", err, out)
	}
	if b := d.Bytes(); b[999] != 0 || b[1000] != 7 || b[70<<10] != 0 || b[130<<10] != 7 {
		t.Error("the image does not hold what was written")
	}
}

func TestNbdinfoListsExports(t *testing.T) {
	tool, err := exec.LookPath("nbdinfo")
	if err != nil {
		t.Skip("needs nbdinfo")
	}
	w := newWorld(t)
	w.node("n", false)
	path := w.start()
	o := options("e", "n")
	o.NBD.Description = ptr("a disk")
	w.mustAdd(o)
	out, err := exec.Command(tool, "--list", "--json", "nbd+unix:///?socket="+path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string
			Size        int64 `json:"export-size"`
		}
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Exports) != 1 || got.Exports[0].Name != "n" || got.Exports[0].Description != "a disk" || got.Exports[0].Size != 1<<20+512 { // whole sectors
		t.Errorf("%s", out)
	}
}

// TestExportsOfOneChangeDoNotShareIdsOrNames: neither of them is on the list
// yet.
func TestExportsOfOneChangeDoNotShareIdsOrNames(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.node("n", false)
	w.node("m", false)
	both := func(a, b *qapi.BlockExportOptions) error {
		return w.Graph.Update(t.Context(), blockgraph.Cause{Command: "transaction"}, func(tx *blockgraph.Tx) error {
			if err := w.AddIn(tx, a); err != nil {
				return err
			}
			return w.AddIn(tx, b)
		})
	}
	w.refused("Block export id 'e' is already in use", both(options("e", "n"), options("e", "m")))
	w.refused("NBD server already has export named 'n'", both(options("e", "n"), options("f", "n")))
	if err := both(options("e", "n"), options("f", "m")); err != nil {
		t.Error(err)
	}
}

// TestBitmapIsBusyWhileItIsExported, once for each time that it is named.
func TestBitmapIsBusyWhileItIsExported(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.node("n", false)
	var n *blockgraph.Node
	err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		n = tx.Find("n")
		return tx.AddBitmap(n, "b", 4096, false, true)
	})
	if err != nil {
		t.Fatal(err)
	}
	o := options("e", "n")
	o.NBD.Bitmaps = []qapi.BlockDirtyBitmapOrStr{{Local: ptr("b")}, {External: &qapi.BlockDirtyBitmap{Node: "n", Name: "b"}}}
	w.mustAdd(o)
	if !n.State().Bitmap("b").Busy {
		t.Error("not busy")
	}
	if err := w.Del(t.Context(), "e", nil); err != nil {
		t.Fatal(err)
	}
	if n.State().Bitmap("b").Busy {
		t.Error("still busy")
	}
}

func TestExtentsOfABitmap(t *testing.T) {
	bits := bitmaps.New(10*4096, 4096)
	bits.Set(2*4096, 3*4096)
	c := dirtyContext{"x", bits}
	for off, want := range map[int64][2]int64{0: {0, 2 * 4096}, 4096: {0, 4096}, 2*4096 + 512: {1, 3*4096 - 512}, 5 * 4096: {0, 5 * 4096}} {
		flags, n, err := c.Extent(t.Context(), off, 10*4096-off)
		if err != nil || int64(flags) != want[0] || n != want[1] {
			t.Errorf("at %d: %d for %d bytes, %v", off, flags, n, err)
		}
	}
}

// drives are devices that have a medium, or nil.
type drives map[string]*blockgraph.Root

func (d drives) Device(name string) (*blockgraph.Root, bool) {
	r, ok := d[name]
	return r, ok
}

// nbd-server-add takes the name of a device for what is in it; the export goes by
// the device's name.
func TestServerAddTakesADevice(t *testing.T) {
	w := newWorld(t)
	list := drives{"empty": nil}
	w.Graph.UseDevices(list)
	w.node("n", false)
	err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) (err error) {
		list["drive"], err = tx.NewRoot(tx.Find("n"), blockgraph.RootOptions{Device: "drive", Shared: blockgraph.PermAll})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.start()
	w.refused("Device 'empty' has no medium", w.AddNBD(t.Context(), &qapi.NbdServerAddArg{Device: "empty"}))
	if err := w.AddNBD(t.Context(), &qapi.NbdServerAddArg{Device: "drive"}); err != nil {
		t.Fatal(err)
	}
	if got := w.Query(); len(got) != 1 || got[0].ID != "drive" || got[0].NodeName != "n" {
		t.Errorf("%+v", got)
	}
	err = w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.CloseRoot(list["drive"]) })
	if err != nil {
		t.Fatal(err)
	}
}

func TestConnectionsAreThoseOfTheServer(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	holds := func(n int, most uint32, ok bool) {
		t.Helper()
		if gotN, gotMost, gotOK := w.Connections(); gotN != n || gotMost != most || gotOK != ok {
			t.Errorf("%d of %d, %v", gotN, gotMost, gotOK)
		}
	}
	holds(0, 0, false)
	path := filepath.Join(t.TempDir(), "s")
	if err := w.StartNBD(t.Context(), &qapi.NbdServerOptions{NbdServerOptionsBase: qapi.NbdServerOptionsBase{MaxConnections: ptr(uint32(7))}, Addr: qapi.SocketAddress{Type: "unix", Unix: &qapi.UnixSocketAddress{Path: path}}}); err != nil {
		t.Fatal(err)
	}
	holds(0, 7, true)
	w.mustAdd(options("e", "n"))
	w.guest(path, "n")
	w.guest(path, "n")
	holds(2, 7, true)
	if err := w.StopNBD(t.Context()); err != nil {
		t.Fatal(err)
	}
	holds(0, 0, false)
}
