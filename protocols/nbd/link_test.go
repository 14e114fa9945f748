package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/nbdproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadTakesChunksInAnyOrder(t *testing.T) {
	d, c := openFake(t)
	go func() {
		r, _ := c.request()
		c.send(data(r, false, r.Offset+4096, 4096))
		c.send(nbdproto.Reply{Cookie: r.Cookie}.AppendOffsetHole(nil, false, r.Offset+12288, 4096))
		c.send(data(r, false, r.Offset+8192, 4096))
		c.send(data(r, true, r.Offset, 4096))
		c.serve()
	}()
	b, err := read(t.Context(), d, 65536, 16384)
	if err != nil {
		t.Fatal(err)
	}
	checkPattern(t, b[:12288], 65536)
	if !bytes.Equal(b[12288:], make([]byte, 4096)) {
		t.Error("hole is not zero")
	}
}

// Whatever a server answers, no read succeeds with bytes that it did not send,
// and the link ends rather than being read out of step.
func TestWrongRepliesEndTheLink(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reply func(r *nbdproto.Request) []byte
	}{
		{"gap", func(r *nbdproto.Request) []byte { return data(r, true, r.Offset+512, int(r.Length)-512) }},
		{"nothing", func(r *nbdproto.Request) []byte { return nbdproto.Reply{Cookie: r.Cookie}.AppendNone(nil) }},
		{"overlap", func(r *nbdproto.Request) []byte {
			return append(data(r, false, r.Offset, 1024), data(r, true, r.Offset+512, int(r.Length)-512)...)
		}},
		{"overlap apart", func(r *nbdproto.Request) []byte {
			return append(data(r, false, r.Offset+1024, 1024), nbdproto.Reply{Cookie: r.Cookie}.AppendOffsetHole(nil, true, r.Offset+512, 1024)...)
		}},
		{"before", func(r *nbdproto.Request) []byte { return data(r, true, r.Offset-512, int(r.Length)) }},
		{"behind", func(r *nbdproto.Request) []byte { return data(r, true, r.Offset+512, int(r.Length)) }},
		{"hole behind", func(r *nbdproto.Request) []byte {
			return nbdproto.Reply{Cookie: r.Cookie}.AppendOffsetHole(nil, true, r.Offset, uint32(r.Length)+1)
		}},
		{"huge hole", func(r *nbdproto.Request) []byte {
			return nbdproto.Reply{Cookie: r.Cookie}.AppendOffsetHole(nil, true, 1<<63, 1<<31)
		}},
		{"empty data", func(r *nbdproto.Request) []byte { return data(r, true, r.Offset, 0) }},
		{"cookie", func(r *nbdproto.Request) []byte { return nbdproto.Reply{Cookie: r.Cookie + 1}.AppendNone(nil) }},
		{"no cookie", func(r *nbdproto.Request) []byte { return nbdproto.Reply{Cookie: 0}.AppendNone(nil) }},
		{"old cookie", func(r *nbdproto.Request) []byte {
			return nbdproto.Reply{Cookie: r.Cookie - maxInFlight}.AppendNone(nil)
		}},
		{"simple", func(r *nbdproto.Request) []byte { return nbdproto.AppendSimpleReply(nil, r.Cookie, 0) }},
		{"status", func(r *nbdproto.Request) []byte {
			return nbdproto.Compact.AppendExtent(nbdproto.Reply{Cookie: r.Cookie}.AppendBlockStatus(nil, true, fakeMeta, 1), 512, 0)
		}},
		{"error without error", func(r *nbdproto.Request) []byte {
			return rawChunk(r.Cookie, nbdproto.ChunkError, true, 0, 0, 0, 0, 0, 0)
		}},
		{"short error", func(r *nbdproto.Request) []byte { return rawChunk(r.Cookie, nbdproto.ChunkError, true, 0, 0) }},
		{"long chunk", func(r *nbdproto.Request) []byte {
			return rawChunk(r.Cookie, nbdproto.ChunkError, true, make([]byte, maxSmallChunk+1)...)
		}},
		{"none with payload", func(r *nbdproto.Request) []byte { return rawChunk(r.Cookie, nbdproto.ChunkNone, true, 1) }},
		{"none that is not last", func(r *nbdproto.Request) []byte { return rawChunk(r.Cookie, nbdproto.ChunkNone, false) }},
		{"unknown chunk", func(r *nbdproto.Request) []byte { return rawChunk(r.Cookie, 77, true, 1, 2) }},
		{"garbage", func(*nbdproto.Request) []byte { return bytes.Repeat([]byte("nonsense"), 9) }},
		{"end", func(*nbdproto.Request) []byte { return nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, c := openFake(t)
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				r, _ := c.request()
				c.send(tc.reply(r))
				if tc.name == "end" {
					c.Close()
				}
				_, _ = c.Read(make([]byte, 1)) // the client hangs up
			}()
			if _, err := read(t.Context(), d, 8192, 4096); !errors.Is(err, syscall.EIO) {
				t.Errorf("read: %v", err)
			}
			<-gone
		})
	}
}

