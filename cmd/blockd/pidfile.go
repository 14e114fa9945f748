package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"blockd/blockgraph"
)

// pidFile is a locked file with the process id, removed at the end.
type pidFile struct {
	f    *os.File
	path string
}

// writePidFile creates the file and keeps it locked, so that a second daemon
// is refused.
func writePidFile(path string) (*pidFile, error) {
	f, err := lockPidFile(path)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, pidError("Failed to truncate pid file", err)
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		f.Close()
		return nil, pidError("Failed to write pid file", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	return &pidFile{f: f, path: abs}, nil
}

// lockPidFile opens the file, which for reading as well never waits for the
// other end of a FIFO, and locks it. A daemon that ends removes its file: one
// that was locked only then is not the one at path, and opened again.
func lockPidFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, pidError("Could not create '"+path+"'", err)
		}
		lock := syscall.Flock_t{Type: syscall.F_WRLCK}
		if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock); err != nil {
			f.Close()
			return nil, pidError("Cannot lock pid file", err)
		}
		p := &pidFile{f: f, path: path}
		if p.isAt() {
			return f, nil
		}
		f.Close()
	}
}

func pidError(what string, err error) error {
	return fmt.Errorf("cannot create PID file: %s: %s", what, blockgraph.Strerror(err))
}

// isAt tells whether the file is still the one at its path.
func (p *pidFile) isAt() bool {
	there, err := os.Stat(p.path)
	if err != nil {
		return false
	}
	ours, err := p.f.Stat()
	return err == nil && os.SameFile(there, ours)
}

// remove removes the file, unless another has come to be at its path. Safe on
// nil.
func (p *pidFile) remove() {
	if p == nil {
		return
	}
	if p.isAt() {
		os.Remove(p.path)
	}
	p.f.Close()
}
