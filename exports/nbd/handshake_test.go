package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockd/clock"
	"blockd/ioengine"
	"blockd/nbdproto"
)

// TestMain sees that no test leaves goroutines or buffers behind.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if n := ioengine.InUse(); n != 0 && code == 0 {
			panic("buffers are still in use")
		}
	}))
}

const both = nbdproto.FixedNewstyle | nbdproto.NoZeroes

func TestGoTellsTheExport(t *testing.T) {
	s, path := server(t, Config{MaxConnections: 100})
	desc := "a disk"
	add(t, s, newRAM(1<<20+100, 4096), ExportConfig{Writable: true, Description: &desc, Alignment: 512, MaxTransfer: 1 << 20})
	add(t, s, newRAM(4096, 4096), ExportConfig{Name: "ro"})
	c := dial(t, path).greet(both)
	if got := last(c.goExport(nbdproto.OptInfo, "n")); got != nbdproto.RepErrBlockSizeReqd {
		t.Errorf("info without block size: %#x", got)
	}
	if got := last(c.goExport(nbdproto.OptInfo, "n", nbdproto.InfoBlockSize, nbdproto.InfoName, 77)); got != nbdproto.RepAck {
		t.Errorf("info: %#x", got)
	}
	flags := nbdproto.HasFlags | nbdproto.SendFlush | nbdproto.SendFUA | nbdproto.SendCache | nbdproto.CanMultiConn |
		nbdproto.SendTrim | nbdproto.SendWriteZeroes | nbdproto.SendFastZero
	if c.info.Size != 1<<20 || c.info.Flags != flags || c.desc != desc || c.asked != "n" {
		t.Errorf("size %d flags %#x description %q name %q", c.info.Size, c.info.Flags, c.desc, c.asked)
	}
	if c.sizes != (nbdproto.BlockSizes{Minimum: 512, Preferred: 4096, Maximum: 1 << 20}) {
		t.Errorf("sizes %+v", c.sizes)
	}
	c.structured()
	if c.goExport(nbdproto.OptInfo, "ro"); c.info.Flags != nbdproto.HasFlags|nbdproto.SendFlush|nbdproto.SendFUA|
		nbdproto.SendCache|nbdproto.CanMultiConn|nbdproto.ReadOnly|nbdproto.SendDF {
		t.Errorf("read-only flags %#x", c.info.Flags)
	}
	if got := last(c.goExport(nbdproto.OptGo, "n")); got != nbdproto.RepAck || c.sizes.Minimum != 1 {
		t.Errorf("go: %#x %+v", got, c.sizes)
	}
}

func TestMultiConnIsNotOfferedForOneConnection(t *testing.T) {
	s, path := server(t, Config{MaxConnections: 1})
	add(t, s, newRAM(4096, 4096), ExportConfig{})
	if c := connect(t, path, false); c.info.Flags&nbdproto.CanMultiConn != 0 {
		t.Errorf("flags %#x", c.info.Flags)
	}
}

func TestExportNameOption(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(4096, 4096), ExportConfig{})
	for _, flags := range []nbdproto.HandshakeFlags{0, nbdproto.FixedNewstyle, both} {
		c := dial(t, path).greet(flags)
		c.write(append(nbdproto.OptionHeader{Option: nbdproto.OptExportName, Length: 1}.Append(nil), 'n'))
		info, err := nbdproto.ParseExportInfo(c.read(10))
		if err != nil || info.Size != 4096 {
			t.Errorf("%v %v", info, err)
		}
		if flags&nbdproto.NoZeroes == 0 {
			c.read(nbdproto.ExportNamePadding)
		}
		if got := c.do(nbdproto.Request{Type: nbdproto.CmdFlush, Cookie: 5}); got != nbdproto.OK {
			t.Errorf("flush: %d", got)
		}
	}
	for _, name := range []string{"zz", strings.Repeat("n", nbdproto.MaxString+1)} {
		c := dial(t, path).greet(both)
		c.write(append(nbdproto.OptionHeader{Option: nbdproto.OptExportName, Length: uint32(len(name))}.Append(nil), name...))
		c.hungUp()
	}
}

func TestClientWithoutFixedNewstyleHasOneOption(t *testing.T) {
	_, path := server(t, Config{})
	c := dial(t, path).greet(0)
	c.write(nbdproto.OptionHeader{Option: nbdproto.OptList}.Append(nil))
	c.hungUp()
}

func TestUnknownClientFlagsAreHungUpOn(t *testing.T) {
	_, path := server(t, Config{})
	dial(t, path).greet(1 << 7).hungUp()
}

