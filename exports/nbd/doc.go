// Package nbd is the NBD server: the guest's way into the block graph.
//
// A Server listens on sockets and holds the exports that clients may ask for.
// One connection is one conn. During the handshake it is one goroutine that
// reads and answers. Afterwards it is a role, the reader's, that one goroutine
// has at a time: it takes requests off the socket, admits them and sees to it
// that they are executed, by itself when they have lately been quick (that
// saves the hand-off, and the replies of a burst leave in one system call), or
// on a goroutine of the server's pool when they have not. A reader that gets
// stuck in a request loses the role after a tick of the watchdog: another
// goroutine goes on reading. So a slow request holds up the others of its
// connection for two ticks at most, until maxInFlight requests or
// maxInFlightBytes bytes are under way; then the socket is not read.
//
// Replies leave in the order in which requests end. Whoever ends a request
// while nobody is sending sends everything that is ready, in one writev for
// headers and data.
//
// Memory: a request's data lives in one aligned buffer out of the process's
// budget, acquired before it is read from the socket or the image. A server
// keeps to a share of that budget (memory.go), and gives up connections that
// sit on memory without moving while others wait for some.
//
// Lock tree: Server.mu, then Export.mu; conn.mu, memory.mu, watchdog.mu and
// workers.mu are leaves. None is held over I/O.
//
// Blocking: everything on a connection's goroutines may block. Server.Close
// and Listen block; AddExport, Export.Close and the queries do not.
//
// Imports blockgraph, clock, ioengine, nbdproto and qapi of this module, never
// jobs or the monitor.
//
//blockd:io
package nbd
