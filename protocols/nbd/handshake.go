package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"syscall"

	"blockd/blockgraph"
	"blockd/nbdproto"
	"blockd/qapi"
	"blockd/sockets"
)

// The client's side of the negotiation (proto.md, "Newstyle negotiation"), with
// the field's error texts.

// exportInfo is what a server says about its export.
type exportInfo struct {
	size  int64 // bytes
	flags nbdproto.TransmissionFlags
	// Bytes; 0 where the server did not say.
	minBlock, optBlock, maxBlock int64
	structured                   bool
	framing                      nbdproto.Framing // extended ones imply structured replies
	// The server answers block status in the context that was asked for.
	status  bool
	context uint32
}

// handshake is one negotiation. It is used by one goroutine.
type handshake struct {
	t    *sockets.Stream
	info exportInfo
}

// maxOptionReply is the longest reply to an option in bytes that is read.
const maxOptionReply = sockets.StreamBuffer - nbdproto.OptionReplyHeaderSize

// oldstyleMagic is the second number of a server that does not negotiate.
const oldstyleMagic = 0x00420281861253

// negotiate brings a connection to its transmission phase. secure, unless nil,
// is the TLS client's configuration. When ctx ends the connection is closed.
func negotiate(ctx context.Context, c net.Conn, export, meta string, secure *tls.Config) (*link, exportInfo, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	h := &handshake{t: sockets.NewStream(c)}
	err := h.run(export, meta, secure)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		h.t.ReleaseBuffer()
		return nil, h.info, err
	}
	return newLink(h.t, c, &h.info), h.info, nil
}

func (h *handshake) run(export, meta string, secure *tls.Config) error {
	old, fixed, zeroes, err := h.greet()
	if err != nil {
		return err
	}
	switch {
	case old:
		return h.oldstyle(export, secure)
	case !fixed && secure != nil:
		return qapi.Errorf("Server does not support STARTTLS")
	case !fixed:
		return h.exportName(export, zeroes)
	}
	if secure != nil {
		if err := h.startTLS(secure); err != nil {
			return err
		}
	}
	if h.info.structured, err = h.simple(nbdproto.OptExtendedHeaders, false); err != nil {
		return err
	}
	if h.info.structured {
		h.info.framing = nbdproto.Extended
	} else if h.info.structured, err = h.simple(nbdproto.OptStructuredReply, false); err != nil {
		return err
	}
	if h.info.structured {
		if err := h.setMeta(export, meta); err != nil {
			return err
		}
	}
	done, err := h.goExport(export)
	if err != nil || done {
		return err
	}
	if h.info.framing == nbdproto.Extended {
		return qapi.Errorf("Server has extended headers and no option %d (%s)", nbdproto.OptGo, nbdproto.OptGo)
	}
	// A server without GO closes the connection on a name that it does not have;
	// its list makes a better message.
	if err := h.lookFor(export); err != nil {
		return err
	}
	return h.exportName(export, zeroes)
}

func (h *handshake) read(n int, what string) ([]byte, error) {
	if err := h.t.Need(n); err != nil {
		if sockets.Vanished(err) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, qapi.Errorf("Failed to read %s: Unexpected end-of-file before all data were read", what)
		}
		return nil, qapi.Errorf("Failed to read %s: Unable to read from socket: %s", what, blockgraph.Strerror(err))
	}
	return h.t.Next(n), nil
}

func (h *handshake) write(b []byte, what string) error {
	if err := h.t.WriteV([][]byte{b}); err != nil {
		return qapi.Errorf("Failed to send %s: Unable to write to socket: %s", what, blockgraph.Strerror(err))
	}
	return nil
}

