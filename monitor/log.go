package monitor

import (
	"math"

	"blockd/logs"
	"blockd/qapi"
	"blockd/qmp"
)

// The daemon's log, as clients see it (package logs keeps it).

const logLine = "LOG_LINE"

// defaultLogLines is how many lines x-query-log gives unless it is asked for
// another number.
const defaultLogLines = 1000

func (m *Monitor) registerLog(r *qmp.Registry) {
	o := qmp.CommandOptions{Unstable: true}
	read := qmp.CommandOptions{Unstable: true, ReadOnly: true}
	qmp.Register(r, "x-query-log", read, m.queryLog)
	qmp.Register(r, "x-log-subscribe", read, m.logSubscribe)
	qmp.Register(r, "x-query-log-levels", read, m.queryLogLevels)
	qmp.Register(r, "x-log-set-level", o, m.logSetLevel)
	qmp.Register(r, "x-log-trace", o, m.logTrace)
	qmp.RegisterEvent[qapi.LogLineWritten](r, logLine)
}

func (m *Monitor) queryLog(_ *qmp.Context, a *qapi.XQueryLogArg) (*qapi.LogPast, error) {
	past := &qapi.LogPast{Instance: m.Log.Instance()}
	other := a.Instance != nil && *a.Instance != past.Instance
	var since uint64
	if a.Since != nil && !other {
		since = *a.Since
	}
	most := defaultLogLines
	if a.Limit != nil {
		most = int(min(*a.Limit, math.MaxInt32))
	}
	p := m.Log.Since(since, most, func(l *logs.Line) bool {
		return (a.Level == nil || l.AtLeast(*a.Level)) &&
			(a.Subsystem == nil || l.Subsystem == *a.Subsystem) &&
			(a.Request == nil || l.Request == *a.Request)
	})
	past.First, past.Last, past.Complete = p.First, p.Last, p.Complete && !other
	past.Lines = make([]qapi.LogLine, len(p.Lines))
	for i, l := range p.Lines {
		past.Lines[i] = lineOf(l)
	}
	return past, nil
}

func (m *Monitor) logSubscribe(c *qmp.Context, a *qapi.XLogSubscribeArg) (*qapi.LogSubscription, error) {
	last := m.lines.Between(func() { c.Subscribe(logLine, a.Enable == nil || *a.Enable) })
	return &qapi.LogSubscription{Instance: m.Log.Instance(), Last: last}, nil
}

func (m *Monitor) queryLogLevels(*qmp.Context, *qapi.Empty) (*qapi.LogLevels, error) {
	var l qapi.LogLevels
	l.Subsystems, l.Events = m.Log.Levels()
	l.Lost, l.Failed = m.Log.Lost()
	return &l, nil
}

func (m *Monitor) logSetLevel(_ *qmp.Context, a *qapi.XLogSetLevelArg) (qapi.Empty, error) {
	m.Log.SetLevel(a.Level, a.Subsystem, a.Sink)
	return qapi.Empty{}, nil
}

func (m *Monitor) logTrace(_ *qmp.Context, a *qapi.XLogTraceArg) (*qapi.LogTraced, error) {
	names, _, err := m.Log.Trace(a.Pattern, a.Sink)
	if err != nil {
		return nil, qapi.Errorf("Parameter 'pattern': %s", err)
	}
	if len(names) == 0 {
		return nil, qapi.Errorf("trace event '%s' does not exist", a.Pattern)
	}
	return &qapi.LogTraced{Events: names}, nil
}

// FollowLog has LOG_LINE sent, for each line that comes, to those who asked for
// it. Once, before commands run; StopLog ends it.
func (m *Monitor) FollowLog(hub *qmp.Hub) {
	m.lines = m.Log.Follow(func(l *logs.Line) {
		hub.EmitSubscribed(logLine, func() any {
			return &qapi.LogLineWritten{Instance: m.Log.Instance(), Line: lineOf(l)}
		})
	})
}

// StopLog ends FollowLog.
func (m *Monitor) StopLog() { m.lines.Stop() }

//blockd:io
func lineOf(l *logs.Line) qapi.LogLine {
	line := qapi.LogLine{
		Number:    l.Number,
		Timestamp: qapi.LogTime{Seconds: l.At.Unix(), Microseconds: int64(l.At.Nanosecond()) / 1000},
		Level:     l.Name(), Subsystem: l.Subsystem, Message: l.Message,
		Attributes: make([]qapi.LogAttribute, len(l.Attrs)),
	}
	if l.Request != 0 {
		line.Request = &l.Request
	}
	for i, a := range l.Attrs {
		line.Attributes[i] = qapi.LogAttribute{Name: a.Key, Value: a.Value.String()}
	}
	return line
}
