package nbdproto

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestRequestsSurviveTheWire(t *testing.T) {
	for _, f := range []Framing{Compact, Extended} {
		want := Request{Flags: FlagFUA | FlagDF, Type: CmdRead, Cookie: 0x1122334455667788, Offset: 1 << 40, Length: 0xfedcba98}
		b := want.Append(nil, f)
		if len(b) != f.RequestSize() {
			t.Errorf("%d bytes", len(b))
		}
		var got Request
		if err := got.Parse(b, f); err != nil || got != want {
			t.Errorf("%+v %v", got, err)
		}
		if err := got.Parse(b[:len(b)-1], f); !errors.Is(err, ErrShort) {
			t.Errorf("cut: %v", err)
		}
		// The other framing's magic is not taken, but the cookie is there.
		if err := got.Parse(append(b, 0, 0, 0, 0), 1-f); !errors.Is(err, ErrMagic) || got.Cookie != want.Cookie {
			t.Errorf("other framing: %v %+v", err, got)
		}
	}
}

func TestRequestOnTheWireIsTheDocuments(t *testing.T) {
	r := Request{Type: CmdWrite, Flags: FlagFUA, Cookie: 7, Offset: 512, Length: 4}
	if got := string(r.Append(nil, Compact)); got != "\x25\x60\x95\x13\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x04" {
		t.Errorf("%q", got)
	}
	if got := string(AppendSimpleReply(nil, 7, EIO)); got != "\x67\x44\x66\x98\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x07" {
		t.Errorf("%q", got)
	}
	if got := string(Reply{Cookie: 7}.AppendOffsetHole(nil, true, 512, 9)); got != "\x66\x8e\x33\xef\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x09" {
		t.Errorf("%q", got)
	}
	if got := string(AppendGreeting(nil, FixedNewstyle|NoZeroes)); got != "NBDMAGICIHAVEOPT\x00\x03" {
		t.Errorf("%q", got)
	}
}

func TestPayloadFollowsWritesOnly(t *testing.T) {
	for _, x := range []struct {
		r    Request
		f    Framing
		want uint64
	}{
		{Request{Type: CmdWrite, Length: 9}, Compact, 9},
		{Request{Type: CmdRead, Length: 9}, Compact, 0},
		{Request{Type: CmdBlockStatus, Length: 9, Flags: FlagPayloadLen}, Compact, 0},
		{Request{Type: CmdBlockStatus, Length: 9, Flags: FlagPayloadLen}, Extended, 9},
	} {
		if got := x.r.PayloadLen(x.f); got != x.want {
			t.Errorf("%+v: %d", x.r, got)
		}
	}
}

func TestLegalFlags(t *testing.T) {
	for c, want := range map[Command]CmdFlags{
		CmdRead: FlagFUA | FlagDF, CmdWrite: FlagFUA, CmdFlush: FlagFUA, CmdTrim: FlagFUA, CmdCache: FlagFUA,
		CmdWriteZeroes: FlagFUA | FlagNoHole | FlagFastZero, CmdBlockStatus: FlagFUA | FlagReqOne, 1000: FlagFUA,
	} {
		if got := c.Legal(true, Compact); got != want {
			t.Errorf("%s: %#x", c, got)
		}
		if got := c.Legal(false, Compact); got != want&^FlagDF {
			t.Errorf("%s without structured replies: %#x", c, got)
		}
	}
	if CmdWrite.Legal(true, Extended) != FlagFUA|FlagPayloadLen || CmdRead.Legal(true, Extended)&FlagPayloadLen != 0 {
		t.Error("payloads with extended headers")
	}
	if CmdResize.Known() || Command(65535).Known() || !CmdBlockStatus.Known() {
		t.Error("known commands")
	}
}

func TestErrnosMapAsTheFieldsDo(t *testing.T) {
	for sys, want := range map[syscall.Errno]Errno{
		0: OK, syscall.EPERM: EPERM, syscall.EROFS: EPERM, syscall.EIO: EIO, syscall.ENOMEM: ENOMEM, syscall.EDQUOT: ENOSPC,
		syscall.EFBIG: ENOSPC, syscall.ENOSPC: ENOSPC, syscall.EOVERFLOW: EOVERFLOW, syscall.ENOTSUP: ENOTSUP,
		syscall.ESHUTDOWN: ESHUTDOWN, syscall.EINVAL: EINVAL, syscall.ENXIO: EINVAL, syscall.ECANCELED: EINVAL,
	} {
		if got := ToWire(sys); got != want {
			t.Errorf("%v: %d", sys, got)
		}
	}
	if EIO.System() != syscall.EIO || Errno(4711).System() != syscall.EINVAL || OK.System() != 0 {
		t.Error("and back")
	}
}

