package blockgraph

import (
	"context"

	"blockd/qapi"
)

// Driver is one opened image or device: the driver side of a node. It holds
// format logic only. Range checks, splitting, alignment, emulation of what
// Caps lacks, tracking and accounting are the checked wrapper's (see io.go),
// so a driver may rely on:
//
//   - 0 <= off, n > 0 (reads and writes too: the vector is not empty), and
//     off+n <= Size, except for a write that grows a file-like node whose
//     Caps.Grow is set;
//   - off and n are multiples of Limits.RequestAlignment, but for the end of a
//     write at the end of a node that cannot grow, and n is at most the limit
//     of the operation;
//   - flags hold only what Caps announces as Native.
//
// All I/O methods are data plane: called from many goroutines at once, they
// may block on I/O, and return only when they no longer use the vector. Errors
// wrap a syscall.Errno (see Errno). No mutex is held across I/O on a child.
//
//blockd:io
type Driver interface {
	// ReadV fills v from byte off on.
	ReadV(ctx context.Context, off int64, v *IOVec, flags Flags) error
	// WriteV writes v at byte off.
	WriteV(ctx context.Context, off int64, v *IOVec, flags Flags) error
	// WriteZeroes makes bytes [off, off+n) read as zeroes; ErrNotSupported has
	// the wrapper write a buffer of zeroes.
	WriteZeroes(ctx context.Context, off, n int64, flags Flags) error
	// Discard gives bytes [off, off+n) up; their content is then undefined as
	// the format says. ErrNotSupported counts as done.
	Discard(ctx context.Context, off, n int64) error
	// Flush makes every write that completed before it durable, in this node
	// and in its storage children. The wrapper does not flush children itself.
	// Of the fault points of a flush it names flush_to_os, and flush_to_disk
	// for a filter; a format names the latter when its metadata is written.
	Flush(ctx context.Context) error
	// BlockStatus describes a range that begins at off.
	BlockStatus(ctx context.Context, off, n int64, mode StatusMode) (Status, error)
	// Size is the length in bytes as the node's users see it, read at open and
	// after a Truncate.
	Size(ctx context.Context) (int64, error)
	// Close flushes what is the driver's own and gives up everything it holds. It is
	// called once, when no request is in flight and none will come. Children
	// are still open.
	//
	//blockd:blocking
	Close(ctx context.Context) error
}

// Capability says who does an optional operation.
type Capability uint8

const (
	// CapNone: the operation fails or is ignored, as the field does.
	CapNone Capability = iota
	// CapEmulate: the wrapper does it by other means.
	CapEmulate
	// CapNative: the driver does it.
	CapNative
)

// Caps says what a driver can do. It is read once, at open.
type Caps struct {
	FUA             Capability // WriteV takes FUA; else a flush follows
	ZeroFUA         Capability // WriteZeroes takes FUA
	WriteZeroes     Capability // WriteZeroes exists; else a buffer is written
	MayUnmap        Capability // WriteZeroes takes MayUnmap
	NoFallback      Capability // WriteZeroes takes NoFallback
	Discard         Capability // Discard does something
	Compressed      Capability // WriteV takes Compressed
	WriteUnchanged  Capability // WriteV and WriteZeroes take WriteUnchanged
	OnlyUnallocated Capability // WriteV and WriteZeroes take OnlyUnallocated
	CopyOnRead      Capability // ReadV takes CopyOnRead and Prefetch
	// Grow: a write past the end makes the node longer (files).
	Grow bool
	// FreshZero: what is new when the node becomes longer, by a write past its end
	// or by Truncate, reads as zeroes where nothing has been written.
	FreshZero bool
	// Backing: the format has backing files; what is unallocated here is read
	// from there by the driver.
	Backing bool
	// Filter: the node passes its filtered child through.
	Filter bool
}

// Limits of requests, in bytes, read once at open and again after a reopen.
// Zero means no limit, or for alignments 1.
type Limits struct {
	RequestAlignment int64 // power of two; offset and length of every request
	MaxTransfer      int64 // of a read or write
	OptTransfer      int64
	ZeroAlignment    int64 // power of two, for zero writes that gain
	MaxZero          int64
	DiscardAlignment int64 // smaller pieces are dropped
	MaxDiscard       int64
	MemAlignment     int64 // of buffers, else the driver bounces
}

