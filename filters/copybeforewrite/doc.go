// Package copybeforewrite is the filter that saves the old content of clusters
// to a target before a guest's write, zero write or discard reaches the node
// below (the field: copy-before-write). Backup jobs insert one; users may, too.
//
// What is to be saved is a copy.Clusters, which the job's own copying shares:
// a write tests it without a lock, copies what is dirty, and waits only for
// copies under way that overlap with it. A cluster that was found clean stays
// so, which makes the target the source's content at the moment of the
// insertion.
//
// Order within a write: the guest's admission and its buffer are held; a
// claim on clusters is held during the copy of these clusters, and no claim
// while waiting for another's. Buffers come from ioengine.Bounce, which does
// not wait.
//
// Locks: Filter.mu, a leaf, never held across I/O. What blocks: every I/O
// method. It must not import jobs, qmp or formats.
//
//blockd:io
package copybeforewrite
