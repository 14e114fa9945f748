package nbd

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"

	"blockd/nbdproto"
	"blockd/sockets"
)

// The handshake: options and their answers, one after the other, until the
// client has chosen an export or gone.

// errAbort: the client ended the handshake in good order.
var errAbort = errors.New("nbd: the client aborted the handshake")

// shownName is how much of a name an error message repeats.
const shownName = 80

// negotiation is a connection's handshake.
type negotiation struct {
	*conn
	fixed    bool // the client knows replies to options
	noZeroes bool
	option   nbdproto.Option
	out      bytes.Buffer

	// The outcome of the last OptSetMetaContext, for the export it named.
	metaExport *Export
	meta       []statusContext
}

// handshake talks until the client has become one of an export, whose member
// it then is. errAbort is the one end of a connection that is no failure.
func (c *conn) handshake() error {
	n := &negotiation{conn: c}
	n.out.Write(nbdproto.AppendGreeting(nil, nbdproto.FixedNewstyle|nbdproto.NoZeroes))
	if err := n.send(); err != nil {
		return err
	}
	if err := c.t.Need(nbdproto.ClientFlagsSize); err != nil {
		return err
	}
	flags, unknown, err := nbdproto.ParseClientFlags(c.t.Next(nbdproto.ClientFlagsSize))
	if err != nil {
		return err
	}
	if unknown != 0 {
		return fmt.Errorf("nbd: unknown client flags %#x", uint32(unknown))
	}
	n.fixed = flags&nbdproto.FixedNewstyle != 0
	n.noZeroes = flags&nbdproto.NoZeroes != 0
	for {
		if err := c.t.Need(nbdproto.OptionHeaderSize); err != nil {
			return err
		}
		h, err := nbdproto.ParseOptionHeader(c.t.Next(nbdproto.OptionHeaderSize))
		if err != nil {
			return err
		}
		n.option = h.Option
		done, err := n.handle(h)
		if err == nil || errors.Is(err, errAbort) {
			// A client may abort without waiting for the answer.
			if serr := n.send(); err == nil {
				err = serr
			}
		}
		if err != nil || done {
			return err
		}
	}
}

func (n *negotiation) send() error {
	err := n.t.WriteV([][]byte{n.out.Bytes()})
	n.out.Reset()
	return err
}

// handle answers one option; done: the client has chosen its export.
func (n *negotiation) handle(h nbdproto.OptionHeader) (done bool, err error) {
	if !n.fixed && h.Option != nbdproto.OptExportName {
		return false, fmt.Errorf("nbd: option %d from a client without fixed newstyle", h.Option)
	}
	if h.Length > nbdproto.MaxOptionKept {
		if err := n.t.Skip(int64(h.Length)); err != nil {
			return false, err
		}
		if h.Option == nbdproto.OptExportName {
			return false, nbdproto.ErrTooLong
		}
		n.refuse(nbdproto.RepErrTooBig, "option '%s' is longer than %d bytes", h.Option, nbdproto.MaxOptionKept)
		return false, nil
	}
	// The memory grows with what arrives, not with what was announced.
	var payload bytes.Buffer
	if _, err := io.CopyN(&payload, optionReader{n.t}, int64(h.Length)); err != nil {
		return false, sockets.Unexpected(err)
	}
	p := payload.Bytes()
	if n.server.secure != nil && !n.secured {
		return false, n.beforeTLS(len(p))
	}
	switch h.Option {
	case nbdproto.OptExportName:
		return true, n.exportName(p)
	case nbdproto.OptInfo, nbdproto.OptGo:
		return n.info(p)
	case nbdproto.OptListMetaContext, nbdproto.OptSetMetaContext:
		n.metaContext(p)
		return false, nil
	case nbdproto.OptList, nbdproto.OptAbort, nbdproto.OptStartTLS, nbdproto.OptStructuredReply, nbdproto.OptExtendedHeaders:
		if len(p) > 0 && h.Option != nbdproto.OptAbort {
			n.refuseLength()
			return false, nil
		}
	}
	switch h.Option {
	case nbdproto.OptList:
		return false, n.list()
	case nbdproto.OptAbort:
		n.ack()
		return false, errAbort
	case nbdproto.OptStartTLS:
		if n.secured {
			n.refuse(nbdproto.RepErrInvalid, "TLS already enabled")
			break
		}
		n.refuse(nbdproto.RepErrPolicy, "TLS not configured")
	case nbdproto.OptStructuredReply:
		if n.framing == nbdproto.Extended {
			n.refuse(nbdproto.RepErrExtHeaderReqd, "extended headers already negotiated")
			break
		}
		if n.structured {
			n.refuse(nbdproto.RepErrInvalid, "structured reply already negotiated")
			break
		}
		n.structured = true
		n.ack()
	case nbdproto.OptExtendedHeaders:
		if n.framing == nbdproto.Extended {
			n.refuse(nbdproto.RepErrInvalid, "extended headers already negotiated")
			break
		}
		n.structured, n.framing = true, nbdproto.Extended
		n.ack()
	default:
		n.refuse(nbdproto.RepErrUnsup, "Unsupported option %d (%s)", uint32(h.Option), h.Option)
	}
	return false, nil
}

