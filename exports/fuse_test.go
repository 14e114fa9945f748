package exports

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// mounted exports node n as a file, whose name it returns; false where this
// machine lets nobody mount. The content below is "below".
func (w *world) mounted(id string, o qapi.BlockExportOptions) (string, bool) {
	w.t.Helper()
	name := filepath.Join(w.t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("below"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { // before the folder goes
		if err := w.Close(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
	o.Type, o.ID, o.NodeName, o.Fuse = qapi.BlockExportTypeFuse, id, "n", &qapi.BlockExportOptionsFuse{Mountpoint: name, Growable: o.Writable}
	err := w.Add(w.t.Context(), &o)
	if err != nil && !canMount(w.t) {
		w.t.Logf("this machine cannot mount: %v", err)
		return "", false
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return name, true
}

// mountpoint is a file that node n can be shown in; see mounted.
func (w *world) mountpoint() (string, bool) {
	w.t.Helper()
	name, ok := w.mounted("e", qapi.BlockExportOptions{})
	if !ok {
		return "", false
	}
	if err := w.Del(w.t.Context(), "e", nil); err != nil {
		w.t.Fatal(err)
	}
	return name, true
}

// canMount tells whether this machine lets us mount at all.
func canMount(t testing.TB) bool {
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(device)
	dir := t.TempDir()
	if unix.Mount("none", dir, "tmpfs", 0, "") != nil {
		return false
	}
	return unix.Unmount(dir, 0) == nil
}

// open opens a file by the system call: package os would have the runtime ask
// the kernel about it, and so this very process, with a processor in its hands.
func open(t testing.TB, name string) int {
	t.Helper()
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func checkBelow(t testing.TB, name string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != "below" {
		t.Errorf("the file has %.20q, %v", got, err)
	}
}

// TestFileWithARequestUnderWay is in use; its end does not wait for what hangs
// in the image, but the export does.
func TestFileWithARequestUnderWay(t *testing.T) {
	silent(t)
	w := newWorld(t)
	m := w.node("n", false)
	name, ok := w.mounted("e", qapi.BlockExportOptions{})
	if !ok {
		return
	}
	fd := open(t, name)
	defer unix.Close(fd)
	hold := graphtest.NewHold(graphtest.Read)
	t.Cleanup(hold.Release)
	m.SetHook(hold.Wait)
	read := make(chan error)
	go func() {
		_, err := unix.Pread(fd, make([]byte, 512), 0)
		read <- err
	}()
	<-hold.Entered
	w.refused("export 'e' still in use", w.Del(t.Context(), "e", nil))
	if err := w.Del(t.Context(), "e", ptr(qapi.BlockExportRemoveModeHard)); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the reader got %v", err)
	}
	checkBelow(t, name)
	if got := w.ids(); !slices.Equal(got, []string{"e"}) || len(w.events()) != 0 {
		t.Errorf("left %q, deleted %q", got, w.events())
	}
	hold.Release()
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got := w.events(); !slices.Equal(got, []string{"e"}) {
		t.Errorf("deleted %q", got)
	}
}

// TestAbortedChangeLeavesTheFile as it was, and so does one in which the same
// file is shown twice.
func TestAbortedChangeLeavesTheFile(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	name, ok := w.mountpoint()
	if !ok {
		return
	}
	err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		if err := w.AddIn(tx, over("f", name)); err != nil {
			return err
		}
		return w.AddIn(tx, over("g", name))
	})
	w.refused("There already is a FUSE export on '"+name+"'", err)
	checkBelow(t, name)
	if len(w.Query()) != 0 {
		t.Errorf("there are %v", w.Query())
	}
	w.mustAdd(over("f", name))
}

// TestFileBesideGraphChanges: what many write, grow and punch at once is there,
// while the graph changes all the time.
func TestFileBesideGraphChanges(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	name, ok := w.mounted("e", qapi.BlockExportOptions{Writable: ptr(true)})
	if !ok {
		return
	}
	const writers, area, rounds = 4, 256 << 10, 60
	done := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := w.Graph.Update(context.Background(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.Drain(tx.Find("n")) }); err != nil {
				t.Error(err)
				return
			}
			runtime.Gosched()
		}
	})
	models := make([][]byte, writers)
	var guests sync.WaitGroup
	for i := range writers {
		guests.Go(func() {
			fd := open(t, name)
			defer unix.Close(fd)
			random := rand.New(rand.NewPCG(uint64(i), 7))
			model := make([]byte, area)
			for range rounds {
				off := random.IntN(area - 1)
				n := 1 + random.IntN(area-off)
				piece := bytes.Repeat([]byte{byte(random.Uint32())}, n)
				// The last writers' areas are past the end at first.
				if k, err := unix.Pwrite(fd, piece, int64(i*2*area+off)); err != nil || k != n {
					t.Errorf("writer %d: %d of %d, %v", i, k, n, err)
					return
				}
				copy(model[off:], piece)
			}
			models[i] = model
		})
	}
	guests.Wait()
	close(done)
	changes.Wait()
	fd := open(t, name)
	defer unix.Close(fd)
	for i, model := range models {
		got := make([]byte, area)
		n, err := unix.Pread(fd, got, int64(i*2*area))
		if err != nil {
			t.Fatal(err)
		}
		if rest := strings.Trim(string(model[n:]), "\x00"); !bytes.Equal(got[:n], model[:n]) || rest != "" {
			t.Errorf("writer %d: %d bytes, other ones than it wrote", i, n)
		}
	}
}
