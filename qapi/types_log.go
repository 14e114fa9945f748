package qapi

// Types of blockd's own: its log.

// LogLevel says how grave a line is.
type LogLevel string

// Values of LogLevel.
const (
	LogLevelDebug   LogLevel = "debug"
	LogLevelInfo    LogLevel = "info"
	LogLevelWarning LogLevel = "warning"
	LogLevelError   LogLevel = "error"
)

// QAPIEnum lists the values.
func (LogLevel) QAPIEnum() []string { return []string{"debug", "info", "warning", "error"} }

// LogSubsystem is a part of the daemon.
type LogSubsystem string

// Values of LogSubsystem.
const (
	LogSubsystemDaemon    LogSubsystem = "daemon"
	LogSubsystemExports   LogSubsystem = "exports"
	LogSubsystemFilters   LogSubsystem = "filters"
	LogSubsystemFormats   LogSubsystem = "formats"
	LogSubsystemGraph     LogSubsystem = "graph"
	LogSubsystemJobs      LogSubsystem = "jobs"
	LogSubsystemObjects   LogSubsystem = "objects"
	LogSubsystemProtocols LogSubsystem = "protocols"
	LogSubsystemQcow2     LogSubsystem = "qcow2"
	LogSubsystemQMP       LogSubsystem = "qmp"
	LogSubsystemWeb       LogSubsystem = "web"
)

// QAPIEnum lists the values.
func (LogSubsystem) QAPIEnum() []string {
	return []string{"daemon", "exports", "filters", "formats", "graph", "jobs", "objects", "protocols", "qcow2", "qmp", "web"}
}

// LogSink is a place where lines go.
type LogSink string

// Values of LogSink.
const (
	// LogSinkMemory is what x-query-log and LOG_LINE show.
	LogSinkMemory LogSink = "memory"
	// LogSinkOutput is the file, or stderr.
	LogSinkOutput LogSink = "output"
)

// QAPIEnum lists the values.
func (LogSink) QAPIEnum() []string { return []string{"memory", "output"} }

// LogFormat is how the output is written.
type LogFormat string

// Values of LogFormat.
const (
	LogFormatText LogFormat = "text"
	LogFormatJSON LogFormat = "json"
)

// QAPIEnum lists the values.
func (LogFormat) QAPIEnum() []string { return []string{"text", "json"} }

// LogOptions are those of --log.
type LogOptions struct {
	Level     *LogLevel     `qapi:"level"`
	Subsystem *LogSubsystem `qapi:"subsystem"`
	Sink      *LogSink      `qapi:"sink"`
	Format    *LogFormat    `qapi:"format"`
	File      *string       `qapi:"file"`
}

// XQueryLogArg is the argument of x-query-log.
type XQueryLogArg struct {
	// Only lines with greater numbers.
	Since *uint64 `qapi:"since"`
	// The instance that Since is of.
	Instance *string `qapi:"instance"`
	// The least level.
	Level     *LogLevel     `qapi:"level"`
	Subsystem *LogSubsystem `qapi:"subsystem"`
	Request   *uint64       `qapi:"request"`
	// The most lines, the newest first chosen.
	Limit *uint32 `qapi:"limit"`
}

// LogPast is a part of the log.
type LogPast struct {
	// Changes when the daemon is started anew, and numbers begin again.
	Instance string `qapi:"instance"`
	// Of the oldest line that is kept; greater than last: none is.
	First uint64 `qapi:"first"`
	Last  uint64 `qapi:"last"`
	// The lines are all that were asked for.
	Complete bool      `qapi:"complete"`
	Lines    []LogLine `qapi:"lines"`
}

// LogLine is one line of the log.
type LogLine struct {
	Number    uint64       `qapi:"number"`
	Timestamp LogTime      `qapi:"timestamp"`
	Level     LogLevel     `qapi:"level"`
	Subsystem LogSubsystem `qapi:"subsystem"`
	Message   string       `qapi:"message"`
	// The command that it is about.
	Request    *uint64        `qapi:"request"`
	Attributes []LogAttribute `qapi:"attributes"`
}

// LogTime is a time of day, like an event's.
type LogTime struct {
	Seconds      int64 `qapi:"seconds"`
	Microseconds int64 `qapi:"microseconds"`
}

// LogAttribute is a detail of a line.
type LogAttribute struct {
	Name  string `qapi:"name"`
	Value string `qapi:"value"`
}

// XLogSubscribeArg is the argument of x-log-subscribe.
type XLogSubscribeArg struct {
	Enable *bool `qapi:"enable"`
}

// LogSubscription says which lines a client is going to be told of.
type LogSubscription struct {
	Instance string `qapi:"instance"`
	// The last line that it is not told of.
	Last uint64 `qapi:"last"`
}

// LogLineWritten is the data of LOG_LINE.
type LogLineWritten struct {
	Instance string  `qapi:"instance"`
	Line     LogLine `qapi:"line"`
}

// XLogSetLevelArg is the argument of x-log-set-level.
type XLogSetLevelArg struct {
	Level     LogLevel      `qapi:"level"`
	Subsystem *LogSubsystem `qapi:"subsystem"`
	Sink      *LogSink      `qapi:"sink"`
}

// XLogTraceArg is the argument of x-log-trace.
type XLogTraceArg struct {
	Pattern string   `qapi:"pattern"`
	Sink    *LogSink `qapi:"sink"`
}

// LogTraced names events.
type LogTraced struct {
	Events []string `qapi:"events"`
}

// LogLevels says what is logged where.
type LogLevels struct {
	Subsystems []LogSubsystemLevels `qapi:"subsystems"`
	Events     []LogEvent           `qapi:"events"`
	// Lines that the output lost because it was too slow, or could not write.
	Lost   uint64 `qapi:"lost"`
	Failed uint64 `qapi:"failed"`
}

// LogSubsystemLevels are the levels of a subsystem.
type LogSubsystemLevels struct {
	Subsystem LogSubsystem `qapi:"subsystem"`
	Memory    LogLevel     `qapi:"memory"`
	Output    LogLevel     `qapi:"output"`
}

// LogEvent is a trace event, and where it is shown.
type LogEvent struct {
	Name      string       `qapi:"name"`
	Subsystem LogSubsystem `qapi:"subsystem"`
	Memory    bool         `qapi:"memory"`
	Output    bool         `qapi:"output"`
}
