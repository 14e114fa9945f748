package file

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/ioengine"
	"blockd/qapi"
)

func ptr[T any](v T) *T { return &v }

// world is a graph over the host's files.
type world struct {
	t testing.TB
	g *blockgraph.Graph
	h *Host
}

func newWorld(t testing.TB, cfg Config) *world {
	loop := blockgraph.NewLoop()
	t.Cleanup(loop.Stop)
	h := New(cfg)
	return &world{t, blockgraph.NewGraph(loop, clock.Real(), h.DriverTypes()...), h}
}

func (w *world) update(fn func(tx *blockgraph.Tx) error) error {
	return w.g.Update(w.t.Context(), blockgraph.Cause{Command: "test"}, fn)
}

func fileOptions(name string) *qapi.BlockdevOptions {
	return &qapi.BlockdevOptions{Driver: "file", Discard: ptr(qapi.BlockdevDiscardOptionsUnmap), File: &qapi.BlockdevOptionsFile{Filename: name}}
}

// open opens a node that stays until close.
func (w *world) open(o *qapi.BlockdevOptions) (n *blockgraph.Node, err error) {
	err = w.update(func(tx *blockgraph.Tx) error {
		if n, err = tx.Open(o); err != nil {
			return err
		}
		tx.SetMonitorOwned(n, true)
		return nil
	})
	return n, err
}

func (w *world) mustOpen(o *qapi.BlockdevOptions) *blockgraph.Node {
	w.t.Helper()
	n, err := w.open(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = w.g.Update(context.Background(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
			if tx.Find(n.Name()) != nil {
				tx.SetMonitorOwned(n, false)
			}
			return nil
		})
	})
	return n
}

func (w *world) close(n *blockgraph.Node) {
	w.t.Helper()
	if err := w.update(func(tx *blockgraph.Tx) error { tx.SetMonitorOwned(n, false); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) root(n *blockgraph.Node, perm, shared blockgraph.Perm) (r *blockgraph.Root, err error) {
	err = w.update(func(tx *blockgraph.Tx) error {
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: perm, Shared: shared})
		return err
	})
	if err == nil {
		w.t.Cleanup(func() {
			if r.Node() != nil {
				_ = w.g.Update(context.Background(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.CloseRoot(r) })
			}
		})
	}
	return r, err
}

func (w *world) mustRoot(n *blockgraph.Node, perm, shared blockgraph.Perm) *blockgraph.Root {
	w.t.Helper()
	r, err := w.root(n, perm, shared)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) closeRoot(r *blockgraph.Root) {
	w.t.Helper()
	if err := w.update(func(tx *blockgraph.Tx) error { return tx.CloseRoot(r) }); err != nil {
		w.t.Fatal(err)
	}
}

const (
	rw      = blockgraph.PermConsistentRead | blockgraph.PermWrite
	all     = blockgraph.PermAll
	readers = blockgraph.PermConsistentRead | blockgraph.PermWriteUnchanged
)

// image makes a file of the given length.
func image(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

// descriptors counts the test's own open descriptors of files below /tmp and
// the like: what names the image.
func descriptors(t testing.TB, name string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc")
	}
	n := 0
	for _, e := range entries {
		if l, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.TrimSuffix(l, " (deleted)") == name {
			n++
		}
	}
	return n
}

func wantText(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || err.Error() != text {
		t.Errorf("got  %v\nwant %s", err, text)
	}
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip("needs " + name)
	}
	return path
}

// run runs a program and returns its output, whatever it thinks of the result.
func run(name string, args ...string) string {
	out, _ := exec.Command(name, args...).CombinedOutput()
	return string(out)
}