// OpenRequest is what a driver gets to open a node.
type OpenRequest struct {
	// Node is the node being opened. Its children named by the driver type's
	// Children are already in place; a backing file is not yet.
	Node *Node
	// Options are the effective options, children's inherited ones filled in.
	// The driver does not change them.
	Options *qapi.BlockdevOptions
	// ReadOnly: the driver must not write. With AutoReadOnly a driver that
	// cannot open for writing calls Node.FallBackReadOnly.
	ReadOnly     bool
	AutoReadOnly bool
	// FromHeader: an image header named this node's file, not the user.
	FromHeader bool
	// Probed: the driver was found by looking at the content.
	Probed bool
	// NoIO: only what the image says of itself is wanted, not its content (the
	// field: BDRV_O_NO_IO). An encrypted image needs no key then.
	NoIO bool
	// Repair: the image is opened to be checked and repaired, and for nothing else
	// (the field: BDRV_O_CHECK). What keeps others from opening a damaged image for
	// writing does not keep this one from it.
	Repair bool
	// Bitmap is the dirty bitmap that the options name; see DriverType.Bitmap.
	Bitmap *DirtyBitmap

	tx  *Tx
	way opening
}

// DriverType describes a driver, for the registry.
type DriverType struct {
	// Name is the value of the `driver` option.
	Name string
	// Protocol drivers talk to the outside; the others have children.
	Protocol bool
	Filter   bool
	// NamedByChild: the filter goes by its child's file name, so that no header
	// comes to name one that a job has put there for a while.
	NamedByChild bool
	// NeverFreeze: links to such a node cannot be frozen, so that the job that
	// inserted it can take it out at any time.
	NeverFreeze bool
	// Probe returns a score from 0 (no) to 100 for the first bytes of a file, and
	// is nil for what is never probed.
	Probe func(head []byte) int
	// Children lists the children that options ask for, other than the backing
	// file, in the order in which they are opened.
	Children func(o *qapi.BlockdevOptions) []ChildSpec
	// Bitmap, if not nil, returns the dirty bitmap that the options name, to be
	// read by Open, or nil.
	Bitmap func(o *qapi.BlockdevOptions) *qapi.BlockDirtyBitmap
	// Open opens the node. On an error nothing is left open. Called with the
	// graph token held, on a worker; it may do I/O on children.
	Open func(ctx context.Context, r *OpenRequest) (Driver, error)
	// WithFile returns, for a format, its options when only its file is known
	// (backing files, snapshots, targets).
	WithFile func(file qapi.BlockdevRef) *qapi.BlockdevOptions
	// Backing returns where the options say what the backing file is, for
	// formats that have one. The place may be changed.
	BackingOption func(o *qapi.BlockdevOptions) **qapi.BlockdevRefOrNull
	// Remembers tells that the driver keeps what it has read of its image, so that
	// it is opened anew when another program may have changed it.
	Remembers bool
	// Reopenable names the driver's own options that may change while it is open;
	// one that is left out gets its default value. The driver is a Reopener.
	Reopenable []string
	// StrongOptions returns those of the node's own options that decide about
	// its content, in the shape of blockdev-add, driver and children left
	// out; nil is none. A protocol driver's file name is among them.
	StrongOptions func(o *qapi.BlockdevOptions) *qapi.Object
	// PlainFilename tells that a protocol driver's strong options say no more
	// than its file name does.
	PlainFilename func(o *qapi.BlockdevOptions) (string, bool)
	// ChildList is the option that lists children of a number that may change,
	// whose edges are called like it: `children` for children.0 and so on.
	ChildList string
	// ExactFilename returns the exact name of a filter that has one, or "". child
	// gives a child's. Formats go by it as by a protocol's.
	ExactFilename func(o *qapi.BlockdevOptions, child func(name string) string) string
	// ParseFilename reads names that begin with the driver's own and a colon;
	// parse reads what names a child.
	ParseFilename func(name string, parse func(string) (qapi.BlockdevRef, error)) (*qapi.BlockdevOptions, error)
	// PartialChildren are the children that older options describe without a driver, or by a
	// file name; those of ChildList are always among them.
	PartialChildren []ChildSpec
	// Required are the options that must be there, in the order in which the field asks
	// for them, where it does so in words of the driver's own (its older ways to open an
	// image).
	Required []RequiredOption
	// Modernise, unless nil, turns options that only the field's older ways to open an image
	// know, among flat ones, into those that took their place. node begins the names of the
	// node's own.
	Modernise func(o *qapi.Object, node string) error
	// OpeningPerms are the driver's own rules (ChildPermissioner) for as long as
	// the node opens and has no driver yet; nil is DefaultChildPerms.
	OpeningPerms func(e *Edge, writable bool, perm, shared Perm) (Perm, Perm)
	// NoDirectory, unless empty, tells that no relative name starts from a file
	// name of this protocol driver, and what errors call its nodes.
	NoDirectory string
}