// greet reads the server's first words and answers them.
func (h *handshake) greet() (old, fixed, zeroes bool, err error) {
	b, err := h.read(8, "initial magic")
	if err != nil {
		return
	}
	if m := binary.BigEndian.Uint64(b); m != nbdproto.GreetingMagic {
		err = qapi.Errorf("Bad initial magic received: 0x%x", m)
		return
	}
	if b, err = h.read(8, "server magic"); err != nil {
		return
	}
	switch m := binary.BigEndian.Uint64(b); m {
	case oldstyleMagic:
		return true, false, true, nil
	case nbdproto.OptionMagic:
	default:
		err = qapi.Errorf("Bad server magic received: 0x%x", m)
		return
	}
	if b, err = h.read(2, "server flags"); err != nil {
		return
	}
	offered := nbdproto.HandshakeFlags(binary.BigEndian.Uint16(b))
	taken := offered & (nbdproto.FixedNewstyle | nbdproto.NoZeroes)
	err = h.write(nbdproto.AppendClientFlags(nil, taken), "clientflags field")
	return false, taken&nbdproto.FixedNewstyle != 0, taken&nbdproto.NoZeroes == 0, err
}

func (h *handshake) oldstyle(export string, secure *tls.Config) error {
	switch {
	case secure != nil:
		return qapi.Errorf("Server does not support STARTTLS")
	case export != "":
		return qapi.Errorf("Server does not support non-empty export names")
	}
	b, err := h.read(12, "export length")
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b[8:])
	if flags > 0xffff {
		return qapi.Errorf("Unexpected export flags %x", flags)
	}
	if err := h.size(binary.BigEndian.Uint64(b), nbdproto.TransmissionFlags(flags)); err != nil {
		return err
	}
	return h.padding()
}

func (h *handshake) padding() error {
	_, err := h.read(nbdproto.ExportNamePadding, "reserved block")
	return err
}

func (h *handshake) size(size uint64, flags nbdproto.TransmissionFlags) error {
	if size > 1<<63-1 {
		return qapi.Errorf("Server reports export size %d, which is too large", size)
	}
	h.info.size, h.info.flags = int64(size), flags
	return nil
}

// exportName is the option without an answer but the export itself.
func (h *handshake) exportName(export string, zeroes bool) error {
	if err := h.option(nbdproto.OptExportName, []byte(export)); err != nil {
		return err
	}
	b, err := h.read(10, "export length")
	if err != nil {
		return err
	}
	e, err := nbdproto.ParseExportInfo(b)
	if err != nil {
		return err
	}
	if err := h.size(e.Size, e.Flags); err != nil || !zeroes {
		return err
	}
	return h.padding()
}

func (h *handshake) option(o nbdproto.Option, payload []byte) error {
	b := nbdproto.OptionHeader{Option: o, Length: uint32(len(payload))}.Append(nil)
	return h.write(append(b, payload...), "option request")
}

// reply reads one reply to an option; its payload is good until the next read.
func (h *handshake) reply(o nbdproto.Option) (nbdproto.RepType, []byte, error) {
	b, err := h.read(nbdproto.OptionReplyHeaderSize, "option reply")
	if err != nil {
		return 0, nil, err
	}
	r, err := nbdproto.ParseOptionReplyHeader(b)
	switch {
	case err == nbdproto.ErrMagic:
		return 0, nil, qapi.Errorf("Unexpected option reply magic")
	case err != nil || r.Length > maxOptionReply:
		return 0, nil, qapi.Errorf("reply to option %d (%s) is too long", o, o)
	case r.Option != o:
		return 0, nil, qapi.Errorf("Unexpected option type %d (%s), expected %d (%s)", r.Option, r.Option, o, o)
	}
	b, err = h.read(int(r.Length), "option reply")
	return r.Type, b, err
}

