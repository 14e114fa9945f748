// Package qmp is the wire protocol of the monitors: it reads requests, runs
// commands, and writes replies and events. It knows nothing of blocks: commands
// are registered by others, with their argument types.
//
// A Server holds what all monitors share: the Registry of commands, the Hub
// that spreads events, the descriptor sets. Each Monitor owns one character
// device and serves its clients one after the other, each by a Session. A client
// that comes another way (Server.ServeConn) has a Monitor for itself.
//
// A Session has three goroutines: a reader, a dispatcher that runs the commands
// in order, and a writer. Whatever is sent goes through one queue per session,
// so that an event emitted before a command returns precedes its reply.
// Requests wait in a queue of QueueLength; when it is full the session stops
// reading. Output waits in a queue of MaxBacklog bytes; a client that lets it
// fill up is disconnected. When a client leaves in the middle of a command, the
// command and what is queued behind it run to their end, the replies go
// nowhere, and the monitor takes the next client at once.
//
// Locks: Server.mu; then Hub.mu, then output.mu. FdSets.mu and Monitor.mu are
// leaves. None is held over a call that can wait.
//
// Blocking: Hub.Emit never waits and may be called from any goroutine, the
// control loop included. Handlers run on the dispatcher's goroutine and may
// block. Server.Close waits. Everything else returns at once.
//
// Imports chardev, clock and qapi of this module; never the block layer.
//
//blockd:blocking
package qmp
