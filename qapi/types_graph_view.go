package qapi

// Types of blockd's own: the block graph as a console shows it.

// GraphView is the block graph as of one step of its history.
type GraphView struct {
	// As in GraphHistory.
	Instance string `qapi:"instance"`
	// The number of the last step.
	Last  uint64          `qapi:"last"`
	Nodes []GraphViewNode `qapi:"nodes"`
	Roots []GraphViewRoot `qapi:"roots"`
	Edges []GraphViewEdge `qapi:"edges"`
}

// GraphViewNode is a block node.
type GraphViewNode struct {
	NodeName string `qapi:"node-name"`
	Driver   string `qapi:"driver"`
	ReadOnly bool   `qapi:"read-only"`
	Active   bool   `qapi:"active"`
	// A job inserted it for itself.
	Implicit bool `qapi:"implicit"`
	// blockdev-del may remove it.
	Owned bool `qapi:"owned"`
	// Length in bytes.
	Size     int64              `qapi:"size"`
	Blockers []GraphViewBlocker `qapi:"blockers"`
}

// GraphViewBlocker forbids operations on a node.
type GraphViewBlocker struct {
	Reason string `qapi:"reason"`
	// The operations that it allows, in the field's names.
	Except []string `qapi:"except"`
}

// GraphViewRoot is a user of nodes that is none.
type GraphViewRoot struct {
	// No other root ever has the same number.
	Root uint64 `qapi:"root"`
	// The job whose root it is.
	Job *string `qapi:"job"`
	// The export whose root it is.
	Export *GraphViewExport `qapi:"export"`
	// What the daemon's log calls it, if it has a name there.
	Label *string `qapi:"label"`
}

// GraphViewExport is an export.
type GraphViewExport struct {
	ID   string          `qapi:"id"`
	Type BlockExportType `qapi:"type"`
	// How many clients use it.
	Clients      int64 `qapi:"clients"`
	ShuttingDown bool  `qapi:"shutting-down"`
}

// GraphViewEdge is a use of a node.
type GraphViewEdge struct {
	ParentNode *string           `qapi:"parent-node"`
	ParentRoot *uint64           `qapi:"parent-root"`
	Name       string            `qapi:"name"`
	Child      string            `qapi:"child"`
	Perm       []BlockPermission `qapi:"perm"`
	SharedPerm []BlockPermission `qapi:"shared-perm"`
	// A job or a filter relies on the edge, so that it stays.
	Frozen bool `qapi:"frozen"`
}

// GraphTraffic is what goes through the block graph.
type GraphTraffic struct {
	Instance string `qapi:"instance"`
	// The number of the last step.
	Last  uint64             `qapi:"last"`
	Edges []GraphTrafficEdge `qapi:"edges"`
	Roots []GraphTrafficRoot `qapi:"roots"`
}

// GraphTrafficEdge is what went through an edge since it was first asked for.
type GraphTrafficEdge struct {
	ParentNode *string `qapi:"parent-node"`
	ParentRoot *uint64 `qapi:"parent-root"`
	Name       string  `qapi:"name"`
	Child      string  `qapi:"child"`
	ReadBytes  int64   `qapi:"read-bytes"`
	WriteBytes int64   `qapi:"write-bytes"`
	// Requests of all kinds, those that failed among them.
	Operations int64 `qapi:"operations"`
}

// GraphTrafficRoot is what a user of nodes does now.
type GraphTrafficRoot struct {
	Root uint64 `qapi:"root"`
	// Requests that have been admitted and have not ended.
	InFlight int64 `qapi:"in-flight"`
	// How often a request waited for a graph change.
	Held int64 `qapi:"held"`
	// Of an export: how many clients use it.
	Clients *int64 `qapi:"clients"`
}
