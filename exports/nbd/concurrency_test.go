package nbd

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockd/clock"
	"blockd/ioengine"
	"blockd/nbdproto"
)

// gate is a hook that holds requests at offset 0 until it is opened or they
// are cancelled.
type gate struct {
	open    chan struct{}
	entered chan struct{}
}

func newGate() *gate { return &gate{open: make(chan struct{}), entered: make(chan struct{}, 1000)} }

func (g *gate) hook(ctx context.Context, _ string, off, n int64) error {
	if off != 0 || n == 0 {
		return nil
	}
	g.entered <- struct{}{}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) wait(t *testing.T, n int) {
	t.Helper()
	timer := clock.Real().NewTimer(patience)
	defer timer.Stop()
	for range n {
		select {
		case <-g.entered:
		case <-timer.C():
			t.Fatal("the request did not reach the backend")
		}
	}
}

// until waits for something that has no event of its own.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	defer clock.Real().AfterFunc(patience, cancel).Stop()
	for !f() {
		if clock.Real().Sleep(ctx, time.Millisecond) != nil {
			t.Fatal("waited in vain until " + what)
		}
	}
}

func TestSlowRequestDoesNotBlockFastOnes(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	add(t, s, m, ExportConfig{Writable: true})
	c := connect(t, path, false)
	g := newGate()
	m.hook(g.hook)
	// The reader itself takes the first one, since nothing was slow so far:
	// the watchdog has to take the reader's role from it. The others follow
	// after that.
	for i := range maxInFlight / 2 {
		c.send(nbdproto.Request{Type: nbdproto.CmdRead, Length: 512, Cookie: uint64(1000 + i)})
		g.wait(t, 1)
		for j := range 4 {
			if got := c.do(nbdproto.Request{Type: nbdproto.CmdWrite, Offset: 4096, Length: 1, Cookie: uint64(j)}, 1); got != nbdproto.OK {
				t.Fatalf("write: %d", got)
			}
		}
	}
	close(g.open)
	seen := map[uint64]bool{}
	for range maxInFlight / 2 {
		k := c.chunk(512)
		seen[k.Cookie] = true
	}
	if len(seen) != maxInFlight/2 {
		t.Errorf("%d replies", len(seen))
	}
}

func TestBurstWithASlowRequestInFrontIsServed(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	add(t, s, m, ExportConfig{})
	c := connect(t, path, false)
	g := newGate()
	m.hook(g.hook)
	var burst []byte
	for i := range uint64(16) { // the ninth is slow, with replies before it held back
		r := nbdproto.Request{Type: nbdproto.CmdRead, Offset: 4096, Length: 512, Cookie: i}
		if i == 8 {
			r.Offset = 0
		}
		burst = r.Append(burst, nbdproto.Compact)
	}
	c.write(burst)
	for range 15 {
		if k := c.chunk(512); k.Cookie == 8 {
			t.Fatal("the slow request was first")
		}
	}
	close(g.open)
	if k := c.chunk(512); k.Cookie != 8 {
		t.Errorf("cookie %d", k.Cookie)
	}
}

func TestRequestsBeyondTheCapAreNotRead(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	e := add(t, s, m, ExportConfig{})
	c := connect(t, path, false)
	g := newGate()
	m.hook(g.hook)
	for i := range maxInFlight + 10 {
		c.send(nbdproto.Request{Type: nbdproto.CmdRead, Length: 512, Cookie: uint64(i)})
	}
	g.wait(t, maxInFlight)
	e.mu.Lock()
	var k *conn
	for k = range e.conns {
	}
	e.mu.Unlock()
	k.mu.Lock()
	if k.inFlight != maxInFlight {
		t.Errorf("%d in flight", k.inFlight)
	}
	k.mu.Unlock()
	select {
	case <-g.entered:
		t.Error("one too many")
	default:
	}
	// Another connection has its own cap.
	other := connect(t, path, false)
	other.readData(4096, 512, 0)
	close(g.open)
	for range maxInFlight + 10 {
		c.chunk(512)
	}
}

func TestClientThatVanishesReleasesEverything(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(64<<20, 64<<10)
	e := add(t, s, m, ExportConfig{Writable: true})
	stay := connect(t, path, true)
	big := nbdproto.Request{Type: nbdproto.CmdWrite, Length: nbdproto.MaxPayload}
	read := nbdproto.Request{Type: nbdproto.CmdRead, Length: 1 << 20}
	for what, f := range map[string]func(c *client){
		"at rest":                 func(*client) {},
		"in a header":             func(c *client) { c.write(big.Append(nil, nbdproto.Compact)[:10]) },
		"before a payload":        func(c *client) { c.write(big.Append(nil, nbdproto.Compact)) },
		"in a payload":            func(c *client) { c.write(append(big.Append(nil, nbdproto.Compact), make([]byte, 1<<20)...)) },
		"with garbage":            func(c *client) { c.write(make([]byte, 100)) },
		"without taking replies":  func(c *client) { c.send(read); c.send(read); c.send(read); c.send(read) },
		"with requests in flight": func(c *client) { g := newGate(); m.hook(g.hook); c.send(read); c.send(read); g.wait(t, 2) },
	} {
		c := connect(t, path, true)
		f(c)
		c.Close()
		until(t, "the client that left "+what+" is gone", func() bool { return e.Clients() == 1 })
		m.hook(nil)
		until(t, "its memory is free: "+what, func() bool { return ioengine.InUse() == 0 })
		if got := stay.do(nbdproto.Request{Type: nbdproto.CmdFlush}); got != nbdproto.OK {
			t.Errorf("%s: the other client gets %d", what, got)
		}
	}
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	if s.memory.used != 0 {
		t.Errorf("%d bytes are still charged", s.memory.used)
	}
}

