package nbd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/ioengine"
	"blockd/nbdproto"
	"blockd/qapi"
	"blockd/sockets"
)

// links are a node's connections, and what happens when one is lost.
//
// Each place for a link has a goroutine that receives, and when the link ends
// connects again, at first at once, then after pauses that double. A request
// takes the place whose turn it is, or any that has a link.
//
// A socket that was handed over (an address of type fd) can be had once: when
// its link is lost, there is none any more.
type links struct {
	o    *options
	cfg  *Config
	info exportInfo

	ctx    context.Context // ends with the node
	cancel context.CancelFunc
	wg     sync.WaitGroup

	places []place
	turn   atomic.Uint32
	closed sync.Once

	mu sync.Mutex
	// changed is closed and made anew when a link comes, or the wait for one ends.
	changed chan struct{} // +checklocks:mu
	// No link was there when a request came: until then requests wait, after
	// it they fail.
	deadline time.Time   // +checklocks:mu
	timer    clock.Timer // +checklocks:mu
}

type place struct{ link atomic.Pointer[link] }

// Pauses between attempts to connect.
const (
	firstPause = time.Second
	lastPause  = 16 * time.Second
)

// errTimeout is the end of open-timeout, or of what a handshake may take.
var errTimeout = errors.New("nbd: timeout")

// connect makes the first link, trying for open-timeout.
func connect(ctx context.Context, o *options, cfg *Config) (*links, exportInfo, error) {
	ls := &links{o: o, cfg: cfg, places: make([]place, 1), changed: make(chan struct{})}
	// The socket is the client's whose command this is; ctx knows it.
	takeFD := func(name string) (int, error) {
		if cfg.TakeFD == nil {
			return -1, qapi.Errorf("File descriptor named '%s' has not been found", name)
		}
		return cfg.TakeFD(ctx, name)
	}
	attempt, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if o.openTimeout > 0 {
		defer cfg.Clock.AfterFunc(o.openTimeout, func() { cancel(errTimeout) }).Stop()
	}
	var first *link
	var err error
	var last error
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		first, ls.info, err = ls.attempt(attempt, takeFD)
		if err == nil {
			break
		}
		if attempt.Err() == nil {
			last = err
			if o.openTimeout == 0 || o.once() {
				return nil, exportInfo{}, err
			}
			if cfg.Clock.Sleep(attempt, pause) == nil {
				continue
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, exportInfo{}, ctx.Err()
		case last != nil:
			return nil, exportInfo{}, last
		}
		return nil, exportInfo{}, timedOut()
	}
	if ls.info.flags&nbdproto.CanMultiConn != 0 && !o.once() {
		ls.places = make([]place, o.connections)
	}
	ioengine.CountNetwork(1)
	ls.ctx, ls.cancel = context.WithCancel(context.Background()) // a node outlives the command that made it
	ls.places[0].link.Store(first)
	for i := range ls.places {
		ls.wg.Go(func() { ls.keep(&ls.places[i]) })
	}
	return ls, ls.info, nil
}

func timedOut() error {
	return blockgraph.Errorf(syscall.ETIMEDOUT, "Connection attempt cancelled by timeout")
}

// handshakeTime is how long a server may take for the handshake. One that hangs
// in it would hold up every graph change, or a new link, for ever.
const handshakeTime = time.Minute

// attempt connects and negotiates once.
func (ls *links) attempt(ctx context.Context, takeFD func(string) (int, error)) (*link, exportInfo, error) {
	c, err := sockets.Dial(ctx, ls.cfg.Clock, &ls.o.given.Server, takeFD)
	if err != nil {
		return nil, exportInfo{}, err
	}
	c.NoDelay()
	handshake, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer ls.cfg.Clock.AfterFunc(handshakeTime, func() { cancel(errTimeout) }).Stop()
	l, info, err := negotiate(handshake, c, ls.o.export, ls.o.meta, ls.o.secure)
	if err != nil && ctx.Err() == nil && handshake.Err() != nil {
		err = timedOut()
	}
	return l, info, err
}

// keep runs the link of a place, and connects again while the node is open.
func (ls *links) keep(p *place) {
	var pace pace
	for {
		if l := p.link.Load(); l != nil {
			born := ls.cfg.Clock.Now()
			stop := context.AfterFunc(ls.ctx, func() { ls.part(l) })
			err := l.receive()
			stop()
			p.link.Store(nil)
			if ls.ctx.Err() != nil {
				return
			}
			how := slog.LevelWarn
			if ordinaryEnd(err) {
				how = slog.LevelInfo
			}
			ls.log(how, "NBD connection lost", err)
			if ls.o.once() {
				return
			}
			if d := pace.next(ls.cfg.Clock.Now().Sub(born)); d > 0 && ls.cfg.Clock.Sleep(ls.ctx, d) != nil {
				return
			}
		}
		l := ls.again()
		if l == nil {
			return
		}
		p.link.Store(l)
		ls.wake(true)
	}
}

// pace keeps a server that takes clients and drops them, perhaps because of a
// request that is sent again, from being stormed.
type pace struct{ pause time.Duration }

