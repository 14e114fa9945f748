package raw

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

const (
	sidecarOn    = qapi.RawBitmapPersistenceSidecar
	sidecarAlone = qapi.RawBitmapPersistenceSidecarExclusive
)

// sided is an open raw node with bitmaps beside it.
type sided struct {
	*world
	r *blockgraph.Root
}

func sideOptions(path string, how qapi.RawBitmapPersistence) *qapi.BlockdevOptions {
	o := rawOptions(path, nil, nil)
	o.Raw.XBitmaps = &how
	o.NodeName = ptr("r")
	return o
}

func openSided(t testing.TB, path string, how qapi.RawBitmapPersistence) *sided {
	t.Helper()
	w := newWorld(t)
	return &sided{w, w.mustOpen(sideOptions(path, how))}
}

func (s *sided) change(f func(tx *blockgraph.Tx, n *blockgraph.Node) error) error {
	return s.g.Update(s.t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return f(tx, tx.Find("r")) })
}

func (s *sided) must(f func(tx *blockgraph.Tx, n *blockgraph.Node) error) {
	s.t.Helper()
	if err := s.change(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sided) add(name string) {
	s.t.Helper()
	s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.AddBitmap(n, name, 4096, true, false) })
}

func (s *sided) write(off, n int64) {
	s.t.Helper()
	if err := s.r.WriteV(s.t.Context(), off, blockgraph.MakeIOVec(bytes.Repeat([]byte{0x22}, int(n))), 0); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sided) bitmap(name string) *blockgraph.DirtyBitmap {
	return s.r.Node().State().Bitmap(name)
}

// close ends the node in good order.
func (s *sided) close() {
	s.t.Helper()
	if err := s.g.Update(context.Background(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.CloseRoot(s.r) }); err != nil {
		s.t.Fatal(err)
	}
}

// crash ends the node such that the file beside the image is as it was just
// before.
func (s *sided) crash(path string) {
	s.t.Helper()
	b, err := os.ReadFile(path + sideSuffix)
	if err == nil {
		s.close()
		err = os.WriteFile(path+sideSuffix, b, 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// dirty returns the dirty bytes of a bitmap that is to be consistent.
func (s *sided) dirty(name string) int64 {
	s.t.Helper()
	b := s.bitmap(name)
	if b == nil || b.Inconsistent {
		s.t.Fatalf("%s: %+v", name, b)
	}
	return b.Bits.Count()
}

func TestBitmapsBesideAnImageAreExactAfterAClose(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarOn)
	if _, err := os.Stat(path + sideSuffix); err == nil {
		t.Error("there is a file before there is a bitmap")
	}
	s.add("a")
	s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.AddBitmap(n, "b", 65536, true, true) })
	s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error {
		return tx.AddBitmap(n, "memory", 65536, false, false)
	})
	s.write(0, 4096)
	s.write(1<<20-512, 512)
	s.close()
	s = openSided(t, path, sidecarOn)
	if got := s.dirty("a"); got != 8192 || !s.bitmap("a").Bits.Get(0) || !s.bitmap("a").Bits.Get(1<<20-1) {
		t.Errorf("a: %d bytes are dirty", got)
	}
	if got := s.dirty("b"); got != 0 || !s.bitmap("b").Disabled || s.bitmap("b").Bits.Granularity() != 65536 {
		t.Errorf("b: %+v", s.bitmap("b"))
	}
	if s.bitmap("memory") != nil || s.r.Node().State().Bitmaps[0].Name != "b" {
		t.Error("another list than before")
	}
	s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.RemoveBitmap(n, tx.Bitmap(n, "a")) })
	s.close()
	if s = openSided(t, path, sidecarOn); s.bitmap("a") != nil || s.bitmap("b") == nil {
		t.Error("a removed bitmap is there")
	}
}

