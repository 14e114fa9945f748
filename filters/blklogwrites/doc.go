// Package blklogwrites is the filter that logs everything which changes the
// node below, in the format of the kernel's dm-log-writes target, so that its
// tools can replay what a crash would have left (the field: blklogwrites).
//
// The log begins with a superblock of one sector, little-endian: magic, version,
// number of entries, sector size. Each entry is a sector with the place, length
// and flags of a request, followed by its data; discards have none. The
// superblock is written anew with each flush and every so many entries.
//
// A request is done on the node below first and then logged: entries get their
// places in the order in which requests come to that point, and are written at
// the same time. The superblock counts only entries that are written, so a log
// that is cut off is a log of fewer requests. An entry that could not be
// written would be a hole in it: the log ends there, and so does writing
// through the filter.
//
// Locks: log.mu, a leaf, never held across I/O. What blocks: every I/O method.
// It must not import jobs, qmp or formats.
//
//blockd:io
package blklogwrites
