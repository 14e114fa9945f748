package daemon

import (
	"context"
	"time"

	"blockd/qapi"
)

// closeTime is how long the end waits at most for exports, for jobs, for images
// to close, and for clients to read their last replies, each.
const closeTime = 30 * time.Second

// endContext is what an end runs in.
func endContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(qapi.WithOrigin(context.Background(), qapi.Origin{Shutdown: true}), closeTime)
}

// End ends exports and jobs as the command quit does; Quit is closed then.
func (d *Daemon) End() { d.endWork() }

// endWork ends exports and jobs, once; whoever comes second waits for the
// first. Then the daemon ends.
func (d *Daemon) endWork() {
	select {
	case <-d.stop:
	case <-d.stopped:
		return
	}
	if d.ending != nil {
		d.ending()
	}
	ctx, cancel := endContext()
	defer cancel()
	if err := d.Exports.Close(ctx); err != nil {
		d.complain(err.Error())
	}
	rest, cancel := endContext() // what exports took is not the jobs' fault
	defer cancel()
	if err := d.Jobs.Shutdown(rest); err != nil {
		d.complain(err.Error())
	}
	close(d.stopped)
	close(d.quit)
}

// Close ends everything: jobs cancelled, images flushed and closed, sockets
// removed. Storage that hangs delays it, but not for ever: what can be flushed
// and closed is, and the rest ends with the process.
func (d *Daemon) Close() {
	d.endWork()
	ctx, cancel := endContext()
	defer cancel()
	closed := within(ctx, func() {
		if d.letGo != nil {
			if err := d.letGo(ctx); err != nil {
				d.complain(err.Error())
			}
		}
		if err := d.Monitor.CloseNodes(ctx); err != nil {
			d.complain(err.Error())
			d.flush()
		}
	})
	if !closed {
		d.complain("images did not close in time")
		d.flush()
	}
	d.Chardevs.StopOpening()
	late, cancel := endContext()
	defer cancel()
	if !within(late, func() { d.QMP.Close(ctx) }) {
		d.complain("commands did not end in time")
	}
	if d.web != nil {
		d.web.Close(late)
	}
	d.Chardevs.Close()
	d.QMP.FdSets().Close()
	d.Monitor.StopLog()
	d.Loop.Stop()
}

// flush makes durable what the images hold, when they cannot be closed.
func (d *Daemon) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	d.Graph.Flush(ctx)
}

// flushTime is how long that may take.
const flushTime = 5 * time.Second

// within runs f, and returns false when it has not ended before ctx does; f
// then goes on until the process ends.
func within(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
}