func TestOpenFailsWithTheFieldsTexts(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := errors.Join(os.WriteFile("a", make([]byte, 4096), 0o644), os.Mkdir("dir", 0o755), unix.Mkfifo("fifo", 0o644)); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Config{})
	long := strings.Repeat("a", 300)
	with := func(name string, edit func(o *qapi.BlockdevOptions)) *qapi.BlockdevOptions {
		o := fileOptions(name)
		if edit != nil {
			edit(o)
		}
		return o
	}
	readOnly := func(o *qapi.BlockdevOptions) { o.ReadOnly = ptr(true) }
	device := func(o *qapi.BlockdevOptions) { o.Driver = "host_device" }
	for _, c := range []struct {
		o    *qapi.BlockdevOptions
		text string
	}{
		{with("nosuch", nil), "Could not open 'nosuch': No such file or directory"},
		{with("dir", nil), "Could not open 'dir': Is a directory"},
		{with("dir", readOnly), "'file' driver requires 'dir' to be a regular file"},
		{with("fifo", nil), "'file' driver requires 'fifo' to be a regular file"},
		{with("fifo", readOnly), "'file' driver requires 'fifo' to be a regular file"},
		{with("/dev/null", nil), "'file' driver requires '/dev/null' to be a regular file"},
		{with("a", device), "'host_device' driver requires 'a' to be either a character or block device"},
		{with("", nil), "The 'file' block driver requires a file name"},
		{with(long, nil), "Could not open '" + long + "': File name too long"},
		{with("a/b", nil), "Could not open 'a/b': Not a directory"},
		{with("file:a", nil), "Could not open 'file:a': No such file or directory"},
		{with("a", func(o *qapi.BlockdevOptions) { o.File.AIO = ptr(qapi.BlockdevAioOptionsNative) }), "aio=native was specified, but it requires cache.direct=on, which was not specified."},
		{with("a", func(o *qapi.BlockdevOptions) { o.File.PRManager = ptr("x") }), "No persistent reservation manager with id 'x'"},
		{with("/dev/fdset/x", nil), "Could not parse fdset /dev/fdset/x"},
		{with("/dev/fdset/1", nil), "Could not dup FD for /dev/fdset/1 flags 2: Function not implemented"},
	} {
		_, err := w.open(c.o)
		wantText(t, err, c.text)
	}
	if n := descriptors(t, filepath.Join(dir, "a")); n != 0 {
		t.Errorf("%d descriptors left", n)
	}
}