// beforeTLS answers an option of a client that has to use TLS and does not yet.
func (n *negotiation) beforeTLS(payload int) error {
	switch n.option {
	case nbdproto.OptStartTLS:
		if payload > 0 {
			n.refuseLength()
			return nil
		}
		return n.startTLS()
	case nbdproto.OptAbort:
		n.ack()
		return errAbort
	case nbdproto.OptExportName: // has no reply that could refuse it
		return fmt.Errorf("nbd: option %#x from a client without TLS", uint32(n.option))
	}
	n.refuse(nbdproto.RepErrTLSReqd, "Option %#x not permitted before TLS", uint32(n.option))
	return nil
}

func (n *negotiation) startTLS() error {
	n.ack()
	if err := n.send(); err != nil {
		return err
	}
	if n.t.Buffered() > 0 {
		// What came in the clear must not count as said under TLS.
		return errors.New("nbd: data before the TLS handshake")
	}
	c := tls.Server(n.socket, n.server.secure)
	if err := c.HandshakeContext(n.ctx); err != nil {
		return fmt.Errorf("nbd: TLS handshake failed: %w", err)
	}
	n.t.Replace(c)
	n.secured = true
	return nil
}

// optionReader reads an option's payload for io.CopyN.
type optionReader struct{ t *sockets.Stream }

func (o optionReader) Read(p []byte) (int, error) {
	if err := o.t.Need(1); err != nil {
		return 0, err
	}
	k := min(len(p), o.t.Buffered())
	return copy(p, o.t.Next(k)), nil
}

func (n *negotiation) answer(t nbdproto.RepType, payload []byte) {
	h := nbdproto.OptionReplyHeader{Option: n.option, Type: t, Length: uint32(len(payload))}
	n.out.Write(h.Append(make([]byte, 0, nbdproto.OptionReplyHeaderSize)))
	n.out.Write(payload)
}

func (n *negotiation) ack() { n.answer(nbdproto.RepAck, nil) }

func (n *negotiation) refuse(t nbdproto.RepType, format string, args ...any) {
	n.answer(t, fmt.Appendf(nil, format, args...))
}

func (n *negotiation) refuseLength() {
	n.refuse(nbdproto.RepErrInvalid, "option '%s' has unexpected length", n.option)
}

// refusePayload explains why a payload could not be read.
func (n *negotiation) refusePayload(err error) {
	switch {
	case errors.Is(err, nbdproto.ErrTrailing):
		n.refuseLength()
	case errors.Is(err, nbdproto.ErrTooLong):
		n.refuse(nbdproto.RepErrInvalid, "Invalid name length in option %s", n.option)
	case errors.Is(err, nbdproto.ErrNUL):
		n.refuse(nbdproto.RepErrInvalid, "Unexpected embedded NUL in option %s", n.option)
	default:
		n.refuse(nbdproto.RepErrInvalid, "Inconsistent lengths in option %s", n.option)
	}
}

func (n *negotiation) refuseUnknown(name string) {
	if len(name) >= shownName {
		name = name[:shownName] + "..."
	}
	n.refuse(nbdproto.RepErrUnknown, "export '%s' not present", name)
}

