package raw

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/protocols/file"
	"blockd/qapi"
)

func ptr[T any](v T) *T { return &v }

const magic = "QFI\xfb"

// probe knows one other format.
func probe(head []byte) string {
	if strings.HasPrefix(string(head), magic) {
		return "qcow2"
	}
	return name
}

type world struct {
	t        testing.TB
	g        *blockgraph.Graph
	warnings []string
}

func newWorld(t testing.TB) *world {
	w := &world{t: t}
	loop := blockgraph.NewLoop()
	t.Cleanup(loop.Stop)
	types := append(file.New(file.Config{}).DriverTypes(), DriverType(Config{Probe: probe, Warn: func(s string) { w.warnings = append(w.warnings, s) }}))
	w.g = blockgraph.NewGraph(loop, clock.Real(), types...)
	return w
}

func fileRef(path string) qapi.BlockdevRef {
	return qapi.BlockdevRef{Definition: &qapi.BlockdevOptions{Driver: "file", File: &qapi.BlockdevOptionsFile{Filename: path}}}
}

func rawOptions(path string, offset, size *int64) *qapi.BlockdevOptions {
	return &qapi.BlockdevOptions{Driver: "raw", Discard: ptr(qapi.BlockdevDiscardOptionsUnmap), Raw: &qapi.BlockdevOptionsRaw{File: fileRef(path), Offset: offset, Size: size}}
}

// open opens a node, by its options or probed, and a root over it.
func (w *world) open(open func(tx *blockgraph.Tx) (*blockgraph.Node, error)) (r *blockgraph.Root, err error) {
	err = w.g.Update(w.t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		n, err := open(tx)
		if err != nil {
			return err
		}
		r, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead | blockgraph.PermWrite | blockgraph.PermResize, Shared: blockgraph.PermAll})
		return err
	})
	if err == nil {
		w.t.Cleanup(func() {
			_ = w.g.Update(context.Background(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error { return tx.CloseRoot(r) })
		})
	}
	return r, err
}

func (w *world) mustOpen(o *qapi.BlockdevOptions) *blockgraph.Root {
	w.t.Helper()
	r, err := w.open(func(tx *blockgraph.Tx) (*blockgraph.Node, error) { return tx.Open(o) })
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func image(t testing.TB, size int) string {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0x11}, size), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPartsOutsideTheFileAreRefusedWithTheFieldsTexts(t *testing.T) {
	path := image(t, 1<<20)
	w := newWorld(t)
	for _, c := range []struct {
		offset, size *int64
		text         string
	}{
		{ptr(int64(2 << 20)), nil, "Offset (2097152) cannot be greater than size of the containing file (1048576)"},
		{ptr(int64(4096)), ptr(int64(1 << 20)), "The sum of offset (4096) and size (1048576) has to be smaller or equal to the  actual size of the containing file (1048576)"},
		{ptr(int64(4096)), ptr(int64(100)), "Specified size is not multiple of 512"},
		{ptr(int64(-1)), nil, "Parameter 'offset' expects a non-negative number below 2^64"},
		{nil, ptr(int64(-1)), "Parameter 'size' expects a non-negative number below 2^64"},
		{ptr(int64(1)), ptr(int64(1<<63 - 512)), "The sum of offset (1) and size (9223372036854775296) has to be smaller or equal to the  actual size of the containing file (1048576)"},
	} {
		_, err := w.open(func(tx *blockgraph.Tx) (*blockgraph.Node, error) { return tx.Open(rawOptions(path, c.offset, c.size)) })
		if err == nil || err.Error() != c.text {
			t.Errorf("got  %v\nwant %s", err, c.text)
		}
	}
}

