package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/qapi"
)

// heldLocks returns the locked bytes of a file as /proc/locks tells, each once.
func heldLocks(t *testing.T, name string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Skip("needs /proc/locks")
	}
	var found []int
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 8 || !strings.HasSuffix(f[5], fmt.Sprintf(":%d", st.Ino)) {
			continue
		}
		if f[1] != "OFDLCK" || f[3] != "READ" {
			t.Errorf("unexpected lock %s", line)
		}
		var from, to int
		if _, err := fmt.Sscan(f[6]+" "+f[7], &from, &to); err != nil {
			t.Fatal(err)
		}
		for b := from; b <= to; b++ {
			found = append(found, b)
		}
	}
	slices.Sort(found)
	s := ""
	for _, b := range slices.Compact(found) {
		s += fmt.Sprint(b, " ")
	}
	return s
}

func TestLockBytesFollowPermissions(t *testing.T) {
	name := image(t, 1<<20)
	w := newWorld(t, Config{})
	n := w.mustOpen(fileOptions(name))
	want := func(bytes string) {
		t.Helper()
		if got := heldLocks(t, name); got != bytes {
			t.Errorf("locked %q, want %q", got, bytes)
		}
	}
	want("")
	ro := w.mustRoot(n, blockgraph.PermConsistentRead, all&^blockgraph.PermResize)
	want("100 203 ")
	wr := w.mustRoot(n, rw, all&^blockgraph.PermResize)
	want("100 101 203 ")
	w.closeRoot(ro)
	want("100 101 203 ")
	w.closeRoot(wr)
	want("")
	meta := w.mustRoot(n, rw|blockgraph.PermResize, readers)
	want("100 101 103 201 203 ")
	w.closeRoot(meta)
	w.close(n)
	want("")
}

func TestTwoNodesOfOneFileExcludeEachOther(t *testing.T) {
	name := image(t, 1<<20)
	w := newWorld(t, Config{})
	a, b := w.mustOpen(fileOptions(name)), w.mustOpen(fileOptions(name))
	first := w.mustRoot(a, rw, all&^blockgraph.PermWrite)
	_, err := w.root(b, rw, all)
	wantText(t, err, `Failed to get "write" lock`)
	_, err = w.root(b, blockgraph.PermConsistentRead, all&^blockgraph.PermWrite)
	wantText(t, err, `Failed to get shared "write" lock`)
	if got := heldLocks(t, name); got != "100 101 201 " {
		t.Errorf("after refusals: %q", got)
	}
	w.closeRoot(first)
	w.mustRoot(b, rw, all&^blockgraph.PermWrite)
}

func TestLockingOffAndForceShare(t *testing.T) {
	name := image(t, 1<<20)
	w := newWorld(t, Config{})
	off := fileOptions(name)
	off.File.Locking = ptr(qapi.OnOffAutoOff)
	w.mustRoot(w.mustOpen(off), rw, 0)
	if got := heldLocks(t, name); got != "" {
		t.Errorf("locking off: %q", got)
	}
	w.mustRoot(w.mustOpen(fileOptions(name)), rw, readers)
	share := fileOptions(name)
	share.ReadOnly, share.ForceShare = ptr(true), ptr(true)
	if _, err := w.root(w.mustOpen(share), blockgraph.PermConsistentRead, 0); err != nil {
		t.Errorf("force-share: %v", err)
	}
}

func TestQemuAndWeKeepEachOtherOut(t *testing.T) {
	img, qio := tool(t, "qemu-img"), tool(t, "qemu-io")
	name := filepath.Join(t.TempDir(), "q.qcow2")
	if out := run(img, "create", "-f", "qcow2", name, "1M"); strings.Contains(out, "rror") {
		t.Fatal(out)
	}
	w := newWorld(t, Config{})
	n := w.mustOpen(fileOptions(name))
	r := w.mustRoot(n, rw|blockgraph.PermResize, readers) // as qcow2 uses its file
	out := run(qio, "-f", "qcow2", "-c", "write 0 64k", name)
	if !strings.Contains(out, `Failed to get "write" lock`) {
		t.Errorf("qemu-io wrote: %s", out)
	}
	out = run(img, "info", name)
	if !strings.Contains(out, `Failed to get shared "write" lock`) {
		t.Errorf("qemu-img read: %s", out)
	}
	if out = run(img, "info", "-U", name); !strings.Contains(out, "virtual size: 1 MiB") {
		t.Errorf("qemu-img -U: %s", out)
	}
	w.closeRoot(r)
	if out = run(qio, "-f", "qcow2", "-c", "write 0 64k", name); !strings.Contains(out, "wrote 65536") {
		t.Errorf("after our last user: %s", out)
	}
	// The other way round: qemu-io holds the image while it waits for input.
	release := holdWithQemuIO(t, qio, name)
	_, err := w.root(n, rw, all)
	wantText(t, err, `Failed to get "write" lock`)
	err = w.h.Create(t.Context(), &qapi.BlockdevCreateOptionsFile{Filename: name, Size: 512})
	wantText(t, err, `Failed to get "write" lock`)
	release()
	if _, err := w.root(n, rw, all); err != nil {
		t.Errorf("after qemu-io ended: %v", err)
	}
	if out = run(img, "check", "-U", name); !strings.Contains(out, "No errors") {
		t.Errorf("image: %s", out)
	}
}