func TestBitmapsBesideAnImageAfterAnUncleanEnd(t *testing.T) {
	for how, trusted := range map[qapi.RawBitmapPersistence]bool{sidecarOn: false, sidecarAlone: true} {
		path := image(t, 1<<20)
		s := openSided(t, path, how)
		s.add("a")
		s.write(8192, 4096)
		s.add("gone")
		s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.RemoveBitmap(n, tx.Bitmap(n, "gone")) })
		s.crash(path)
		s = openSided(t, path, how)
		b := s.bitmap("a")
		if b == nil || b.Inconsistent == trusted || s.bitmap("gone") != nil {
			t.Fatalf("%s: %+v", how, s.r.Node().State().Bitmaps)
		}
		if trusted && !b.Bits.Get(8192) {
			t.Error("a change has been forgotten")
		}
		if !trusted {
			// What is inconsistent records nothing, so it must stay so, whoever asks.
			s.write(0, 4096)
			s.crash(path)
			if s = openSided(t, path, sidecarAlone); !s.bitmap("a").Inconsistent {
				t.Error("an inconsistent bitmap has become another")
			}
		}
	}
}

func TestBitmapsOfAnotherImageAreInconsistent(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, path string) string // returns where the image is
		same   bool
	}{
		"nothing": {func(t *testing.T, path string) string { return path }, true},
		"written by another": {func(t *testing.T, path string) string {
			do(t, os.Chtimes(path, time.Time{}, time.Unix(1_000_000_000, 5)))
			return path
		}, false},
		"replaced": {func(t *testing.T, path string) string {
			do(t, exec.Command("cp", "--preserve=all", path, path+".new").Run(), os.Rename(path+".new", path))
			return path
		}, false},
		"copied": {func(t *testing.T, path string) string {
			to := path + "-copy"
			do(t, exec.Command("cp", "--preserve=all", path, to).Run(), exec.Command("cp", "--preserve=all", path+sideSuffix, to+sideSuffix).Run())
			return to
		}, false},
		"longer": {func(t *testing.T, path string) string { do(t, os.Truncate(path, 2<<20)); return path }, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, 1<<20)
			s := openSided(t, path, sidecarAlone)
			s.add("a")
			s.write(0, 4096)
			s.close()
			path = c.change(t, path)
			s = openSided(t, path, sidecarAlone)
			b := s.bitmap("a")
			if b == nil || b.Inconsistent == c.same {
				t.Fatalf("%+v", b)
			}
			if c.same {
				return
			}
			if err := s.change(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.ClearBitmap(n, tx.Bitmap(n, "a")) }); err == nil ||
				err.Error() != "Bitmap 'a' is inconsistent and cannot be used" {
				t.Error(err)
			}
			s.must(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.RemoveBitmap(n, tx.Bitmap(n, "a")) })
			s.add("a")
			s.close()
			if s = openSided(t, path, sidecarAlone); s.dirty("a") != 0 {
				t.Error("a new bitmap is dirty")
			}
		})
	}
}

// do fails the test on the first error.
func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestBitmapsOfAnotherPartOfTheImageAreInconsistent(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarOn)
	s.add("a")
	s.close()
	o := sideOptions(path, sidecarOn)
	o.Raw.Offset, o.Raw.Size = ptr(int64(4096)), ptr(int64(65536))
	w := newWorld(t)
	if b := w.mustOpen(o).Node().State().Bitmap("a"); b == nil || !b.Inconsistent || b.Bits.Size() != 65536 {
		t.Errorf("%+v", b)
	}
}

func TestBitmapsFollowTheImagesLength(t *testing.T) {
	for _, crash := range []bool{false, true} {
		path := image(t, 1<<20)
		s := openSided(t, path, sidecarAlone)
		s.add("a")
		s.write(1<<20-4096, 4096)
		for _, size := range []int64{4 << 20, 2 << 20} {
			if err := s.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.ResizeRoot(s.r, size, qapi.PreallocModeOff) }); err != nil {
				t.Fatal(err)
			}
			s.write(size-4096, 4096)
		}
		if crash {
			s.crash(path)
		} else {
			s.close()
		}
		s = openSided(t, path, sidecarAlone)
		bits := s.bitmap("a").Bits
		if n := s.dirty("a"); bits.Size() != 2<<20 || !bits.Get(1<<20-1) || !bits.Get(2<<20-1) || !crash && n != 8192 {
			t.Errorf("crash %v: %d of %d bytes are dirty", crash, n, bits.Size())
		}
	}
}

