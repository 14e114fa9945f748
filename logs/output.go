package logs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"blockd/qapi"
)

// This file writes lines to a file or to stderr. A write may wait for ever, for
// a reader of a pipe for instance; then lines are lost, and nobody else waits.

// batchBytes is the most that is gathered for one write.
const batchBytes = 64 << 10

// writer is the output.
type writer struct {
	log    *Log
	to     io.Writer
	format slog.Handler
	buf    bytes.Buffer // of format

	stop  chan struct{}
	ended chan struct{}
	wrote chan chan struct{} // is answered when everything before has been written
	other chan redirection   // where lines go from now on

	seen   atomic.Uint64 // number of the last line that was dealt with
	lost   atomic.Uint64 // lines that the ring forgot before they were written
	failed atomic.Uint64 // lines whose write failed
}

// Output begins to write lines to w, which is the only thing that uses it. Once,
// before anybody logs.
func (l *Log) Output(w io.Writer, format qapi.LogFormat) {
	o := &writer{log: l, to: w, stop: make(chan struct{}), ended: make(chan struct{}), wrote: make(chan chan struct{}), other: make(chan redirection)}
	opts := &slog.HandlerOptions{Level: slog.Level(-1 << 30)}
	if format == qapi.LogFormatJSON {
		o.format = slog.NewJSONHandler(&o.buf, opts)
	} else {
		o.format = slog.NewTextHandler(&o.buf, opts)
	}
	l.out = o
	go o.run()
}

func (o *writer) run() {
	defer close(o.ended)
	for {
		lines, news := o.log.wait(o.seen.Load())
		o.write(lines)
		select {
		case done := <-o.wrote:
			lines, _ = o.log.wait(o.seen.Load())
			o.write(lines)
			close(done)
		case r := <-o.other:
			lines, _ = o.log.wait(o.seen.Load())
			o.write(lines)
			if old, ok := o.to.(io.Closer); ok && o.to != io.Writer(os.Stderr) {
				if err := old.Close(); err != nil {
					slog.Error("the log's file so far could not be closed", "error", err)
				}
			}
			o.to = r.to
			close(r.done)
		case <-o.stop:
			lines, _ = o.log.wait(o.seen.Load())
			o.write(lines)
			return
		case <-news:
		}
	}
}

// write writes lines that follow what has been seen, several at a time.
func (o *writer) write(lines []*Line) {
	var inBuf uint64
	flush := func() {
		if o.buf.Len() == 0 {
			return
		}
		if _, err := o.to.Write(o.buf.Bytes()); err != nil {
			o.failed.Add(inBuf)
		}
		o.buf.Reset()
		inBuf = 0
	}
	for _, line := range lines {
		if gap := line.Number - o.seen.Load() - 1; gap > 0 {
			o.lost.Add(gap)
			o.append(&Line{At: line.At, Level: slog.LevelWarn, Subsystem: qapi.LogSubsystemDaemon,
				Message: "the log was written too slowly, and lines are lost", Attrs: []slog.Attr{slog.Uint64("lines", gap)}})
		}
		if line.output {
			o.append(line)
			inBuf++
		}
		if o.buf.Len() >= batchBytes {
			flush()
		}
		o.seen.Store(line.Number)
	}
	flush()
}

// append formats a line.
func (o *writer) append(l *Line) {
	r := slog.NewRecord(l.At, l.Level, l.Message, 0)
	r.AddAttrs(slog.String("subsystem", string(l.Subsystem)))
	if l.Request != 0 {
		r.AddAttrs(slog.Uint64("request", l.Request))
	}
	r.AddAttrs(l.Attrs...)
	_ = o.format.Handle(context.Background(), r)
}

// Lost tells how many lines were not written, because the output was too slow or
// because writing failed. Lines that are for the memory only may be among the
// former.
func (l *Log) Lost() (slow, failed uint64) {
	if l.out == nil {
		return 0, 0
	}
	return l.out.lost.Load(), l.out.failed.Load()
}

// redirection is another output; done is closed when lines go there.
type redirection struct {
	to   io.WriteCloser
	done chan struct{}
}

// Redirect has lines go to w, which the log owns from then on, behind those that
// were logged before. The output so far, unless it is stderr, is closed when it
// has those. False when ctx ends before, because that output is stuck: then
// nothing has changed, and w is the caller's.
func (l *Log) Redirect(ctx context.Context, w io.WriteCloser) bool {
	if l.out == nil {
		return false
	}
	r := redirection{w, make(chan struct{})}
	select {
	case l.out.other <- r:
		select {
		case <-r.done:
		case <-ctx.Done(): // it is stuck now; w is used when it goes on
		}
		return true
	case <-l.out.ended:
		return false
	case <-ctx.Done():
		return false
	}
}

// Flush waits until what was logged before has been written, or ctx ends.
func (l *Log) Flush(ctx context.Context) {
	if l.out == nil {
		return
	}
	done := make(chan struct{})
	select {
	case l.out.wrote <- done:
	case <-l.out.ended:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Close ends the output when what was logged before has been written, or ctx
// ends; what is logged later is not written. Once.
func (l *Log) Close(ctx context.Context) {
	if l.out == nil {
		return
	}
	close(l.out.stop)
	select {
	case <-l.out.ended:
	case <-ctx.Done():
	}
}
