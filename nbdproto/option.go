package nbdproto

import (
	"bytes"
	"encoding/binary"
)

// Payloads of options and of their replies. Decoders return strings and slices
// of their own, never parts of the input.

// TransmissionFlags say what an export can do.
type TransmissionFlags uint16

// The transmission flags (proto.md, "Transmission flags").
const (
	HasFlags        TransmissionFlags = 1 << 0
	ReadOnly        TransmissionFlags = 1 << 1
	SendFlush       TransmissionFlags = 1 << 2
	SendFUA         TransmissionFlags = 1 << 3
	Rotational      TransmissionFlags = 1 << 4
	SendTrim        TransmissionFlags = 1 << 5
	SendWriteZeroes TransmissionFlags = 1 << 6
	SendDF          TransmissionFlags = 1 << 7
	CanMultiConn    TransmissionFlags = 1 << 8
	SendResize      TransmissionFlags = 1 << 9
	SendCache       TransmissionFlags = 1 << 10
	SendFastZero    TransmissionFlags = 1 << 11
	BlockStatusPay  TransmissionFlags = 1 << 12
)

// InfoType names a piece of information about an export.
type InfoType uint16

// The pieces of information.
const (
	InfoExport      InfoType = 0
	InfoName        InfoType = 1
	InfoDescription InfoType = 2
	InfoBlockSize   InfoType = 3
)

// fields walks through a payload.
type fields struct {
	b   []byte
	err error
}

func (f *fields) take(n int) []byte {
	if f.err != nil {
		return nil
	}
	if n > len(f.b) {
		f.err = ErrShort
		return nil
	}
	p := f.b[:n]
	f.b = f.b[n:]
	return p
}

func (f *fields) u16() uint16 {
	if p := f.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (f *fields) u32() uint32 {
	if p := f.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if p := f.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// str reads a string with its length before it.
func (f *fields) str() string {
	n := f.u32()
	if f.err == nil && n > MaxString {
		f.err = ErrTooLong
	}
	return f.rest(int(n))
}

// rest reads a string of n bytes.
func (f *fields) rest(n int) string {
	p := f.take(n)
	if f.err == nil && bytes.IndexByte(p, 0) >= 0 {
		f.err = ErrNUL
	}
	if f.err != nil {
		return ""
	}
	return string(p)
}

func (f *fields) end() error {
	if f.err == nil && len(f.b) != 0 {
		f.err = ErrTrailing
	}
	return f.err
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// InfoRequest is the payload of OptInfo and OptGo.
type InfoRequest struct {
	Name     string
	Requests []InfoType
}

// Append appends the payload.
func (r *InfoRequest) Append(b []byte) []byte {
	b = appendString(b, r.Name)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Requests)))
	for _, i := range r.Requests {
		b = binary.BigEndian.AppendUint16(b, uint16(i))
	}
	return b
}

// ParseInfoRequest reads the payload of OptInfo or OptGo. It fails with
// ErrShort, ErrTrailing, ErrTooLong or ErrNUL.
func ParseInfoRequest(b []byte) (*InfoRequest, error) {
	f := fields{b: b}
	r := &InfoRequest{Name: f.str()}
	n := int(f.u16())
	if p := f.take(2 * n); len(p) > 0 {
		r.Requests = make([]InfoType, n)
		for i := range r.Requests {
			r.Requests[i] = InfoType(binary.BigEndian.Uint16(p[2*i:]))
		}
	}
	if err := f.end(); err != nil {
		return nil, err
	}
	return r, nil
}

// MetaRequest is the payload of OptListMetaContext and OptSetMetaContext.
type MetaRequest struct {
	Name    string
	Queries []string // without those longer than MaxString, which match nothing
}

// Append appends the payload.
func (r *MetaRequest) Append(b []byte) []byte {
	b = appendString(b, r.Name)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Queries)))
	for _, q := range r.Queries {
		b = appendString(b, q)
	}
	return b
}

