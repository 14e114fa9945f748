// Package fuse serves a node as a regular file of the host, over a file that is
// there already: programs that know nothing of images read and write it as a raw
// disk.
//
// An export is a mount whose root is the file itself. The kernel sends requests
// through /dev/fuse, which the library go-fuse takes apart and answers, each on
// a goroutine of its own; file.go is what they mean. Reads and writes go straight
// to the backend, and the kernel keeps neither data nor attributes: other clients
// change the disk, too.
//
// The disk's length changes by a graph change, Config.Resize, which waits for all
// requests that are under way; so a request that needs it asks before it is let
// in to the backend, and holds nothing meanwhile.
//
// Blocking: everything but Clients, CloseIfUnused, Device, Done and Show.
//
// Imports blockgraph, clock and qapi of this module.
//
//blockd:blocking
package fuse
