package nbd

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"blockd/nbdproto"
	"blockd/sockets"
)

// badRequests are requests that a server refuses, for an export of 1 MiB.
var badRequests = []struct {
	what string
	r    nbdproto.Request
	data int
}{
	{"read past the end", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1 << 20, Length: 512}, 0},
	{"read across the end", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1<<20 - 512, Length: 1024}, 0},
	{"read far out", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1 << 62, Length: 512}, 0},
	{"read, offset wraps", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1<<64 - 512, Length: 1024}, 0},
	{"read too long", nbdproto.Request{Type: nbdproto.CmdRead, Length: nbdproto.MaxPayload + 1}, 0},
	{"write past the end", nbdproto.Request{Type: nbdproto.CmdWrite, Offset: 1 << 20, Length: 512}, 512},
	{"zero across the end", nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Offset: 1<<20 - 512, Length: 1024}, 0},
	{"trim across the end", nbdproto.Request{Type: nbdproto.CmdTrim, Offset: 1<<20 - 512, Length: 1024}, 0},
	{"status past the end", nbdproto.Request{Type: nbdproto.CmdBlockStatus, Offset: 1 << 20, Length: 1024}, 0},
	{"status of nothing", nbdproto.Request{Type: nbdproto.CmdBlockStatus}, 0},
	{"cache too long", nbdproto.Request{Type: nbdproto.CmdCache, Length: nbdproto.MaxPayload + 1}, 0},
	{"flush with a range past the end", nbdproto.Request{Type: nbdproto.CmdFlush, Offset: 1 << 21}, 0},
	{"read with NO_HOLE", nbdproto.Request{Type: nbdproto.CmdRead, Length: 512, Flags: nbdproto.FlagNoHole}, 0},
	{"write with DF", nbdproto.Request{Type: nbdproto.CmdWrite, Length: 512, Flags: nbdproto.FlagDF}, 512},
	{"flush with FAST_ZERO", nbdproto.Request{Type: nbdproto.CmdFlush, Flags: nbdproto.FlagFastZero}, 0},
	{"unknown flag", nbdproto.Request{Type: nbdproto.CmdTrim, Length: 512, Flags: 1 << 15}, 0},
	{"unknown command", nbdproto.Request{Type: 77}, 0},
	{"resize", nbdproto.Request{Type: nbdproto.CmdResize, Length: 512}, 0},
}

func TestBadRequestsAreRefusedAndTheConnectionLives(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{Writable: true})
	for _, structured := range []bool{false, true} {
		c := connect(t, path, structured)
		for i, x := range badRequests {
			x.r.Cookie = uint64(i)
			c.send(x.r, make([]byte, x.data)...)
			k := c.chunk(0)
			if k.Error != nbdproto.EINVAL || k.Cookie != uint64(i) || structured != k.Structured || structured && (!k.Done || len(k.payload) == 0) {
				t.Errorf("%s: %+v", x.what, k)
			}
		}
		if got := c.do(nbdproto.Request{Type: nbdproto.CmdFlush}); got != nbdproto.OK {
			t.Errorf("flush after all that: %d", got)
		}
	}
}

func TestReadOnlyExportRefusesChanges(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	add(t, s, m, ExportConfig{})
	c := connect(t, path, true)
	big := make([]byte, 300<<10)
	for _, cmd := range []nbdproto.Command{nbdproto.CmdWrite, nbdproto.CmdWriteZeroes, nbdproto.CmdTrim} {
		var data []byte
		if cmd == nbdproto.CmdWrite {
			data = big
		}
		if got := c.do(nbdproto.Request{Type: cmd, Length: uint64(len(big))}, data...); got != nbdproto.EINVAL {
			t.Errorf("%s: %d", cmd, got)
		}
	}
	if got, _ := c.readData(0, 512, 0); !bytes.Equal(got, make([]byte, 512)) {
		t.Error("changed")
	}
}

func TestRequestsThatCannotBeFollowedAreAnsweredAndHungUpOn(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{Writable: true})
	long := nbdproto.Request{Type: nbdproto.CmdWrite, Cookie: 9, Length: 0xffffffff}
	magic := nbdproto.Request{Type: nbdproto.CmdRead, Cookie: 9, Length: 512}
	bad := magic.Append(nil, nbdproto.Compact)
	bad[0] ^= 0xff
	for _, msg := range [][]byte{long.Append(nil, nbdproto.Compact), bad} {
		c := connect(t, path, true)
		c.write(msg)
		if k := c.chunk(0); k.Error != nbdproto.EINVAL || k.Cookie != 9 {
			t.Errorf("%+v", k)
		}
		c.hungUp()
	}
}