func TestCharacterDeviceOpensAsHostDevice(t *testing.T) {
	w := newWorld(t, Config{})
	o := fileOptions("/dev/null")
	o.Driver = "host_device"
	n := w.mustOpen(o)
	if n.Size() != 0 || n.Caps().Grow {
		t.Errorf("size %d, caps %+v", n.Size(), n.Caps())
	}
	if err := n.Driver().Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHeaderNamesOpenOnlyRegularFilesAndBlockDevices(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := errors.Join(os.WriteFile("a", make([]byte, 512), 0o644), unix.Mkfifo("fifo", 0o644)); err != nil {
		t.Fatal(err)
	}
	h := New(Config{})
	for name, want := range map[string]string{
		"a": "", "fifo": "'file' driver requires 'fifo' to be a regular file", "/dev/null": "'file' driver requires '/dev/null' to be a regular file",
	} {
		o, err := (&opener{host: h, driver: "file"}).descriptor(name, unix.O_RDONLY, true)
		o.close()
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := (&opener{host: h, driver: "file"}).descriptor("/dev/fdset/1", unix.O_RDONLY, true)
	wantText(t, err, "'/dev/fdset/1' is a descriptor set, which an image header may not name")
	_, err = (&opener{host: h, driver: "host_device", device: true}).descriptor("/dev/null", unix.O_RDONLY, true)
	wantText(t, err, "'/dev/null' is a character device, which an image header may not name")
}

type denyOutside struct{ dir string }

func (p denyOutside) AllowOpen(path string, _ bool) error {
	if strings.HasPrefix(path, p.dir+"/") {
		return nil
	}
	return errors.New("not allowed")
}

func TestPolicyJudgesTheFileThatTheNameLeadsTo(t *testing.T) {
	dir, outside := t.TempDir(), image(t, 512)
	link, good := filepath.Join(dir, "link"), filepath.Join(dir, "good")
	if err := errors.Join(os.Symlink(outside, link), os.WriteFile(good, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Config{Policy: denyOutside{dir}})
	w.mustOpen(fileOptions(good))
	_, err := w.open(fileOptions(link))
	wantText(t, err, "Could not open '"+link+"': not allowed")
	err = w.h.Create(t.Context(), &qapi.BlockdevCreateOptionsFile{Filename: link, Size: 1})
	wantText(t, err, "Could not create '"+link+"': not allowed")
	escape := filepath.Join(dir, "..", "escaped")
	err = w.h.Create(t.Context(), &qapi.BlockdevCreateOptionsFile{Filename: escape, Size: 1})
	wantText(t, err, "Could not create '"+escape+"': not allowed")
	if _, err := os.Lstat(escape); err == nil {
		t.Error("it was made nevertheless")
	}
	if err := w.h.Create(t.Context(), &qapi.BlockdevCreateOptionsFile{Filename: filepath.Join(dir, "new"), Size: 512}); err != nil {
		t.Error(err)
	}
}

func TestFdsetNamesAreServedByTheOpener(t *testing.T) {
	name := image(t, 4096)
	var flags []int
	w := newWorld(t, Config{Opener: func(set string, f int) (*os.File, func(), error) {
		if set != "/dev/fdset/7" {
			return nil, nil, syscall.ENOENT
		}
		flags = append(flags, f)
		file, err := os.OpenFile(name, f, 0)
		return file, func() {}, err
	}})
	_, err := w.open(fileOptions("/dev/fdset/8"))
	wantText(t, err, "Could not dup FD for /dev/fdset/8 flags 2: No such file or directory")
	o := fileOptions("/dev/fdset/7")
	o.AutoReadOnly = ptr(true)
	n := w.mustOpen(o)
	r := w.mustRoot(n, rw, all)
	if err := r.WriteV(t.Context(), 0, blockgraph.MakeIOVec([]byte("hello")), 0); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(flags) != fmt.Sprint([]int{unix.O_RDONLY, unix.O_RDWR}) {
		t.Errorf("opened with %v", flags)
	}
	if got := heldLocks(t, name); got != "100 101 " {
		t.Errorf("locks %q", got)
	}
	if n := descriptors(t, name); n != 1 {
		t.Errorf("%d descriptors", n)
	}
}

// both runs a test on a disk and in memory.
func both(t *testing.T, f func(t *testing.T, dir string)) {
	t.Run("disk", func(t *testing.T) { f(t, t.TempDir()) })
	t.Run("tmpfs", func(t *testing.T) {
		dir, err := os.MkdirTemp("/dev/shm", "file")
		if err != nil {
			t.Skip("needs tmpfs")
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		f(t, dir)
	})
}

// TestRandomRequestsMatchAModel compares reads, writes, zero writes, discards
// and growth with a slice, buffered and with O_DIRECT.
func TestRandomRequestsMatchAModel(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		for _, direct := range []bool{false, true} {
			t.Run(fmt.Sprint("direct=", direct), func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				rnd := rand.New(rand.NewPCG(seed, 1))
				name := filepath.Join(dir, fmt.Sprint("m", direct))
				if err := os.WriteFile(name, nil, 0o644); err != nil {
					t.Fatal(err)
				}
				w := newWorld(t, Config{})
				o := fileOptions(name)
				o.Cache = &qapi.BlockdevCacheOptions{Direct: ptr(direct)}
				n, err := w.open(o)
				if err != nil {
					t.Skip("needs O_DIRECT: ", err)
				}
				r := w.mustRoot(n, rw|blockgraph.PermResize, all)
				const top = 256 << 10
				model := []byte{}
				grow := func(end int64) {
					if a := max(1, n.Limits().RequestAlignment); direct {
						end = (end + a - 1) &^ (a - 1)
					}
					if end > int64(len(model)) {
						model = append(model, make([]byte, end-int64(len(model)))...)
					}
				}
				adm, err := r.Enter(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer adm.Leave()
				e := adm.Edge()
				for i := range 400 {
					off := rnd.Int64N(top)
					k := 1 + rnd.Int64N(20_000)
					var err error
					switch op := rnd.IntN(5); op {
					case 0, 1:
						b := make([]byte, k)
						for i := range b {
							b[i] = byte(rnd.Uint32())
						}
						grow(off + k)
						copy(model[off:], b)
						cut := rnd.Int64N(k)
						err = e.WriteV(t.Context(), off, blockgraph.MakeIOVec(nonEmpty(b[:cut], b[cut:])...), 0)
					case 2:
						flags := []blockgraph.Flags{0, blockgraph.MayUnmap}[rnd.IntN(2)]
						grow(off + k)
						clear(model[off : off+k])
						err = e.WriteZeroes(t.Context(), off, k, flags)
					case 3:
						if off < int64(len(model)) {
							k = min(k, int64(len(model))-off)
							a := max(1, n.Limits().RequestAlignment)
							lo, hi := (off+a-1)&^(a-1), (off+k)&^(a-1)
							if off+k == int64(len(model)) {
								hi = off + k
							}
							if lo < hi {
								clear(model[lo:hi])
							}
							err = e.Discard(t.Context(), off, k)
						}
					default:
						b := bytes.Repeat([]byte{0xee}, int(k))
						err = e.ReadV(t.Context(), off, blockgraph.MakeIOVec(b), 0)
						want := make([]byte, k)
						if off < int64(len(model)) {
							copy(want, model[off:])
						}
						if !bytes.Equal(b, want) {
							t.Fatalf("step %d: read of %d at %d differs", i, k, off)
						}
					}
					if err != nil {
						t.Fatalf("step %d: %v", i, err)
					}
					if i%50 == 49 {
						checkHoles(t, e, model)
					}
				}
				if err := r.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(name)
				if err != nil || !bytes.Equal(got, model) {
					t.Fatalf("file has %d bytes, model %d; equal %v; %v", len(got), len(model), bytes.Equal(got, model), err)
				}
			})
		}
	})
}

func nonEmpty(segs ...[]byte) (out [][]byte) {
	for _, s := range segs {
		if len(s) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// checkHoles holds that what is called zero is zero.
func checkHoles(t *testing.T, e *blockgraph.Edge, model []byte) {
	t.Helper()
	for off := int64(0); off < int64(len(model)); {
		st, err := e.BlockStatus(t.Context(), off, int64(len(model))-off, blockgraph.StatusPrecise)
		if err != nil || st.N <= 0 {
			t.Fatalf("status at %d: %+v, %v", off, st, err)
		}
		if st.Flags&blockgraph.StatusZero != 0 && !bytes.Equal(model[off:off+st.N], make([]byte, st.N)) {
			t.Fatalf("[%d, +%d) has data", off, st.N)
		}
		off += st.N
	}
}

func TestStatusFindsHolesLikeQemuImg(t *testing.T) {
	img := tool(t, "qemu-img")
	name := image(t, 1<<20)
	f, _ := os.OpenFile(name, os.O_RDWR, 0)
	for _, off := range []int64{0, 128 << 10, 512 << 10} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 64<<10), off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	w := newWorld(t, Config{})
	r := w.mustRoot(w.mustOpen(fileOptions(name)), readers, all)
	var want []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err := json.Unmarshal([]byte(run(img, "map", "-U", "-f", "raw", "--output=json", name)), &want); err != nil {
		t.Fatal(err)
	}
	off := int64(0)
	for _, x := range want {
		st, _, err := r.BlockStatus(t.Context(), off, 1<<20-off, blockgraph.StatusPrecise)
		if err != nil || off != x.Start || st.N != x.Length || (st.Flags&blockgraph.StatusData != 0) != x.Data || (st.Flags&blockgraph.StatusZero != 0) != x.Zero {
			t.Errorf("at %d: %+v, %v; qemu-img: %+v", off, st, err, x)
		}
		off += st.N
	}
}

func TestStatusOfDataAsksTheKernelOnce(t *testing.T) {
	name := image(t, 0)
	if err := os.WriteFile(name, bytes.Repeat([]byte{1}, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	calls := ioengine.NewCalls(4)
	w := newWorld(t, Config{Calls: calls})
	r := w.mustRoot(w.mustOpen(fileOptions(name)), rw, all)
	ask := func() int64 {
		before := calls.Stats().Others
		for off := int64(0); off < 1<<20; off += 4096 {
			if _, _, err := r.BlockStatus(t.Context(), off, 4096, blockgraph.StatusPrecise); err != nil {
				t.Fatal(err)
			}
		}
		return calls.Stats().Others - before
	}
	if n := ask(); n != 1 {
		t.Errorf("%d calls", n)
	}
	if err := r.Discard(t.Context(), 8192, 4096); err != nil {
		t.Fatal(err)
	}
	if s := r.Node().Driver().(*driver).DriverStats("file").File; s.DiscardNbOk != 1 || s.DiscardNbFailed != 0 || s.DiscardBytesOk != 4096 {
		t.Errorf("counted %+v", s)
	}
	st, _, err := r.BlockStatus(t.Context(), 8192, 4096, blockgraph.StatusPrecise)
	if err != nil || st.Flags&blockgraph.StatusZero == 0 {
		t.Errorf("after a discard: %+v, %v", st, err)
	}
}

func TestZeroWritePastTheEndMakesTheFileLonger(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		for _, flags := range []blockgraph.Flags{0, blockgraph.MayUnmap} {
			name := filepath.Join(dir, fmt.Sprint("z", flags))
			if err := os.WriteFile(name, []byte("abc"), 0o644); err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, Config{})
			n := w.mustOpen(fileOptions(name))
			if err := n.Driver().WriteZeroes(t.Context(), 1, 99_999, flags); err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(name)
			if want := append([]byte("a"), make([]byte, 99_999)...); !bytes.Equal(got, want) {
				t.Errorf("flags %d: %d bytes, first %q", flags, len(got), got[:min(3, len(got))])
			}
		}
	})
}

func TestReadPastTheEndGivesZeroes(t *testing.T) {
	name := image(t, 8192)
	w := newWorld(t, Config{})
	n := w.mustOpen(fileOptions(name))
	if err := os.WriteFile(name, []byte("abc"), 0o644); err != nil { // shorter behind our back
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{0xee}, 8192)
	if err := n.Driver().ReadV(t.Context(), 0, blockgraph.MakeIOVec(b[:10], b[10:]), 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, append([]byte("abc"), make([]byte, 8189)...)) {
		t.Error("stale bytes")
	}
}

func TestFailedOpenLeavesNoDescriptor(t *testing.T) {
	name := image(t, 4096)
	w := newWorld(t, Config{})
	o := fileOptions(name)
	o.File.AIO = ptr(qapi.BlockdevAioOptionsNative)
	for range 3 {
		if _, err := w.open(o); err == nil {
			t.Fatal("opened")
		}
	}
	if n := descriptors(t, name); n != 0 {
		t.Errorf("%d descriptors", n)
	}
}

func BenchmarkNode4k(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "file")
	if err != nil {
		b.Skip("needs tmpfs")
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	for place, dir := range map[string]string{"tmpfs": dir, "disk": b.TempDir()} {
		name := filepath.Join(dir, "bench")
		if err := os.WriteFile(name, make([]byte, 1<<20), 0o644); err != nil {
			b.Fatal(err)
		}
		w := newWorld(b, Config{})
		n := w.mustOpen(fileOptions(name))
		r := w.mustRoot(n, rw, all)
		v := blockgraph.MakeIOVec(make([]byte, 4096))
		ctx := context.Background()
		loop := func(name string, op func(off int64) error) {
			b.Run(place+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if err := op(int64(i&255) << 12); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		loop("driver-read", func(off int64) error { return n.Driver().ReadV(ctx, off, v, 0) })
		loop("driver-write", func(off int64) error { return n.Driver().WriteV(ctx, off, v, 0) })
		loop("root-read", func(off int64) error { return r.ReadV(ctx, off, v, 0) })
		loop("status", func(off int64) error {
			_, err := n.Driver().BlockStatus(ctx, off, 4096, blockgraph.StatusPrecise)
			return err
		})
	}
}