func TestAutoReadOnlyOpensForWritingWhileThereAreWriters(t *testing.T) {
	name := image(t, 1<<20)
	w := newWorld(t, Config{})
	o := fileOptions(name)
	o.AutoReadOnly = ptr(true)
	n := w.mustOpen(o)
	d := n.Driver().(*driver)
	mode := func(want int) {
		t.Helper()
		if got := accessMode(t, d.file.Fd()); got != want {
			t.Errorf("access mode %d, want %d", got, want)
		}
		if k := descriptors(t, name); k > 1 {
			t.Errorf("%d descriptors", k)
		}
	}
	mode(os.O_RDONLY)
	r := w.mustRoot(n, rw, readers)
	mode(os.O_RDWR)
	if got := heldLocks(t, name); got != "100 101 201 203 " {
		t.Errorf("locks %q", got)
	}
	if err := r.WriteV(t.Context(), 0, blockgraph.MakeIOVec([]byte("x")), 0); err != nil {
		t.Fatal(err)
	}
	w.closeRoot(r)
	mode(os.O_RDONLY)
	if got := heldLocks(t, name); got != "" {
		t.Errorf("locks %q", got)
	}
	// The name may be gone by now; the file is still ours.
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	r = w.mustRoot(n, rw, all)
	mode(os.O_RDWR)
	w.closeRoot(r)
}

func TestReadsGoOnWhileWritersComeAndGo(t *testing.T) {
	name := image(t, 0)
	data := bytes.Repeat([]byte{7}, 256<<10)
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Config{})
	o := fileOptions(name)
	o.AutoReadOnly = ptr(true)
	n := w.mustOpen(o)
	reader := w.mustRoot(n, blockgraph.PermConsistentRead, all)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			b := make([]byte, len(data))
			for !stop.Load() {
				if err := reader.ReadV(context.Background(), 0, blockgraph.MakeIOVec(b), 0); err != nil || !bytes.Equal(b, data) {
					t.Errorf("read: %v", err)
					return
				}
			}
		})
	}
	for range 40 {
		r := w.mustRoot(n, rw, all)
		if err := r.WriteV(t.Context(), 4096, blockgraph.MakeIOVec(data[:4096]), 0); err != nil {
			t.Error(err)
		}
		w.closeRoot(r)
	}
	stop.Store(true)
	wg.Wait()
	if k := descriptors(t, name); k != 1 {
		t.Errorf("%d descriptors", k)
	}
}

func TestRefusedWriterLeavesAutoReadOnlyFileAsItWas(t *testing.T) {
	name := image(t, 1<<20)
	w := newWorld(t, Config{})
	w.mustRoot(w.mustOpen(fileOptions(name)), rw, readers)
	o := fileOptions(name)
	o.AutoReadOnly = ptr(true)
	n := w.mustOpen(o)
	before := descriptors(t, name)
	_, err := w.root(n, rw, all)
	wantText(t, err, `Failed to get "write" lock`)
	if accessMode(t, n.Driver().(*driver).file.Fd()) != os.O_RDONLY || descriptors(t, name) != before {
		t.Error("the file was reopened")
	}
	if got := heldLocks(t, name); got != "100 101 201 203 " {
		t.Errorf("locks %q", got)
	}
}

func TestReopenChangesModeAndKeepsLocks(t *testing.T) {
	name := image(t, 1<<20)
	w := newWorld(t, Config{})
	n := w.mustOpen(fileOptions(name))
	w.mustRoot(n, blockgraph.PermConsistentRead, readers)
	d := n.Driver().(*driver)
	o := *d.options
	p := prepareReopen(t, d, &o, true)
	p.Apply()
	if got := descriptors(t, name); got != 2 {
		t.Errorf("%d descriptors while the reopen can be undone", got)
	}
	p.Undo(t.Context())
	if accessMode(t, d.file.Fd()) != os.O_RDWR || heldLocks(t, name) != "100 201 203 " || descriptors(t, name) != 1 {
		t.Errorf("undone: locks %q", heldLocks(t, name))
	}
	p = prepareReopen(t, d, &o, true)
	p.Apply()
	p.Keep()
	if accessMode(t, d.file.Fd()) != os.O_RDONLY || heldLocks(t, name) != "100 201 203 " {
		t.Errorf("locks %q", heldLocks(t, name))
	}
	prepareReopen(t, d, &o, false).Undo(t.Context())
	if accessMode(t, d.file.Fd()) != os.O_RDONLY || heldLocks(t, name) != "100 201 203 " || descriptors(t, name) != 1 {
		t.Error("an aborted reopen left traces")
	}
}

