package nbdproto

// Commands and their flags, as one table.

// Command is the type of a request.
type Command uint16

// The commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisc        Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
	CmdResize      Command = 8
)

// CmdFlags modify a request.
type CmdFlags uint16

// The command flags.
const (
	FlagFUA        CmdFlags = 1 << 0
	FlagNoHole     CmdFlags = 1 << 1
	FlagDF         CmdFlags = 1 << 2
	FlagReqOne     CmdFlags = 1 << 3
	FlagFastZero   CmdFlags = 1 << 4
	FlagPayloadLen CmdFlags = 1 << 5
)

// commandInfo is what the protocol says of one command.
type commandInfo struct {
	name string
	// Flags besides FlagFUA, which servers of the field take on every command.
	flags CmdFlags
	// Length counts data that is moved (and so bounded by MaxPayload), not
	// just a range.
	data bool
	// The command changes the export.
	writes bool
}

var commands = [...]commandInfo{
	CmdRead:        {name: "read", flags: FlagDF, data: true},
	CmdWrite:       {name: "write", data: true, writes: true},
	CmdDisc:        {name: "disconnect"},
	CmdFlush:       {name: "flush"},
	CmdTrim:        {name: "trim", writes: true},
	CmdCache:       {name: "cache", data: true},
	CmdWriteZeroes: {name: "write zeroes", flags: FlagNoHole | FlagFastZero, writes: true},
	CmdBlockStatus: {name: "block status", flags: FlagReqOne},
}

func (c Command) info() commandInfo {
	if int(c) < len(commands) {
		return commands[c]
	}
	return commandInfo{name: "<unknown>"}
}

// String names the command for messages to the peer.
func (c Command) String() string { return c.info().name }

// Known tells whether the command exists.
func (c Command) Known() bool { return int(c) < len(commands) }

// Legal returns the flags that may come with the command. FlagDF is legal
// with structured replies only, FlagPayloadLen with extended headers and on what
// can have a payload.
func (c Command) Legal(structured bool, framing Framing) CmdFlags {
	f := c.info().flags | FlagFUA
	if !structured {
		f &^= FlagDF
	}
	if framing == Extended && (c == CmdWrite || c == CmdBlockStatus) {
		f |= FlagPayloadLen
	}
	return f
}

// MovesData tells whether the length is bounded by MaxPayload.
func (c Command) MovesData() bool { return c.info().data }

// Writes tells whether a read-only export refuses the command.
func (c Command) Writes() bool { return c.info().writes }
