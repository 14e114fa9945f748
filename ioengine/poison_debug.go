//go:build blockddebug

package ioengine

// poison overwrites a released buffer, so that a use after release shows.
func poison(b []byte) {
	for i := range b {
		b[i] = 0xdb
	}
}
