// Package web is the daemon's HTTP address (--web): metrics, the page of the
// console, and QMP over WebSocket where that is asked for. It knows neither
// blocks nor commands: what it serves is handed in.
//
// Who may come is decided in this order, and docs/security.md has the threats:
//
//   - the address is a loopback address or a unix socket, unless there is TLS
//     and clients show tokens or certificates (address.go);
//   - a connection is one of few, of its client and in all (limited.go);
//   - a request comes at a bearable rate (rate.go), has no body, names the address
//     by itself (Host), not by a name that somebody's DNS could lead here, comes
//     from no other page (Origin), and has no token in its address (origin.go);
//   - it shows a token, if there are tokens (login.go, tokens.go), whose role is
//     asked by each place, and by package qmp for each command.
//
// A request is bounded: its header by maxHeader bytes and headerTime, its answer
// by answerTime. A session is bounded by maxMessage, messageRate and stallTime.
//
// Locks: qmpHandler.mu, then tokens.mu; limited.mu, rates.mu and wsConn.mu are
// leaves, too. None is held over I/O. Server.Close waits; so do handlers. Imports
// chardev, clock, qapi, sockets and tlscreds.
//
//blockd:blocking
package web
