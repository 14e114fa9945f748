package nbd

import (
	"runtime"
	"testing"
	"time"

	"blockd/nbdproto"
)

// TestIdleConnectionsAreCheap holds a thousand clients to 64 MiB, the part of
// the test's own end included.
func TestIdleConnectionsAreCheap(t *testing.T) {
	const clients = 1000
	s, path := server(t, Config{HandshakeMax: 10 * time.Second})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{})
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	all := make([]*client, clients)
	for i := range all {
		all[i] = connect(t, path, false)
		all[i].readData(0, 4096, 0)
	}
	after := used()
	per := (after - before) / clients
	t.Logf("%d bytes for a connection", per)
	if per*clients > 64<<20 {
		t.Errorf("%d clients take %d MiB", clients, per*clients>>20)
	}
	for _, c := range all {
		if got := c.do(nbdproto.Request{Type: nbdproto.CmdFlush}); got != nbdproto.OK {
			t.Fatalf("flush: %d", got)
		}
	}
}