func TestDisconnectComesAfterTheReplies(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	add(t, s, m, ExportConfig{Writable: true})
	c := connect(t, path, false)
	g := newGate()
	m.hook(g.hook)
	c.send(nbdproto.Request{Type: nbdproto.CmdWrite, Length: 1, Cookie: 1}, 7)
	g.wait(t, 1)
	c.send(nbdproto.Request{Type: nbdproto.CmdDisc})
	close(g.open)
	if k := c.chunk(0); k.Cookie != 1 || k.Error != nbdproto.OK {
		t.Errorf("%+v", k)
	}
	c.hungUp()
}

func TestClientThatSeesItsSocketClosedDoesNotCountAnyMore(t *testing.T) {
	s, path := server(t, Config{})
	e := add(t, s, newRAM(1<<20, 4096), ExportConfig{})
	for range 200 {
		c := connect(t, path, true)
		c.send(nbdproto.Request{Type: nbdproto.CmdDisc})
		c.hungUp()
		if n := e.Clients(); n != 0 {
			t.Fatalf("%d clients", n)
		}
	}
}

func TestClosingAnExportEndsItsRequestsAndFreesTheName(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	e := add(t, s, m, ExportConfig{})
	c := connect(t, path, false)
	if e.CloseIfUnused() {
		t.Fatal("it is in use")
	}
	g := newGate()
	m.hook(g.hook)
	c.send(nbdproto.Request{Type: nbdproto.CmdRead, Length: 512})
	g.wait(t, 1)
	e.Close()
	<-e.Done()
	c.hungUp()
	m.hook(nil)
	f := add(t, s, m, ExportConfig{})
	again := connect(t, path, false)
	again.readData(0, 512, 0)
	again.Close()
	until(t, "the export is unused", f.CloseIfUnused)
	<-f.Done()
}

func TestStalledClientsAreDroppedWhenOthersNeedMemory(t *testing.T) {
	v := clock.NewVirtual()
	s, path := server(t, Config{Clock: v})
	m := newRAM(64<<20, 64<<10)
	e := add(t, s, m, ExportConfig{Writable: true})
	s.memory.mu.Lock()
	s.memory.limit = 8 << 20
	s.memory.mu.Unlock()
	// One hangs in the middle of a payload, one does not take its reply.
	stuck := nbdproto.Request{Type: nbdproto.CmdWrite, Length: 4 << 20}
	half := connect(t, path, false)
	half.write(append(stuck.Append(nil, nbdproto.Compact), 1, 2, 3))
	deaf := connect(t, path, false)
	deaf.send(nbdproto.Request{Type: nbdproto.CmdRead, Length: 4 << 20})
	until(t, "the memory is used up", func() bool {
		s.memory.mu.Lock()
		defer s.memory.mu.Unlock()
		return s.memory.used == 8<<20
	})
	needy := connect(t, path, false)
	needy.readData(0, 4096, 0) // which it has memory of its own for
	// More than one of them holds, so that both have to go.
	needy.send(nbdproto.Request{Type: nbdproto.CmdRead, Length: 5 << 20})
	until(t, "it waits", s.memory.pressure)
	if e.Clients() != 3 {
		t.Errorf("%d clients", e.Clients())
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				// Now and then a byte is no progress.
				half.Conn.Write([]byte{4})
				v.Step(guardTick / 4)
			}
		}
	})
	needy.chunk(5 << 20)
	close(stop)
	wg.Wait()
	half.hungUp()
	until(t, "the stalled clients are gone", func() bool { return e.Clients() == 1 })
}

func TestManyClientsAtOnce(t *testing.T) {
	s, path := server(t, Config{})
	const part = 256 << 10
	m := newRAM(8*part, 4096)
	add(t, s, m, ExportConfig{Writable: true})
	var slow atomic.Int64
	m.hook(func(ctx context.Context, op string, _, _ int64) error {
		switch k := slow.Add(1); {
		case k%50 == 0: // now and then one takes longer than a tick
			return clock.Real().Sleep(ctx, 3*watchTick)
		case k%97 == 0:
			return syscall.EIO
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 8 {
		c := connect(t, path, i%2 == 0)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			base := uint64(i * part)
			for range 20 {
				n := 1 + rng.IntN(maxInFlight)
				var out []byte
				sizes := map[uint64]int{}
				for k := range uint64(n) {
					size := 1 + rng.IntN(8192)
					r := nbdproto.Request{Type: nbdproto.CmdWrite, Offset: base + uint64(rng.IntN(part-size)), Length: uint64(size), Cookie: k}
					if rng.IntN(2) == 0 {
						r.Type = nbdproto.CmdRead
						sizes[k] = size
					}
					out = r.Append(out, nbdproto.Compact)
					if r.Type == nbdproto.CmdWrite {
						out = append(out, make([]byte, size)...)
					}
				}
				var sending sync.WaitGroup
				sending.Go(func() { _, _ = c.Conn.Write(out) })
				for range n {
					if _, err := c.anyReply(sizes); err != nil {
						t.Error(err)
						return
					}
				}
				sending.Wait()
			}
		})
	}
	wg.Wait()
}
