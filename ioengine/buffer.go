// Package ioengine holds what every byte of I/O passes through: aligned data
// buffers under one process-wide byte budget, and the bounded submission of
// system calls.
//
// Buffers belong to the request that acquired them until the last system call
// on them has returned. Acquire is where a process out of budget pushes back:
// at the admission of a request, never in the middle of one. What an admitted
// request needs besides (a bounce buffer, a cluster to copy) comes from Bounce,
// which never waits; it is bounded by the number of admitted requests.
//
// System calls that may wait for storage take one of a bounded number of slots
// (Calls); files share them fairly. Descriptors belong to a File.
//
// Lock tree: Budget.mu and Calls.mu are leaves, never held during a system
// call. Budget.Acquire blocks for memory; the methods of File block for slots,
// where they honour contexts, and in system calls, which nothing interrupts.
// Imports nothing else of this module.
//
//blockd:io
package ioengine

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Alignment of every buffer in bytes, enough for O_DIRECT anywhere.
	Alignment = 4096

	minClass = 12 // 4 KiB
	maxClass = 26 // 64 MiB; larger buffers are not pooled

	// DefaultBudget is the most bytes that admitted requests hold at a time.
	DefaultBudget = 256 << 20
)

// Buffer is memory aligned to Alignment, of at least the length asked for.
type Buffer struct {
	b      []byte // of the asked length
	mem    []byte // whole size class
	class  int8
	budget *Budget // nil for a bounce buffer
}

// Bytes returns the memory, of the length asked for. Its content is
// undefined.
func (b *Buffer) Bytes() []byte { return b.b }

// Release gives the buffer back. The caller must not use the memory after it.
func (b *Buffer) Release() {
	if b == nil {
		return
	}
	if b.b == nil {
		panic("ioengine: buffer released twice")
	}
	poison(b.mem)
	budget := b.budget
	size := int64(len(b.mem))
	b.b, b.budget = nil, nil
	bounced.Add(-size)
	if int(b.class) <= maxClass {
		pools[b.class-minClass].Put(b)
	}
	if budget != nil {
		budget.release(size)
	}
}

var (
	pools   [maxClass - minClass + 1]sync.Pool
	bounced atomic.Int64
)

// InUse returns the bytes of all buffers in use, bounce buffers too.
func InUse() int64 { return bounced.Load() }

// Bounce returns a buffer of n bytes for the inside of an admitted request.
// It does not wait.
func Bounce(n int) *Buffer {
	class := max(minClass, bits.Len(uint(max(n, 1)-1)))
	var b *Buffer
	if class <= maxClass {
		b, _ = pools[class-minClass].Get().(*Buffer)
	}
	if b == nil {
		size := 1 << class
		if class > maxClass {
			size = (n + Alignment - 1) &^ (Alignment - 1)
		}
		b = &Buffer{mem: aligned(size), class: int8(class)}
	}
	b.b = b.mem[:n]
	bounced.Add(int64(len(b.mem)))
	return b
}

// aligned allocates n bytes, a multiple of Alignment. The runtime's size
// classes happen to be aligned already, so that the slack is rarely needed.
func aligned(n int) []byte {
	if raw := make([]byte, n); misaligned(raw) == 0 {
		populate(raw)
		return raw
	}
	raw := make([]byte, n+Alignment)
	off := 0
	if rest := misaligned(raw); rest != 0 {
		off = Alignment - rest
	}
	return raw[off : off+n : off+n]
}

// populateFrom is the least size in bytes of memory that is populated.
const populateFrom = 64 << 10

// populate has the kernel put pages behind new memory at once. It is going to be
// filled in any case, and page by page that takes twice as long, within the read
// from a socket that others wait behind.
func populate(b []byte) {
	if len(b) >= populateFrom {
		_ = unix.Madvise(b, unix.MADV_POPULATE_WRITE) // Linux 5.14; without it they come one by one
	}
}

func misaligned(b []byte) int {
	return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (Alignment - 1))
}

// Budget bounds the bytes of the requests admitted under it.
type Budget struct {
	limit int64

	mu   sync.Mutex
	used int64 // +checklocks:mu
	// +checklocks:mu
	waiters []*waiter // in order of arrival
	waits   int64     // +checklocks:mu
}

type waiter struct {
	n     int64
	ready chan struct{}
}

// Process is the budget of the whole process.
var Process = NewBudget(DefaultBudget)

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Acquire returns a buffer of n bytes, waiting for others to be released when
// the budget is used up. A buffer larger than the whole budget is granted when
// nothing else is in use. It fails only with the context's error.
func (u *Budget) Acquire(ctx context.Context, n int) (*Buffer, error) {
	class := max(minClass, bits.Len(uint(max(n, 1)-1)))
	size := int64(1) << class
	if class > maxClass {
		size = int64((n + Alignment - 1) &^ (Alignment - 1))
	}
	u.mu.Lock()
	if len(u.waiters) == 0 && u.fits(size) {
		u.used += size
		u.mu.Unlock()
	} else {
		w := &waiter{n: size, ready: make(chan struct{})}
		u.waiters = append(u.waiters, w)
		u.waits++
		u.mu.Unlock()
		select {
		case <-w.ready:
		case <-ctx.Done():
			u.abandon(w)
			return nil, ctx.Err()
		}
	}
	b := Bounce(n)
	b.budget = u
	return b, nil
}

// Usage returns the bytes in use and how often a request had to wait.
func (u *Budget) Usage() (used, waits int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.used, u.waits
}

// fits is called with mu held.
//
// +checklocks:u.mu
func (u *Budget) fits(n int64) bool { return u.used == 0 || u.used+n <= u.limit }

func (u *Budget) release(n int64) {
	u.mu.Lock()
	u.used -= n
	u.grant()
	u.mu.Unlock()
}

// grant is called with mu held.
//
// +checklocks:u.mu
func (u *Budget) grant() {
	for len(u.waiters) > 0 && u.fits(u.waiters[0].n) {
		w := u.waiters[0]
		u.waiters = u.waiters[1:]
		u.used += w.n
		close(w.ready)
	}
}

// abandon takes back a request for budget, or the budget when it was granted
// meanwhile.
func (u *Budget) abandon(w *waiter) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, x := range u.waiters {
		if x == w {
			u.waiters = append(u.waiters[:i], u.waiters[i+1:]...)
			u.grant() // a smaller one behind it may fit now
			return
		}
	}
	u.used -= w.n
	u.grant()
}

// maxZeroes is the length of the shared zeroes.
const maxZeroes = 1 << 20

// zeroes is mapped read-only: it costs one page of memory, and a write to it
// by mistake faults instead of corrupting every later use.
var zeroes = func() []byte {
	b, err := unix.Mmap(-1, 0, maxZeroes, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return aligned(maxZeroes)
	}
	return b
}()

// Zeroes returns up to n bytes of zeroes, at least 1 MiB if n is that much. The
// caller must not write to them.
func Zeroes(n int64) []byte { return zeroes[:min(n, maxZeroes)] }