func TestZeroLengthRequests(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{Writable: true})
	for _, structured := range []bool{false, true} {
		c := connect(t, path, structured)
		for _, cmd := range []nbdproto.Command{nbdproto.CmdRead, nbdproto.CmdWrite, nbdproto.CmdWriteZeroes, nbdproto.CmdTrim, nbdproto.CmdCache} {
			if got := c.do(nbdproto.Request{Type: cmd, Offset: 1 << 20}); got != nbdproto.OK {
				t.Errorf("%s: %d", cmd, got)
			}
		}
	}
}

func TestErrorsOfTheBackendReachTheClient(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	add(t, s, m, ExportConfig{Writable: true})
	ops := map[string]nbdproto.Request{
		"read":    {Type: nbdproto.CmdRead, Length: 512},
		"write":   {Type: nbdproto.CmdWrite, Length: 512},
		"zero":    {Type: nbdproto.CmdWriteZeroes, Length: 512},
		"discard": {Type: nbdproto.CmdTrim, Length: 512},
		"flush":   {Type: nbdproto.CmdFlush},
		"status":  {Type: nbdproto.CmdBlockStatus, Length: 512},
	}
	for _, structured := range []bool{false, true} {
		for op, r := range ops {
			if op == "status" && !structured {
				continue
			}
			for errno, want := range map[syscall.Errno]nbdproto.Errno{
				syscall.EIO: nbdproto.EIO, syscall.ENOSPC: nbdproto.ENOSPC, syscall.EDQUOT: nbdproto.ENOSPC, syscall.EROFS: nbdproto.EPERM,
				syscall.ENOTSUP: nbdproto.ENOTSUP, syscall.ENXIO: nbdproto.EINVAL,
			} {
				c := connect(t, path, structured) // and a hook that nobody is using
				m.hook(failing(op, errno))
				var data []byte
				if r.Type == nbdproto.CmdWrite {
					data = make([]byte, 512)
				}
				if got := c.do(r, data...); got != want {
					t.Errorf("%s, %v: %d, want %d", op, errno, got, want)
				}
				c.do(nbdproto.Request{Type: nbdproto.CmdWrite, Offset: 4096}) // nothing is stuck behind
				c.send(nbdproto.Request{Type: nbdproto.CmdDisc})
				c.hungUp()
				m.hook(nil)
			}
		}
	}
}

func TestFailureInTheMiddleOfASparseReadIsOneError(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 64<<10)
	m.mark(256<<10, 256<<10, 1)
	add(t, s, m, ExportConfig{})
	m.hook(failing("read", syscall.EIO))
	c := connect(t, path, true)
	c.send(nbdproto.Request{Type: nbdproto.CmdRead, Length: 1 << 20})
	if k := c.chunk(0); k.Error != nbdproto.EIO || !k.Done {
		t.Errorf("%+v", k)
	}
	c.do(nbdproto.Request{Type: nbdproto.CmdFlush})
}

func TestReadsAreSparseOnlyWhereThatPays(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(4<<20, 16<<10)
	for i := range m.data {
		m.data[i] = byte(i>>9) | 1
	}
	m.mark(0, 4<<20, 1)
	hole := func(off, n int64) { clear(m.data[off : off+n]); m.mark(off, n, 0) }
	hole(1<<20, 512<<10)
	hole(2<<20, 16<<10) // too small
	for off := int64(3 << 20); off < 4<<20; off += 64 << 10 {
		hole(off, 32<<10)
	}
	add(t, s, m, ExportConfig{})
	c := connect(t, path, true)
	const data, hol = nbdproto.ChunkOffsetData, nbdproto.ChunkOffsetHole
	for _, x := range []struct {
		what   string
		off, n int
		flags  nbdproto.CmdFlags
		want   []nbdproto.ChunkType
	}{
		{"all data", 0, 1 << 20, 0, []nbdproto.ChunkType{data}},
		{"all hole", 1 << 20, 512 << 10, 0, []nbdproto.ChunkType{hol}},
		{"data, hole, data", 512 << 10, 1536 << 10, 0, []nbdproto.ChunkType{data, hol, data}},
		{"the same with DF", 512 << 10, 1536 << 10, nbdproto.FlagDF, []nbdproto.ChunkType{data}},
		{"small hole", 2 << 20, 256 << 10, 0, []nbdproto.ChunkType{data}},
		{"small read of a hole", 1 << 20, 64 << 10, 0, []nbdproto.ChunkType{data}},
		{"unaligned", 1<<20 - 1000, 300_001, 0, []nbdproto.ChunkType{data, hol}},
	} {
		got, types := c.readData(uint64(x.off), x.n, x.flags)
		if !bytes.Equal(got, m.data[x.off:x.off+x.n]) || !slices.Equal(types, x.want) {
			t.Errorf("%s: chunks %v, want %v; data right: %v", x.what, types, x.want, bytes.Equal(got, m.data[x.off:x.off+x.n]))
		}
	}
	if got, types := c.readData(3<<20, 1<<20, 0); !bytes.Equal(got, m.data[3<<20:]) || len(types) != 32 {
		t.Errorf("%d chunks", len(types))
	}
	// More pieces than a reply may have: the rest comes as data.
	m.mu.Lock()
	for off := int64(0); off < 4<<20; off += 64 << 10 {
		m.mark(off, 32<<10, 1)
		hole(off+32<<10, 32<<10)
	}
	m.mu.Unlock()
	// The last piece has become data and joins the one before it.
	if got, types := c.readData(0, 4<<20, 0); !bytes.Equal(got, m.data) || len(types) != sparseRuns-1 {
		t.Errorf("%d chunks", len(types))
	}
	// Without structured replies a read is a read.
	plain := connect(t, path, false)
	if got, _ := plain.readData(512<<10, 2<<20, 0); !bytes.Equal(got, m.data[512<<10:][:2<<20]) {
		t.Error("simple reply: wrong data")
	}
}

