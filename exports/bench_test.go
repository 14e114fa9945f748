package exports

import (
	"encoding/binary"
	"io"
	"testing"
)

// BenchmarkRead4KThroughTheGraph is a read at depth 16 from the socket to a
// driver in memory and back.
func BenchmarkRead4KThroughTheGraph(b *testing.B) {
	const depth, block = 16, 4096
	w := newWorld(b)
	w.node("n", false)
	path := w.start()
	w.mustAdd(options("e", "n"))
	c := w.guest(path, "n")
	var burst []byte
	for range depth {
		burst = binary.BigEndian.AppendUint32(burst, 0x25609513)
		burst = append(burst, make([]byte, 20)...)
		burst = binary.BigEndian.AppendUint32(burst, block)
	}
	in := make([]byte, depth*(16+block))
	b.SetBytes(depth * block)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(burst); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, in); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/depth, "ns/request")
}