// TestACrashWhileResizingKeepsTheBitmaps stops between the two files.
func TestACrashWhileResizingKeepsTheBitmaps(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarAlone)
	s.add("a")
	s.write(0, 4096)
	side := s.r.Node().Driver().(*storing).side
	if err := side.announce(t.Context(), 2<<20); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path + sideSuffix)
	do(t, err)
	s.close()
	do(t, os.WriteFile(path+sideSuffix, b, 0o644))
	for _, size := range []int64{1 << 20, 2 << 20} {
		do(t, os.Truncate(path, size), os.WriteFile(path+sideSuffix, b, 0o644))
		s := openSided(t, path, sidecarAlone)
		if s.dirty("a") == 0 || s.bitmap("a").Bits.Size() != size {
			t.Errorf("%d bytes: %+v", size, s.bitmap("a"))
		}
		s.close()
	}
}

func TestBitmapsOfAReadOnlyImageAreThere(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarOn)
	s.add("a")
	s.write(0, 4096)
	s.close()
	before, err := os.ReadFile(path + sideSuffix)
	do(t, err)
	w := newWorld(t)
	reopen := func(readOnly bool) {
		o := sideOptions(path, sidecarOn)
		o.ReadOnly = &readOnly
		do(t, w.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.Reopen([]*qapi.BlockdevOptions{o}) }))
	}
	var n *blockgraph.Node
	do(t, w.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) (err error) {
		o := sideOptions(path, sidecarOn)
		o.ReadOnly = ptr(true)
		if n, err = tx.Open(o); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	}))
	a := func() *blockgraph.DirtyBitmap { return n.State().Bitmap("a") }
	clean := func() bool {
		b, err := os.ReadFile(path + sideSuffix)
		do(t, err)
		h, _, err := chooseHeader(b[:dataStart])
		do(t, err)
		return h.clean
	}
	if !a().ReadOnly || a().Inconsistent || a().Bits.Count() != 4096 {
		t.Errorf("%+v", a())
	}
	if after, _ := os.ReadFile(path + sideSuffix); !bytes.Equal(before, after) {
		t.Error("reading has changed the file")
	}
	reopen(false)
	if a().ReadOnly || clean() {
		t.Errorf("a writable image has clean bitmaps: %+v, clean %v, node %v", a(), clean(), n.ReadOnly())
	}
	reopen(true)
	if !a().ReadOnly || !clean() {
		t.Error("a read-only image's bitmaps are not clean")
	}
	do(t, w.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { tx.SetMonitorOwned(n, false); return nil }))
	if s := openSided(t, path, sidecarOn); s.dirty("a") != 4096 {
		t.Error("another content than before")
	}
}

// TestAChangeRightAfterTheCloseHasAnotherTime: the clock of files goes in steps.
func TestAChangeRightAfterTheCloseHasAnotherTime(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarOn)
	s.add("a")
	s.write(0, 4096)
	s.close()
	closed := clock.Real().Now()
	st, err := os.Stat(path)
	do(t, err)
	if d := closed.Sub(st.ModTime()); d < timeGrain/2 { // the clock may be corrected meanwhile
		t.Errorf("%v after the last change", d)
	}
}

