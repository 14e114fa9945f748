package nbdproto

import "encoding/binary"

// Requests of the transmission phase.

// Framing is the form of request headers that a connection uses.
type Framing uint8

const (
	// Compact headers have 32 bits of length.
	Compact Framing = iota
	// Extended headers have 64 bits of length; negotiated by
	// OptExtendedHeaders.
	Extended
)

const (
	requestMagic         = 0x25609513
	extendedRequestMagic = 0x21e41c71

	// CompactRequestSize is the length of a compact request header.
	CompactRequestSize = 28
	// ExtendedRequestSize is the length of an extended request header.
	ExtendedRequestSize = 32
)

// RequestSize returns the length of a request header.
func (f Framing) RequestSize() int {
	if f == Extended {
		return ExtendedRequestSize
	}
	return CompactRequestSize
}

// Request is the header of a request.
type Request struct {
	Flags  CmdFlags
	Type   Command
	Cookie uint64 // chosen by the client, returned in the reply
	Offset uint64 // bytes
	Length uint64 // bytes
}

// Append appends the header; a compact one keeps 32 bits of Length.
func (r *Request) Append(b []byte, f Framing) []byte {
	magic := uint32(requestMagic)
	if f == Extended {
		magic = extendedRequestMagic
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Flags))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Type))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	if f == Extended {
		return binary.BigEndian.AppendUint64(b, r.Length)
	}
	return binary.BigEndian.AppendUint32(b, uint32(r.Length))
}

// Parse reads a header of RequestSize bytes. On ErrMagic the fields are set
// nevertheless, so that an error can name the cookie. ErrShort is the only
// other error; nothing is said about the fields' sense.
func (r *Request) Parse(b []byte, f Framing) error {
	if len(b) < f.RequestSize() {
		return ErrShort
	}
	want := uint32(requestMagic)
	if f == Extended {
		want = extendedRequestMagic
	}
	r.Flags = CmdFlags(binary.BigEndian.Uint16(b[4:]))
	r.Type = Command(binary.BigEndian.Uint16(b[6:]))
	r.Cookie = binary.BigEndian.Uint64(b[8:])
	r.Offset = binary.BigEndian.Uint64(b[16:])
	if f == Extended {
		r.Length = binary.BigEndian.Uint64(b[24:])
	} else {
		r.Length = uint64(binary.BigEndian.Uint32(b[24:]))
	}
	if binary.BigEndian.Uint32(b) != want {
		return ErrMagic
	}
	return nil
}

// HasPayload tells whether Length is that of a payload. A write has one whether it
// says so or not, as in the field.
func (r *Request) HasPayload(f Framing) bool {
	return r.Type == CmdWrite || f == Extended && r.Flags&FlagPayloadLen != 0
}

// PayloadLen returns how many bytes follow the header.
func (r *Request) PayloadLen(f Framing) uint64 {
	if r.HasPayload(f) {
		return r.Length
	}
	return 0
}

// StatusPayload is the payload of a block status request with FlagPayloadLen.
type StatusPayload struct {
	Length   uint64   // of the range, bytes
	Contexts []uint32 // their ids
}

// MaxStatusPayload is the longest such payload that is read, in bytes: with more
// contexts than an export can have.
const MaxStatusPayload = 8 + 4*MaxContexts

// Append appends the payload.
func (p *StatusPayload) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, p.Length)
	for _, id := range p.Contexts {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}

// ParseStatusPayload reads the payload. It fails with ErrShort or ErrTrailing.
func ParseStatusPayload(b []byte) (*StatusPayload, error) {
	f := fields{b: b}
	p := &StatusPayload{Length: f.u64()}
	if f.err != nil {
		return nil, f.err
	}
	if len(f.b)%4 != 0 {
		return nil, ErrTrailing
	}
	for len(f.b) > 0 {
		p.Contexts = append(p.Contexts, f.u32())
	}
	return p, nil
}
