// Package preallocate is the filter that lets a file grow in large steps (the
// field: preallocate): where a write would make the file longer, it first
// extends it by a piece of zeroes, so that the file system allocates seldom and
// in one run. What was not used is cut off again when the filter is closed or
// loses the permission to write and resize.
//
// The filter knows three ends while it alone may write and resize the file:
// that of the data (what its users see as the length), that of the file, and
// where the zeroes behind the data begin. A zero write into those is nothing to
// do.
//
// At any time one request extends the file; others that would have to, wait for
// it. If extending fails, writes go to the file as they are (bare) and make it
// longer themselves, until none of them is under way: zeroes must never be put
// over data that is on its way.
//
// Locks: Filter.mu, a leaf, never held across I/O. What blocks: every I/O
// method. It must not import jobs, qmp or formats.
//
//blockd:io
package preallocate
