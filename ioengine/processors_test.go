package ioengine

import (
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// openFlags opens a file for reading with further flags.
func openFlags(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|flags, 0o600)
	if err == unix.EINVAL && flags&unix.O_DIRECT != 0 {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestOpenNetworkDisksHaveProcessors(t *testing.T) {
	few := runtime.GOMAXPROCS(0)
	own := cap(Receiving) + 1
	for _, step := range []struct {
		direct, network, more int
	}{
		{0, 1, own}, {0, 1, own}, {1, 0, own + waitingProcessors}, {0, -1, own + waitingProcessors},
		{0, -1, waitingProcessors}, {0, 1, own + waitingProcessors}, {-1, 0, own}, {0, -1, 0},
	} {
		countDirect(step.direct)
		CountNetwork(step.network)
		if n := runtime.GOMAXPROCS(0); n != few+step.more {
			t.Errorf("%+v: %d processors, of %d at first", step, n, few)
		}
	}
}

func TestFilesPastThePageCacheHaveProcessors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	fd := openFlags(t, path, unix.O_DIRECT)
	if fd < 0 {
		t.Log("this file system has no O_DIRECT")
		return
	}
	few := runtime.GOMAXPROCS(0)
	check := func(when string, more int) {
		t.Helper()
		if n := runtime.GOMAXPROCS(0); n != few+more {
			t.Errorf("%s: %d processors, of %d at first", when, n, few)
		}
	}
	c := NewCalls(1)
	cached := c.NewFile(openFlags(t, path, 0))
	check("a cached file", 0)
	first := c.NewFile(fd)
	check("a file past the cache", waitingProcessors)
	second := c.NewFile(openFlags(t, path, unix.O_DIRECT))
	check("two of them", waitingProcessors)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	check("one closed", waitingProcessors)
	if err := second.Replace(openFlags(t, path, 0)); err != nil {
		t.Fatal(err)
	}
	check("the other reopened through the cache", 0)
	if err := cached.Replace(openFlags(t, path, unix.O_DIRECT)); err != nil {
		t.Fatal(err)
	}
	check("the cached one reopened past it", waitingProcessors)
	for _, f := range []*File{cached, second} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check("all closed", 0)
}
