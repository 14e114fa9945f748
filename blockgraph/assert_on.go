//go:build blockddebug

package blockgraph

import (
	"bytes"
	"runtime"
	"strconv"
)

// assertPerm holds that a request uses only what its edge was granted.
func assertPerm(e *Edge, need Perm, flags Flags) {
	perm, _ := e.Perms()
	perm |= Perm(e.ahead.Load())
	if need == PermConsistentRead {
		return // formats read their own metadata whoever uses them
	}
	if need == PermWrite && flags&WriteUnchanged != 0 {
		need = PermWriteUnchanged
		if perm&PermWrite != 0 {
			return
		}
	}
	if perm&need != need {
		panic("blockgraph: " + e.user() + " uses '" + need.String() + "' on node '" + e.child.name + "' without the permission")
	}
}

// assertTracked holds that a request that excludes others meets only tracked
// ones.
func assertTracked(exclusive bool) {
	if exclusive {
		panic("blockgraph: a serialising request on a node whose requests are not tracked")
	}
}

func goroutineID() uint64 {
	var buf [64]byte
	b := buf[:runtime.Stack(buf[:], false)]
	b = bytes.TrimPrefix(b, []byte("goroutine "))
	id, _ := strconv.ParseUint(string(b[:bytes.IndexByte(b, ' ')]), 10, 64)
	return id
}

// assertOn holds that the caller runs on the loop.
func (l *Loop) assertOn() {
	if goroutineID() != l.id {
		panic("blockgraph: control plane code called off the loop")
	}
}
