package qapi

import "context"

// Origin says at whose wish something happens, where no job is the cause.
// At most one of its kinds holds: a command, an option, the end; none for what a
// job does.
type Origin struct {
	// Command is the QMP command, or "". ID is the id that its client gave it,
	// if HasID.
	Command string
	ID      any
	HasID   bool
	// Option is the command line's option, without dashes, or "".
	Option string
	// Shutdown: the daemon ends.
	Shutdown bool
	// Request is the number that the daemon has given the command, 0 for none. No
	// other command of its run has the same. It follows what the command causes:
	// jobs, graph changes, log lines.
	Request uint64
}

type originKey struct{}

// WithOrigin returns a context of what is done at the wish of o.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

// OriginOf returns the origin of what is done under ctx, if it is known.
func OriginOf(ctx context.Context) (Origin, bool) {
	o, ok := ctx.Value(originKey{}).(Origin)
	return o, ok
}

// WithRequest returns a context of what a job does that was begun by the command
// with this number; 0: it is not known.
func WithRequest(ctx context.Context, request uint64) context.Context {
	if request == 0 {
		return ctx
	}
	return WithOrigin(ctx, Origin{Request: request})
}

// RequestOf returns the number of the command that has led to what is done under
// ctx, 0 if there is none.
func RequestOf(ctx context.Context) uint64 {
	o, _ := OriginOf(ctx)
	return o.Request
}