func TestBlockStatusMergesNeighbours(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	m.mark(64<<10, 64<<10, 1)
	m.mark(128<<10, 64<<10, 2)
	add(t, s, m, ExportConfig{AllocationDepth: true, Contexts: []StatusContext{marked("qemu:dirty-bitmap:a")}})
	c := dial(t, path).greet(both).structured()
	c.setMeta("n", "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:a")
	c.goExport(nbdproto.OptGo, "n")
	const holeZero = nbdproto.StateHole | nbdproto.StateZero
	want := map[string][]extent{
		"base:allocation":       {{64 << 10, holeZero}, {128 << 10, 0}, {832 << 10, holeZero}},
		"qemu:allocation-depth": {{64 << 10, 0}, {64 << 10, 1}, {64 << 10, 2}, {832 << 10, 0}},
		"qemu:dirty-bitmap:a":   {{1024, 1}, {1<<20 - 1024, 0}},
	}
	got := c.status(0, 1<<20, 0)
	for name := range want {
		if !slices.Equal(got[name], want[name]) {
			t.Errorf("%s: %v, want %v", name, got[name], want[name])
		}
	}
	got = c.status(0, 1<<20, nbdproto.FlagReqOne)
	for name := range want {
		if !slices.Equal(got[name], want[name][:1]) {
			t.Errorf("%s, one: %v", name, got[name])
		}
	}
	if got := c.status(100_000, 1000, 0)["base:allocation"]; !slices.Equal(got, []extent{{1000, 0}}) {
		t.Errorf("part: %v", got)
	}
}

func TestBlockStatusEndsAtItsLimit(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM((nbdproto.MaxExtents+10)*512, 512)
	for i := range m.layer {
		m.layer[i] = uint8(i & 1)
	}
	add(t, s, m, ExportConfig{})
	c := connect(t, path, true)
	got := c.status(0, uint64(len(m.data)), 0)["base:allocation"]
	if len(got) != nbdproto.MaxExtents || slices.ContainsFunc(got, func(e extent) bool { return e.length != 512 }) {
		t.Errorf("%d extents", len(got))
	}
}

// TestBlockStatusKeepsTheMemoryLimit: replies that nobody takes must not hold more
// than requests may.
func TestBlockStatusKeepsTheMemoryLimit(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM((nbdproto.MaxExtents+10)*512, 512)
	for i := range m.layer {
		m.layer[i] = uint8(i & 1)
	}
	add(t, s, m, ExportConfig{})
	used := func(change int64) int64 {
		s.memory.mu.Lock()
		defer s.memory.mu.Unlock()
		s.memory.used += change
		return s.memory.used
	}
	s.memory.mu.Lock()
	s.memory.limit = 64 << 10
	s.memory.mu.Unlock()
	used(1) // others have some
	c := connect(t, path, true)
	for range 3 { // what one has is given back for the next
		got := c.status(0, uint64(len(m.data)), 0)["base:allocation"]
		if n := len(got); n < statusFirst/nbdproto.ExtentSize-1 || n > (64<<10+statusFirst)/nbdproto.ExtentSize || got[n-1].length != 512 {
			t.Errorf("%d extents", n)
		}
	}
	until(t, "all is given back", func() bool { return used(0) == 1 })
	// One connection's replies count as its requests do.
	s.memory.mu.Lock()
	s.memory.limit = 1 << 40
	s.memory.mu.Unlock()
	k := s.connections()[0]
	k.mu.Lock()
	k.bytes += maxInFlightBytes - 64<<10
	k.mu.Unlock()
	if n := len(c.status(0, uint64(len(m.data)), 0)["base:allocation"]); n > 64<<10/nbdproto.ExtentSize {
		t.Errorf("%d extents", n)
	}
	k.mu.Lock()
	k.bytes -= maxInFlightBytes - 64<<10
	k.mu.Unlock()
	used(-1)
}

