package nbdproto

import "encoding/binary"

// Replies of the transmission phase: simple ones, and the chunks of structured
// ones (proto.md, "Simple reply message", "Structured reply chunk message").

const (
	simpleReplyMagic = 0x67446698
	chunkMagic       = 0x668e33ef

	// SimpleReplySize is the length of a simple reply without data.
	SimpleReplySize = 16
	// ChunkHeaderSize is the length of a chunk without payload.
	ChunkHeaderSize = 20
	// OffsetDataSize is what an offset data chunk has before its data.
	OffsetDataSize = ChunkHeaderSize + 8
	// OffsetHoleSize is the length of an offset hole chunk.
	OffsetHoleSize = ChunkHeaderSize + 12
	// BlockStatusSize is what a block status chunk has before its extents.
	BlockStatusSize = ChunkHeaderSize + 4
	// ExtentSize is the length of an extent in a block status chunk.
	ExtentSize = 8
	// MaxChunkPayload is the longest payload of a chunk: data with its offset.
	MaxChunkPayload = MaxPayload + 8
)

// ChunkType is the kind of a chunk.
type ChunkType uint16

// The kinds of chunk. Those with the top bit set report an error.
const (
	ChunkNone        ChunkType = 0
	ChunkOffsetData  ChunkType = 1
	ChunkOffsetHole  ChunkType = 2
	ChunkBlockStatus ChunkType = 5

	chunkErrorBit    ChunkType = 1 << 15
	ChunkError       ChunkType = chunkErrorBit | 1
	ChunkErrorOffset ChunkType = chunkErrorBit | 2
)

// IsError tells whether the chunk's payload is an ErrorChunk.
func (t ChunkType) IsError() bool { return t&chunkErrorBit != 0 }

// ChunkDone marks the last chunk of a reply.
const ChunkDone = 1 << 0

// Extent flags of the context base:allocation.
const (
	StateHole = 1 << 0
	StateZero = 1 << 1
)

// StateDirty is the extent flag of qemu:dirty-bitmap contexts.
const StateDirty = 1 << 0

// AppendSimpleReply appends a simple reply; a read's data follows it when code
// is OK.
func AppendSimpleReply(b []byte, cookie uint64, code Errno) []byte {
	b = binary.BigEndian.AppendUint32(b, simpleReplyMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return binary.BigEndian.AppendUint64(b, cookie)
}

func appendChunk(b []byte, cookie uint64, t ChunkType, last bool, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, chunkMagic)
	var flags uint16
	if last {
		flags = ChunkDone
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(t))
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// AppendNone appends a chunk that only ends a reply.
func AppendNone(b []byte, cookie uint64) []byte {
	return appendChunk(b, cookie, ChunkNone, true, 0)
}

// AppendOffsetData appends what precedes n bytes of data read at offset.
func AppendOffsetData(b []byte, cookie uint64, last bool, offset uint64, n int) []byte {
	b = appendChunk(b, cookie, ChunkOffsetData, last, 8+n)
	return binary.BigEndian.AppendUint64(b, offset)
}

// AppendOffsetHole appends a chunk that says n bytes at offset are zero.
func AppendOffsetHole(b []byte, cookie uint64, last bool, offset uint64, n uint32) []byte {
	b = appendChunk(b, cookie, ChunkOffsetHole, last, 12)
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, n)
}

// AppendBlockStatus appends what precedes n extents of a context.
func AppendBlockStatus(b []byte, cookie uint64, last bool, context uint32, n int) []byte {
	b = appendChunk(b, cookie, ChunkBlockStatus, last, 4+n*ExtentSize)
	return binary.BigEndian.AppendUint32(b, context)
}

// AppendExtent appends one extent to a block status chunk.
func AppendExtent(b []byte, length, flags uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, length)
	return binary.BigEndian.AppendUint32(b, flags)
}

// AppendError appends a whole error chunk that ends the reply. msg is cut to
// MaxString bytes.
func AppendError(b []byte, cookie uint64, code Errno, msg string) []byte {
	msg = msg[:min(len(msg), MaxString)]
	b = appendChunk(b, cookie, ChunkError, true, 6+len(msg))
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	return append(b, msg...)
}