// refusal is the error for a reply that refuses an option.
func refusal(o nbdproto.Option, t nbdproto.RepType, msg []byte) error {
	var text string
	switch t {
	case nbdproto.RepErrPolicy:
		text = fmt.Sprintf("Denied by server for option %d (%s)", o, o)
	case nbdproto.RepErrInvalid:
		text = fmt.Sprintf("Invalid parameters for option %d (%s)", o, o)
	case nbdproto.RepErrPlatform:
		text = fmt.Sprintf("Server lacks support for option %d (%s)", o, o)
	case nbdproto.RepErrTLSReqd:
		text = fmt.Sprintf("TLS negotiation required before option %d (%s)", o, o)
	case nbdproto.RepErrUnknown:
		text = "Requested export not available"
	case nbdproto.RepErrShutdown:
		text = fmt.Sprintf("Server shutting down before option %d (%s)", o, o)
	case nbdproto.RepErrBlockSizeReqd:
		text = fmt.Sprintf("Server requires INFO_BLOCK_SIZE for option %d (%s)", o, o)
	default:
		text = fmt.Sprintf("Unknown error code when asking for option %d (%s)", o, o)
	}
	err := blockgraph.Errorf(syscall.EINVAL, "%s", text)
	if t == nbdproto.RepErrTLSReqd {
		err = blockgraph.WithHint(err, "Did you forget a valid tls-creds?")
	}
	if len(msg) > 0 && len(msg) <= nbdproto.MaxString {
		err = blockgraph.WithHint(err, fmt.Sprintf("server reported: %q", msg))
	}
	return err
}

// simple asks for an option without payload; false when the server does not
// have it or, unless strict, refuses it for any reason.
func (h *handshake) simple(o nbdproto.Option, strict bool) (bool, error) {
	if err := h.option(o, nil); err != nil {
		return false, err
	}
	t, b, err := h.reply(o)
	switch {
	case err != nil:
		return false, err
	case t == nbdproto.RepErrUnsup, t.IsError() && !strict:
		return false, nil
	case t.IsError():
		return false, refusal(o, t, b)
	case t != nbdproto.RepAck || len(b) != 0:
		return false, qapi.Errorf("Server answered option %d (%s) with unexpected reply %d", o, o, t)
	}
	return true, nil
}

func (h *handshake) startTLS(secure *tls.Config) error {
	ok, err := h.simple(nbdproto.OptStartTLS, true)
	if err != nil {
		return err
	}
	if !ok {
		return qapi.Errorf("Server don't support STARTTLS option")
	}
	if h.t.Buffered() > 0 {
		// What came in the clear must not count as said under TLS.
		return qapi.Errorf("Server sent data before the TLS handshake")
	}
	c := tls.Client(h.t.Conn(), secure)
	if err := c.Handshake(); err != nil {
		if own := (*qapi.Error)(nil); errors.As(err, &own) {
			return own // the verification's
		}
		return qapi.Errorf("TLS handshake failed: %s", err)
	}
	h.t.ReleaseBuffer()
	h.t = sockets.NewStream(c)
	return nil
}

// setMeta asks for the one metadata context that block status is to answer in.
func (h *handshake) setMeta(export, meta string) error {
	const o = nbdproto.OptSetMetaContext
	if err := h.option(o, (&nbdproto.MetaRequest{Name: export, Queries: []string{meta}}).Append(nil)); err != nil {
		return err
	}
	for {
		t, b, err := h.reply(o)
		switch {
		case err != nil:
			return err
		case t.IsError():
			return nil
		case t == nbdproto.RepAck && len(b) == 0:
			return nil
		case t != nbdproto.RepMetaContext:
			return qapi.Errorf("Unexpected reply type %d, expected %d", t, nbdproto.RepMetaContext)
		}
		m, err := nbdproto.ParseMetaContext(b)
		switch {
		case err != nil:
			return qapi.Errorf("Failed to negotiate meta context, server answered with unexpected length %d", len(b))
		case m.Name != meta:
			return qapi.Errorf("Failed to negotiate meta context '%s', server answered with different context '%s'", meta, m.Name)
		case h.info.status:
			return qapi.Errorf("Server answered with more than one context")
		}
		h.info.status, h.info.context = true, m.ID
	}
}