// ChildSpec is one child that a node wants.
type ChildSpec struct {
	Name string
	Role Role
	Ref  qapi.BlockdevRef
}

// The optional interfaces of a driver, found at open.

// Truncater changes the length of a node. exact: fail rather than end up larger (a block device).
// zeroed: a grown range must read as zeroes even if a backing file is longer,
// and without Caps.FreshZero.
//
//blockd:io
type Truncater interface {
	Truncate(ctx context.Context, size int64, exact bool, prealloc qapi.PreallocMode, zeroed bool) error
}

// LimitsReader tells a node's limits and capabilities; without it a filter has its
// child's and other drivers the zero ones.
//
//blockd:any
type LimitsReader interface {
	Limits() Limits
	Caps() Caps
}

// Permissioner takes locks as permissions change (files). Prepare may fail and
// block; exactly one of Commit and Abort follows. They run on a worker with
// the graph token held, no request in flight that needs what is withdrawn.
//
//blockd:blocking
type Permissioner interface {
	PreparePerms(ctx context.Context, perm, shared Perm) error
	CommitPerms(perm, shared Perm)
	AbortPerms()
}

// ChildPermissioner replaces the default permission rules for its children.
// Control plane.
//
//blockd:global
type ChildPermissioner interface {
	ChildPerms(e *Edge, writable bool, perm, shared Perm) (Perm, Perm)
}

// BackingImage is a format whose header names a backing file. Control plane,
// on a worker.
//
//blockd:blocking
type BackingImage interface {
	// BackingFile returns what the header says; empty: none.
	BackingFile() (name, format string)
	// ChangeBackingFile writes the names to the header, durably. Empty: none.
	ChangeBackingFile(ctx context.Context, name, format string) error
}

// ImageInformer fills in what query-named-block-nodes tells about an image:
// cluster size, format-specific part, dirty flag, encryption. Any goroutine.
//
//blockd:io
type ImageInformer interface {
	ImageInfo(ctx context.Context, info *qapi.ImageInfo) error
}

// BitmapWorker is a filter that works with bitmaps of its own, which queries list
// without names, before those that have one: on its own node, and on the node
// that it filters. On the loop.
//
//blockd:global
type BitmapWorker interface {
	WorkingBitmaps() (own, below []qapi.BlockDirtyInfo)
}

// AllocatedSizer tells how many bytes the image takes on its storage.
//
//blockd:io
type AllocatedSizer interface {
	AllocatedSize(ctx context.Context) (int64, error)
}

// Quiescer has background work of its own that must rest while the node's
// roots are drained, because the node itself or one below it changes. Begin
// waits for the work to rest, at most until ctx ends; the nodes above rest by
// then.
//
//blockd:blocking
type Quiescer interface {
	QuiesceBegin(ctx context.Context)
	QuiesceEnd()
}

// CorruptionReporter is a format that finds damage in its image at run time. f
// may be called by any goroutine, with the driver's locks held; it must not
// wait. off and n are bytes in the image file, or -1; fatal: the image can no
// longer be written.
type CorruptionReporter interface {
	//blockd:blocking
	//blockd:handoff any
	OnCorruption(f func(msg string, off, n int64, fatal bool))
}

// Serialiser is a driver that sends requests with the flag Serialising to some
// of its children. The edge is new; the answer holds as long as it does.
//
//blockd:global
type Serialiser interface {
	Serialises(e *Edge) bool
}

// Snapshotter is a node that keeps readable what its child held at a point in
// time, while the child goes on. Data plane, from requests to the node above
// it; ranges are within the node. Errors: EACCES for what is not kept.
type Snapshotter interface {
	ReadSnapshot(ctx context.Context, off int64, v *IOVec) error
	// SnapshotStatus answers with Data, Zero or neither, and the length.
	SnapshotStatus(ctx context.Context, off, n int64, mode StatusMode) (Status, error)
	// DiscardSnapshot gives up what is kept of a range; it need not be kept any
	// longer, and cannot be read any more.
	DiscardSnapshot(ctx context.Context, off, n int64) error
}

// Releaser is a node that makes requests wait on purpose (throttling). Between
// ReleaseBegin and ReleaseEnd it lets those that wait, and those that come,
// pass. The calls nest, from several roots at a time; neither blocks.
//
//blockd:blocking
type Releaser interface {
	ReleaseBegin()
	ReleaseEnd()
}

// DebugEventer is a node that acts on fault points (blkdebug): those that the
// node above names, and those of the checked wrapper about requests to itself.
// It may have the caller wait; the caller holds no lock.
//
//blockd:io
type DebugEventer interface {
	DebugEvent(event string)
}