// ParseMetaRequest reads the payload of OptListMetaContext or
// OptSetMetaContext; none tells that it held no query at all. It fails with
// ErrShort, ErrTrailing, ErrTooLong or ErrNUL.
func ParseMetaRequest(b []byte) (r *MetaRequest, none bool, err error) {
	f := fields{b: b}
	r = &MetaRequest{Name: f.str()}
	n := f.u32()
	// Each query takes four bytes at least, so the count is bounded by b.
	for i := uint32(0); i < n && f.err == nil; i++ {
		size := f.u32()
		if size > MaxString {
			if uint64(size) > uint64(len(f.b)) {
				f.err = ErrShort
			} else {
				f.take(int(size))
			}
			continue
		}
		if q := f.rest(int(size)); f.err == nil {
			r.Queries = append(r.Queries, q)
		}
	}
	if err := f.end(); err != nil {
		return nil, false, err
	}
	return r, n == 0, nil
}

// ParseExportName reads the payload of OptExportName, which is all name.
func ParseExportName(b []byte) (string, error) {
	if len(b) > MaxString {
		return "", ErrTooLong
	}
	f := fields{b: b}
	s := f.rest(len(b))
	return s, f.err
}

// ExportInfo is the payload of InfoExport, and the reply to OptExportName.
type ExportInfo struct {
	Size  uint64 // bytes
	Flags TransmissionFlags
}

// Append appends the ten bytes that both messages share.
func (e ExportInfo) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, e.Size)
	return binary.BigEndian.AppendUint16(b, uint16(e.Flags))
}

// ParseExportInfo reads ten bytes.
func ParseExportInfo(b []byte) (ExportInfo, error) {
	f := fields{b: b}
	e := ExportInfo{Size: f.u64(), Flags: TransmissionFlags(f.u16())}
	return e, f.end()
}

// BlockSizes is the payload of InfoBlockSize, in bytes.
type BlockSizes struct {
	Minimum, Preferred, Maximum uint32
}

// Append appends the payload without the information's type.
func (s BlockSizes) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, s.Minimum)
	b = binary.BigEndian.AppendUint32(b, s.Preferred)
	return binary.BigEndian.AppendUint32(b, s.Maximum)
}

// ParseBlockSizes reads the payload without the information's type.
func ParseBlockSizes(b []byte) (BlockSizes, error) {
	f := fields{b: b}
	s := BlockSizes{f.u32(), f.u32(), f.u32()}
	return s, f.end()
}

// AppendInfo appends the type that begins the payload of a RepInfo; the
// information follows.
func AppendInfo(b []byte, t InfoType) []byte {
	return binary.BigEndian.AppendUint16(b, uint16(t))
}

// ParseInfo splits the payload of a RepInfo; the second result is part of b.
func ParseInfo(b []byte) (InfoType, []byte, error) {
	f := fields{b: b}
	t := InfoType(f.u16())
	return t, f.b, f.err
}

// ServerEntry is the payload of a RepServer.
type ServerEntry struct {
	Name, Description string
}

// Append appends the payload.
func (e ServerEntry) Append(b []byte) []byte {
	return append(appendString(b, e.Name), e.Description...)
}

// ParseServerEntry reads the payload of a RepServer.
func ParseServerEntry(b []byte) (ServerEntry, error) {
	f := fields{b: b}
	e := ServerEntry{Name: f.str()}
	if f.err == nil && len(f.b) > MaxString {
		f.err = ErrTooLong
	}
	e.Description = f.rest(len(f.b))
	return e, f.end()
}

// MetaContext is the payload of a RepMetaContext.
type MetaContext struct {
	ID   uint32
	Name string
}

// Append appends the payload.
func (m MetaContext) Append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, m.ID), m.Name...)
}

// ParseMetaContext reads the payload of a RepMetaContext.
func ParseMetaContext(b []byte) (MetaContext, error) {
	f := fields{b: b}
	m := MetaContext{ID: f.u32()}
	if f.err == nil && len(f.b) > MaxString {
		f.err = ErrTooLong
	}
	m.Name = f.rest(len(f.b))
	return m, f.end()
}
