// Package servicemanager tells the service manager that started the program
// how it is (sd_notify(3)): that it serves, that it ends, and, as long as the
// control loop answers, that it lives (systemd.service(5), WatchdogSec=).
//
// Without a service manager nothing is said. Imports clock.
//
//blockd:blocking
package servicemanager

import (
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"blockd/clock"
)

// Manager is who is told. A nil Manager is told nothing.
type Manager struct {
	clock    clock.Clock
	watchdog time.Duration // how long it waits for a sign of life; 0: for ever
	complain func(message string)

	stop    chan struct{}
	stopped chan struct{} // closed when the watch has ended; nil: none was begun
}

// FromEnvironment returns the service manager that the environment tells of,
// nil where there is none. A watchdog that cannot be understood is an error:
// the manager would kill what never answers.
func FromEnvironment(c clock.Clock, complain func(message string)) (*Manager, error) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil, nil
	}
	watchdog, err := daemon.SdWatchdogEnabled(true)
	if err != nil {
		return nil, fmt.Errorf("WATCHDOG_USEC: %w", err)
	}
	return &Manager{clock: c, watchdog: watchdog, complain: complain, stop: make(chan struct{})}, nil
}

// Ready tells that clients are served. Then signs of life are given, at twice
// the rate that is asked for: post has the control loop run a function, and
// only one that has run is a sign.
func (m *Manager) Ready(post func(f func()) bool) {
	if m == nil {
		return
	}
	m.tell(daemon.SdNotifyReady)
	if m.watchdog > 0 {
		m.stopped = make(chan struct{})
		go m.watch(post)
	}
}

// watch ends with the loop or with Stopping.
func (m *Manager) watch(post func(f func()) bool) {
	defer close(m.stopped)
	for {
		timer := m.clock.NewTimer(m.watchdog / 2)
		select {
		case <-timer.C():
		case <-m.stop:
			timer.Stop()
			return
		}
		ran := make(chan struct{})
		if !post(func() { close(ran) }) {
			return
		}
		select {
		case <-ran:
			m.tell(daemon.SdNotifyWatchdog)
		case <-m.stop:
			return
		}
	}
}

// Stopping tells that the program ends, and ends the signs of life: what is
// left has the manager's TimeoutStopSec.
func (m *Manager) Stopping() {
	if m == nil {
		return
	}
	m.tell(daemon.SdNotifyStopping)
	close(m.stop)
	if m.stopped != nil {
		<-m.stopped
	}
}

func (m *Manager) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		m.complain("the service manager cannot be told " + state + ": " + err.Error())
	}
}
