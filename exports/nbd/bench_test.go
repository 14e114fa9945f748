package nbd

import (
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
	const block = 4096
	for _, depth := range []int{1, 16} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			s, path := server(b, Config{})
			m := newRAM(64<<20, 64<<10)
			m.mark(0, int64(len(m.data)), 1)
			add(b, s, m, ExportConfig{Writable: true})
			c := connect(b, path, true)
			if err := c.SetDeadline(noDeadline); err != nil {
				b.Fatal(err)
			}
			r := nbdproto.Request{Type: cmd, Length: block}
			one := r.Append(nil, nbdproto.Compact)
			reply := nbdproto.SimpleReplySize
			if cmd == nbdproto.CmdWrite {
				one = append(one, make([]byte, block)...)
			} else {
				reply = nbdproto.ChunkHeaderSize + nbdproto.OffsetSize + block
			}
			var out []byte
			for range depth {
				out = append(out, one...)
			}
			in := make([]byte, reply*depth)
			b.SetBytes(int64(block * depth))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Conn.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c.Conn, in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(depth), "ns/request")
		})
	}
}
