package qapi

// Types of blockd's own: the history of the block graph.

// XQueryGraphHistoryArg is the argument of x-query-graph-history.
type XQueryGraphHistoryArg struct {
	// Only steps with greater numbers.
	Since *uint64 `qapi:"since"`
	// The instance that Since is of.
	Instance *string `qapi:"instance"`
}

// XGraphSubscribeArg is the argument of x-graph-subscribe.
type XGraphSubscribeArg struct {
	Enable *bool `qapi:"enable"`
}

// GraphSubscription says which steps a client is going to be told of.
type GraphSubscription struct {
	Instance string `qapi:"instance"`
	// The last step that it is not told of.
	Last uint64 `qapi:"last"`
}

// GraphHistory is a part of the block graph's past.
type GraphHistory struct {
	// Changes when the daemon is started anew, and numbers begin again.
	Instance string `qapi:"instance"`
	// Of the oldest step that is kept; greater than last: none is.
	First uint64 `qapi:"first"`
	Last  uint64 `qapi:"last"`
	// The steps are all that were asked for.
	Complete bool        `qapi:"complete"`
	Steps    []GraphStep `qapi:"steps"`
}

// GraphStep is one change of the block graph.
type GraphStep struct {
	Number    uint64        `qapi:"number"`
	Timestamp GraphStepTime `qapi:"timestamp"`
	Cause     GraphCause    `qapi:"cause"`
	Changes   []GraphChange `qapi:"changes"`
}

// GraphStepTime is a time of day, like an event's.
type GraphStepTime struct {
	Seconds      int64 `qapi:"seconds"`
	Microseconds int64 `qapi:"microseconds"`
}

// GraphChanged is the data of GRAPH_CHANGED.
type GraphChanged struct {
	Instance string    `qapi:"instance"`
	Step     GraphStep `qapi:"step"`
}

// GraphCauseType says what caused a change of the block graph.
type GraphCauseType string

// Values of GraphCauseType.
const (
	GraphCauseTypeCommand  GraphCauseType = "command"
	GraphCauseTypeJob      GraphCauseType = "job"
	GraphCauseTypeOption   GraphCauseType = "option"
	GraphCauseTypeShutdown GraphCauseType = "shutdown"
)

// QAPIEnum lists the values.
func (GraphCauseType) QAPIEnum() []string {
	return []string{"command", "job", "option", "shutdown"}
}

// GraphCause is what caused a change of the block graph.
type GraphCause struct {
	Type    GraphCauseType     `qapi:"type,discriminator"`
	Command *GraphCauseCommand `qapi:",case=command"`
	Job     *GraphCauseJob     `qapi:",case=job"`
	Option  *GraphCauseOption  `qapi:",case=option"`
}

// GraphCauseCommand is a command of QMP.
type GraphCauseCommand struct {
	Command string `qapi:"command"`
	// The client's own, unless it gave none or one longer than 1,024 bytes.
	ID *any `qapi:"id"`
	// The number of the command that has led to it.
	Request *uint64 `qapi:"request"`
}

// GraphCauseJob is a job.
type GraphCauseJob struct {
	Job string `qapi:"job"`
	// The number of the command that has led to it.
	Request *uint64 `qapi:"request"`
}

// GraphCauseOption is an option of the command line.
type GraphCauseOption struct {
	// Without dashes.
	Option string `qapi:"option"`
}

// GraphChangeType says what a change did.
type GraphChangeType string

// Values of GraphChangeType.
const (
	GraphChangeTypeNodeAdded   GraphChangeType = "node-added"
	GraphChangeTypeNodeRemoved GraphChangeType = "node-removed"
	GraphChangeTypeRootAdded   GraphChangeType = "root-added"
	GraphChangeTypeRootRemoved GraphChangeType = "root-removed"
	GraphChangeTypeLinked      GraphChangeType = "linked"
	GraphChangeTypeUnlinked    GraphChangeType = "unlinked"
	GraphChangeTypeRelinked    GraphChangeType = "relinked"
	GraphChangeTypePermissions GraphChangeType = "permissions"
)

// QAPIEnum lists the values.
func (GraphChangeType) QAPIEnum() []string {
	return []string{"node-added", "node-removed", "root-added", "root-removed", "linked", "unlinked", "relinked", "permissions"}
}

// GraphChange is one difference between two states of the block graph.
type GraphChange struct {
	Type        GraphChangeType    `qapi:"type,discriminator"`
	Node        *GraphChangeNode   `qapi:",case=node-added|node-removed"`
	Root        *GraphChangeRoot   `qapi:",case=root-added|root-removed"`
	Linked      *GraphChangeLink   `qapi:",case=linked"`
	Unlinked    *GraphChangeUnlink `qapi:",case=unlinked"`
	Relinked    *GraphChangeRelink `qapi:",case=relinked"`
	Permissions *GraphChangePerms  `qapi:",case=permissions"`
}

// GraphChangeNode is about a node.
type GraphChangeNode struct {
	NodeName string `qapi:"node-name"`
	Driver   string `qapi:"driver"`
}

// GraphChangeRoot is about a user of the graph that is no node.
type GraphChangeRoot struct {
	// No other root ever has the same number.
	Root uint64 `qapi:"root"`
	// The job whose root it is.
	Job *string `qapi:"job"`
	// What the daemon's log calls it, if it has a name there.
	Label *string `qapi:"label"`
}

// GraphChangeEdge names an edge: its user, a node or a root, and the name that
// the user has for it.
type GraphChangeEdge struct {
	ParentNode *string `qapi:"parent-node"`
	ParentRoot *uint64 `qapi:"parent-root"`
	// The job whose root it is.
	Job   *string `qapi:"job"`
	Name  string  `qapi:"name"`
	Child string  `qapi:"child"`
}

// GraphChangePermissions are an edge's permissions after a change.
type GraphChangePermissions struct {
	Perm       []BlockPermission `qapi:"perm"`
	SharedPerm []BlockPermission `qapi:"shared-perm"`
}

// GraphChangeOldPermissions are an edge's permissions before a change.
type GraphChangeOldPermissions struct {
	OldPerm       []BlockPermission `qapi:"old-perm"`
	OldSharedPerm []BlockPermission `qapi:"old-shared-perm"`
}

// GraphChangeLink is about a new edge.
type GraphChangeLink struct {
	GraphChangeEdge
	GraphChangePermissions
}

// GraphChangeUnlink is about an edge that went.
type GraphChangeUnlink struct {
	GraphChangeEdge
	GraphChangeOldPermissions
}

// GraphChangeRelink is about an edge that leads elsewhere now.
type GraphChangeRelink struct {
	GraphChangeEdge
	OldChild string `qapi:"old-child"`
	GraphChangePermissions
	GraphChangeOldPermissions
}

// GraphChangePerms is about an edge that stayed.
type GraphChangePerms struct {
	GraphChangeEdge
	GraphChangePermissions
	GraphChangeOldPermissions
}
