// Package web is the daemon's HTTP address (--web): metrics, and QMP over
// WebSocket where that is asked for. It knows neither blocks nor commands: what
// it serves is handed in.
//
// There is neither TLS nor a token yet. So it listens where only users of this
// machine get: at a loopback address, or at a unix socket of mode 0600. A page
// in a browser of this machine is no such user: requests must name the address
// by itself (Host), not by a name that somebody's DNS could lead here, and come
// from no other page (Origin). docs/security.md has the threats.
//
// A request is bounded: its header by maxHeader bytes and headerTime, its
// answer by answerTime; connections by maxConnections. What is beyond is closed
// at once.
//
// Locks: qmpHandler.mu and wsConn.mu, both leaves. Server.Close waits; so do
// handlers. Imports chardev, clock, qapi and sockets.
//
//blockd:blocking
package web
