package nbdproto

import "encoding/binary"

// Replies of the transmission phase: simple ones, and the chunks of structured
// and extended ones (proto.md, "Simple reply message", "Structured reply chunk
// message"; in its branch extension-ext-header, "Extended reply chunk message").

const (
	simpleReplyMagic   = 0x67446698
	chunkMagic         = 0x668e33ef
	extendedChunkMagic = 0x6e8a278c

	// SimpleReplySize is the length of a simple reply without data.
	SimpleReplySize = 16
	// ChunkHeaderSize is the length of a structured chunk without payload.
	ChunkHeaderSize = 20
	// ExtendedChunkHeaderSize is the length of an extended chunk without payload,
	// the longest header of a reply.
	ExtendedChunkHeaderSize = 32
	// OffsetSize is what an offset data chunk has in its payload before its data.
	OffsetSize = 8
	// HoleSize is the length of the payload of an offset hole chunk.
	HoleSize = 12
	// MaxStatusHead is the most that a block status chunk has in its payload
	// before its extents.
	MaxStatusHead = 8
	// ExtentSize is the length of an extent in a block status chunk,
	// ExtendedExtentSize that in an extended one.
	ExtentSize         = 8
	ExtendedExtentSize = 16
	// MaxChunkPayload is the longest payload of a chunk: data with its offset.
	MaxChunkPayload = MaxPayload + OffsetSize
)

// ChunkType is the kind of a chunk.
type ChunkType uint16

// The kinds of chunk. Those with the top bit set report an error.
const (
	ChunkNone        ChunkType = 0
	ChunkOffsetData  ChunkType = 1
	ChunkOffsetHole  ChunkType = 2
	ChunkBlockStatus ChunkType = 5
	// ChunkBlockStatusExt takes its place with extended headers.
	ChunkBlockStatusExt ChunkType = 6

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

// Reply is what all chunks of one reply share.
type Reply struct {
	Framing Framing
	// Cookie and Offset of the request; structured replies do not tell the offset.
	Cookie, Offset uint64
}

// HeaderSize returns the length of a chunk without payload.
func (f Framing) HeaderSize() int {
	if f == Extended {
		return ExtendedChunkHeaderSize
	}
	return ChunkHeaderSize
}

// ExtentSize returns the length of an extent in a block status chunk.
func (f Framing) ExtentSize() int {
	if f == Extended {
		return ExtendedExtentSize
	}
	return ExtentSize
}

// StatusChunk returns the kind of chunk that a block status is told by.
func (f Framing) StatusChunk() ChunkType {
	if f == Extended {
		return ChunkBlockStatusExt
	}
	return ChunkBlockStatus
}

func (r Reply) append(b []byte, t ChunkType, last bool, length int) []byte {
	magic := uint32(chunkMagic)
	if r.Framing == Extended {
		magic = extendedChunkMagic
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	var flags uint16
	if last {
		flags = ChunkDone
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(t))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	if r.Framing == Extended {
		b = binary.BigEndian.AppendUint64(b, r.Offset)
		return binary.BigEndian.AppendUint64(b, uint64(length))
	}
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// AppendNone appends a chunk that only ends a reply.
func (r Reply) AppendNone(b []byte) []byte { return r.append(b, ChunkNone, true, 0) }

// AppendOffsetData appends what precedes n bytes of data read at offset.
func (r Reply) AppendOffsetData(b []byte, last bool, offset uint64, n int) []byte {
	b = r.append(b, ChunkOffsetData, last, OffsetSize+n)
	return binary.BigEndian.AppendUint64(b, offset)
}

// AppendOffsetHole appends a chunk that says n bytes at offset are zero.
func (r Reply) AppendOffsetHole(b []byte, last bool, offset uint64, n uint32) []byte {
	b = r.append(b, ChunkOffsetHole, last, HoleSize)
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, n)
}

// AppendBlockStatus appends what precedes n extents of a context.
func (r Reply) AppendBlockStatus(b []byte, last bool, context uint32, n int) []byte {
	if r.Framing == Extended {
		b = r.append(b, r.Framing.StatusChunk(), last, 8+n*ExtendedExtentSize)
		b = binary.BigEndian.AppendUint32(b, context)
		return binary.BigEndian.AppendUint32(b, uint32(n))
	}
	b = r.append(b, r.Framing.StatusChunk(), last, 4+n*ExtentSize)
	return binary.BigEndian.AppendUint32(b, context)
}

// AppendExtent appends one extent to a block status chunk. Without extended
// headers it has 32 bits of length.
func (f Framing) AppendExtent(b []byte, length uint64, flags uint32) []byte {
	if f == Extended {
		b = binary.BigEndian.AppendUint64(b, length)
		return binary.BigEndian.AppendUint64(b, uint64(flags))
	}
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return binary.BigEndian.AppendUint32(b, flags)
}

// AppendError appends a whole error chunk that ends the reply. msg is cut to
// MaxString bytes.
func (r Reply) AppendError(b []byte, code Errno, msg string) []byte {
	msg = msg[:min(len(msg), MaxString)]
	b = r.append(b, ChunkError, true, 6+len(msg))
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	return append(b, msg...)
}

// AppendErrorOffset is AppendError for an error at a known offset.
func (r Reply) AppendErrorOffset(b []byte, code Errno, msg string, offset uint64) []byte {
	msg = msg[:min(len(msg), MaxString)]
	b = r.append(b, ChunkErrorOffset, true, 6+len(msg)+8)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	b = append(b, msg...)
	return binary.BigEndian.AppendUint64(b, offset)
}

// ReplyHeader is the part of a reply from which a client learns what follows.
type ReplyHeader struct {
	Cookie uint64
	// Structured: a chunk; Type, Done and Length are set, otherwise Error is.
	// Extended: its header is extended, and Offset is set, too.
	Structured, Extended bool
	Type                 ChunkType
	Done                 bool
	Offset               uint64 // of the request
	Length               uint32 // of the chunk's payload
	Error                Errno
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
	case extendedChunkMagic:
		return ExtendedChunkHeaderSize, nil
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
	}
	length := uint64(binary.BigEndian.Uint32(b[16:]))
	if n == ExtendedChunkHeaderSize {
		h.Extended = true
		h.Offset = binary.BigEndian.Uint64(b[16:])
		length = binary.BigEndian.Uint64(b[24:])
	}
	if length > MaxChunkPayload {
		return ErrTooLong
	}
	h.Length = uint32(length)
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

// ParseExtents walks over the payload of a block status chunk of that framing.
// each is called with every extent; an extent without length is an error, and
// so is a count that is not that of the extents.
func ParseExtents(b []byte, framing Framing, each func(length, flags uint64)) (context uint32, err error) {
	f := fields{b: b}
	context = f.u32()
	count := len(f.b) / ExtentSize
	if framing == Extended {
		count = int(f.u32())
	}
	if f.err != nil {
		return 0, f.err
	}
	if len(f.b) == 0 || len(f.b)%framing.ExtentSize() != 0 || len(f.b)/framing.ExtentSize() != count {
		return 0, ErrTrailing
	}
	for len(f.b) > 0 {
		var length, flags uint64
		if framing == Extended {
			length, flags = f.u64(), f.u64()
		} else {
			length, flags = uint64(f.u32()), uint64(f.u32())
		}
		if length == 0 {
			return 0, ErrShort
		}
		each(length, flags)
	}
	return context, nil
}

// ParseOffset reads the offset that begins the payload of an offset data chunk;
// b has OffsetSize bytes.
func ParseOffset(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
