// Package metrics shows what a daemon does to a monitoring system
// (Prometheus). Everything is read when it is scraped, from counters that the
// parts keep for themselves: no request, job or graph change knows of it. Only
// QMP commands are counted here (Commands), of which there are few.
//
// A scrape takes one snapshot on the loop, which copies numbers and pointers
// (snapshot.go), and makes samples of it on its own goroutine (samples.go). The
// list of all families, with help and labels, is one table (families.go), from
// which docs/metrics.md is made.
//
// Labels are names that clients gave: of nodes, jobs and exports. Each list is
// bounded (see Limits), the oldest first, so that what has a series keeps it;
// blockd_left_out tells how many are not shown. A value that is too long, or is
// no UTF-8, is cut and gets a hash, so that two of them stay two.
//
// Locks: none of its own. It waits for the loop's snapshot only. Imports the
// control plane's parts, no driver, neither monitor nor qmp.
//
//blockd:io
package metrics
