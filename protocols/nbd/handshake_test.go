package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/nbdproto"
	"blockd/sockets"
)

// script is a server's side as bytes: what it sends, whatever it is told.
func script(t *testing.T, export string, b []byte) (exportInfo, error) {
	t.Helper()
	client, server := socketPair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = server.Write(b)
		raw, _ := server.SyscallConn()
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
		_, _ = io.Copy(io.Discard, server)
	}()
	l, info, err := negotiate(context.Background(), client, export, baseAllocation, nil)
	client.Close()
	<-done
	server.Close()
	if err == nil {
		l.t.ReleaseBuffer()
	}
	return info, err
}

func socketPair(t *testing.T) (a, b *sockets.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = sockets.NewConn(fds[0]); err != nil {
		t.Fatal(err)
	}
	if b, err = sockets.NewConn(fds[1]); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func reply(o nbdproto.Option, t nbdproto.RepType, payload ...byte) []byte {
	return append(nbdproto.OptionReplyHeader{Option: o, Type: t, Length: uint32(len(payload))}.Append(nil), payload...)
}

func join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

var (
	greeting     = nbdproto.AppendGreeting(nil, nbdproto.FixedNewstyle|nbdproto.NoZeroes)
	noExtended   = reply(nbdproto.OptExtendedHeaders, nbdproto.RepErrUnsup)
	noStructured = join(noExtended, reply(nbdproto.OptStructuredReply, nbdproto.RepErrUnsup))
	ack          = reply(nbdproto.OptGo, nbdproto.RepAck)
)

func infoReply(t nbdproto.InfoType, payload []byte) []byte {
	return reply(nbdproto.OptGo, nbdproto.RepInfo, append(nbdproto.AppendInfo(nil, t), payload...)...)
}

func exported(size uint64) []byte {
	return infoReply(nbdproto.InfoExport, nbdproto.ExportInfo{Size: size, Flags: nbdproto.HasFlags}.Append(nil))
}

func blocks(low, preferred, high uint32) []byte {
	return infoReply(nbdproto.InfoBlockSize, nbdproto.BlockSizes{Minimum: low, Preferred: preferred, Maximum: high}.Append(nil))
}

func TestHandshakeRefusals(t *testing.T) {
	structured := join(noExtended, reply(nbdproto.OptStructuredReply, nbdproto.RepAck))
	extended := reply(nbdproto.OptExtendedHeaders, nbdproto.RepAck)
	meta := func(name string) []byte {
		return reply(nbdproto.OptSetMetaContext, nbdproto.RepMetaContext, nbdproto.MetaContext{ID: 1, Name: name}.Append(nil)...)
	}
	for _, tc := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"nothing", nil, "Failed to read initial magic: Unexpected end-of-file before all data were read"},
		{"magic", []byte("HTTP/1.1 400 Bad Request"), "Bad initial magic received: 0x485454502f312e31"},
		{"second magic", join(greeting[:8], []byte("nonsense")), "Bad server magic received: 0x6e6f6e73656e7365"},
		{"cut", greeting[:17], "Failed to read server flags: Unexpected end-of-file before all data were read"},
		{"reply magic", join(greeting, make([]byte, 20)), "Unexpected option reply magic"},
		{"other option", join(greeting, ack), "Unexpected option type 7 (go), expected 11 (extended headers)"},
		{"huge reply", join(greeting, noStructured, nbdproto.OptionReplyHeader{Option: nbdproto.OptGo, Type: nbdproto.RepInfo, Length: 1 << 31}.Append(nil)), "reply to option 7 (go) is too long"},
		{"unknown export", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepErrUnknown, 'x')), "Requested export not available"},
		{"policy", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepErrPolicy)), "Denied by server for option 7 (go)"},
		{"tls", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepErrTLSReqd)), "TLS negotiation required before option 7 (go)"},
		{"block size", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepErrBlockSizeReqd)), "Server requires INFO_BLOCK_SIZE for option 7 (go)"},
		{"strange error", join(greeting, noStructured, reply(nbdproto.OptGo, 0x80000099)), "Unknown error code when asking for option 7 (go)"},
		{"no export", join(greeting, noStructured, ack), "broken server omitted NBD_INFO_EXPORT"},
		{"ack with payload", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepAck, 1)), "server sent invalid NBD_REP_ACK"},
		{"short info", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepInfo, 0)), "NBD_REP_INFO length is too short"},
		{"long export", join(greeting, noStructured, infoReply(nbdproto.InfoExport, make([]byte, 11))), "remaining export info len 11 is unexpected size"},
		{"too large", join(greeting, noStructured, exported(1<<63), ack), "Server reports export size 9223372036854775808, which is too large"},
		{"minimum", join(greeting, noStructured, blocks(513, 4096, 1<<20)), "server minimum block size 513 is not a power of two"},
		{"huge minimum", join(greeting, noStructured, blocks(1<<30, 1<<30, 1<<30)), "server minimum block size 1073741824 is not a power of two"},
		{"preferred", join(greeting, noStructured, blocks(4096, 512, 1<<20)), "server preferred block size 512 is not valid"},
		{"maximum", join(greeting, noStructured, blocks(4096, 4096, 512)), "server maximum block size 512 is not valid"},
		{"size not whole", join(greeting, noStructured, exported(1000), blocks(512, 512, 512), ack), "export size 1000 is not multiple of minimum block size 512"},
		{"other context", join(greeting, structured, meta("base:other")), "Failed to negotiate meta context 'base:allocation', server answered with different context 'base:other'"},
		{"two contexts", join(greeting, structured, meta(baseAllocation), meta(baseAllocation)), "Server answered with more than one context"},
		{"context of no length", join(greeting, structured, reply(nbdproto.OptSetMetaContext, nbdproto.RepMetaContext, 1)), "Failed to negotiate meta context, server answered with unexpected length 1"},
		{"extended without go", join(greeting, extended, reply(nbdproto.OptSetMetaContext, nbdproto.RepErrUnsup), reply(nbdproto.OptGo, nbdproto.RepErrUnsup)), "Server has extended headers and no option 7 (go)"},
		{"listed others", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepErrUnsup),
			reply(nbdproto.OptList, nbdproto.RepServer, nbdproto.ServerEntry{Name: "a"}.Append(nil)...), reply(nbdproto.OptList, nbdproto.RepAck)), "No export with name 'disk' available"},
	} {
		if _, err := script(t, "disk", tc.bytes); err == nil || err.Error() != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestHandshakeWithOldServers(t *testing.T) {
	size := binary.BigEndian.AppendUint64(nil, 4096)
	flags := []byte{0, byte(nbdproto.HasFlags | nbdproto.SendFlush)}
	for _, tc := range []struct {
		name, export string
		bytes        []byte
		want         string
	}{
		{"oldstyle", "", join(greeting[:8], binary.BigEndian.AppendUint64(nil, oldstyleMagic), size, []byte{0, 0}, flags, make([]byte, 124)), ""},
		{"oldstyle, named", "disk", join(greeting[:8], binary.BigEndian.AppendUint64(nil, oldstyleMagic)), "Server does not support non-empty export names"},
		{"newstyle, not fixed", "disk", join(nbdproto.AppendGreeting(nil, 0), size, flags, make([]byte, 124)), ""},
		{"without go", "disk", join(greeting, noStructured, reply(nbdproto.OptGo, nbdproto.RepErrUnsup), reply(nbdproto.OptList, nbdproto.RepErrPolicy), size, flags), ""},
		{"without zeroes that it announced", "disk", join(nbdproto.AppendGreeting(nil, 0), size, flags, make([]byte, 123)), "Failed to read reserved block: Unexpected end-of-file before all data were read"},
	} {
		info, err := script(t, tc.export, tc.bytes)
		switch {
		case tc.want != "" && (err == nil || err.Error() != tc.want), tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want == "" && (info.size != 4096 || info.flags != nbdproto.HasFlags|nbdproto.SendFlush):
			t.Errorf("%s: %+v", tc.name, info)
		}
	}
}

func TestServerMessageIsAHint(t *testing.T) {
	err := refusal(nbdproto.OptGo, nbdproto.RepErrUnknown, []byte("no \x1b[2J such"))
	if h := blockgraph.Hint(err); !strings.Contains(h, `"no \x1b[2J such"`) {
		t.Errorf("%q", h)
	}
}

func TestHandshakeEndsWithItsContext(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, _, err := negotiate(ctx, client, "", baseAllocation, nil)
		done <- err
	}()
	if _, err := server.Write(greeting[:3]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Error(err)
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add(join(greeting, noStructured, exported(1<<20), blocks(1, 4096, 1<<20), ack))
	f.Add(join(greeting[:8], binary.BigEndian.AppendUint64(nil, oldstyleMagic), make([]byte, 200)))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := script(t, "disk", b)
		if err == nil && (info.size < 0 || info.minBlock > 0 && info.size%info.minBlock != 0) {
			t.Errorf("%+v", info)
		}
	})
}

