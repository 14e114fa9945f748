// Package logs is where the records of log/slog go in the daemon. Whoever logs
// knows nothing of it: a record's subsystem is the package that it comes from
// (subsystems.go), its request is that of the context (qapi.Origin), and a
// record at level debug whose message is one word is a trace event of that name
// (events.go).
//
// There are two sinks, each with a level for every subsystem, which may change
// at any time, and patterns of events (levels.go): the *memory*, a ring of the
// recent lines that clients read (ring.go), and the *output*, a file or stderr
// (output.go). A line is put into the ring by the goroutine that logs; goroutines
// that follow the ring write it and tell clients of it. So no log call waits,
// whatever the output does: lines that were overtaken in the ring are counted as
// lost.
//
// What looks like a secret is blacked out before a line is kept (scrub.go). That
// is the second line of defence: the first is that nobody logs one.
//
// Locks: Log.mu, a leaf, held for copying and formatting nothing.
//
// Imports qapi of this module.
//
//blockd:io
package logs
