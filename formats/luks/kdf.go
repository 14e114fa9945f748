package luks

import (
	"context"
	"crypto/hmac"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"math"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// Deriving keys from passwords (RFC 8018, PBKDF2). The standard library's
// function cannot be stopped, and the number of iterations comes from the
// image.

// cancelEvery is after how many iterations a derivation looks at its context.
const cancelEvery = 1 << 12

// derive returns n bytes of key. It fails with the context's error only.
func derive(ctx context.Context, newHash func() hash.Hash, password, salt []byte, iterations uint32, n int) ([]byte, error) {
	prf := hmac.New(newHash, password)
	size := prf.Size()
	out := make([]byte, 0, (n+size-1)/size*size)
	u := make([]byte, size)
	for block := uint32(1); len(out) < n; block++ {
		prf.Reset()
		prf.Write(salt)
		prf.Write(binary.BigEndian.AppendUint32(nil, block))
		out = prf.Sum(out)
		t := out[len(out)-size:]
		copy(u, t)
		for i := uint32(1); i < iterations; i++ {
			if i%cancelEvery == 0 && ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			prf.Reset()
			prf.Write(u)
			u = prf.Sum(u[:0])
			subtle.XORBytes(t, t, u)
		}
	}
	clear(out[n:])
	return out[:n], nil
}

// defaultIterTime is for how long trying a password is to compute unless told,
// in milliseconds.
const defaultIterTime = 2000

// Bounds of the measurement.
const (
	measureFor  = 20 * time.Millisecond
	measureMost = 1 << 24 // iterations
)

// calibrate returns how many iterations of a derivation of n bytes take
// iterTime milliseconds of this machine's computing time, divided by share.
func calibrate(ctx context.Context, newHash func() hash.Hash, n int, iterTime int64, share uint64) (uint32, error) {
	if iterTime == 0 {
		return 0, nil
	}
	perSecond, err := measure(ctx, newHash, n, cpuTime)
	if err != nil {
		return 0, err
	}
	return scale(perSecond, iterTime, share)
}

// measure returns the iterations per second, by a clock of the thread's
// computing time, so that a busy machine makes no weak keys.
func measure(ctx context.Context, newHash func() hash.Hash, n int, clock func() time.Duration) (uint64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for k := uint32(1 << 12); ; k *= 2 {
		start := clock()
		if _, err := derive(ctx, newHash, make([]byte, 16), make([]byte, saltSize), k, n); err != nil {
			return 0, err
		}
		if d := clock() - start; d >= measureFor || k >= measureMost {
			return uint64(float64(k) / max(d, time.Microsecond).Seconds()), nil
		}
	}
}

// cpuTime is the computing time that the calling thread has had.
func cpuTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// scale returns the iterations for so many milliseconds. Errors are ERANGE.
func scale(perSecond uint64, iterTime int64, share uint64) (uint32, error) {
	ms := uint64(iterTime)
	if ms > 0 && perSecond > math.MaxUint64/ms {
		return 0, blockgraph.Errorf(syscall.ERANGE, "PBKDF iterations %d too large to scale: %s", perSecond, blockgraph.Strerror(syscall.ERANGE))
	}
	n := perSecond * ms / 1000 / share
	if n > math.MaxUint32 {
		return 0, blockgraph.Errorf(syscall.ERANGE, "PBKDF iterations %d larger than %d: %s", n, uint32(math.MaxUint32), blockgraph.Strerror(syscall.ERANGE))
	}
	return uint32(n), nil
}
