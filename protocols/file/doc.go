// Package file is the protocol drivers `file` and `host_device`: nodes over
// regular files and over block and character devices of the host.
//
// A node owns one descriptor for its whole life (ioengine.File). What it is
// open for may change under it, when permissions come or go under
// auto-read-only, or by blockdev-reopen; requests in flight end on the file
// that they began with. Permissions are made known to other programs by the
// field's lock bytes (locks.go).
//
// Control plane: what changes the node (Open, PreparePerms and its kin,
// PrepareReopen, Truncate, Close) runs on a worker, one at a time, with the
// graph's token held or from an admitted request of the parent (Truncate). It
// opens files and takes locks, so it may block. Data plane: everything else,
// from any goroutine; it blocks in system calls, within ioengine's slots.
//
// Inodes are opened by way of /proc/self/fd, so /proc must be mounted.
//
// Locks: flusher.mu, a leaf, not held during system calls.
// Imports: blockgraph, ioengine, qapi; neither formats nor jobs.
//
//blockd:io
package file
