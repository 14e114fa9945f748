package web

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"blockd/clock"
	"blockd/sockets"
)

// limited is a listener of which only so many connections are open at a time,
// in all and of one client.
type limited struct {
	*sockets.Listener
	clock     clock.Clock
	all       int
	perClient int
	once      sync.Once
	done      chan struct{}

	mu   sync.Mutex
	open int            // +checklocks:mu
	of   map[string]int // +checklocks:mu
}

func newLimited(l *sockets.Listener, clk clock.Clock, all, perClient int) *limited {
	return &limited{Listener: l, clock: clk, all: all, perClient: perClient, done: make(chan struct{}), of: map[string]int{}}
}

// Accept is net.Listener's. It fails only when the listener is closed.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			select {
			case <-l.done:
				return nil, net.ErrClosed
			default:
			}
			pause := l.clock.NewTimer(acceptPause)
			select {
			case <-l.done:
			case <-pause.C():
			}
			pause.Stop()
			continue
		}
		p := peerOf(c)
		if !l.enter(p.client) {
			c.Close()
			continue
		}
		noticeLoss(c)
		return &limitedConn{Conn: c, l: l, peer: p}, nil
	}
}

func (l *limited) enter(client string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == l.all || l.of[client] == l.perClient {
		return false
	}
	l.open++
	l.of[client]++
	return true
}

func (l *limited) leave(client string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.of[client]--; l.of[client] == 0 {
		delete(l.of, client)
	}
}

// connections is how many are open.
func (l *limited) connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// Close is net.Listener's.
func (l *limited) Close() error {
	var err error
	l.once.Do(func() {
		close(l.done)
		err = l.Listener.Close()
	})
	return err
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	l    *limited
	peer peer
	once sync.Once
}

// Close is net.Conn's.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.l.leave(c.peer.client) })
	return err
}

// noticeLoss has the kernel end a TCP connection whose other end is gone
// without a word, so that it does not keep its place.
func noticeLoss(c net.Conn) {
	s, ok := c.(*sockets.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	// On what is no TCP socket the calls fail, and nothing is lost.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 60000)
	})
}
