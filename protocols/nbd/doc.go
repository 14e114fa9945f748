// Package nbd is the protocol driver `nbd`: a node whose content an NBD server
// holds. It follows the protocol document of the NBD project (doc/proto.md):
// fixed newstyle negotiation, structured replies, extended headers (its branch
// extension-ext-header), block status.
//
// A link is one connection after its handshake: callers send requests, each in
// a slot of the link, and one goroutine receives all replies, reading data
// straight into the callers' vectors. The driver holds one link, or several
// where the options ask for them and the server allows it (CAN_MULTI_CONN),
// and makes a new one when one is lost. During the first `reconnect-delay`
// seconds requests wait for it and are sent again; afterwards they fail until
// there is a link. A server that takes clients only to drop them is asked at
// growing intervals, and one that hangs in the handshake is left after a minute.
//
// What sending again means, here as in the field, since the protocol can ask
// for no more:
//   - A request takes effect once or twice, between its call and its answer. The
//     graph does not order requests of one range that are under way together,
//     but for those that it widens; nor may their caller rely on an order. What
//     was called after the answer is not overtaken by the second time.
//   - It may be overtaken by the first: a server that lives on behind a broken
//     connection can carry out a write that it has read, however late, even when
//     the write was answered over the new link and another one has followed. A
//     server that has died cannot.
//   - A flush speaks for the server that answers it. When the one before was lost
//     with its host's memory, so were the writes that it had answered without a
//     flush or FUA, and the next flush succeeds all the same. That a server comes
//     back does not tell which it was, and a flush that failed after every restart
//     would make reconnect-delay useless. A restart of the server's process alone
//     loses nothing that it had handed to its system.
//   - A server with another size, or that can do less, is not taken for the same.
//
// A request whose reply never comes is not given up: its vector is the
// receiver's, and a write may still reach the server. A context ends the waits
// for a slot or a link, and a read whose data has not begun to arrive.
//
// The server is not trusted: a reply must answer a request in flight, with
// data that covers its range exactly once, else the link is dropped.
//
// Lock tree: Driver.mu, link.mu; both leaves, never held across I/O.
// link.sendMu lies outside both and is held while one request is written to the
// socket. Data plane: all methods of the driver, from any goroutine. It imports
// blockgraph, clock, nbdproto, qapi and sockets.
//
//blockd:io
package nbd