// FuzzReplies feeds a link whatever a server may say while requests are in
// flight: each ends, and a read that succeeds has had every byte written.
func FuzzReplies(f *testing.F) {
	f.Add(data(&nbdproto.Request{Cookie: maxInFlight}, true, 0, 512), false)
	f.Add(nbdproto.Reply{Cookie: maxInFlight}.AppendOffsetHole(nil, true, 0, 512), false)
	f.Add(join(nbdproto.Compact.AppendExtent(nbdproto.Reply{Cookie: maxInFlight + 1}.AppendBlockStatus(nil, true, fakeMeta, 1), 512, 3), nbdproto.Reply{Cookie: maxInFlight}.AppendNone(nil)), false)
	x := nbdproto.Reply{Framing: nbdproto.Extended, Cookie: maxInFlight}
	f.Add(append(x.AppendOffsetData(nil, true, 0, 512), make([]byte, 512)...), true)
	x.Cookie++
	f.Add(nbdproto.Extended.AppendExtent(x.AppendBlockStatus(nil, true, fakeMeta, 1), 1<<40, 3), true)
	f.Add(x.AppendError(nil, nbdproto.EIO, "no"), true)
	f.Fuzz(func(t *testing.T, b []byte, extended bool) {
		client, server := net.Pipe()
		info := exportInfo{structured: true, context: fakeMeta}
		if extended {
			info.framing = nbdproto.Extended
		}
		l := newLink(sockets.NewStream(client), client, &info)
		ended := make(chan struct{})
		go func() { defer close(ended); _ = l.receive() }()
		results := make(chan error, 2)
		p := make([]byte, 512)
		go func() {
			results <- l.do(context.Background(), nbdproto.Request{Type: nbdproto.CmdRead, Length: 512}, nil, blockgraph.MakeIOVec(p), nil)
		}()
		var e extent
		go func() {
			results <- l.do(context.Background(), nbdproto.Request{Type: nbdproto.CmdBlockStatus, Length: 512}, nil, nil, &e)
		}()
		got := make([]byte, 2*info.framing.RequestSize())
		if _, err := io.ReadFull(server, got); err == nil {
			go io.Copy(io.Discard, server)
			_, _ = server.Write(b)
		}
		server.Close()
		<-results
		<-results
		<-ended
	})
}
