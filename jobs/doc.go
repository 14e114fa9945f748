// Package jobs runs long operations: their states, the verbs that act on them,
// the events that tell about them, and the transactions that tie several of
// them together.
//
// The state of every job belongs to the control plane's loop: it changes
// there and nowhere else, and no function on the loop waits. A job's body
// (Driver.Run) is a goroutine on the data plane; it reports by message. What a
// job does to the graph at its end (prepare, commit, abort, clean) runs on a
// worker that belongs to the job's transaction, inside one graph change. There
// is one token for graph changes, so these phases run one after the other and
// never inside another job's.
//
// A job is born inside the graph change that sets it up, is started by the
// commit of that change together with all its siblings, and cannot end its
// transaction before: its end needs the token, too.
//
// Locks: Progress.mu and the mutex of the pause signal, both leaves.
// Blocking: methods marked "control plane" never block and run on the loop;
// those marked "worker" may block and must not be called from the loop; those
// marked "data plane" are for the job's own body.
// Imports: blockgraph, clock and qapi; never exports, qmp or monitor.
//
//blockd:global loop
package jobs