func TestServerErrorsBecomeErrnos(t *testing.T) {
	d, c := openFake(t)
	go func() {
		r, _ := c.request()
		c.send(nbdproto.Reply{Cookie: r.Cookie}.AppendErrorOffset(nil, nbdproto.ENOSPC, "full", r.Offset))
		r, _ = c.request()
		c.send(nbdproto.AppendSimpleReply(nil, r.Cookie, nbdproto.EPERM))
		// An error behind data counts for the whole read.
		r, _ = c.request()
		c.send(data(r, false, r.Offset, 512))
		c.send(nbdproto.Reply{Cookie: r.Cookie}.AppendError(nil, nbdproto.EIO, ""))
		c.serve()
	}()
	if _, err := read(t.Context(), d, 0, 4096); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if err := d.WriteV(t.Context(), 0, blockgraph.MakeIOVec(make([]byte, 512)), 0); !errors.Is(err, syscall.EPERM) {
		t.Error(err)
	}
	if _, err := read(t.Context(), d, 0, 4096); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if b, err := read(t.Context(), d, 512, 4096); err != nil {
		t.Error(err)
	} else {
		checkPattern(t, b, 512)
	}
}

type waits struct {
	waits   chan struct{}
	resumed []uint64
}

func (w *waits) Waits() uint64 { close(w.waits); return 7 }

func (w *waits) Resumes(_ context.Context, wait uint64) { w.resumed = append(w.resumed, wait) }

func TestRequestTellsThatItWaitsAndGoesOn(t *testing.T) {
	d, c := openFake(t)
	w := &waits{waits: make(chan struct{})}
	go func() {
		r, _ := c.request()
		<-w.waits // before there is an answer
		c.answer(r)
		c.serve()
	}()
	if _, err := read(ioengine.WithWaiter(t.Context(), w), d, 0, 4096); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.resumed, []uint64{7}) {
		t.Errorf("went on with %v", w.resumed)
	}
}

// So is one that waits for its turn, when no more may be in flight.
func TestWaitForATurnIsTold(t *testing.T) {
	l := &link{free: make(chan int), done: make(chan struct{})} // nothing is free
	w := &waits{waits: make(chan struct{})}
	ctx, cancel := context.WithCancel(ioengine.WithWaiter(t.Context(), w))
	cancel()
	if err := l.do(ctx, nbdproto.Request{}, nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !slices.Equal(w.resumed, []uint64{7}) {
		t.Errorf("waits that ended: %v", w.resumed)
	}
}

func TestOpenDiskHasProcessorsForItsAnswers(t *testing.T) {
	few := runtime.GOMAXPROCS(0)
	d, c := openFake(t)
	go c.serve()
	if n := runtime.GOMAXPROCS(0); n <= few {
		t.Errorf("%d processors, of %d before", n, few)
	}
	for range 2 {
		if err := d.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := runtime.GOMAXPROCS(0); n != few {
			t.Errorf("%d processors after, of %d before", n, few)
		}
	}
}

func TestCancelledReadLeavesItsBufferAlone(t *testing.T) {
	d, c := openFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	late := make(chan *nbdproto.Request)
	go func() {
		r, _ := c.request()
		late <- r
		c.serve()
	}()
	done := make(chan error)
	b := make([]byte, 4096)
	go func() { done <- d.ReadV(ctx, 0, blockgraph.MakeIOVec(b), 0) }()
	r := <-late
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	c.send(data(r, true, 0, 4096))
	if b2, err := read(t.Context(), d, 4096, 4096); err != nil { // its reply comes after the late one
		t.Fatal(err)
	} else {
		checkPattern(t, b2, 4096)
	}
	if !bytes.Equal(b, make([]byte, 4096)) {
		t.Error("a late reply was written into a buffer that had been given back")
	}
}

func TestCancelledWriteWaitsForItsReply(t *testing.T) {
	d, c := openFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.WriteV(ctx, 0, blockgraph.MakeIOVec(make([]byte, 4096)), blockgraph.FUA) }()
	r, _ := c.request()
	if r.Flags != nbdproto.FlagFUA {
		t.Errorf("flags %#x", r.Flags)
	}
	cancel()
	select {
	case err := <-done:
		t.Fatal("given up while the server may still write:", err)
	default:
	}
	c.send(nbdproto.Reply{Cookie: r.Cookie}.AppendNone(nil))
	if err := <-done; err != nil {
		t.Error(err)
	}
	go c.serve()
}

