// Package exports is the control plane's side of exports: which ones exist,
// under which ids, and the NBD server that serves them. The servers themselves
// are packages below it (exports/nbd) and see neither ids nor the graph, only a
// backend to read and write.
//
// An export is a user of the graph: it owns a root, made and closed within a
// graph change. It ends in two steps. Asked to go, it is shutting down: its
// clients are disconnected, its name is free, its id is not. When the last
// request has ended, a further graph change closes the root, takes the export
// off the list and reports BLOCK_EXPORT_DELETED.
//
// The pointer to the NBD server changes within a graph change only, so that
// whoever adds an export under the token knows that it stays.
//
// Locks: Registry.mu, taken before the locks of exports/nbd; never held over
// anything that waits.
//
// Blocking: Query and Running return at once. Everything else makes
// graph changes and must be called on workers, not on the loop.
//
// Imports blockgraph, clock, exports/nbd and qapi of this module.
//
//blockd:blocking
package exports
