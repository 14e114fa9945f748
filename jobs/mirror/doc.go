// Package mirror is the mirror job: it brings a node's content to another one
// while guests go on writing, keeps the two alike, and in the end puts the
// target into the source's place (the pivot). A commit of the active layer is
// the same job with the base of the source's own chain as its target.
//
// # What is dirty
//
// A filter over the source (filters/mirrortop) marks what guests change. The
// job copies what is dirty: it takes granules alone, takes their marks away,
// asks what they are and copies them. A write that lands after the marks were
// taken marks them again, so the copy that follows has it; and the lock keeps
// two copies of one granule from overtaking each other. Errors put marks back.
//
// # Its course
//
// Run looks at the sizes, then at what there is to copy (begin.go), then copies
// until nothing is dirty: the job is ready. From then on it copies what becomes
// dirty until it is asked to complete or is cancelled. To complete, the guests'
// writes first become synchronous, whatever the copy mode, so that nothing new
// becomes dirty, however long the job waits for others or for its finalize. The
// change that ends the job drains the guests, copies what is left (hardly
// anything), flushes the target and pivots (finish.go).
//
// Where guests' writes cannot be made synchronous (a commit, whose target is
// below its source; somebody who writes to the source beside the filter) the
// job ends with a few megabytes still dirty at most, which that change copies.
//
// # Changes of the copy mode
//
// The filter becomes active or passive in a graph change that has drained the
// guests: no write is half the one and half the other (mode.go).
//
// Prepare and NewActiveCommit are called on a worker with the graph token held.
// Locks: mirror.mu, a leaf. It must not import formats, exports or qmp.
package mirror