func TestRefusedOptionsKeepTheConnection(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(4096, 4096), ExportConfig{})
	c := dial(t, path).greet(both)
	str := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	goN := (&nbdproto.InfoRequest{Name: "n", Requests: []nbdproto.InfoType{3}}).Append(nil)
	metaN := (&nbdproto.MetaRequest{Name: "n", Queries: []string{"base:allocation"}}).Append(nil)
	for _, x := range []struct {
		what    string
		option  nbdproto.Option
		payload []byte
		want    nbdproto.RepType
	}{
		{"unknown", 99, []byte("xyz"), nbdproto.RepErrUnsup},
		{"peek export", nbdproto.OptPeekExport, nil, nbdproto.RepErrUnsup},
		{"starttls", nbdproto.OptStartTLS, nil, nbdproto.RepErrPolicy},
		{"starttls with payload", nbdproto.OptStartTLS, []byte("x"), nbdproto.RepErrInvalid},
		{"list with payload", nbdproto.OptList, []byte("x"), nbdproto.RepErrInvalid},
		{"structured with payload", nbdproto.OptStructuredReply, []byte("x"), nbdproto.RepErrInvalid},
		{"go: empty", nbdproto.OptGo, nil, nbdproto.RepErrInvalid},
		{"go: name past the end", nbdproto.OptGo, append(binary.BigEndian.AppendUint32(nil, 1000), 'n'), nbdproto.RepErrInvalid},
		{"go: name too long", nbdproto.OptGo, append(str(strings.Repeat("n", 4097)), 0, 0), nbdproto.RepErrInvalid},
		{"go: NUL in the name", nbdproto.OptGo, append(str("n\x00"), 0, 0), nbdproto.RepErrInvalid},
		{"go: no count", nbdproto.OptGo, str("n"), nbdproto.RepErrInvalid},
		{"go: requests past the end", nbdproto.OptGo, append(str("n"), 0xff, 0xff), nbdproto.RepErrInvalid},
		{"go: trailing", nbdproto.OptGo, append(goN, 0), nbdproto.RepErrInvalid},
		{"go: no such export", nbdproto.OptGo, append(str("zz"), 0, 0), nbdproto.RepErrUnknown},
		{"set meta without structured replies", nbdproto.OptSetMetaContext, metaN, nbdproto.RepErrInvalid},
		{"list meta: count past the end", nbdproto.OptListMetaContext, append(str("n"), 0xff, 0xff, 0xff, 0xff), nbdproto.RepErrInvalid},
		{"list meta: query past the end", nbdproto.OptListMetaContext, append(append(str("n"), 0, 0, 0, 1), 0xff, 0xff, 0xff, 0xff), nbdproto.RepErrInvalid},
		{"list meta: no such export", nbdproto.OptListMetaContext, append(str("zz"), 0, 0, 0, 0), nbdproto.RepErrUnknown},
		{"longer than what is kept", 99, make([]byte, nbdproto.MaxOptionKept+1), nbdproto.RepErrTooBig},
	} {
		if got := c.option(x.option, x.payload); len(got) != 1 || got[0].typ != x.want || len(got[0].payload) == 0 {
			t.Errorf("%s: %#x %q", x.what, got[0].typ, got[0].payload)
		}
	}
	c.structured()
	if got := last(c.option(nbdproto.OptStructuredReply, nil)); got != nbdproto.RepErrInvalid {
		t.Errorf("structured replies twice: %#x", got)
	}
	if got := last(c.option(nbdproto.OptGo, goN)); got != nbdproto.RepAck {
		t.Errorf("go after all that: %#x", got)
	}
}

func TestAbortIsAcknowledged(t *testing.T) {
	_, path := server(t, Config{})
	c := dial(t, path).greet(both)
	if got := c.option(nbdproto.OptAbort, []byte("bye")); len(got) != 1 || got[0].typ != nbdproto.RepAck {
		t.Errorf("%v", got)
	}
	c.hungUp()
}