func prepareReopen(t *testing.T, d *driver, o *qapi.BlockdevOptions, readOnly bool) *blockgraph.Reopening {
	t.Helper()
	p, err := d.PrepareReopen(t.Context(), &blockgraph.ReopenRequest{Options: o, ReadOnly: readOnly})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestLocksEndWithTheNodeThoughTheSetKeepsItsFile has a descriptor set keep the
// open files that the node uses.
func TestLocksEndWithTheNodeThoughTheSetKeepsItsFile(t *testing.T) {
	name := image(t, 4096)
	set := map[int]*os.File{}
	for _, mode := range []int{os.O_RDONLY, os.O_RDWR} {
		f, err := os.OpenFile(name, mode, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		set[mode] = f
	}
	w := newWorld(t, Config{Opener: func(_ string, flags int) (*os.File, func(), error) {
		fd, err := syscall.Dup(int(set[flags].Fd()))
		return os.NewFile(uintptr(fd), "dup"), func() {}, err
	}})
	o := fileOptions("/dev/fdset/0")
	o.AutoReadOnly = ptr(true)
	n := w.mustOpen(o)
	for _, perm := range []blockgraph.Perm{rw, blockgraph.PermConsistentRead} {
		r := w.mustRoot(n, perm, readers)
		if want := map[bool]string{true: "100 101 201 203 ", false: "100 201 203 "}[perm == rw]; heldLocks(t, name) != want {
			t.Errorf("locks %q, want %q", heldLocks(t, name), want)
		}
		if perm == rw {
			w.closeRoot(r)
			if got := heldLocks(t, name); got != "" {
				t.Errorf("without users: %q", got)
			}
			continue
		}
		d := n.Driver().(*driver)
		opts := *d.options
		opts.AutoReadOnly = ptr(false)
		p := prepareReopen(t, d, &opts, false)
		p.Undo(t.Context())
		if got := heldLocks(t, name); got != "100 201 203 " {
			t.Errorf("after an aborted reopen: %q", got)
		}
		w.closeRoot(r)
	}
	last := w.mustRoot(n, rw, 0)
	if err := w.update(func(tx *blockgraph.Tx) error {
		tx.SetMonitorOwned(n, false)
		return tx.CloseRoot(last)
	}); err != nil {
		t.Fatal(err)
	}
	if got := heldLocks(t, name); got != "" {
		t.Errorf("after the node: %q", got)
	}
}

func TestAnotherFileUnderTheNameIsRefused(t *testing.T) {
	a, b := image(t, 4096), image(t, 4096)
	next := a
	uses := 0
	w := newWorld(t, Config{Opener: func(_ string, flags int) (*os.File, func(), error) {
		f, err := os.OpenFile(next, flags, 0)
		next = b
		uses++
		return f, func() { uses-- }, err
	}})
	o := fileOptions("/dev/fdset/0")
	o.AutoReadOnly = ptr(true)
	n := w.mustOpen(o)
	_, err := w.root(n, rw, all)
	wantText(t, err, "Could not open '/dev/fdset/0': Stale file handle")
	if descriptors(t, b) != 0 || heldLocks(t, a)+heldLocks(t, b) != "" || uses != 1 {
		t.Errorf("something is left; %d uses of the set", uses)
	}
}

func TestUnlockFailureKeepsTheByteInTheSet(t *testing.T) {
	held := lockSet{perm: blockgraph.PermWrite}
	got, err := unlockRest(-1, held, lockSet{})
	if got != held || !errors.Is(err, syscall.EBADF) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSetIsGivenBackWithEachUse follows how often a node uses its descriptor
// set: while it is open, for each file that takes the place of another, and not
// after an attempt that failed.
func TestSetIsGivenBackWithEachUse(t *testing.T) {
	name := image(t, 4096)
	uses := 0
	w := newWorld(t, Config{Opener: func(_ string, flags int) (*os.File, func(), error) {
		f, err := os.OpenFile(name, flags, 0)
		uses++
		released := false
		return f, func() {
			if released {
				t.Error("given back twice")
			}
			released = true
			uses--
		}, err
	}})
	want := func(when string, n int) {
		t.Helper()
		if uses != n {
			t.Errorf("%s: %d uses, want %d", when, uses, n)
		}
	}
	wrong := fileOptions("/dev/fdset/0")
	wrong.File.AIO = ptr(qapi.BlockdevAioOptionsNative)
	if _, err := w.open(wrong); err == nil {
		t.Fatal("aio=native without cache.direct was taken")
	}
	want("after a failed open", 0)

	o := fileOptions("/dev/fdset/0")
	o.AutoReadOnly = ptr(true)
	n := w.mustOpen(o)
	want("open", 1)
	r := w.mustRoot(n, rw, all)
	want("with a writer, for which the file was opened again", 1)
	d := n.Driver().(*driver)
	opts := *d.options
	opts.AutoReadOnly = ptr(false)
	p := prepareReopen(t, d, &opts, true)
	want("while a reopen is prepared", 2)
	p.Undo(t.Context())
	want("after it was aborted", 1)
	if err := w.update(func(tx *blockgraph.Tx) error {
		tx.SetMonitorOwned(n, false)
		return tx.CloseRoot(r)
	}); err != nil {
		t.Fatal(err)
	}
	want("after the node", 0)
}