// goExport enters the transmission phase; false when the server does not know
// the option.
func (h *handshake) goExport(export string) (bool, error) {
	const o = nbdproto.OptGo
	r := nbdproto.InfoRequest{Name: export, Requests: []nbdproto.InfoType{nbdproto.InfoBlockSize}}
	if err := h.option(o, r.Append(nil)); err != nil {
		return false, err
	}
	seen := false
	for {
		t, b, err := h.reply(o)
		switch {
		case err != nil:
			return false, err
		case t == nbdproto.RepErrUnsup:
			return false, nil
		case t.IsError():
			return false, refusal(o, t, b)
		case t == nbdproto.RepAck && len(b) != 0:
			return false, qapi.Errorf("server sent invalid NBD_REP_ACK")
		case t == nbdproto.RepAck && !seen:
			return false, qapi.Errorf("broken server omitted NBD_INFO_EXPORT")
		case t == nbdproto.RepAck:
			return true, h.checkBlocks()
		case t != nbdproto.RepInfo:
			return false, qapi.Errorf("unexpected reply type %d, expected %d", t, nbdproto.RepInfo)
		}
		kind, b, err := nbdproto.ParseInfo(b)
		if err != nil {
			return false, qapi.Errorf("NBD_REP_INFO length is too short")
		}
		switch kind {
		case nbdproto.InfoExport:
			e, err := nbdproto.ParseExportInfo(b)
			if err != nil {
				return false, qapi.Errorf("remaining export info len %d is unexpected size", len(b))
			}
			if err := h.size(e.Size, e.Flags); err != nil {
				return false, err
			}
			seen = e.Flags != 0
		case nbdproto.InfoBlockSize:
			s, err := nbdproto.ParseBlockSizes(b)
			if err != nil {
				return false, qapi.Errorf("remaining export info len %d is unexpected size", len(b))
			}
			switch {
			case bits.OnesCount32(s.Minimum) != 1 || s.Minimum > maxMinBlock:
				return false, qapi.Errorf("server minimum block size %d is not a power of two", s.Minimum)
			case bits.OnesCount32(s.Preferred) != 1 || s.Preferred < s.Minimum:
				return false, qapi.Errorf("server preferred block size %d is not valid", s.Preferred)
			case s.Maximum < s.Minimum:
				return false, qapi.Errorf("server maximum block size %d is not valid", s.Maximum)
			}
			h.info.minBlock, h.info.optBlock, h.info.maxBlock = int64(s.Minimum), int64(s.Preferred), int64(s.Maximum)
		}
	}
}

// maxMinBlock is the largest minimum block size in bytes that proto.md allows.
const maxMinBlock = 64 << 10

func (h *handshake) checkBlocks() error {
	if m := h.info.minBlock; m > 0 && h.info.size%m != 0 {
		return qapi.Errorf("export size %d is not multiple of minimum block size %d", h.info.size, m)
	}
	return nil
}

// maxExports bounds how many names of a server's list are read.
const maxExports = 10_000

// lookFor fails when the server lists its exports and ours is not there.
func (h *handshake) lookFor(export string) error {
	if err := h.option(nbdproto.OptList, nil); err != nil {
		return err
	}
	found, any := false, false
	for range maxExports {
		t, b, err := h.reply(nbdproto.OptList)
		switch {
		case err != nil:
			return err
		case t.IsError():
			return nil
		case t == nbdproto.RepAck:
			// Servers of one export may list none, or hide its name.
			if any && !found {
				return qapi.Errorf("No export with name '%s' available", export)
			}
			return nil
		case t != nbdproto.RepServer:
			return qapi.Errorf("Unexpected reply type %d, expected %d", t, nbdproto.RepServer)
		}
		e, err := nbdproto.ParseServerEntry(b)
		if err != nil {
			return qapi.Errorf("incorrect name length in server's list response")
		}
		any = true
		found = found || e.Name == export
	}
	return qapi.Errorf("server's list of exports is too long")
}
