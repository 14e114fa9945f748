package file

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

func accessMode(t *testing.T, fd int) int {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags & unix.O_ACCMODE
}

// holdWithQemuIO has qemu-io keep an image open until release is called.
func holdWithQemuIO(t *testing.T, qio, name string) (release func()) {
	t.Helper()
	cmd := exec.Command(qio, "-f", "qcow2", name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("length\n")); err != nil {
		t.Fatal(err)
	}
	// It answers once the image is open.
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "MiB") {
		t.Fatalf("qemu-io said %q, %v", line, err)
	}
	done := sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(done)
	return done
}

func TestCreateFailsWithTheFieldsTextsAndLeavesNothing(t *testing.T) {
	t.Chdir(t.TempDir())
	h := New(Config{})
	for _, c := range []struct {
		o    qapi.BlockdevCreateOptionsFile
		text string
	}{
		{qapi.BlockdevCreateOptionsFile{Filename: "n", Size: 4096, Preallocation: ptr(qapi.PreallocModeMetadata)}, "Unsupported preallocation mode: metadata"},
		{qapi.BlockdevCreateOptionsFile{Filename: "nodir/new", Size: 1}, "Could not create 'nodir/new': No such file or directory"},
		{qapi.BlockdevCreateOptionsFile{Filename: "n", Size: 1 << 63}, "Could not resize file: Invalid argument"},
		{qapi.BlockdevCreateOptionsFile{Filename: "n", Size: 1<<63 - 1}, "Could not resize file: File too large"},
		{qapi.BlockdevCreateOptionsFile{Filename: "n", Size: 1 << 62, Preallocation: ptr(qapi.PreallocModeFalloc)}, "Could not preallocate new data: File too large"},
		{qapi.BlockdevCreateOptionsFile{Filename: "n", Size: 1, ExtentSizeHint: ptr(uint64(1 << 32))}, "Extent size hint is too large"},
		{qapi.BlockdevCreateOptionsFile{Filename: ".", Size: 1}, "Could not create '.': Is a directory"},
		{qapi.BlockdevCreateOptionsFile{Filename: "", Size: 1}, "Could not create '': No such file or directory"},
		{qapi.BlockdevCreateOptionsFile{Filename: "/dev/null", Size: 1}, "Could not resize file: Invalid argument"},
	} {
		wantText(t, h.Create(t.Context(), &c.o), c.text)
		if _, err := os.Lstat("n"); err == nil {
			t.Errorf("%s: the file is there", c.text)
			os.Remove("n")
		}
	}
}

func TestCreateKeepsAFileThatItDidNotMake(t *testing.T) {
	name := image(t, 4096)
	err := New(Config{}).Create(t.Context(), &qapi.BlockdevCreateOptionsFile{Filename: name, Size: 1<<63 - 1})
	wantText(t, err, "Could not resize file: File too large")
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
}

func TestCreateRespectsLocksBeforeItEmptiesTheFile(t *testing.T) {
	name := image(t, 4096)
	w := newWorld(t, Config{})
	w.mustRoot(w.mustOpen(fileOptions(name)), blockgraph.PermConsistentRead, all&^blockgraph.PermResize)
	err := w.h.Create(t.Context(), &qapi.BlockdevCreateOptionsFile{Filename: name, Size: 512})
	wantText(t, err, `Failed to get "resize" lock`)
	if st, _ := os.Stat(name); st.Size() != 4096 {
		t.Errorf("%d bytes", st.Size())
	}
	if got := heldLocks(t, name); got != "100 203 " {
		t.Errorf("locks %q", got)
	}
}

func TestCreatePreallocates(t *testing.T) {
	dir := t.TempDir()
	h := New(Config{})
	for _, mode := range []qapi.PreallocMode{qapi.PreallocModeOff, qapi.PreallocModeFalloc, qapi.PreallocModeFull} {
		name := filepath.Join(dir, string(mode))
		if err := h.Create(t.Context(), &qapi.BlockdevCreateOptionsFile{Filename: name, Size: 3<<20 + 1, Preallocation: &mode, Nocow: ptr(true)}); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		if st.Size != 3<<20+1 || (mode == qapi.PreallocModeOff) != (st.Blocks*512 < 1<<20) || st.Mode&0o777 != 0o644 {
			t.Errorf("%s: %d bytes, %d blocks, mode %o", mode, st.Size, st.Blocks, st.Mode)
		}
		if heldLocks(t, name) != "" || descriptors(t, name) != 0 {
			t.Errorf("%s: still open or locked", mode)
		}
	}
}

