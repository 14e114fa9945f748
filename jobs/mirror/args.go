package mirror

import (
	"math"

	"blockd/qapi"
)

// Backing says what becomes of the target's backing file when a mirror has
// succeeded.
type Backing uint8

const (
	// LeaveBacking: nothing.
	LeaveBacking Backing = iota
	// SourceBacking: it gets that of the source, or with sync=none the source.
	SourceBacking
	// HeaderBacking: that which its header names is opened.
	HeaderBacking
)

const (
	minGranularity = 512
	maxGranularity = 64 << 20
	// defaultBuffer is how many bytes are in flight at most.
	defaultBuffer = 16 << 20
	// maxBuffer bounds buf-size, which is memory.
	maxBuffer = 64 << 20
)

// check refuses arguments that can be refused by themselves, in the field's
// words.
func check(a *qapi.BlockdevMirror) error {
	switch g := qapi.Or(a.Granularity, 0); {
	case g != 0 && (g < minGranularity || g > maxGranularity):
		return qapi.Errorf("Parameter 'granularity' expects a value in range [512B, 64MB]")
	case g&(g-1) != 0:
		return qapi.Errorf("Parameter 'granularity' expects a power of 2")
	}
	return nil
}

// checkLate refuses what the field refuses after it has looked at the nodes.
func checkLate(a *qapi.BlockdevMirror) error {
	switch a.Sync {
	case qapi.MirrorSyncModeIncremental, qapi.MirrorSyncModeBitmap:
		return qapi.Errorf("Sync mode '%s' not supported", a.Sync)
	}
	if qapi.Or(a.BufSize, 0) < 0 {
		return qapi.Errorf("Invalid parameter 'buf-size'")
	}
	return nil
}

// bufferSize returns the bytes that may be in flight: what was asked for, in
// whole granules.
func bufferSize(asked, granularity int64) int64 {
	if asked == 0 {
		asked = defaultBuffer
	}
	asked = min(asked, math.MaxInt64-granularity)
	return min((asked+granularity-1)&^(granularity-1), max(maxBuffer, granularity))
}
