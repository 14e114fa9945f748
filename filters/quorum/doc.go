// Package quorum is the node that keeps the same content in several children
// and has them vote when it is read (the field: quorum).
//
// A write goes to all children at once and succeeds when as many of them as the
// threshold says did. A read asks all of them, or with the pattern fifo one
// after the other until one answers. What most of those that answered agree
// upon is the content, if they are as many as the threshold; the others are
// reported, and with rewrite-corrupted written again.
//
// A rewrite must not put back what a guest has just replaced. So, with
// rewrite-corrupted, writes share a range lock, and a reader that found children
// differing takes it alone, reads and votes once more, and rewrites under it.
//
// Children are added and removed by graph changes, with no request under way;
// a request works with the list that it finds when it begins.
//
// Locks: Quorum.writing, a range lock, held across I/O below by admitted
// requests, which never wait for a gate. What blocks: every I/O method. It must
// not import jobs, qmp or formats.
//
//blockd:io
package quorum