func TestCancelledPreallocationRestoresTheLength(t *testing.T) {
	name := image(t, 4096)
	w := newWorld(t, Config{})
	n := w.mustOpen(fileOptions(name))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := n.Driver().(blockgraph.Truncater).Truncate(ctx, 1<<20, true, qapi.PreallocModeFull, false)
	wantText(t, err, "Could not write zeros for preallocation: Operation canceled")
	if st, _ := os.Stat(name); st.Size() != 4096 {
		t.Errorf("%d bytes", st.Size())
	}
}

func TestTruncateFollowsTheFieldsRules(t *testing.T) {
	name := image(t, 4096)
	w := newWorld(t, Config{})
	tr := w.mustOpen(fileOptions(name)).Driver().(blockgraph.Truncater)
	wantText(t, tr.Truncate(t.Context(), 512, true, qapi.PreallocModeFalloc, false), "Cannot use preallocation for shrinking files")
	wantText(t, tr.Truncate(t.Context(), 8192, true, qapi.PreallocModeMetadata, false), "Unsupported preallocation mode: metadata")
	for _, size := range []int64{512, 100_000} {
		if err := tr.Truncate(t.Context(), size, true, qapi.PreallocModeOff, false); err != nil {
			t.Fatal(err)
		}
		if st, _ := os.Stat(name); st.Size() != size {
			t.Errorf("%d bytes, want %d", st.Size(), size)
		}
	}
	o := fileOptions("/dev/null")
	o.Driver = "host_device"
	dev := w.mustOpen(o).Driver().(blockgraph.Truncater)
	wantText(t, dev.Truncate(t.Context(), 512, true, qapi.PreallocModeOff, false), "Cannot resize device files")
	wantText(t, dev.Truncate(t.Context(), 512, false, qapi.PreallocModeOff, false), "Cannot grow device files")
	wantText(t, dev.Truncate(t.Context(), 512, false, qapi.PreallocModeFull, false), "Preallocation mode 'full' unsupported for this non-regular file")
}

func TestFlushesShareOnlyCallsThatBeginAfterThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flusher
		begun, finish := make(chan int), make(chan error)
		calls := 0
		call := func(context.Context) error {
			calls++
			begun <- calls
			return <-finish
		}
		results := make(chan error, 9)
		flush := func() { results <- f.flush(t.Context(), call) }
		go flush()
		<-begun
		for range 8 {
			go flush()
		}
		synctest.Wait() // all wait for the next call
		finish <- nil
		if n := <-begun; n != 2 {
			t.Fatalf("call %d", n)
		}
		synctest.Wait()
		if len(results) != 1 {
			t.Fatalf("%d flushes ended with a call that began before them", len(results)-1)
		}
		finish <- nil
		for range 9 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if calls != 2 {
			t.Errorf("%d calls", calls)
		}
	})
}

func TestFailedFlushFailsAllLaterOnes(t *testing.T) {
	var f flusher
	calls := 0
	sync := func(err error) func(context.Context) error {
		return func(context.Context) error { calls++; return err }
	}
	if err := f.flush(t.Context(), sync(syscall.ENOSPC)); err != syscall.ENOSPC {
		t.Errorf("first: %v", err)
	}
	for range 2 {
		if err := f.flush(t.Context(), sync(nil)); err != syscall.EIO {
			t.Errorf("later: %v", err)
		}
	}
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

func TestFlushThatGaveUpLeavesItsCallToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flusher
		begun, finish := make(chan struct{}), make(chan error)
		call := func(ctx context.Context) error {
			if err := ctx.Err(); err != nil {
				return err // as while waiting for a slot
			}
			begun <- struct{}{}
			return <-finish
		}
		results := make(chan error, 3)
		go func() { results <- f.flush(t.Context(), call) }()
		<-begun
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		go func() { results <- f.flush(gone, call) }()
		synctest.Wait() // it is to make the next call
		go func() { results <- f.flush(t.Context(), call) }()
		synctest.Wait()
		finish <- nil
		<-begun
		finish <- nil
		var cancelled int
		for range 3 {
			if err := <-results; errors.Is(err, context.Canceled) {
				cancelled++
			} else if err != nil {
				t.Error(err)
			}
		}
		if cancelled != 1 {
			t.Errorf("%d cancelled", cancelled)
		}
	})
}