// The graph counts whole sectors. What an export lacks of its last one reads as
// zeroes, and the server is not asked for it.
func TestEndThatIsNoWholeSector(t *testing.T) {
	d, c := openFake(t)
	d.info.size = 1000
	go func() {
		for {
			r, _ := c.request()
			if r == nil {
				return
			}
			if r.Offset+r.Length > 1000 {
				t.Errorf("%+v", r)
			}
			c.answer(r)
		}
	}()
	b, err := read(t.Context(), d, 512, 512)
	if err != nil {
		t.Fatal(err)
	}
	checkPattern(t, b[:488], 512)
	if !bytes.Equal(b[488:], make([]byte, 24)) {
		t.Error("the end is not zero")
	}
	if b, err := read(t.Context(), d, 1000, 24); err != nil || !bytes.Equal(b, make([]byte, 24)) {
		t.Error("behind the end:", err)
	}
	for _, r := range [][2]int64{{512, 512}, {1000, 24}} {
		if err := d.WriteZeroes(t.Context(), r[0], r[1], 0); err != nil {
			t.Error(err)
		}
		if err := d.Discard(t.Context(), r[0], r[1]); err != nil {
			t.Error(err)
		}
	}
	if s, err := d.BlockStatus(t.Context(), 512, 512, 0); err != nil || s.N != 488 {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := d.BlockStatus(t.Context(), 1000, 24, 0); err != nil || s.N != 24 || s.Flags&blockgraph.StatusZero == 0 || s.Flags&blockgraph.StatusOffsetValid != 0 {
		t.Errorf("%+v %v", s, err)
	}
}

func TestMoreRequestsThanSlots(t *testing.T) {
	d, c := openFake(t)
	go c.serve()
	var wg sync.WaitGroup
	for i := range 3 * maxInFlight {
		wg.Go(func() {
			b, err := read(t.Context(), d, int64(i)*4096, 4096)
			if err != nil {
				t.Error(err)
				return
			}
			checkPattern(t, b, uint64(i)*4096)
		})
	}
	wg.Wait()
}

func TestZeroFlagsOnTheWire(t *testing.T) {
	d, c := openFake(t)
	got := make(chan nbdproto.Request, 4)
	go func() {
		for {
			r, _ := c.request()
			if r == nil {
				return
			}
			got <- *r
			c.send(nbdproto.Reply{Cookie: r.Cookie}.AppendNone(nil))
		}
	}()
	for _, tc := range []struct {
		flags blockgraph.Flags
		want  nbdproto.CmdFlags
	}{
		{0, nbdproto.FlagNoHole},
		{blockgraph.MayUnmap, 0},
		{blockgraph.MayUnmap | blockgraph.FUA | blockgraph.NoFallback, nbdproto.FlagFUA | nbdproto.FlagFastZero},
	} {
		if err := d.WriteZeroes(t.Context(), 4096, 8192, tc.flags); err != nil {
			t.Fatal(err)
		}
		if r := <-got; r.Type != nbdproto.CmdWriteZeroes || r.Flags != tc.want || r.Offset != 4096 || r.Length != 8192 {
			t.Errorf("%+v", r)
		}
	}
}

func TestCloseDoesNotWaitForAServerThatHangs(t *testing.T) {
	d, c := openFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.ReadV(ctx, 0, blockgraph.MakeIOVec(make([]byte, 512)), 0) }()
	c.request()
	cancel()
	<-done
	if err := d.Close(t.Context()); err != nil { // the server reads nothing and answers nothing
		t.Error(err)
	}
}

func TestRequestsDoNotAllocate(t *testing.T) {
	one := writes(t)
	if n := testing.AllocsPerRun(200, one); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkWrite4K is a request to a server that does nothing, and its reply.
func BenchmarkWrite4K(b *testing.B) {
	one := writes(b)
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}

// writes returns what writes a block to a server that does nothing.
func writes(t testing.TB) func() {
	t.Helper()
	d, c := openFake(t)
	go func() { // it allocates nothing either
		request := make([]byte, nbdproto.CompactRequestSize+4096)
		reply := make([]byte, 0, 64)
		var r nbdproto.Request
		for {
			if _, err := io.ReadFull(c, request); err != nil || r.Parse(request, nbdproto.Compact) != nil {
				return
			}
			reply = nbdproto.Reply{Cookie: r.Cookie}.AppendNone(reply[:0])
			c.send(reply)
		}
	}()
	v := blockgraph.MakeIOVec(make([]byte, 4096))
	ctx := ioengine.WithWaiter(t.Context(), nobody{})
	return func() {
		if err := d.WriteV(ctx, 0, v, 0); err != nil {
			t.Error(err)
		}
	}
}

// nobody is a Waiter that does nothing.
type nobody struct{}

func (nobody) Waits() uint64                   { return 1 }
func (nobody) Resumes(context.Context, uint64) {}

func TestCoverage(t *testing.T) {
	var c coverage
	for _, s := range []struct {
		off, n int64
		ok     bool
	}{{10, 10, true}, {30, 10, true}, {15, 1, false}, {29, 2, false}, {0, 10, true}, {19, 1, false}, {20, 10, true}, {40, 5, true}} {
		if c.add(s.off, s.n) != s.ok {
			t.Fatalf("add(%d, %d)", s.off, s.n)
		}
	}
	if !c.whole(45) || c.whole(44) {
		t.Errorf("%+v", c)
	}
}