func TestFlagsReachTheBackend(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	add(t, s, m, ExportConfig{Writable: true})
	c := connect(t, path, true)
	do := func(r nbdproto.Request, want nbdproto.Errno, data ...byte) {
		t.Helper()
		if got := c.do(r, data...); got != want {
			t.Errorf("%+v: %d, want %d", r, got, want)
		}
	}
	do(nbdproto.Request{Type: nbdproto.CmdWrite, Length: 1}, nbdproto.OK, 7)
	if m.fua.Load() != 0 {
		t.Error("FUA unasked")
	}
	do(nbdproto.Request{Type: nbdproto.CmdWrite, Length: 1, Flags: nbdproto.FlagFUA}, nbdproto.OK, 7)
	do(nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Length: 4096, Flags: nbdproto.FlagFUA | nbdproto.FlagNoHole}, nbdproto.OK)
	if m.fua.Load() != 2 || m.mayUnmap.Load() != 0 {
		t.Errorf("FUA %d, unmap %d", m.fua.Load(), m.mayUnmap.Load())
	}
	do(nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Length: 4096, Flags: nbdproto.FlagFastZero}, nbdproto.OK)
	do(nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Length: 100, Flags: nbdproto.FlagFastZero}, nbdproto.ENOTSUP)
	if m.mayUnmap.Load() != 2 || m.fastZero.Load() != 2 {
		t.Errorf("unmap %d, fast %d", m.mayUnmap.Load(), m.fastZero.Load())
	}
	do(nbdproto.Request{Type: nbdproto.CmdTrim, Length: 4096}, nbdproto.OK)
	if m.flushes.Load() != 0 {
		t.Error("a trim flushed")
	}
	do(nbdproto.Request{Type: nbdproto.CmdTrim, Length: 4096, Flags: nbdproto.FlagFUA}, nbdproto.OK)
	c.readData(0, 512, nbdproto.FlagFUA)
	if m.flushes.Load() != 2 || m.discards.Load() != 2 {
		t.Errorf("flushes %d, discards %d", m.flushes.Load(), m.discards.Load())
	}
	do(nbdproto.Request{Type: nbdproto.CmdCache, Length: 1 << 20}, nbdproto.OK)
	if m.prefetch.Load() != 1<<20 {
		t.Errorf("cached %d", m.prefetch.Load())
	}
}

func TestWritethroughExportMakesEveryWriteDurable(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(1<<20, 4096)
	add(t, s, m, ExportConfig{Writable: true, Writethrough: true})
	c := connect(t, path, false)
	c.do(nbdproto.Request{Type: nbdproto.CmdWrite, Length: 1}, 7)
	c.do(nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Length: 4096})
	if m.fua.Load() != 2 {
		t.Errorf("FUA %d", m.fua.Load())
	}
}

func TestEveryLengthArrivesWhole(t *testing.T) {
	s, path := server(t, Config{})
	m := newRAM(33<<20, 64<<10)
	add(t, s, m, ExportConfig{Writable: true})
	c := connect(t, path, true)
	rng := rand.New(rand.NewPCG(1, 2))
	random := rand.NewChaCha8([32]byte{1})
	model := make([]byte, len(m.data))
	for _, n := range []int{1, 511, 4096, sockets.StreamBuffer - 28, sockets.StreamBuffer - 27, sockets.StreamBuffer, sockets.DirectRead, sockets.DirectRead - 1, 100_001, 1 << 20, nbdproto.MaxPayload} {
		tile := make([]byte, 65521)
		_, _ = random.Read(tile)
		data := bytes.Repeat(tile, n/len(tile)+1)[:n]
		off := rng.IntN(len(m.data) - n)
		copy(model[off:], data)
		if got := c.do(nbdproto.Request{Type: nbdproto.CmdWrite, Offset: uint64(off), Length: uint64(n)}, data...); got != nbdproto.OK {
			t.Fatalf("%d bytes: %d", n, got)
		}
		if got, _ := c.readData(uint64(off), n, 0); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes read back wrong", n)
		}
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !bytes.Equal(m.data, model) {
		t.Error("the image differs")
	}
}

func TestErrorMessageNamesTheRange(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{})
	c := connect(t, path, true)
	c.send(nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1 << 20, Length: 512})
	if k := c.chunk(0); !strings.Contains(string(k.payload), "From: 1048576, Len: 512, Size: 1048576") {
		t.Errorf("%q", k.payload)
	}
}
