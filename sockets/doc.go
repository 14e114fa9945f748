// Package sockets opens stream sockets from the addresses that options give:
// unix (files and abstract names), TCP over IPv4 and IPv6, vsock, and
// descriptors that were inherited or passed. Character devices, the NBD server
// and the NBD client share it.
//
// A connection is a net.Conn made of an os.File, because package net knows
// neither vsock nor the passing of descriptors over a file that it did not
// open itself.
//
// No locks. Dial, Listen and Accept may wait and must not be called from the
// control loop. Errors carry the field's texts.
//
// Imports clock and qapi of this module, nothing else.
//
//blockd:io
package sockets
