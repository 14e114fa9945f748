package qapi

// Types of blockd's own: who a session is with, and what it may do.

// SessionRole is what a session may do.
type SessionRole string

// Values of SessionRole.
const (
	SessionRoleReadOnly SessionRole = "read-only"
	SessionRoleControl  SessionRole = "control"
)

// QAPIEnum lists the values.
func (SessionRole) QAPIEnum() []string {
	return []string{string(SessionRoleReadOnly), string(SessionRoleControl)}
}

// SessionTransport is how a session came.
type SessionTransport string

// Values of SessionTransport.
const (
	SessionTransportMonitor   SessionTransport = "monitor"
	SessionTransportWebsocket SessionTransport = "websocket"
)

// QAPIEnum lists the values.
func (SessionTransport) QAPIEnum() []string {
	return []string{string(SessionTransportMonitor), string(SessionTransportWebsocket)}
}

// SessionInfo is the result of x-query-session.
type SessionInfo struct {
	Role      SessionRole      `qapi:"role"`
	Transport SessionTransport `qapi:"transport"`
	// The client's address, in words.
	Peer string `qapi:"peer"`
	// Whose process it is, as the kernel says, at a unix socket.
	UID *uint32 `qapi:"uid"`
	// The name beside its token, or that of its certificate.
	Name   *string       `qapi:"name"`
	TLS    bool          `qapi:"tls"`
	Limits SessionLimits `qapi:"limits"`
}

// SessionLimits bound a session.
type SessionLimits struct {
	// Commands that may wait behind the one that runs.
	Queue int64 `qapi:"queue"`
	// Bytes of output that the client may leave unread.
	Backlog int64 `qapi:"backlog"`
	// Bytes of one message of the client.
	Message *int64 `qapi:"message"`
	// Messages in a second in the long run, and at once.
	Rate  *int64 `qapi:"rate"`
	Burst *int64 `qapi:"burst"`
	// Seconds for which the client may leave output unread.
	Stall *int64 `qapi:"stall"`
}