func TestPartIsAllThatRequestsReach(t *testing.T) {
	path := image(t, 1<<20)
	w := newWorld(t)
	r := w.mustOpen(rawOptions(path, ptr(int64(4096)), ptr(int64(8192))))
	if r.Size() != 8192 {
		t.Fatalf("%d bytes", r.Size())
	}
	ctx := t.Context()
	b := bytes.Repeat([]byte{0x22}, 8192)
	if err := r.WriteV(ctx, 0, blockgraph.MakeIOVec(b), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteZeroes(ctx, 512, 512, 0); err != nil {
		t.Fatal(err)
	}
	clear(b[512:1024])
	got := make([]byte, 8192)
	if err := r.ReadV(ctx, 0, blockgraph.MakeIOVec(got), 0); err != nil || !bytes.Equal(got, b) {
		t.Errorf("read differs, %v", err)
	}
	whole, _ := os.ReadFile(path)
	want := bytes.Repeat([]byte{0x11}, 1<<20)
	copy(want[4096:], b)
	if !bytes.Equal(whole, want) {
		t.Error("bytes outside the part changed")
	}
	d := r.Node().Driver()
	if err := d.WriteV(ctx, 8000, blockgraph.MakeIOVec(b[:512]), 0); err != syscall.ENOSPC {
		t.Errorf("write over the end: %v", err)
	}
	if err := d.ReadV(ctx, 8192, blockgraph.MakeIOVec(b[:512]), 0); err != syscall.EINVAL {
		t.Errorf("read over the end: %v", err)
	}
	if err := d.Discard(ctx, 0, 8193); err != syscall.ENOSPC {
		t.Errorf("discard over the end: %v", err)
	}
	st, _, err := r.BlockStatus(ctx, 1024, 1024, blockgraph.StatusPrecise)
	if err != nil || st.Flags&blockgraph.StatusData == 0 || st.Offset != 4096+1024 || st.File != r.Node().File().Child() {
		t.Errorf("%+v, %v", st, err)
	}
	err = d.(blockgraph.Truncater).Truncate(ctx, 512, true, qapi.PreallocModeOff, false)
	if err == nil || err.Error() != "Cannot resize fixed-size raw disks" {
		t.Error(err)
	}
}

func TestResizeLeavesWhatIsBeforeTheOffset(t *testing.T) {
	path := image(t, 8192)
	w := newWorld(t)
	r := w.mustOpen(rawOptions(path, ptr(int64(4096)), nil))
	resize := func(size int64) error {
		return w.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
			return tx.Resize(r.Node(), size, true, qapi.PreallocModeOff)
		})
	}
	if err := resize(10_240); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Size() != 14_336 || r.Size() != 10_240 {
		t.Errorf("file %d, node %d bytes", st.Size(), r.Size())
	}
}

func TestResizePastTheLongestFile(t *testing.T) {
	path := image(t, 0)
	if err := os.Truncate(path, 2<<30); err != nil { // a hole
		t.Fatal(err)
	}
	w := newWorld(t)
	r := w.mustOpen(rawOptions(path, ptr(int64(2<<30)), nil))
	err := w.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		return tx.Resize(r.Node(), blockgraph.MaxSize, true, qapi.PreallocModeOff)
	})
	if err == nil || err.Error() != "Disk size too large for the chosen offset" {
		t.Error(err)
	}
}

func TestRawTakesWritePermissionOnlyForItsUsers(t *testing.T) {
	path := image(t, 4096)
	w := newWorld(t)
	var n *blockgraph.Node
	if err := w.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) (err error) {
		if n, err = tx.Open(rawOptions(path, ptr(int64(512)), nil)); err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if perm, _ := n.File().Perms(); perm&(blockgraph.PermWrite|blockgraph.PermResize) != 0 {
		t.Errorf("uses %s without a user", perm)
	}
	if err := w.g.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		r, err := tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead | blockgraph.PermWrite, Shared: blockgraph.PermAll})
		if err != nil {
			return err
		}
		if perm, _ := tx.Perms(n.File()); perm != blockgraph.PermConsistentRead|blockgraph.PermWrite {
			t.Errorf("uses %s for a writer", perm)
		}
		return tx.CloseRoot(r)
	}); err != nil {
		t.Fatal(err)
	}
	if got := n.Filename(); got != `json:{"offset": 512, "driver": "raw", "file": {"driver": "file", "filename": "`+path+`"}}` {
		t.Error(got)
	}
}

