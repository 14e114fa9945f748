// Package bitmaps holds dirty bitmaps: which pieces of an image have changed.
//
// A Bitmap has one bit for every granularity bytes, in words of 64 bits, and
// above them levels of summaries: a bit of a summary tells whether a word of the
// level below may hold a bit. Looking for the next dirty piece costs a word
// per level, however large and empty the bitmap is. The words of the lowest
// level are allocated in chunks of 4 KiB when a first bit is set in them.
//
// # Who may call what
//
// Any goroutine, any method. Setting takes no lock (the data plane marks every
// write of a guest) and allocates only a chunk's first time. Everything else
// takes the bitmap's one mutex, for reading or for writing; it is a leaf and
// never held across anything that waits.
//
// A bit that Set has set before it returned is seen by every later look, even
// while another goroutine clears its neighbours: a setter stores its bit and
// then looks at the summaries on the way up; a clearer takes a summary's bit
// away and then looks at the word below again. One of the two sees the other.
// While the clearer is in between, readers are kept out by the mutex.
//
// The package knows neither nodes nor formats; a Bitmap fits
// blockgraph.Marker.
//
//blockd:any
package bitmaps
