// Package nbd is the protocol driver `nbd`: a node whose content an NBD server
// holds. It follows the protocol document of the NBD project (doc/proto.md):
// fixed newstyle negotiation, structured replies, block status.
//
// A link is one connection after its handshake: callers send requests, each in
// a slot of the link, and one goroutine receives all replies, reading data
// straight into the callers' vectors. The driver holds one link, or several
// where the options ask for them and the server allows it (CAN_MULTI_CONN),
// and makes a new one when one is lost. During the first `reconnect-delay`
// seconds requests wait for it and are sent again; afterwards they fail until
// there is a link. Sending again is safe: the requests are idempotent, and
// those of one range exclude each other above the driver until the caller has
// its answer.
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
