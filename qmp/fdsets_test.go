package qmp

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func openFDs(t *testing.T, path string) (ro, rw *os.File) {
	t.Helper()
	os.WriteFile(path, []byte("content"), 0o600)
	ro, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	rw, err = os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ro, rw
}

func TestFdsetOpenPicksTheAccessMode(t *testing.T) {
	s := NewFdSets()
	defer s.Close()
	s.clientArrives()
	ro, rw := openFDs(t, filepath.Join(t.TempDir(), "f"))
	id := int64(7)
	for _, f := range []*os.File{ro, rw} {
		if _, err := s.Add(f, &id, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []int{os.O_RDONLY, os.O_RDWR} {
		f, release, err := s.Open("/dev/fdset/7", mode|unix.O_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		flags, _ := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if flags&unix.O_ACCMODE != mode {
			t.Errorf("asked for %x, got %x", mode, flags)
		}
		if fdflags, _ := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); fdflags&unix.FD_CLOEXEC == 0 {
			t.Error("not close-on-exec")
		}
		f.Close()
		release()
	}
	for path, want := range map[string]struct {
		text  string
		errno error
	}{
		"/dev/fdset/7":  {"Could not dup FD for /dev/fdset/7 flags 1: Permission denied", unix.EACCES},
		"/dev/fdset/8":  {"Could not dup FD for /dev/fdset/8 flags 1: No such file or directory", unix.ENOENT},
		"/dev/fdset/x":  {"Could not parse fdset /dev/fdset/x", nil},
		"/dev/fdset/-1": {"Could not parse fdset /dev/fdset/-1", nil},
		"/dev/fdset/":   {"Could not parse fdset /dev/fdset/", nil},
		"/dev/null":     {"Could not parse fdset /dev/null", nil},
	} {
		_, _, err := s.Open(path, os.O_WRONLY|unix.O_CLOEXEC)
		if err == nil || err.Error() != want.text || want.errno != nil && !errors.Is(err, want.errno) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFdsetLastsWhileACopyIsOpen(t *testing.T) {
	s := NewFdSets()
	_, rw := openFDs(t, filepath.Join(t.TempDir(), "f"))
	info, err := s.Add(rw, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, release, err := s.Open("/dev/fdset/0", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.remove(info.FdsetID, &info.FD); err != nil {
		t.Fatal(err)
	}
	if _, err := rw.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("removed descriptor is open: %v", err)
	}
	if list := s.Query(); len(list) != 1 || len(list[0].FDs) != 0 {
		t.Fatalf("%+v", list)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		t.Fatalf("the copy does not work: %v", err)
	}
	s.clientArrives()
	s.clientLeaves()
	if len(s.Query()) != 1 {
		t.Fatal("the last client took a set in use along")
	}
	f.Close()
	release()
	release() // a second call does no harm
	if list := s.Query(); len(list) != 0 {
		t.Fatalf("%+v", list)
	}
}

func TestFdsetInUseIsClosedAfterTheLastClientAndTheLastCopy(t *testing.T) {
	s := NewFdSets()
	_, rw := openFDs(t, filepath.Join(t.TempDir(), "f"))
	s.clientArrives()
	if _, err := s.Add(rw, nil, nil); err != nil {
		t.Fatal(err)
	}
	f, release, err := s.Open("/dev/fdset/0", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	s.clientLeaves()
	f.Close()
	release()
	if list := s.Query(); len(list) != 0 || s.total != 0 {
		t.Fatalf("%+v, %d descriptors", list, s.total)
	}
	if _, err := rw.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Fatal("the descriptor is open")
	}
}

func TestFdsetOpenTruncates(t *testing.T) {
	s := NewFdSets()
	defer s.Close()
	path := filepath.Join(t.TempDir(), "f")
	ro, rw := openFDs(t, path)
	ro.Close()
	s.Add(rw, nil, nil)
	f, release, err := s.Open("/dev/fdset/0", os.O_RDWR|os.O_TRUNC)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	defer f.Close()
	if st, _ := os.Stat(path); st.Size() != 0 {
		t.Fatal("not truncated")
	}
}

func TestFdsetCountIsBounded(t *testing.T) {
	s := NewFdSets()
	s.total = maxSetFDs
	_, rw := openFDs(t, filepath.Join(t.TempDir(), "f"))
	if _, err := s.Add(rw, nil, nil); err == nil {
		t.Fatal("one too many")
	}
	if _, err := rw.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Fatal("refused descriptor is open")
	}
}
