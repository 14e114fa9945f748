package web

import (
	"sync"
	"time"

	"blockd/clock"
)

// Rates are kept by the generic cell rate algorithm: of each client the time at
// which it will have used up nothing. What it does pushes that time on; beyond a
// burst's worth ahead of now it has to wait. A client that is not ahead is
// forgotten.

// maxClients is how many clients' rates are kept at a time.
const maxClients = 1024

// rate allows so many events at once, and one more each interval.
type rate struct {
	interval time.Duration
	burst    int
}

// slack is how far ahead of now an event may be.
func (r rate) slack() time.Duration { return r.interval * time.Duration(r.burst-1) }

// rates are those of all clients.
//
//blockd:io
type rates struct {
	rate
	clock clock.Clock

	mu    sync.Mutex           //blockd:short
	ahead map[string]time.Time // +checklocks:mu
}

func newRates(clk clock.Clock, r rate) *rates {
	return &rates{rate: r, clock: clk, ahead: map[string]time.Time{}}
}

// full tells how long a client has to wait for its next event; 0: it need not.
func (l *rates) full(client string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, known := l.ahead[client]
	if !known {
		return 0
	}
	return max(0, clock.Until(l.clock, at)-l.slack())
}

// take notes an event, unless the client has to wait, as the result tells. When
// too many clients are ahead, a new one waits, too.
func (l *rates) take(client string) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	at, known := l.ahead[client]
	if at.Before(now) {
		at = now
	}
	if wait := at.Sub(now) - l.slack(); wait > 0 {
		return wait
	}
	if !known && len(l.ahead) >= maxClients {
		for c, t := range l.ahead {
			if !t.After(now) {
				delete(l.ahead, c)
			}
		}
		if len(l.ahead) >= maxClients {
			return l.interval
		}
	}
	l.ahead[client] = at.Add(l.interval)
	return 0
}
