package logs

import (
	"context"
	"log/slog"
	"slices"

	"blockd/qapi"
)

// Handler returns the log as slog knows it. It never waits.
func (l *Log) Handler() slog.Handler { return &handler{log: l} }

// handler is slog.Handler over a Log. attrs and prefix are what With and
// WithGroup gave.
type handler struct {
	log    *Log
	attrs  []slog.Attr // flat, resolved
	prefix string      // of names: groups, each with a dot behind
}

// Enabled is slog.Handler's.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.log.levels.Load().least
}

// Handle is slog.Handler's. It never fails.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	subsystem := subsystemOf(r.PC)
	now := h.log.levels.Load()
	line := Line{At: r.Time, Level: r.Level, Subsystem: subsystem}
	line.memory = now.of[memory].takes(subsystem, r.Level, r.Message)
	line.output = now.of[output].takes(subsystem, r.Level, r.Message)
	if !line.memory && !line.output {
		return nil
	}
	line.Message = scrub(r.Message, maxText)
	line.Attrs = slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		line.Attrs = flatten(line.Attrs, h.prefix, a)
		return true
	})
	if o, ok := qapi.OriginOf(ctx); ok {
		line.Request = o.Request
	}
	h.log.add(line)
	return nil
}

// WithAttrs is slog.Handler's.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		n.attrs = flatten(n.attrs, h.prefix, a)
	}
	return &n
}

// WithGroup is slog.Handler's.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.prefix += name + "."
	return &n
}

// maxAttrs is how many attributes a line has at most; the others are left out.
const maxAttrs = 64

// flatten appends an attribute to a line's: values that are plain, without
// secrets, and members of groups under dotted names.
func flatten(to []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, m := range v.Group() {
			to = flatten(to, prefix, m)
		}
		return to
	}
	if a.Equal(slog.Attr{}) || len(to) == maxAttrs {
		return to
	}
	key := scrub(prefix+a.Key, maxKey)
	switch v.Kind() {
	case slog.KindBool, slog.KindInt64, slog.KindUint64, slog.KindFloat64, slog.KindDuration, slog.KindTime:
	default:
		v = slog.StringValue(scrub(text(v), maxText))
	}
	if secretName(a.Key) {
		v = slog.StringValue(blackedOut)
	}
	return append(to, slog.Attr{Key: key, Value: v})
}

// text returns a value as a text handler would show it.
func text(v slog.Value) string {
	switch x := v.Any().(type) {
	case error:
		return errorText(x)
	default:
		return v.String()
	}
}

// errorText returns an error's text, also when asking for it panics, as it does
// with a nil pointer that is an error.
func errorText(err error) (s string) {
	defer func() {
		if recover() != nil {
			s = "an error without text"
		}
	}()
	return err.Error()
}
