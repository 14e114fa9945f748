package qmp

import (
	"context"
	"errors"
	"sync"

	"blockd/chardev"
	"blockd/qapi"
)

// maxAbandoned bounds the clients of one monitor that have left while their
// commands still run; past it the monitor takes no client until one ends.
const maxAbandoned = 16

// Monitor serves the clients of one character device, one at a time.
type Monitor struct {
	srv    *Server
	dev    *chardev.Device
	pretty bool
	peer   qapi.SessionInfo // of the clients; without an address: of the connection
	fds    fdNames

	slots    chan struct{}  // one for each dispatcher that runs
	commands sync.WaitGroup // dispatchers, of clients that have left too
	loop     sync.WaitGroup
}

// monitorPeer is whoever speaks to a character device.
var monitorPeer = qapi.SessionInfo{Role: qapi.SessionRoleControl, Transport: qapi.SessionTransportMonitor}

// ParseMonitorOption parses the argument of --monitor. Errors are *qapi.Error
// in the field's words.
func ParseMonitorOption(arg string) (qapi.MonitorOptions, error) {
	var o qapi.MonitorOptions
	err := qapi.DecodeOption(arg, "chardev", &o)
	if err != nil && err.Error() == "Parameter 'mode' does not accept value 'readline'" {
		err = qapi.Errorf("Only QMP is supported")
	}
	return o, err
}

// AddMonitor claims the character device and begins to serve its clients.
// Errors are those of --monitor.
func (s *Server) AddMonitor(o qapi.MonitorOptions) error {
	dev, err := s.cfg.Chardevs.Attach(o.Chardev)
	if err != nil {
		return err
	}
	m := &Monitor{srv: s, dev: dev, pretty: o.Pretty != nil && *o.Pretty, peer: monitorPeer, slots: make(chan struct{}, maxAbandoned)}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		dev.Detach()
		return errClosed
	}
	s.monitors = append(s.monitors, m)
	m.loop.Go(m.run)
	s.mu.Unlock()
	return nil
}

// run takes the clients one after the other until the server stops or the
// device has no more.
func (m *Monitor) run() {
	ctx := m.srv.accepting
	select {
	case <-m.srv.started:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case m.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := m.dev.Accept(ctx)
		if err != nil {
			<-m.slots
			if ctx.Err() == nil && !finalAccept(err) && m.srv.cfg.Clock.Sleep(ctx, acceptPause) == nil {
				continue
			}
			return
		}
		m.srv.fdsets.clientArrives()
		newSession(m, conn).serve()
		m.srv.fdsets.clientLeaves()
	}
}

func finalAccept(err error) bool {
	return chardev.NoMoreConnections(err) || errors.Is(err, context.Canceled)
}

// close waits for what the monitor still runs.
func (m *Monitor) close() {
	m.loop.Wait()
	m.commands.Wait()
	m.dev.Detach()
	m.fds.closeAll()
}