// shortLife is the life of a link up to which it counts as dropped.
const shortLife = 10 * time.Second

// next returns the pause before connecting again after a link that lived so
// long: none after the first that was short, then pauses that double.
func (p *pace) next(lived time.Duration) time.Duration {
	now := p.pause
	switch {
	case lived > shortLife:
		now, p.pause = 0, 0
	case now == 0:
		p.pause = firstPause
	default:
		p.pause = min(2*now, lastPause)
	}
	return now
}

func (ls *links) log(level slog.Level, msg string, err error) {
	if ls.cfg.Log != nil {
		ls.cfg.Log.Log(context.Background(), level, msg, "export", ls.o.export, "error", err)
	}
}

// again makes a new link, however long it takes; nil when the node is closed.
func (ls *links) again() *link {
	failing := false
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		l, info, err := ls.attempt(ls.ctx, nil)
		if err == nil {
			if err = ls.agrees(info); err == nil {
				return l
			}
			ls.part(l)
			l.t.ReleaseBuffer()
		}
		if ls.ctx.Err() != nil {
			return nil
		}
		if !failing {
			ls.log(slog.LevelWarn, "NBD server cannot be reached again", err)
		}
		failing = true
		if ls.cfg.Clock.Sleep(ls.ctx, pause) != nil {
			return nil
		}
	}
}

// agrees checks that a later link leads to an export like the first one's.
func (ls *links) agrees(info exportInfo) error {
	was := ls.info
	needed := was.flags & usedFlags
	if len(ls.places) > 1 {
		needed |= nbdproto.CanMultiConn
	}
	switch {
	case info.size != was.size:
		return errors.New("nbd: the export's size has changed")
	case was.framing != info.framing && was.framing == nbdproto.Extended, needed&^info.flags != 0, info.flags&^was.flags&nbdproto.ReadOnly != 0:
		return errors.New("nbd: the export can do less than before")
	case info.minBlock > was.alignment(), was.status && !info.status, info.maxTransfer() < was.maxTransfer():
		return errors.New("nbd: the server's limits have changed")
	}
	return nil
}

// usedFlags are what requests rely on; what else a server announces may go.
const usedFlags = nbdproto.SendFlush | nbdproto.SendFUA | nbdproto.SendTrim | nbdproto.SendWriteZeroes | nbdproto.SendFastZero

// wake lets those look again who wait for a link.
func (ls *links) wake(connected bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if connected {
		ls.deadline = time.Time{}
		if ls.timer != nil {
			ls.timer.Stop()
			ls.timer = nil
		}
	}
	close(ls.changed)
	ls.changed = make(chan struct{})
}

// pick returns a link, or nil.
func (ls *links) pick() *link {
	if len(ls.places) == 1 {
		return ls.places[0].link.Load()
	}
	k := ls.turn.Add(1)
	for i := range ls.places {
		if l := ls.places[(int(k)+i)%len(ls.places)].link.Load(); l != nil {
			return l
		}
	}
	return nil
}

// await waits for a link, for reconnect-delay since the first request that met
// none.
func (ls *links) await(ctx context.Context) (*link, error) {
	for {
		ls.mu.Lock()
		if l := ls.pick(); l != nil {
			ls.mu.Unlock()
			return l, nil
		}
		if ls.o.reconnectDelay == 0 {
			ls.mu.Unlock()
			return nil, errLost
		}
		now := ls.cfg.Clock.Now()
		switch {
		case ls.deadline.IsZero():
			ls.deadline = now.Add(ls.o.reconnectDelay)
			ls.timer = ls.cfg.Clock.AfterFunc(ls.o.reconnectDelay, func() { ls.wake(false) })
		case !now.Before(ls.deadline):
			ls.mu.Unlock()
			return nil, errLost
		}
		changed := ls.changed
		ls.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ls.ctx.Done():
			return nil, errLost
		}
	}
}

// do runs one request, again over a new link while reconnect-delay lasts.
func (ls *links) do(ctx context.Context, r nbdproto.Request, payload, data *blockgraph.IOVec, status *extent) error {
	for {
		l := ls.pick()
		if l == nil {
			var err error
			if l, err = ls.await(ctx); err != nil {
				return failed(err)
			}
		}
		err := l.do(ctx, r, payload, data, status)
		if err == nil || !errors.Is(err, errLost) || ls.o.reconnectDelay == 0 {
			return failed(err)
		}
		// The receiver has yet to take the dead link away.
		ls.forget(l)
	}
}

func (ls *links) forget(l *link) {
	for i := range ls.places {
		ls.places[i].link.CompareAndSwap(l, nil)
	}
}

// part ends a link in good manners.
func (ls *links) part(l *link) { l.close(ls.cfg.Clock.Now().Add(partingTime)) }

// partingTime is how long a server may take to receive the good-bye.
const partingTime = time.Second

// close ends all links. No request is in flight.
func (ls *links) close() {
	ls.cancel()
	ls.wg.Wait()
	ls.closed.Do(func() { ioengine.CountNetwork(-1) })
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.timer != nil {
		ls.timer.Stop()
	}
}
