package nbd

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"blockd/nbdproto"
)

// BenchmarkRead4K and its kin measure the server beside a client that does as
// little as possible; allocations are those of both.
func BenchmarkRead4K(b *testing.B)  { benchmark(b, nbdproto.CmdRead) }
func BenchmarkWrite4K(b *testing.B) { benchmark(b, nbdproto.CmdWrite) }

func benchmark(b *testing.B, cmd nbdproto.Command) {
	for _, depth := range []int{1, 16} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			burst := bursts(b, cmd, depth)
			b.SetBytes(int64(block * depth))
			b.ReportAllocs()
			for b.Loop() {
				burst()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(depth), "ns/request")
		})
	}
}

const block = 4096

// bursts starts a server and returns what sends it so many requests at once and
// takes the replies.
func bursts(t testing.TB, cmd nbdproto.Command, depth int) func() {
	t.Helper()
	s, path := server(t, Config{})
	m := newRAM(64<<20, 64<<10)
	m.mark(0, int64(len(m.data)), 1)
	add(t, s, m, ExportConfig{Writable: true})
	c := connect(t, path, true)
	if err := c.SetDeadline(noDeadline); err != nil {
		t.Fatal(err)
	}
	r := nbdproto.Request{Type: cmd, Length: block}
	one := r.Append(nil, nbdproto.Compact)
	reply := nbdproto.SimpleReplySize
	if cmd == nbdproto.CmdWrite {
		one = append(one, make([]byte, block)...)
	} else {
		reply = nbdproto.ChunkHeaderSize + nbdproto.OffsetSize + block
	}
	out := bytes.Repeat(one, depth)
	in := make([]byte, reply*depth)
	return func() {
		if _, err := c.Conn.Write(out); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.Conn, in); err != nil {
			t.Fatal(err)
		}
	}
}