func TestProbedImageCannotBecomeAnotherFormat(t *testing.T) {
	path := image(t, 4096)
	w := newWorld(t)
	r, err := w.open(func(tx *blockgraph.Tx) (*blockgraph.Node, error) { return tx.OpenImage(fileRef(path), "", nil) })
	if err != nil {
		t.Fatal(err)
	}
	if len(w.warnings) != 1 || !strings.HasPrefix(w.warnings[0], "WARNING: Image format was not specified for '"+path+"' and probing guessed raw.\n") || strings.Count(w.warnings[0], "\n") != 3 {
		t.Errorf("warned %q", w.warnings)
	}
	ctx := t.Context()
	write := func(off int64, segs ...[]byte) error {
		return r.WriteV(ctx, off, blockgraph.MakeIOVec(segs...), 0)
	}
	evil := append([]byte(magic), make([]byte, 1020)...)
	for i, err := range []error{
		write(0, evil),
		write(0, evil[:512]),
		write(0, evil[:1], evil[1:700]),
		write(0, []byte(magic)), // widened to the sector, then refused
	} {
		if !errors.Is(err, syscall.EPERM) {
			t.Errorf("write %d: %v", i, err)
		}
	}
	// Byte by byte, the last one is refused.
	for i := range len(magic) - 1 {
		if err := write(int64(i), []byte{magic[i]}); err != nil {
			t.Error(err)
		}
	}
	if err := write(3, []byte{magic[3]}); !errors.Is(err, syscall.EPERM) {
		t.Errorf("last byte: %v", err)
	}
	if err := errors.Join(write(0, bytes.Repeat([]byte{5}, 600), bytes.Repeat([]byte{6}, 424)), write(512, evil)); err != nil {
		t.Errorf("harmless writes: %v", err)
	}
	got, _ := os.ReadFile(path)
	if got[0] != 5 || got[599] != 6 && got[599] != 0 || !bytes.Equal(got[512:512+1024], evil) {
		t.Error("harmless writes are not in the file")
	}
}

func TestImageThatWasSaidToBeRawTakesAnything(t *testing.T) {
	path := image(t, 4096)
	w := newWorld(t)
	r := w.mustOpen(rawOptions(path, nil, nil))
	if err := r.WriteV(t.Context(), 0, blockgraph.MakeIOVec([]byte(magic)), 0); err != nil {
		t.Error(err)
	}
	if len(w.warnings) != 0 {
		t.Errorf("warned %q", w.warnings)
	}
	if r.Node().Filename() != path {
		t.Errorf("named %s", r.Node().Filename())
	}
}

func TestReopenMovesThePart(t *testing.T) {
	path := image(t, 8192)
	w := newWorld(t)
	r := w.mustOpen(rawOptions(path, ptr(int64(512)), nil))
	d := r.Node().Driver()
	reopen := func(offset int64, size *int64) (*blockgraph.Reopening, error) {
		return d.(blockgraph.Reopener).PrepareReopen(t.Context(), &blockgraph.ReopenRequest{Options: rawOptions(path, ptr(offset), size), State: r.Node().State()})
	}
	p, err := reopen(1024, ptr(int64(512)))
	if err != nil {
		t.Fatal(err)
	}
	if size, _ := d.Size(t.Context()); size != 7680 {
		t.Errorf("before the commit: %d bytes", size)
	}
	p.Apply()
	if size, _ := d.Size(t.Context()); size != 512 {
		t.Errorf("after the commit: %d bytes", size)
	}
	p.Undo(t.Context())
	if size, _ := d.Size(t.Context()); size != 7680 {
		t.Errorf("undone: %d bytes", size)
	}
	if _, err := reopen(8193, nil); err == nil {
		t.Error("an offset past the end was taken")
	}
}

func BenchmarkRead4k(b *testing.B) {
	path := image(b, 1<<20)
	w := newWorld(b)
	r := w.mustOpen(rawOptions(path, nil, nil))
	v := blockgraph.MakeIOVec(make([]byte, 4096))
	ctx := context.Background()
	raw, below := r.Node().Driver(), r.Node().File().Child().Driver()
	for name, d := range map[string]blockgraph.Driver{"raw": raw, "file": below} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := d.ReadV(ctx, int64(i&255)<<12, v, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
