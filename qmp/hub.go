package qmp

import (
	"context"
	"strings"
	"sync"
	"time"

	"blockd/clock"
	"blockd/qapi"
)

// Hub spreads events to every client that has finished negotiation. Its order
// is the same for all of them.
type Hub struct {
	wall  clock.Clock // for timestamps
	pace  clock.Clock // for rate limits
	limit time.Duration

	mu       sync.Mutex           //blockd:short
	sessions map[*Session]*member // +checklocks:mu
	// +checklocks:mu
	limited map[string]*limitedEvent // by event and key, while within the limit
}

// member is a client that gets events. subscribed are those that it asked for
// beside the ones that everybody gets.
type member struct {
	subscribed map[string]struct{}
}

// EventInterval is the least time between two events of one kind and key, for
// the events that a failing device could raise without end.
const EventInterval = time.Second

// limitKeys names the events with a rate limit, and the members of their data
// that make a key: each key has its own limit.
var limitKeys = map[string][]string{
	"BLOCK_IO_ERROR":    {"qom-path", "node-name"},
	"QUORUM_REPORT_BAD": {"node-name"},
	"QUORUM_FAILURE":    {"reference"},
	"VSERPORT_CHANGE":   {"id"},
}

// limitedEvent stands for the interval after an event was sent.
type limitedEvent struct {
	waiting bool // data is to be sent at the end of the interval
	data    any
	at      time.Time
}

// NewHub makes a Hub. wall gives the timestamps of events and is the real
// clock; pace times the rate limits and is the virtual one.
func NewHub(wall, pace clock.Clock) *Hub {
	return &Hub{wall: wall, pace: pace, limit: EventInterval,
		sessions: map[*Session]*member{}, limited: map[string]*limitedEvent{}}
}

// Emit sends an event to every negotiated client. data is a struct with qapi
// tags, a *qapi.Object, or nil for an event without data; it must not change
// afterwards. Emit never waits and may be called from any goroutine, on both
// planes.
//
//blockd:any
func (h *Hub) Emit(event string, data any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.wall.Now()
	key, limited := limitKey(event, data)
	if !limited {
		h.send(event, data, at, h.everybody)
		return
	}
	if e := h.limited[key]; e != nil {
		e.waiting, e.data, e.at = true, data, at // the latest one counts
		return
	}
	h.send(event, data, at, h.everybody)
	h.limited[key] = &limitedEvent{}
	h.pace.AfterFunc(h.limit, func() { h.intervalEnds(event, key) })
}

//blockd:any
func (h *Hub) intervalEnds(event, key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.limited[key]
	if e == nil {
		return
	}
	if !e.waiting {
		delete(h.limited, key)
		return
	}
	h.send(event, e.data, e.at, h.everybody)
	e.waiting, e.data = false, nil
	h.pace.AfterFunc(h.limit, func() { h.intervalEnds(event, key) })
}

// limitKey tells whether an event has a rate limit, and its key.
func limitKey(event string, data any) (string, bool) {
	members, ok := limitKeys[event]
	if !ok {
		return "", false
	}
	v, _ := qapi.ParseJSON(qapi.AppendJSON(nil, data))
	o, _ := v.(*qapi.Object)
	if action, _ := o.Get("action"); event == "BLOCK_IO_ERROR" && action == "stop" {
		return "", false // each of them needs an answer
	}
	key := []string{event}
	for _, m := range members {
		s, _ := o.Get(m)
		text, _ := s.(string)
		key = append(key, text)
	}
	return strings.Join(key, "\x00"), true
}

// EmitSubscribed is Emit to those clients alone that have subscribed to the
// event. data is called only if there are any.
//
//blockd:any
func (h *Hub) EmitSubscribed(event string, data func() any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	wants := subscribers(event)
	for _, m := range h.sessions {
		if wants(m) {
			h.send(event, data(), h.wall.Now(), wants)
			return
		}
	}
}

// subscribers tells who has subscribed to an event.
func subscribers(event string) func(m *member) bool {
	return func(m *member) bool { _, ok := m.subscribed[event]; return ok }
}

//blockd:any
func (h *Hub) subscribe(s *Session, event string, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.sessions[s]
	switch {
	case m == nil: // it has left, or is not there yet
	case on:
		if m.subscribed == nil {
			m.subscribed = map[string]struct{}{}
		}
		m.subscribed[event] = struct{}{}
	default:
		delete(m.subscribed, event)
	}
}

func (*Hub) everybody(*member) bool { return true }

// send queues the event for the clients that want it; h.mu is held.
//
// +checklocks:h.mu
//
//blockd:any
func (h *Hub) send(event string, data any, at time.Time, wants func(*member) bool) {
	if len(h.sessions) == 0 {
		return
	}
	ts := eventTimestamp{Seconds: at.Unix(), Microseconds: int64(at.Nanosecond()) / 1000}
	var msg any = &eventMessage{Event: event, Timestamp: ts}
	if data != nil {
		msg = &eventDataMessage{Event: event, Data: data, Timestamp: ts}
	}
	var text [2][]byte // plain, pretty
	for s, m := range h.sessions {
		if !wants(m) {
			continue
		}
		i := 0
		if s.mon.pretty {
			i = 1
		}
		if text[i] == nil {
			text[i] = appendMessage(nil, s.mon.pretty, msg)
		}
		if !s.out.append(text[i]) {
			delete(h.sessions, s)
			s.drop()
		}
	}
}

// join queues the reply that ends negotiation and lets events follow it: none
// comes before that reply.
func (h *Hub) join(s *Session, reply []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.send(reply)
	if !s.left {
		h.sessions[s] = &member{}
	}
}

func (h *Hub) leave(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.left = true // a command of it that still runs does not bring it back
	delete(h.sessions, s)
}

// Flush waits until what is queued for clients has been written, or ctx ends: a
// client may not read.
func (h *Hub) Flush(ctx context.Context) {
	h.mu.Lock()
	var waits []<-chan struct{}
	for s := range h.sessions {
		waits = append(waits, s.out.written())
	}
	h.mu.Unlock()
	for _, w := range waits {
		select {
		case <-w:
		case <-ctx.Done():
			return
		}
	}
}
