// Package copy moves bytes for jobs. Backup, mirror, stream and commit differ
// in what they copy next and in what happens at the end, not in how bytes
// move: each hands a Work to a Job of this package, which runs the Work's
// pieces, several at once, under one process-wide Scheduler.
//
// # A step
//
// The dispatcher (the goroutine in Job.Run) plans piece after piece, waits for
// the speed limit, for room in the job's window and for the scheduler, and
// starts a step. A step, on a goroutine of its own, takes in this order:
//
//  1. a turn of the Scheduler, and its bytes of the scheduler's share,
//  2. a buffer of the process's budget (ioengine), for pieces of data,
//  3. an admission at the Work's roots, so that graph changes drain it,
//  4. a claim on the clusters (Clusters), which guest writes wait for.
//
// Nobody waits for an earlier number while holding a later one, so an
// exhausted budget or a closed gate delays steps and can never tie a knot: a
// holder of 3 or 4 waits for nothing but I/O and other holders of 4 that do
// not wait in turn. A guest's write in a copy-before-write filter holds its
// own buffer and admission, and takes what it copies through from
// ioengine.Bounce, which does not wait.
//
// # Memory
//
// A job has at most Options.Window bytes in flight (DefaultWindow without),
// all jobs together the scheduler's share (DefaultShare), beyond which a job
// with nothing in flight may still have one piece of its smallest size. A
// Clusters takes one bit per cluster.
//
// # Cancellation
//
// When the context of Run ends no new step starts, and Run returns as soon as
// the steps in flight have, but at the latest after Grace. A request that
// has not returned by then is orphaned: it keeps its buffer, its admission and
// its claim until it returns, and Job.Orphans counts it.
//
// Whoever waits for a job's PausePoint must not keep the gates of its roots
// closed meanwhile: a step that waits at a gate is in flight.
//
// Lock tree: Scheduler.mu, Job.mu, Clusters.mu, limiter.mu; each is a leaf,
// no two are held together, none across I/O or a callback. What blocks is said
// at each function. It must not import jobs, qmp, monitor, exports or formats.
//
//blockd:io
package copy
