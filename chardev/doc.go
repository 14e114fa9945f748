// Package chardev provides character devices: the named byte streams that
// monitors speak over. Back ends are stream sockets (unix, TCP, vsock, or an
// inherited or passed descriptor; listening or connecting), standard input and
// output, files, and null.
//
// A Registry holds the devices by id, for --chardev, chardev-add and
// query-chardev. A front end claims a device with Registry.Attach and then
// calls Device.Accept for one connection after the other: a device has at most
// one open connection, further clients wait in the listener's backlog, so that
// they find the device free once the present one has left.
//
// Locks: Registry.mu, then Device.mu. Neither is held over a system call that
// can wait.
//
// Blocking: Registry.Add may wait for a name to resolve, for a peer to accept,
// or, with wait=on, for the first client; Device.Accept, Conn.Read and
// Conn.Write wait. Call those from goroutines that may block, never from the
// control loop. Everything else returns at once.
//
// Imports clock and qapi of this module, nothing else.
//
//blockd:io
package chardev
