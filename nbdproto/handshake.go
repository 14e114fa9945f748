package nbdproto

import "encoding/binary"

// The greeting, and the frames of options and their replies (proto.md,
// "Newstyle negotiation").

const (
	// GreetingMagic begins every connection ("NBDMAGIC").
	GreetingMagic = 0x4e42444d41474943
	// OptionMagic begins the second half of the greeting and every option
	// ("IHAVEOPT").
	OptionMagic = 0x49484156454f5054
	// OptionReplyMagic begins every reply to an option.
	OptionReplyMagic = 0x0003e889045565a9

	// GreetingSize is the length of the server's greeting.
	GreetingSize = 18
	// ClientFlagsSize is the length of the client's answer to it.
	ClientFlagsSize = 4
	// OptionHeaderSize is the length of an option without its payload.
	OptionHeaderSize = 16
	// OptionReplyHeaderSize is the length of a reply without its payload.
	OptionReplyHeaderSize = 20
	// ExportNamePadding are the zeroes after the reply to OptExportName, unless
	// both sides have set NoZeroes.
	ExportNamePadding = 124
)

// HandshakeFlags are exchanged right after the connection is made.
type HandshakeFlags uint32

// Server and client use the same bits.
const (
	FixedNewstyle HandshakeFlags = 1 << 0
	NoZeroes      HandshakeFlags = 1 << 1
)

// AppendGreeting appends the server's first message.
func AppendGreeting(b []byte, f HandshakeFlags) []byte {
	b = binary.BigEndian.AppendUint64(b, GreetingMagic)
	b = binary.BigEndian.AppendUint64(b, OptionMagic)
	return binary.BigEndian.AppendUint16(b, uint16(f))
}

// ParseGreeting reads the server's first message; fixed length.
func ParseGreeting(b []byte) (HandshakeFlags, error) {
	if len(b) < GreetingSize {
		return 0, ErrShort
	}
	if binary.BigEndian.Uint64(b) != GreetingMagic || binary.BigEndian.Uint64(b[8:]) != OptionMagic {
		return 0, ErrMagic
	}
	return HandshakeFlags(binary.BigEndian.Uint16(b[16:])), nil
}

// AppendClientFlags appends the client's answer to the greeting.
func AppendClientFlags(b []byte, f HandshakeFlags) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(f))
}

// ParseClientFlags reads the client's answer to the greeting. unknown are the
// bits that this package has no name for; they end the connection.
func ParseClientFlags(b []byte) (known, unknown HandshakeFlags, err error) {
	if len(b) < ClientFlagsSize {
		return 0, 0, ErrShort
	}
	f := HandshakeFlags(binary.BigEndian.Uint32(b))
	return f & (FixedNewstyle | NoZeroes), f &^ (FixedNewstyle | NoZeroes), nil
}

// Option is what a client asks for during the handshake.
type Option uint32

// The options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptPeekExport      Option = 4 // withdrawn
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

var optionNames = map[Option]string{
	OptExportName:      "export name",
	OptAbort:           "abort",
	OptList:            "list",
	OptPeekExport:      "peek export",
	OptStartTLS:        "starttls",
	OptInfo:            "info",
	OptGo:              "go",
	OptStructuredReply: "structured reply",
	OptListMetaContext: "list meta context",
	OptSetMetaContext:  "set meta context",
	OptExtendedHeaders: "extended headers",
}

// String names the option for messages to the peer.
func (o Option) String() string {
	if s, ok := optionNames[o]; ok {
		return s
	}
	return "<unknown>"
}

// OptionHeader precedes the payload of an option.
type OptionHeader struct {
	Option Option
	Length uint32 // of the payload
}

// Append appends the header.
func (h OptionHeader) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, OptionMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Option))
	return binary.BigEndian.AppendUint32(b, h.Length)
}

// ParseOptionHeader reads an option's header. Every error ends the connection:
// ErrShort, ErrMagic, or ErrTooLong for a payload over MaxOptionLength.
func ParseOptionHeader(b []byte) (OptionHeader, error) {
	if len(b) < OptionHeaderSize {
		return OptionHeader{}, ErrShort
	}
	if binary.BigEndian.Uint64(b) != OptionMagic {
		return OptionHeader{}, ErrMagic
	}
	h := OptionHeader{Option(binary.BigEndian.Uint32(b[8:])), binary.BigEndian.Uint32(b[12:])}
	if h.Length > MaxOptionLength {
		return h, ErrTooLong
	}
	return h, nil
}

// RepType is the kind of a reply to an option.
type RepType uint32

// The kinds of reply. Those with the top bit set are errors and end the
// option, as RepAck does.
const (
	RepAck         RepType = 1
	RepServer      RepType = 2
	RepInfo        RepType = 3
	RepMetaContext RepType = 4

	repError              RepType = 1 << 31
	RepErrUnsup           RepType = repError | 1
	RepErrPolicy          RepType = repError | 2
	RepErrInvalid         RepType = repError | 3
	RepErrPlatform        RepType = repError | 4
	RepErrTLSReqd         RepType = repError | 5
	RepErrUnknown         RepType = repError | 6
	RepErrShutdown        RepType = repError | 7
	RepErrBlockSizeReqd   RepType = repError | 8
	RepErrTooBig          RepType = repError | 9
	RepErrExtHeaderReqd   RepType = repError | 10
	maxOptionReplyPayload         = MaxPayload
)

// IsError tells whether the reply refuses the option; its payload is then a
// message for people.
func (t RepType) IsError() bool { return t&repError != 0 }

// OptionReplyHeader precedes the payload of a reply to an option.
type OptionReplyHeader struct {
	Option Option
	Type   RepType
	Length uint32 // of the payload
}

// Append appends the header.
func (h OptionReplyHeader) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, OptionReplyMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Option))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Type))
	return binary.BigEndian.AppendUint32(b, h.Length)
}

// ParseOptionReplyHeader reads the header of a reply. Every error ends the
// connection: ErrShort, ErrMagic, ErrTooLong.
func ParseOptionReplyHeader(b []byte) (OptionReplyHeader, error) {
	if len(b) < OptionReplyHeaderSize {
		return OptionReplyHeader{}, ErrShort
	}
	if binary.BigEndian.Uint64(b) != OptionReplyMagic {
		return OptionReplyHeader{}, ErrMagic
	}
	h := OptionReplyHeader{
		Option: Option(binary.BigEndian.Uint32(b[8:])),
		Type:   RepType(binary.BigEndian.Uint32(b[12:])),
		Length: binary.BigEndian.Uint32(b[16:]),
	}
	if h.Length > maxOptionReplyPayload {
		return h, ErrTooLong
	}
	return h, nil
}
