// Package graphtest has what tests of the graph's drivers and users share:
// nodes in memory, faults and held requests, and a graph with a loop around
// them. It is for tests only.
//
//   - Memory is a protocol, `mem`: it knows data from holes, counts what
//     arrives, remembers the permissions that its users hold, and lets a test
//     look at each request before it is done (Hook, Failing, Hold).
//   - Image is a format, `image`: clusters of 64 KiB in a Memory, with a backing
//     file and a header that names it.
//   - Recorder is a file that logs what reaches it; CrashWalk rebuilds files as a
//     crash may leave them, and CrashValues says what their disk may hold then.
//   - `pass` is a filter that passes everything through.
//   - World is a graph of these, and of the driver types under test.
//   - Sample says how many rounds of a randomised test there are.
//
//blockd:io
package graphtest
