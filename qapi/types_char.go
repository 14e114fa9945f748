package qapi

// Arguments and results of the chardev commands, and the option --monitor.

// ChardevBackendKind is the kind of a character device.
type ChardevBackendKind string

// Values of ChardevBackendKind.
const (
	ChardevBackendKindFile   ChardevBackendKind = "file"
	ChardevBackendKindSocket ChardevBackendKind = "socket"
	ChardevBackendKindNull   ChardevBackendKind = "null"
	ChardevBackendKindStdio  ChardevBackendKind = "stdio"
)

// QAPIEnum lists the values that blockd accepts.
func (ChardevBackendKind) QAPIEnum() []string {
	return []string{"file", "socket", "null", "stdio"}
}

// ChardevCommon are the options of every character device.
type ChardevCommon struct {
	Logfile *string `qapi:"logfile"`
	// Default false.
	Logappend *bool `qapi:"logappend"`
	// Default false.
	Logtimestamp *bool `qapi:"logtimestamp"`
}

// ChardevFile writes to a file, and may read from another.
type ChardevFile struct {
	ChardevCommon
	In  *string `qapi:"in"`
	Out string  `qapi:"out"`
	// Default false.
	Append *bool `qapi:"append"`
}

// ChardevSocket is a stream socket, client or server.
type ChardevSocket struct {
	ChardevCommon
	Addr     SocketAddressLegacy `qapi:"addr"`
	TLSCreds *string             `qapi:"tls-creds"`
	TLSAuthz *string             `qapi:"tls-authz"`
	// Listen instead of connecting. Default true.
	Server *bool `qapi:"server"`
	// A server waits for its first client. Default false.
	Wait *bool `qapi:"wait"`
	// Default false.
	Nodelay *bool `qapi:"nodelay"`
	// Default false.
	Telnet *bool `qapi:"telnet"`
	// Default false.
	TN3270 *bool `qapi:"tn3270"`
	// Default false.
	Websocket *bool `qapi:"websocket"`
	// Milliseconds before a client connects again; 0 is never. Default 0.
	ReconnectMs *int64 `qapi:"reconnect-ms"`
}

// ChardevStdio is standard input and output.
type ChardevStdio struct {
	ChardevCommon
	// Let the terminal send signals. Default true.
	Signal *bool `qapi:"signal"`
}

// ChardevBackend describes a character device. The branch stands under the
// member data.
type ChardevBackend struct {
	Type   ChardevBackendKind `qapi:"type,discriminator"`
	File   *ChardevFile       `qapi:",case=file,wrap"`
	Socket *ChardevSocket     `qapi:",case=socket,wrap"`
	Null   *ChardevCommon     `qapi:",case=null,wrap"`
	Stdio  *ChardevStdio      `qapi:",case=stdio,wrap"`
}

// ChardevAddArg is the argument of chardev-add and chardev-change.
type ChardevAddArg struct {
	ID      string         `qapi:"id"`
	Backend ChardevBackend `qapi:"backend"`
}

// ChardevReturn is the result of chardev-add and chardev-change.
type ChardevReturn struct {
	Pty *string `qapi:"pty"`
}

// ChardevIDArg is the argument of chardev-remove and chardev-send-break.
type ChardevIDArg struct {
	ID string `qapi:"id"`
}

// ChardevInfo describes a character device.
type ChardevInfo struct {
	Label        string `qapi:"label"`
	Filename     string `qapi:"filename"`
	FrontendOpen bool   `qapi:"frontend-open"`
}

// ChardevBackendInfo names a kind of character device.
type ChardevBackendInfo struct {
	Name string `qapi:"name"`
}

// MonitorMode is the language of a monitor.
type MonitorMode string

// Values of MonitorMode.
const (
	MonitorModeControl MonitorMode = "control"
)

// QAPIEnum lists the values that blockd accepts.
func (MonitorMode) QAPIEnum() []string {
	return []string{"control"}
}

// MonitorOptions is the argument of --monitor.
type MonitorOptions struct {
	ID *string `qapi:"id"`
	// Default control.
	Mode *MonitorMode `qapi:"mode"`
	// Default false.
	Pretty  *bool  `qapi:"pretty"`
	Chardev string `qapi:"chardev"`
}
