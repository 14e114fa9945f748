// Package scratch is the room where a backup keeps what guests are about to
// overwrite, so that they need not wait for its target. What is kept is copied
// out to the target afterwards, by the job's own steps.
//
// A Scratch belongs to one job and is a set of entries by offset: a cluster of
// data, or a run of zeroes, which takes no room for content. Data is in memory
// as long as the process's share (Pool) has room, then in a temporary file,
// if a directory for that was given: unlinked before the first byte is written
// to it, and encrypted.
//
// # Encryption
//
// Each entry in the file is sealed on its own by AES-256-GCM. The key is drawn
// when the file is made, is in memory only, and ends with the scratch. The
// nonce is a number that is used once per key and goes up with every entry, so
// that a slot that is used again never repeats one; number and tag are kept in
// memory, too. So what is read back is what was written, or an error: neither
// damage nor an older content of the slot can get into a backup. Nothing
// needs to survive a crash, because the backup does not.
//
// # Bounds
//
// All scratches together hold at most Config.Memory bytes of memory, with
// what the sets themselves take, and Config.Spill bytes of files. Beyond that
// there is only what steps had read when the target refused it, at most what
// the jobs may have in flight (copy.DefaultShare for all, copy.DefaultWindow for
// one). When there is no room Reserve says so; nobody ever waits for room. A request that
// waited for it would wait for a job's step, which a graph change may hold
// back until that very request has ended.
//
// Locks: Scratch.mu, then Pool.mu; both leaves otherwise, neither across I/O.
// What blocks: Room.Keep and Run.Read, on the file only, and Drop and Done
// when they close it. Any goroutine; none on the control plane's loop but
// Usage. Imports nothing of this module but ioengine.
//
//blockd:io
package scratch

import (
	"path/filepath"
	"sync"

	"blockd/ioengine"
)

const (
	// DefaultMemory is how many bytes of memory all scratches take.
	DefaultMemory = 256 << 20
	// DefaultSpill is how many bytes of files all scratches take.
	DefaultSpill = 16 << 30

	// entryCost is what one entry takes in the sets, in bytes, roughly.
	entryCost = 256
)

// Config bounds a Pool. Memory and Spill are bytes, 0 for the default.
type Config struct {
	// Directory is where files are made; empty: nothing spills.
	Directory     string
	Memory, Spill int64
}

// Pool is the process's room for scratches.
type Pool struct {
	c Config

	mu sync.Mutex //blockd:short
	// +checklocks:mu
	memory int64 // bytes taken
	// +checklocks:mu
	spilled int64
}

// NewPool returns a pool. With a directory it fails if no file can be made
// there.
func NewPool(c Config) (*Pool, error) {
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.Spill == 0 {
		c.Spill = DefaultSpill
	}
	p := &Pool{c: c}
	if c.Directory == "" {
		return p, nil
	}
	var err error
	if p.c.Directory, err = filepath.Abs(c.Directory); err != nil {
		return nil, err
	}
	f, err := openSpill(c.Directory, ioengine.ProcessCalls)
	if err != nil {
		return nil, err
	}
	return p, f.Close()
}

// Usage returns the bytes of memory and of files that are taken.
func (p *Pool) Usage() (memory, spilled int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.memory, p.spilled
}

// take takes room for n bytes of data in one entry or more: in memory, or
// else in a file; the entries themselves are always in memory.
func (p *Pool) take(n, entries int64) (spill, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	entries *= entryCost
	switch {
	case p.memory+n+entries <= p.c.Memory:
		p.memory += n + entries
		return false, true
	case p.c.Directory != "" && p.spilled+n <= p.c.Spill && p.memory+entries <= p.c.Memory:
		p.memory += entries
		p.spilled += n
		return true, true
	}
	return false, false
}

// overdraw takes memory whether there is room or not.
func (p *Pool) overdraw(n, entries int64) {
	p.mu.Lock()
	p.memory += n + entries*entryCost
	p.mu.Unlock()
}

// give gives room back.
func (p *Pool) give(n, entries int64, spill bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.memory -= entries * entryCost
	if spill {
		p.spilled -= n
	} else {
		p.memory -= n
	}
}