// TestBitmapsOfAnImageChangedWhileReadOnlyAreInconsistent: nothing keeps others from
// writing to the image of a read-only node.
func TestBitmapsOfAnImageChangedWhileReadOnlyAreInconsistent(t *testing.T) {
	for name, c := range map[string]struct {
		how    qapi.RawBitmapPersistence
		opened bool // read-only, and not reopened so
		change func(path string) error
		want   bool
	}{
		"reopened":          {sidecarOn, false, touch, true},
		"opened":            {sidecarOn, true, touch, true},
		"exclusive":         {sidecarAlone, true, touch, true},
		"longer":            {sidecarOn, false, func(path string) error { return os.Truncate(path, 2<<20) }, true},
		"unchanged":         {sidecarOn, false, func(string) error { return nil }, false},
		"unchanged, opened": {sidecarAlone, true, func(string) error { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, 1<<20)
			w := newWorld(t)
			options := func(readOnly bool) *qapi.BlockdevOptions {
				o := sideOptions(path, c.how)
				o.ReadOnly = &readOnly
				return o
			}
			var n *blockgraph.Node
			update := func(f func(tx *blockgraph.Tx) error) { do(t, w.g.Update(t.Context(), blockgraph.Cause{}, f)) }
			open := func(readOnly bool) {
				update(func(tx *blockgraph.Tx) (err error) {
					if n, err = tx.Open(options(readOnly)); err == nil {
						tx.SetMonitorOwned(n, true)
					}
					return err
				})
			}
			closeNode := func() {
				update(func(tx *blockgraph.Tx) error { tx.SetMonitorOwned(n, false); return nil })
			}
			reopen := func(readOnly bool) {
				update(func(tx *blockgraph.Tx) error { return tx.Reopen([]*qapi.BlockdevOptions{options(readOnly)}) })
			}
			inconsistent := func() bool { return n.State().Bitmap("a").Inconsistent }
			open(false)
			update(func(tx *blockgraph.Tx) error { return tx.AddBitmap(n, "a", 4096, true, false) })
			if c.opened {
				closeNode()
				open(true)
			} else {
				reopen(true)
			}
			do(t, c.change(path))
			reopen(false)
			if inconsistent() != c.want {
				t.Fatalf("reopened: %+v", n.State().Bitmap("a"))
			}
			// And so says the file.
			closeNode()
			if open(false); inconsistent() != c.want {
				t.Errorf("opened again: %+v", n.State().Bitmap("a"))
			}
			closeNode()
		})
	}
}

// touch is a change of an image by somebody else.
func touch(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1_000_000_000, 5)) }

func TestTheFileOfBitmapsIsNotForOthersThanTheImage(t *testing.T) {
	path := image(t, 1<<20)
	do(t, os.Chmod(path, 0o600))
	s := openSided(t, path, sidecarOn)
	s.add("a")
	st, err := os.Stat(path + sideSuffix)
	do(t, err)
	if st.Mode().Perm()&^0o600 != 0 {
		t.Errorf("%v", st.Mode())
	}
}

