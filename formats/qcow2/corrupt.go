package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"regexp"
	"syscall"
)

// CorruptionFunc is told when a corruption is found: the data of
// BLOCK_IMAGE_CORRUPTED. off and n are bytes in the file, or -1.
type CorruptionFunc = func(msg string, off, n int64, fatal bool)

// hexZero is how %#x writes 0; the field, in C, writes no prefix then.
var hexZero = regexp.MustCompile(`\b0x0\b`)

// OnCorruption sets who is told of corruptions. Control plane.
func (d *Driver) OnCorruption(f CorruptionFunc) { d.onCorruption.Store(&f) }

// corrupt reports a corruption found at run time and returns the error for the
// request. A fatal one on a writable image marks the image corrupt and ends
// writing to it. Later non-fatal ones are not reported again. It may be called
// with locks held: the mark is written by a goroutine that Close waits for.
func (d *Driver) corrupt(fatal bool, off, n int64, format string, args ...any) error {
	fatal = fatal && !d.readOnly.Load()
	// Who comes again, perhaps for each cluster of a disk, costs nothing.
	first := &d.signaled
	if fatal {
		first = &d.broken
	}
	if !first.CompareAndSwap(false, true) {
		return syscall.EIO
	}
	msg := hexZero.ReplaceAllString(fmt.Sprintf(format, args...), "0")
	if fatal {
		slog.Error("qcow2: Marking image as corrupt: " + msg + "; further corruption events will be suppressed")
	} else {
		slog.Error("qcow2: Image is corrupt: " + msg + "; further non-fatal corruption events will be suppressed")
	}
	d.signaled.Store(true)
	if f := d.onCorruption.Load(); f != nil {
		(*f)(msg, off, n, fatal)
	}
	if fatal && d.h.version >= 3 {
		d.background.start(func() {
			ctx := context.Background()
			err := d.updateHeader(ctx, func(b []byte) {
				be := binary.BigEndian
				be.PutUint64(b[fieldIncompatible:], be.Uint64(b[fieldIncompatible:])|incompatCorrupt)
			})
			if err == nil {
				err = d.file().Flush(ctx)
			}
			if err != nil {
				slog.Error("qcow2: the corrupt bit could not be written", "error", err)
			}
		})
	}
	return syscall.EIO
}
