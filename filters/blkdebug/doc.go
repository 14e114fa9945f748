// Package blkdebug is the filter for tests of failure: it has requests fail,
// stops them at fault points, and lays limits on the node below (the field:
// blkdebug).
//
// What happens is decided by rules, from the options and from a config file.
// A rule belongs to an event: a fault point that the node above reports
// (Edge.DebugEvent), one that the checked wrapper reports about requests to
// the filter itself, or "none", the opening of the filter. An event makes the
// error rules that belong to it the active ones, in place of those that were,
// and may move a small state machine, which starts at 1; rules may be bound
// to one of its states. Requests are then held against the active rules.
//
// Breakpoints (blockgraph.Breakpointer) stop whoever reports an event until
// they are resumed. A stopped request stays admitted, so it holds up drains.
//
// Locks: rules.mu, a leaf. What blocks: DebugEvent at a breakpoint, and what
// blocks below. It must not import jobs, qmp or formats.
//
//blockd:io
package blkdebug