// Breakpointer is a node at which requests can be stopped, each at a fault
// point. Node has methods that find it below. Any goroutine; errors are
// ENOENT for an unknown event or tag.
type Breakpointer interface {
	// Breakpoint stops the next one who comes to the event, under a tag of the
	// caller's choice. It works once.
	Breakpoint(event, tag string) error
	// RemoveBreakpoint takes the breakpoints with that tag away, and lets go on
	// who has stopped there.
	RemoveBreakpoint(tag string) error
	// Resume lets the one go on who stopped last under that tag.
	Resume(tag string) error
	// Suspended tells whether somebody has stopped under that tag.
	Suspended(tag string) bool
	// AwaitSuspended waits for that.
	AwaitSuspended(ctx context.Context, tag string) error
}

// Copier copies a range between two nodes without moving it through memory.
// dst is the node whose driver understands the same mechanism, srcOff its
// peer's offset. ErrNotSupported makes the caller copy by buffers.
//
//blockd:io
type Copier interface {
	CopyRangeFrom(ctx context.Context, src Driver, srcOff, dstOff, n int64) error
}

// ReopenRequest is what a node is to become.
type ReopenRequest struct {
	// Options are the effective ones, with children as references. The driver
	// does not change them.
	Options  *qapi.BlockdevOptions
	ReadOnly bool
	// State has the children as they are to be.
	State *NodeState
}

// Reopening is a prepared change of a driver. Its functions run on a worker
// with the graph token held and no request in flight; nil does nothing. After
// Apply and Start one of Keep and Undo follows, or Undo without them.
type Reopening struct {
	// Apply puts the change into force. Children were applied before.
	Apply func()
	// Start does what is needed of a node that became writable, when it has its
	// permissions.
	Start func(ctx context.Context) error
	// Keep gives up what Undo would have needed.
	Keep func()
	// Undo takes the change back, whether it was applied or not.
	Undo func(ctx context.Context)
}

// Reopener is a driver whose options may change while it is open: those that
// DriverType.Reopenable lists, and those that all drivers share. PrepareReopen
// checks and takes what the change needs; nothing is in force yet. The node was
// flushed before.
//
//blockd:blocking
type Reopener interface {
	PrepareReopen(ctx context.Context, r *ReopenRequest) (*Reopening, error)
}

// ChildChanger is a driver whose children may be added and removed one by one
// while the node is open (quorum). Both check what the driver demands and
// change the graph by Tx.SetChild, with names of the driver's choice. The node
// to add has no users.
type ChildChanger interface {
	AddChild(tx *Tx, child *Node) error
	RemoveChild(tx *Tx, e *Edge) error
}

// Emptier is a format that can give up all that an image has of its own, so that
// its backing file shows through everywhere. Data plane; from an admitted
// request.
//
//blockd:io
type Emptier interface {
	Empty(ctx context.Context) error
}

// Amender is a format whose images can be amended while they are in use: what
// was decided when they were created is changed.
type Amender interface {
	// SetAmending is called within graph changes, with true before an Amend and
	// with false after it. The permissions on the node's children are then
	// computed anew. alone is what AmendsAlone has said of it.
	//
	//blockd:blocking
	SetAmending(amending, alone bool)
	// AmendsAlone tells whether an Amend with these options needs an image that
	// nobody else uses: between Tx.BeginRemake and Tx.EndRemake.
	//
	//blockd:blocking
	AmendsAlone(o *qapi.BlockdevAmendOptions) bool
	// Amend makes the change that options of this driver ask for. force allows
	// what may make the data unreadable. It is called on a worker without the
	// token, and does its I/O by enter. Errors are in the field's words. An image
	// that it needs for itself is sound after an error, too, and may have been
	// changed in part.
	//
	//blockd:blocking
	Amend(ctx context.Context, enter EnterFunc, o *qapi.BlockdevAmendOptions, force bool) error
}

// EnterFunc runs f while a request of its caller's is admitted to the node, so
// that no graph change happens meanwhile. f is short, and does not call it again.
//
//blockd:io
type EnterFunc func(ctx context.Context, f func() error) error

// StatsCounter is a driver with counters of its own.
//
//blockd:any
type StatsCounter interface {
	// DriverStats returns them for a driver of that name. It does not wait.
	DriverStats(name string) *qapi.BlockStatsSpecific
}

// Activator is a driver that has to do something before a node that has been
// inactive is used again: another program may have changed what is below.
type Activator interface {
	Activate(ctx context.Context) error
}