func (n *negotiation) list() error {
	for _, e := range n.server.exportList() {
		entry := nbdproto.ServerEntry{Name: e.name}
		if e.description != nil {
			entry.Description = *e.description
		}
		n.answer(nbdproto.RepServer, entry.Append(nil))
		if n.out.Len() >= sockets.StreamBuffer {
			if err := n.send(); err != nil {
				return err
			}
		}
	}
	n.ack()
	return nil
}

// exportName is the old way into the transmission phase: it has no way to say
// no but to hang up.
func (n *negotiation) exportName(p []byte) error {
	name, err := nbdproto.ParseExportName(p)
	if err != nil {
		return err
	}
	if n.framing == nbdproto.Extended {
		return errors.New("nbd: export name from a client with extended headers")
	}
	e := n.server.find(name)
	if e == nil || !e.attach(n.conn) {
		return errors.New("nbd: export not found")
	}
	n.adopt(e)
	b := e.info(n.structured, false).Append(nil)
	if !n.noZeroes {
		b = append(b, make([]byte, nbdproto.ExportNamePadding)...)
	}
	n.out.Write(b)
	return nil
}

// adopt takes over the contexts that were set for e.
func (n *negotiation) adopt(e *Export) {
	if n.metaExport == e {
		n.contexts = n.meta
	}
}

// filters tells whether the client may ask for some of its contexts in e.
func (n *negotiation) filters(e *Export) bool {
	return n.framing == nbdproto.Extended && n.metaExport == e && len(n.meta) > 0
}

func (n *negotiation) info(p []byte) (done bool, err error) {
	q, err := nbdproto.ParseInfoRequest(p)
	if err != nil {
		n.refusePayload(err)
		return false, nil
	}
	e := n.server.find(q.Name)
	if e == nil {
		n.refuseUnknown(q.Name)
		return false, nil
	}
	if slices.Contains(q.Requests, nbdproto.InfoName) {
		n.answer(nbdproto.RepInfo, append(nbdproto.AppendInfo(nil, nbdproto.InfoName), q.Name...))
	}
	if e.description != nil {
		n.answer(nbdproto.RepInfo, append(nbdproto.AppendInfo(nil, nbdproto.InfoDescription), *e.description...))
	}
	// Clients that did not ask may not heed the minimum; unaligned requests
	// work, so they are told 1.
	sizes := e.sizes
	asked := slices.Contains(q.Requests, nbdproto.InfoBlockSize)
	if n.option == nbdproto.OptGo && !asked {
		sizes.Minimum = 1
	}
	n.answer(nbdproto.RepInfo, sizes.Append(nbdproto.AppendInfo(nil, nbdproto.InfoBlockSize)))
	n.answer(nbdproto.RepInfo, e.info(n.structured, n.filters(e)).Append(nbdproto.AppendInfo(nil, nbdproto.InfoExport)))
	if n.option == nbdproto.OptInfo {
		if !asked && e.sizes.Minimum > 1 {
			n.refuse(nbdproto.RepErrBlockSizeReqd, "request NBD_INFO_BLOCK_SIZE to use this export")
			return false, nil
		}
		n.ack()
		return false, nil
	}
	if !e.attach(n.conn) {
		n.out.Reset()
		n.refuseUnknown(q.Name)
		return false, nil
	}
	n.adopt(e)
	n.ack()
	return true, nil
}

func (n *negotiation) metaContext(p []byte) {
	list := n.option == nbdproto.OptListMetaContext
	if !list {
		if !n.structured {
			n.refuse(nbdproto.RepErrInvalid, "request option '%s' when structured reply is not negotiated", n.option)
			return
		}
		n.metaExport, n.meta = nil, nil
	}
	q, none, err := nbdproto.ParseMetaRequest(p)
	if err != nil {
		n.refusePayload(err)
		return
	}
	e := n.server.find(q.Name)
	if e == nil {
		n.refuseUnknown(q.Name)
		return
	}
	chosen := e.contexts
	if !list || !none {
		chosen = selectContexts(e.contexts, q.Queries, list)
	}
	for _, c := range chosen {
		m := nbdproto.MetaContext{ID: c.id, Name: c.Name()}
		if list {
			m.ID = 0
		}
		n.answer(nbdproto.RepMetaContext, m.Append(nil))
	}
	n.ack()
	if !list {
		n.metaExport, n.meta = e, chosen
	}
}
