//go:build blockddebug

package ioengine

import "bytes"

var poisoned = bytes.Repeat([]byte{0xdb}, 4096)

// poison overwrites a released buffer, so that a use after release shows. The
// race detector hears of whole pages: a byte at a time, this took half of the
// time of tests that copy much.
func poison(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, poisoned):]
	}
}