func TestListGivesExportsInTheOrderOfAddition(t *testing.T) {
	s, path := server(t, Config{})
	desc := "second"
	add(t, s, newRAM(4096, 4096), ExportConfig{Name: "z"})
	gone := add(t, s, newRAM(4096, 4096), ExportConfig{Name: "gone"})
	add(t, s, newRAM(4096, 4096), ExportConfig{Name: "a", Description: &desc})
	gone.Close()
	var got []nbdproto.ServerEntry
	for _, r := range dial(t, path).greet(both).option(nbdproto.OptList, nil) {
		if r.typ == nbdproto.RepServer {
			e, err := nbdproto.ParseServerEntry(r.payload)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
	}
	if !slices.Equal(got, []nbdproto.ServerEntry{{Name: "z"}, {Name: "a", Description: desc}}) {
		t.Errorf("%+v", got)
	}
}

// marked is a metadata context of a test.
type marked string

func (m marked) Name() string { return string(m) }
func (marked) Extent(_ context.Context, off, n int64) (uint32, int64, error) {
	if off < 1024 {
		return nbdproto.StateDirty, min(n, 1024-off), nil
	}
	return 0, n, nil
}

func TestMetaContextQueries(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(4096, 4096), ExportConfig{AllocationDepth: true, Contexts: []StatusContext{marked("qemu:dirty-bitmap:a"), marked("qemu:dirty-bitmap:b")}})
	add(t, s, newRAM(4096, 4096), ExportConfig{Name: "plain"})
	c := dial(t, path).greet(both).structured()
	ids := map[string]uint32{"base:allocation": 0, "qemu:allocation-depth": 1, "qemu:dirty-bitmap:a": 2, "qemu:dirty-bitmap:b": 3}
	all := []string{"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}
	for _, x := range []struct {
		export    string
		queries   []string
		list, set []string
	}{
		{"n", nil, all, nil},
		{"n", []string{"base:"}, all[:1], nil},
		{"n", []string{"base:allocation"}, all[:1], all[:1]},
		{"n", []string{"base:allocation", "base:allocation"}, all[:1], all[:1]},
		{"n", []string{"qemu:"}, all[1:], nil},
		{"n", []string{"qemu:dirty-bitmap:"}, all[2:], nil},
		{"n", []string{"qemu:dirty-bitmap:b", "base:allocation"}, []string{all[0], all[3]}, []string{all[0], all[3]}},
		{"n", []string{"base", "", "qemu:allocation", "x:", "qemu:dirty-bitmap:zz", strings.Repeat("q", 5000)}, nil, nil},
		{"plain", []string{"qemu:", "base:"}, all[:1], nil},
		{"plain", []string{"qemu:allocation-depth"}, nil, nil},
	} {
		for _, o := range []nbdproto.Option{nbdproto.OptListMetaContext, nbdproto.OptSetMetaContext} {
			want := x.set
			if o == nbdproto.OptListMetaContext {
				want = x.list
			}
			var got []string
			replies := c.option(o, (&nbdproto.MetaRequest{Name: x.export, Queries: x.queries}).Append(nil))
			for _, r := range replies[:len(replies)-1] {
				m, err := nbdproto.ParseMetaContext(r.payload)
				if err != nil {
					t.Fatal(err)
				}
				if wantID := ids[m.Name]; o == nbdproto.OptSetMetaContext && m.ID != wantID || o == nbdproto.OptListMetaContext && m.ID != 0 {
					t.Errorf("%v: id %d", m.Name, m.ID)
				}
				got = append(got, m.Name)
			}
			if last(replies) != nbdproto.RepAck || !slices.Equal(got, want) {
				t.Errorf("%s %s %q: %q, want %q", o, x.export, x.queries, got, want)
			}
		}
	}
	// What was set for one export does not hold for another.
	c.setMeta("plain", "base:allocation")
	c.goExport(nbdproto.OptGo, "n")
	if got := c.do(nbdproto.Request{Type: nbdproto.CmdBlockStatus, Length: 512}); got != nbdproto.EINVAL {
		t.Errorf("block status: %d", got)
	}
}

func TestStreamThatMakesNoSenseIsHungUpOn(t *testing.T) {
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 4096), ExportConfig{})
	for _, junk := range [][]byte{
		[]byte("GET / HTTP/1.0\r\n\r\n" + strings.Repeat(" ", 64)),
		nbdproto.OptionHeader{Option: nbdproto.OptGo, Length: nbdproto.MaxOptionLength + 1}.Append(nil),
		bytes.Repeat([]byte{0xff}, 4096),
	} {
		c := dial(t, path).greet(both)
		c.write(junk)
		c.hungUp()
	}
	connect(t, path, false)
}

func TestHandshakeHasATimeLimit(t *testing.T) {
	v := clock.NewVirtual()
	s, path := server(t, Config{Clock: v, HandshakeMax: 10 * time.Second})
	add(t, s, newRAM(4096, 4096), ExportConfig{})
	done := connect(t, path, false)
	done.do(nbdproto.Request{Type: nbdproto.CmdFlush}) // so its timer is stopped
	late := dial(t, path).greet(both)                  // so its timer is set
	v.Step(9 * time.Second)
	if got := last(late.option(nbdproto.OptList, nil)); got != nbdproto.RepAck {
		t.Errorf("hung up early: %#x", got)
	}
	v.Step(time.Second)
	late.hungUp()
	if got := done.do(nbdproto.Request{Type: nbdproto.CmdFlush}); got != nbdproto.OK {
		t.Errorf("the other client: %d", got)
	}
}

func TestClientsBeyondTheLimitWait(t *testing.T) {
	s, path := server(t, Config{MaxConnections: 2})
	add(t, s, newRAM(4096, 4096), ExportConfig{})
	a := connect(t, path, false)
	connect(t, path, false)
	third := dial(t, path)
	if err := third.SetReadDeadline(clock.Real().Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := third.Read(make([]byte, 1)); n != 0 || !err.(net.Error).Timeout() {
		t.Fatalf("the third client was served: %d %v", n, err)
	}
	if err := third.SetReadDeadline(clock.Real().Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	a.Close()
	third.greet(both)
	if got := last(third.goExport(nbdproto.OptGo, "n")); got != nbdproto.RepAck {
		t.Errorf("go: %#x", got)
	}
}
