//go:build !blockddebug

package blockgraph

func assertPerm(*Edge, Perm, Flags) {}

func assertTracked(bool) {}

func goroutineID() uint64 { return 0 }

func (l *Loop) assertOn() {}