func TestAnImageIsNotItsOwnFileOfBitmaps(t *testing.T) {
	path := image(t, 0)
	do(t, os.Truncate(path, 1<<20)) // of zeroes, as a new file of bitmaps may be
	do(t, os.Link(path, path+".same"))
	for _, name := range []string{path, path + ".same"} {
		w := newWorld(t)
		o := sideOptions(path, sidecarOn)
		o.Raw.XBitmapsFile = &name
		o.Raw.File.Definition.File.Locking = ptr(qapi.OnOffAutoOff)
		_, err := w.open(func(tx *blockgraph.Tx) (*blockgraph.Node, error) { return tx.Open(o) })
		if err == nil || !strings.Contains(err.Error(), "is the image itself") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnotherFileIsRefusedBelowBitmaps(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarOn)
	s.add("a")
	s.must(func(tx *blockgraph.Tx, _ *blockgraph.Node) error {
		o := fileRef(image(t, 1<<20)).Definition
		o.NodeName = ptr("other")
		n, err := tx.Open(o)
		if err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	o := sideOptions(path, sidecarOn)
	o.Raw.File = qapi.BlockdevRef{Reference: ptr("other")}
	err := s.change(func(tx *blockgraph.Tx, _ *blockgraph.Node) error { return tx.Reopen([]*qapi.BlockdevOptions{o}) })
	if want := "Cannot change the file of node 'r': its dirty bitmaps belong to this one"; err == nil || err.Error() != want {
		t.Errorf("%v, not %q", err, want)
	}
	s.write(0, 4096)
	s.close()
	if s = openSided(t, path, sidecarOn); s.dirty("a") != 4096 {
		t.Error("another content than before")
	}
}

func TestWhatABitmapFileCannotBeIsRefused(t *testing.T) {
	path := image(t, 1<<20)
	w := newWorld(t)
	refused := func(o *qapi.BlockdevOptions, want string) {
		t.Helper()
		_, err := w.open(func(tx *blockgraph.Tx) (*blockgraph.Node, error) { return tx.Open(o) })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
	}
	do(t, os.WriteFile(path+sideSuffix, []byte("a customer's notes"), 0o644))
	refused(sideOptions(path, sidecarOn), "It holds something else, or is damaged")
	do(t, os.Remove(path+sideSuffix), os.Mkdir(path+sideSuffix, 0o755))
	refused(sideOptions(path, sidecarOn), "Is a directory")
	do(t, os.Remove(path+sideSuffix))
	o := rawOptions(path, nil, nil)
	o.Raw.XBitmapsFile = ptr("x")
	refused(o, "Parameter 'x-bitmaps-file' needs 'x-bitmaps'")
	o = sideOptions(path, sidecarOn)
	other := path + ".elsewhere"
	o.Raw.XBitmapsFile = &other
	s := &sided{w, w.mustOpen(o)}
	s.add("a")
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	// The file that another writes to is locked.
	refused(func() *qapi.BlockdevOptions {
		o := sideOptions(image(t, 512), sidecarOn)
		o.NodeName, o.Raw.XBitmapsFile = ptr("r2"), &other
		return o
	}(), `Failed to get "write" lock`)
	// Others must not write past the bitmaps.
	err := s.change(func(tx *blockgraph.Tx, n *blockgraph.Node) error {
		_, err := tx.NewRoot(n.File().Child(), blockgraph.RootOptions{Perm: blockgraph.PermWrite, Shared: blockgraph.PermAll})
		return err
	})
	if err == nil {
		t.Error("the file can be written to")
	}
}

func TestWithoutTheOptionBitmapsAreRefusedInTheFieldsWords(t *testing.T) {
	w := newWorld(t)
	o := rawOptions(image(t, 1<<20), nil, nil)
	o.NodeName = ptr("r")
	s := &sided{w, w.mustOpen(o)}
	err := s.change(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.AddBitmap(n, "a", 65536, true, false) })
	if err == nil || err.Error() != "Can't store persistent bitmaps to r: Operation not supported" {
		t.Error(err)
	}
}

func TestBitmapsOfABlockDevice(t *testing.T) {
	path := image(t, 1<<20)
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Logf("no loop devices here: %s", out)
		return
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	side := path + ".side"
	options := func(how qapi.RawBitmapPersistence) *qapi.BlockdevOptions {
		o := sideOptions(dev, how)
		o.Raw.File.Definition.Driver = "host_device"
		o.Raw.XBitmapsFile = &side
		return o
	}
	w := newWorld(t)
	if _, err := w.open(func(tx *blockgraph.Tx) (*blockgraph.Node, error) { return tx.Open(options(sidecarOn)) }); err == nil ||
		!strings.Contains(err.Error(), "sidecar-exclusive") {
		t.Error(err)
	}
	s := &sided{w, w.mustOpen(options(sidecarAlone))}
	s.add("a")
	s.write(0, 4096)
	s.close()
	w = newWorld(t)
	if s = (&sided{w, w.mustOpen(options(sidecarAlone))}); s.dirty("a") != 4096 {
		t.Error("another content than before")
	}
}

func TestFailedWritesOfTheBitmapFileFailTheChange(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarAlone)
	s.add("a")
	side := s.r.Node().Driver().(*storing).side
	real := side.file
	side.file = failing{real}
	if err := s.change(func(tx *blockgraph.Tx, n *blockgraph.Node) error { return tx.AddBitmap(n, "b", 4096, true, false) }); blockgraph.Errno(err) != syscall.EIO {
		t.Errorf("a bitmap was added: %v", err)
	}
	if s.bitmap("b") != nil {
		t.Error("a failed command has added a bitmap")
	}
	if err := s.r.WriteV(t.Context(), 0, blockgraph.MakeIOVec(make([]byte, 4096)), 0); blockgraph.Errno(err) != syscall.EIO {
		t.Errorf("the image was written to: %v", err)
	}
	side.file = real
	s.write(0, 4096)
	s.close()
	if s = openSided(t, path, sidecarAlone); s.dirty("a") != 4096 || s.bitmap("b") != nil {
		t.Error("another list than before")
	}
}

type failing struct{ blockgraph.Sidecar }

func (failing) WriteAt(context.Context, []byte, int64) error { return syscall.EIO }
