// Package blockgraph is the block graph: nodes, the edges between them, the
// roots through which it is used, and the changes to all of these.
//
// Its state (names, users of nodes, permissions, blockers) belongs to the
// control plane. It is published on the loop (Loop), and read there or by the
// holder of the one token for graph changes (Tx). The data plane sees nodes and
// edges through atomic pointers to states that never change.
//
// Locks, all of them leaves: Loop.mu, gate.mu, RangeLock.mu. They are held for
// a few steps in memory, so the loop may take them, too. Node.inspected is held
// over a query's I/O; only a query and the change that closes the node take it.
// Blocking: what a Tx does may wait and runs on a worker (Graph.Update);
// methods of roots and edges that do I/O wait for it and for gates; what is
// marked "control plane" runs on the loop or under the token and never waits.
// Imports: clock, ioengine and qapi of this module.
//
//blockd:io
package blockgraph