// TestWriteThatEndsAfterAFlushBeganIsStillToBeFlushed has a flush begin and
// end while a write is under way.
func TestWriteThatEndsAfterAFlushBeganIsStillToBeFlushed(t *testing.T) {
	w := newWorld(t, Config{})
	n := w.mustOpen(fileOptions(image(t, 4096)))
	d := n.Driver().(*driver)
	// The write waits for a slot that another call has, so it has begun but not ended.
	w.h.cfg.Calls = ioengine.NewCalls(1)
	fd, err := unix.Dup(d.file.Fd())
	if err != nil {
		t.Fatal(err)
	}
	slow := &driver{opener: d.opener, node: n, name: d.name, kind: d.kind, settings: d.settings, file: w.h.cfg.Calls.NewFile(fd)}
	holding, release := make(chan struct{}), make(chan struct{})
	go slow.file.Do(t.Context(), func(int) error { close(holding); <-release; return nil })
	<-holding
	done := make(chan error)
	go func() { done <- slow.WriteV(t.Context(), 0, blockgraph.MakeIOVec([]byte("x")), 0) }()
	for w.h.cfg.Calls.Stats().Waiting == 0 {
		runtime.Gosched()
	}
	slow.written.Store(false) // what a flush does when it begins
	close(release)
	if err := <-done; err != nil || !slow.written.Load() {
		t.Errorf("%v, to be flushed: %v", err, slow.written.Load())
	}
	if err := slow.Close(t.Context()); err != nil || slow.written.Load() {
		t.Errorf("close: %v, to be flushed: %v", err, slow.written.Load())
	}
}

func TestImageInfoNamesTheDriver(t *testing.T) {
	w := newWorld(t, Config{})
	n := w.mustOpen(fileOptions(image(t, 4096)))
	var info qapi.ImageInfo
	if err := n.Driver().(blockgraph.ImageInformer).ImageInfo(t.Context(), &info); err != nil {
		t.Fatal(err)
	}
	if info.FormatSpecific == nil || info.FormatSpecific.File == nil {
		t.Errorf("%+v", info)
	}
	if size, err := n.Driver().(blockgraph.AllocatedSizer).AllocatedSize(t.Context()); err != nil || size != 0 {
		t.Errorf("%d bytes allocated, %v", size, err)
	}
}

func TestCopyRangeIsRefusedUnlessSwitchedOn(t *testing.T) {
	for _, on := range []bool{false, true} {
		a, b := image(t, 0), image(t, 0)
		if err := os.WriteFile(a, []byte("0123456789"), 0o644); err != nil {
			t.Fatal(err)
		}
		w := newWorld(t, Config{CopyRange: on})
		src, dst := w.mustOpen(fileOptions(a)), w.mustOpen(fileOptions(b))
		err := dst.Driver().(blockgraph.Copier).CopyRangeFrom(t.Context(), src.Driver(), 2, 1, 5)
		got, _ := os.ReadFile(b)
		if on && (err != nil || string(got) != "\x0023456") && !errors.Is(err, blockgraph.ErrNotSupported) {
			t.Errorf("on: %v, %q", err, got)
		}
		if !on && !errors.Is(err, blockgraph.ErrNotSupported) {
			t.Errorf("off: %v", err)
		}
	}
}

// TestLoopDevice runs on a real block device, made from a file.
func TestLoopDevice(t *testing.T) {
	losetup := tool(t, "losetup")
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	name := image(t, 4<<20)
	out, err := exec.Command(losetup, "-f", "--show", name).Output()
	if err != nil {
		t.Logf("this machine has no loop device: %v", err)
		return
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(losetup, "-d", dev) })
	w := newWorld(t, Config{})
	for _, direct := range []bool{false, true} {
		o := fileOptions(dev)
		o.Driver = "host_device"
		o.Cache = &qapi.BlockdevCacheOptions{Direct: ptr(direct)}
		n := w.mustOpen(o)
		if n.Size() != 4<<20 {
			t.Fatalf("%d bytes", n.Size())
		}
		r := w.mustRoot(n, rw, all)
		v := blockgraph.MakeIOVec(make([]byte, 8192))
		for _, s := range v.Segments() {
			for i := range s {
				s[i] = 0x5a
			}
		}
		ctx := t.Context()
		got := blockgraph.MakeIOVec(make([]byte, 8192))
		for step, op := range []func() error{
			func() error { return r.WriteZeroes(ctx, 4096, 4096, 0) },
			func() error { return r.WriteZeroes(ctx, 4096, 4096, blockgraph.MayUnmap) },
			func() error { return r.Discard(ctx, 4096, 4096) },
		} {
			if err := errors.Join(r.WriteV(ctx, 4096, v, 0), op(), r.ReadV(ctx, 4096, got, 0), r.Flush(ctx)); err != nil {
				t.Fatalf("direct %v, step %d: %v", direct, step, err)
			}
			if step < 2 && got.Segments()[0][0] != 0 || got.Segments()[0][4096] != 0x5a {
				t.Errorf("direct %v, step %d: wrong bytes", direct, step)
			}
		}
		w.closeRoot(r)
		w.close(n)
	}
}
