// Package nbdproto is the wire format of the Network Block Device protocol, for
// servers and clients: constants, the messages of the handshake, requests and
// replies. It follows the protocol document of the NBD project (doc/proto.md),
// whose names the constants keep; "NBD_" and underscores are left out.
//
// The package only turns bytes into values and back. It does no I/O, keeps no
// state and holds no lock, so everything in it may be called from anywhere and
// never blocks. Numbers are big endian on the wire; lengths and offsets are
// bytes. Decoders take hostile input: each length is checked against a named
// limit before anything is allocated or sliced.
//
// Request headers have two forms, Compact and Extended; a Framing tells which
// one a connection uses, so that extended headers need no second code path in
// the callers.
//
// Imports the standard library only.
//
//blockd:any
package nbdproto
