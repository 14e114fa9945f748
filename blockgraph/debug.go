package blockgraph

import (
	"context"
	"syscall"
)

// Fault points: formats, jobs and the checked wrapper name their steps in the
// field's blkdebug vocabulary, and a blkdebug node acts on them. Where there is
// none, an event costs a test for nil.
//
// An event goes to the next node below that acts on them, through filters. A
// breakpoint is set at the first node from the given one downwards that has
// them, along primary children, formats included.

// DebugEvent reports a fault point of the parent to whoever below acts on
// them. It may wait there; no lock is held.
func (e *Edge) DebugEvent(event string) {
	if e == nil {
		return
	}
	n := e.child
	for n.debug == nil {
		f := n.Filtered()
		if f == nil {
			return
		}
		n = f.child
	}
	n.debug.DebugEvent(event)
}

// event reports a fault point of the checked wrapper about a request to n.
func (n *Node) event(event string) {
	if n.debug != nil {
		n.debug.DebugEvent(event)
	}
}

// breakpointer returns the node that has breakpoints, or nil.
func (n *Node) breakpointer() Breakpointer {
	for n != nil {
		if b, ok := n.drv.(Breakpointer); ok {
			return b
		}
		next := n.primary()
		if next == nil {
			return nil
		}
		n = next.child
	}
	return nil
}

// primary returns the edge to the child that the node is mostly about, or nil.
func (n *Node) primary() *Edge {
	for _, e := range n.state.Load().Edges {
		if e.role&RolePrimary != 0 {
			return e
		}
	}
	return nil
}

// Breakpoint is Breakpointer.Breakpoint at or below n; ENOTSUP where nobody has
// breakpoints. Control plane, as its fellows: the node must stay open.
func (n *Node) Breakpoint(event, tag string) error {
	if b := n.breakpointer(); b != nil {
		return b.Breakpoint(event, tag)
	}
	return syscall.ENOTSUP
}

// RemoveBreakpoint is Breakpointer.RemoveBreakpoint at or below n.
func (n *Node) RemoveBreakpoint(tag string) error {
	if b := n.breakpointer(); b != nil {
		return b.RemoveBreakpoint(tag)
	}
	return syscall.ENOTSUP
}

// ResumeBreakpoint is Breakpointer.Resume at or below n.
func (n *Node) ResumeBreakpoint(tag string) error {
	if b := n.breakpointer(); b != nil {
		return b.Resume(tag)
	}
	return syscall.ENOTSUP
}

// Suspended is Breakpointer.Suspended at or below n.
func (n *Node) Suspended(tag string) bool {
	b := n.breakpointer()
	return b != nil && b.Suspended(tag)
}

// AwaitSuspended is Breakpointer.AwaitSuspended at or below n.
func (n *Node) AwaitSuspended(ctx context.Context, tag string) error {
	if b := n.breakpointer(); b != nil {
		return b.AwaitSuspended(ctx, tag)
	}
	return syscall.ENOTSUP
}