func TestChunksSurviveTheWire(t *testing.T) {
	var h ReplyHeader
	b := Reply{Cookie: 3}.AppendErrorOffset(nil, EIO, "no", 512)
	if err := h.Parse(b); err != nil || h.Type != ChunkErrorOffset || !h.Done || int(h.Length) != len(b)-ChunkHeaderSize {
		t.Fatalf("%+v %v", h, err)
	}
	e, err := ParseErrorChunk(h.Type, b[ChunkHeaderSize:])
	if err != nil || e != (ErrorChunk{EIO, "no", 512}) {
		t.Errorf("%+v %v", e, err)
	}
	b = Reply{Cookie: 3}.AppendBlockStatus(nil, false, 9, 2)
	b = Compact.AppendExtent(Compact.AppendExtent(b, 512, 3), 1024, 0)
	if err := h.Parse(b); err != nil || h.Done || int(h.Length) != len(b)-ChunkHeaderSize {
		t.Fatalf("%+v %v", h, err)
	}
	var got [][2]uint64
	id, err := ParseExtents(b[ChunkHeaderSize:], Compact, func(l, f uint64) { got = append(got, [2]uint64{l, f}) })
	if err != nil || id != 9 || !slices.Equal(got, [][2]uint64{{512, 3}, {1024, 0}}) {
		t.Errorf("%d %v %v", id, got, err)
	}
	long := Reply{Cookie: 3}.AppendError(nil, EIO, strings.Repeat("x", MaxString+1))
	if e, err := ParseErrorChunk(ChunkError, long[ChunkHeaderSize:]); err != nil || len(e.Message) != MaxString {
		t.Errorf("long message: %d %v", len(e.Message), err)
	}
}

func TestPayloadsAreCheckedBeforeTheyAreBelieved(t *testing.T) {
	huge := "\xff\xff\xff\xff"
	name := "\x00\x00\x00\x01n"
	long := "\x00\x00\x10\x01" + strings.Repeat("n", MaxString+1)
	for _, x := range []struct {
		what string
		err  error
		want error
	}{
		{"info, empty", second(ParseInfoRequest(nil)), ErrShort},
		{"info, huge name", second(ParseInfoRequest([]byte(huge))), ErrTooLong},
		{"info, long name", second(ParseInfoRequest([]byte(long + "\x00\x00"))), ErrTooLong},
		{"info, NUL", second(ParseInfoRequest([]byte("\x00\x00\x00\x01\x00\x00\x00"))), ErrNUL},
		{"info, many requests", second(ParseInfoRequest([]byte(name + "\xff\xff"))), ErrShort},
		{"info, trailing", second(ParseInfoRequest([]byte(name + "\x00\x00x"))), ErrTrailing},
		{"meta, many queries", third(ParseMetaRequest([]byte(name + huge))), ErrShort},
		{"meta, huge query", third(ParseMetaRequest([]byte(name + "\x00\x00\x00\x01" + huge))), ErrShort},
		{"meta, trailing", third(ParseMetaRequest([]byte(name + "\x00\x00\x00\x00x"))), ErrTrailing},
		{"export name, long", second(ParseExportName(make([]byte, MaxString+1))), ErrTooLong},
		{"export name, NUL", second(ParseExportName([]byte("a\x00"))), ErrNUL},
		{"entry, long description", second(ParseServerEntry([]byte(name + strings.Repeat("d", MaxString+1)))), ErrTooLong},
		{"context, long", second(ParseMetaContext([]byte(strings.Repeat("d", MaxString+5)))), ErrTooLong},
		{"hole, short", second(ParseHole(make([]byte, 11))), ErrShort},
		{"extents, odd", second(ParseExtents(make([]byte, 11), Compact, func(uint64, uint64) {})), ErrTrailing},
		{"extents, none", second(ParseExtents(make([]byte, 4), Compact, func(uint64, uint64) {})), ErrTrailing},
		{"extents, empty one", second(ParseExtents(make([]byte, 12), Compact, func(uint64, uint64) {})), ErrShort},
		{"greeting", second(ParseGreeting([]byte("NBDMAGICIHAVEOPU\x00\x03"))), ErrMagic},
		{"option, long", second(ParseOptionHeader(OptionHeader{OptGo, MaxOptionLength + 1}.Append(nil))), ErrTooLong},
		{"reply, long", second(ParseOptionReplyHeader(OptionReplyHeader{OptGo, RepInfo, MaxPayload + 1}.Append(nil))), ErrTooLong},
		{"chunk, long", new(ReplyHeader).Parse(Reply{}.append(nil, ChunkOffsetData, true, MaxChunkPayload+1)), ErrTooLong},
	} {
		if !errors.Is(x.err, x.want) {
			t.Errorf("%s: %v, want %v", x.what, x.err, x.want)
		}
	}
}