// AppendErrorOffset is AppendError for an error at a known offset.
func AppendErrorOffset(b []byte, cookie uint64, code Errno, msg string, offset uint64) []byte {
	msg = msg[:min(len(msg), MaxString)]
	b = appendChunk(b, cookie, ChunkErrorOffset, true, 6+len(msg)+8)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	b = append(b, msg...)
	return binary.BigEndian.AppendUint64(b, offset)
}

// ReplyHeader is the part of a reply from which a client learns what follows.
type ReplyHeader struct {
	Cookie uint64
	// Structured: Type, Done and Length are set; otherwise Error is.
	Structured bool
	Type       ChunkType
	Done       bool
	Length     uint32 // of the chunk's payload
	Error      Errno
}

// ReplySize returns the length of the header that begins with these four
// bytes, or ErrMagic.
func ReplySize(magic []byte) (int, error) {
	if len(magic) < 4 {
		return 0, ErrShort
	}
	switch binary.BigEndian.Uint32(magic) {
	case simpleReplyMagic:
		return SimpleReplySize, nil
	case chunkMagic:
		return ChunkHeaderSize, nil
	}
	return 0, ErrMagic
}

// Parse reads a header of ReplySize bytes. Errors end the connection:
// ErrMagic, ErrShort, ErrTooLong for a payload over MaxChunkPayload.
func (h *ReplyHeader) Parse(b []byte) error {
	n, err := ReplySize(b)
	if err != nil {
		return err
	}
	if len(b) < n {
		return ErrShort
	}
	if n == SimpleReplySize {
		*h = ReplyHeader{Cookie: binary.BigEndian.Uint64(b[8:]), Error: Errno(binary.BigEndian.Uint32(b[4:]))}
		return nil
	}
	*h = ReplyHeader{
		Structured: true,
		Done:       binary.BigEndian.Uint16(b[4:])&ChunkDone != 0,
		Type:       ChunkType(binary.BigEndian.Uint16(b[6:])),
		Cookie:     binary.BigEndian.Uint64(b[8:]),
		Length:     binary.BigEndian.Uint32(b[16:]),
	}
	if h.Length > MaxChunkPayload {
		return ErrTooLong
	}
	return nil
}

// ErrorChunk is the payload of an error chunk.
type ErrorChunk struct {
	Error   Errno
	Message string
	Offset  uint64 // of ChunkErrorOffset
}

// ParseErrorChunk reads the payload of a chunk whose type is an error. Bytes
// after what is known are left alone, as the protocol asks for types to come.
func ParseErrorChunk(t ChunkType, b []byte) (ErrorChunk, error) {
	f := fields{b: b}
	e := ErrorChunk{Error: Errno(f.u32())}
	n := f.u16()
	if f.err == nil && n > MaxString {
		f.err = ErrTooLong
	}
	e.Message = string(f.take(int(n)))
	if t == ChunkErrorOffset {
		e.Offset = f.u64()
	}
	if t == ChunkError || t == ChunkErrorOffset {
		return e, f.end()
	}
	return e, f.err
}

// Hole is the payload of an offset hole chunk.
type Hole struct {
	Offset uint64
	Length uint32
}

// ParseHole reads the payload of an offset hole chunk.
func ParseHole(b []byte) (Hole, error) {
	f := fields{b: b}
	h := Hole{f.u64(), f.u32()}
	return h, f.end()
}

// ParseExtents walks over the payload of a block status chunk. each is called
// with every extent; an extent without length is an error.
func ParseExtents(b []byte, each func(length, flags uint32)) (context uint32, err error) {
	f := fields{b: b}
	context = f.u32()
	if f.err != nil {
		return 0, f.err
	}
	if len(f.b)%ExtentSize != 0 || len(f.b) == 0 {
		return 0, ErrTrailing
	}
	for len(f.b) > 0 {
		length, flags := f.u32(), f.u32()
		if length == 0 {
			return 0, ErrShort
		}
		each(length, flags)
	}
	return context, nil
}

// ParseOffset reads the offset that begins the payload of an offset data chunk;
// b has OffsetDataSize - ChunkHeaderSize bytes.
func ParseOffset(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
