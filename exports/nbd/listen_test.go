package nbd

import (
	"blockd/clock"
	"blockd/nbdproto"
	"blockd/qapi"
	"blockd/sockets"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func unixAt(path string) *qapi.SocketAddress {
	return &qapi.SocketAddress{Type: "unix", Unix: &qapi.UnixSocketAddress{Path: path}}
}

func inetAt(host, port string) *qapi.SocketAddress {
	return &qapi.SocketAddress{Type: "inet", Inet: &qapi.InetSocketAddress{InetSocketAddressBase: qapi.InetSocketAddressBase{Host: host, Port: port}}}
}

func listen(t *testing.T, a *qapi.SocketAddress) []net.Listener {
	t.Helper()
	ls, err := Listen(t.Context(), a, sockets.Access{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		t.Cleanup(func() { l.Close() })
	}
	return ls
}

func TestServerOverTCPAndAPassedDescriptor(t *testing.T) {
	ls := listen(t, inetAt("127.0.0.1", "0"))
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	given := &qapi.SocketAddress{Type: "fd", FD: &qapi.FdSocketAddress{Str: "sock"}}
	passed, err := Listen(t.Context(), given, sockets.Access{}, func(name string) (int, error) {
		if name != "sock" {
			t.Errorf("asked for %q", name)
		}
		return fd, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{Clock: clock.Real()}, append(ls, passed...)...)
	t.Cleanup(s.Close)
	add(t, s, newRAM(1<<20, 4096), ExportConfig{})
	for _, a := range s.Addrs() {
		nc, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if err := nc.SetDeadline(clock.Real().Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		c := (&client{t: t, Conn: nc}).greet(both)
		if got := last(c.goExport(nbdproto.OptGo, "n")); got != nbdproto.RepAck {
			t.Fatalf("go: %#x", got)
		}
		if got, _ := c.readData(512, 100_000, 0); len(got) != 100_000 {
			t.Error("no data")
		}
	}
}