func second[T any](_ T, err error) error        { return err }
func third[T, U any](_ T, _ U, err error) error { return err }

func TestOptionPayloadsSurviveTheWire(t *testing.T) {
	info := &InfoRequest{Name: "näme", Requests: []InfoType{InfoBlockSize, 99}}
	if got, err := ParseInfoRequest(info.Append(nil)); err != nil || !reflect.DeepEqual(got, info) {
		t.Errorf("%+v %v", got, err)
	}
	meta := &MetaRequest{Name: "n", Queries: []string{"base:", ""}}
	if got, none, err := ParseMetaRequest(meta.Append(nil)); err != nil || none || !reflect.DeepEqual(got, meta) {
		t.Errorf("%+v %v", got, err)
	}
	if _, none, err := ParseMetaRequest((&MetaRequest{}).Append(nil)); err != nil || !none {
		t.Errorf("no queries: %v %v", none, err)
	}
	// A query that is too long is no query, but it is not "no queries" either.
	meta.Queries = []string{strings.Repeat("q", MaxString+1), "base:"}
	if got, none, err := ParseMetaRequest(meta.Append(nil)); err != nil || none || !slices.Equal(got.Queries, []string{"base:"}) {
		t.Errorf("%+v %v %v", got, none, err)
	}
	entry := ServerEntry{"n", "d"}
	if got, err := ParseServerEntry(entry.Append(nil)); err != nil || got != entry {
		t.Errorf("%+v %v", got, err)
	}
	sizes := BlockSizes{1, 4096, MaxPayload}
	if got, err := ParseBlockSizes(sizes.Append(nil)); err != nil || got != sizes {
		t.Errorf("%+v %v", got, err)
	}
}

// TestExtendedMessagesOnTheWire has the bytes of the protocol document, branch
// extension-ext-header ("Request message", "Extended reply chunk message",
// NBD_REPLY_TYPE_BLOCK_STATUS_EXT, NBD_CMD_BLOCK_STATUS).
func TestExtendedMessagesOnTheWire(t *testing.T) {
	r := Request{Type: CmdWriteZeroes, Flags: FlagNoHole, Cookie: 7, Offset: 512, Length: 1 << 40}
	x := Reply{Framing: Extended, Cookie: 7, Offset: 512}
	for name, c := range map[string]struct{ got, want string }{
		"option":  {string(OptionHeader{Option: OptExtendedHeaders}.Append(nil)), "IHAVEOPT\x00\x00\x00\x0b\x00\x00\x00\x00"},
		"request": {string(r.Append(nil, Extended)), "\x21\xe4\x1c\x71\x00\x02\x00\x06\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00"},
		"none":    {string(x.AppendNone(nil)), "\x6e\x8a\x27\x8c\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
		"data":    {string(x.AppendOffsetData(nil, false, 1024, 9)), "\x6e\x8a\x27\x8c\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x11\x00\x00\x00\x00\x00\x00\x04\x00"},
		"hole":    {string(x.AppendOffsetHole(nil, true, 512, 9)), "\x6e\x8a\x27\x8c\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x09"},
		"status": {string(Extended.AppendExtent(x.AppendBlockStatus(nil, true, 3, 1), 1<<40, 2)),
			"\x6e\x8a\x27\x8c\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x18" +
				"\x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"},
		"error":   {string(x.AppendError(nil, EINVAL, "no")), "\x6e\x8a\x27\x8c\x00\x01\x80\x01\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x16\x00\x02no"},
		"payload": {string((&StatusPayload{Length: 1 << 40, Contexts: []uint32{1, 2}}).Append(nil)), "\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02"},
	} {
		if c.got != c.want {
			t.Errorf("%s: % x, not % x", name, c.got, c.want)
		}
	}
	var h ReplyHeader
	b := x.AppendOffsetData(nil, true, 1024, 9)
	if err := h.Parse(b); err != nil || h != (ReplyHeader{Cookie: 7, Structured: true, Extended: true, Type: ChunkOffsetData, Done: true, Offset: 512, Length: 17}) {
		t.Errorf("%+v %v", h, err)
	}
	b[24] = 1 // a length beyond 32 bits
	if err := h.Parse(b); err != ErrTooLong {
		t.Error(err)
	}
	for _, b := range []string{"", "\x00\x00\x00\x03", "\x00\x00\x00\x03\x00\x00\x00\x00", "\x00\x00\x00\x03\x00\x00\x00\x02" + strings.Repeat("\x01", 16), "\x00\x00\x00\x03\x00\x00\x00\x01" + strings.Repeat("\x00", 16)} {
		if _, err := ParseExtents([]byte(b), Extended, func(_, _ uint64) {}); err == nil {
			t.Errorf("% x was read", b)
		}
	}
}
