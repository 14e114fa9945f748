package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qapi"
)

// frame is one as a client sends it, with a mask that changes nothing. final and
// the kind are its first byte.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

func TestFramesAreCounted(t *testing.T) {
	var all []byte
	sizes := []int{0, 1, 125, 126, 127, 0, 1<<16 - 1, 1 << 16, 5000}
	for _, n := range sizes {
		all = append(all, frame(0x82, bytes.Repeat([]byte{0xff}, n))...)
	}
	all = append(all, 0x81, 0x01, 'x') // without a mask
	for name, in := range map[string]io.Reader{"as it comes": bytes.NewReader(all), "byte by byte": iotest.OneByteReader(bytes.NewReader(all))} {
		count := 0
		f := &frames{in: bufio.NewReaderSize(in, 16), wait: func() error { count++; return nil }}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, all) || count != len(sizes)+1 {
			t.Errorf("%s: %d bytes of %d, %d frames, %v", name, len(got), len(all), count, err)
		}
	}
	refused := errors.New("refused")
	f := &frames{in: bufio.NewReader(bytes.NewReader(all)), wait: func() error { return refused }}
	if n, err := f.Read(make([]byte, 10)); n != 0 || err != refused {
		t.Errorf("%d bytes of a frame that may not be read: %v", n, err)
	}
}

// TestFramesBeyondTheRateAreReadLater sends what is no message, and what is part
// of one, and then one byte of a message.
func TestFramesBeyondTheRateAreReadLater(t *testing.T) {
	const (
		text, rest, final = 0x01, 0x00, 0x80
		ping, pong        = 0x89, 0x8a
	)
	for name, kinds := range map[string][4]byte{
		"pings":          {ping, ping, ping, final | text},
		"pongs":          {pong, pong, pong, final | text},
		"empty messages": {final | text, final | text, final | text, final | text},
		"empty pieces":   {text, rest, rest, final | rest},
		"pings between":  {text, ping, rest, final | rest},
	} {
		t.Run(name, func(t *testing.T) {
			clk := clock.NewVirtual()
			got := make(chan byte, 10)
			s := open(t, Options{Addr: "127.0.0.1:0"}, Config{Clock: clk, QMP: func(c chardev.Conn, _ qapi.SessionInfo) error {
				buf := make([]byte, 10)
				for {
					n, _, err := c.Read(buf)
					if err != nil {
						return c.Close()
					}
					for _, b := range buf[:n] {
						if b != '\n' {
							got <- b
						}
					}
				}
			}})
			s.qmp.pace.burst = 2
			s.Serve()
			c := connect(t, s)
			var all []byte
			for i, first := range kinds {
				var payload []byte
				if i == len(kinds)-1 {
					payload = []byte("x")
				}
				all = append(all, frame(first, payload)...)
			}
			if _, err := c.NetConn().Write(all); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for range len(kinds) - s.qmp.pace.burst {
				if err := clk.WaitForTimers(ctx, 1); err != nil {
					t.Fatalf("the session reads on: %v", err)
				}
				if len(got) > 0 {
					t.Fatal("the message is read already")
				}
				clk.Step(s.qmp.pace.interval)
			}
			if b := <-got; b != 'x' {
				t.Errorf("%q", b)
			}
		})
	}
}
