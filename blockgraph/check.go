package blockgraph

import "context"

// CheckFix says what a check repairs (qemu-img check -r).
type CheckFix uint8

const (
	// CheckFixNone: nothing, it only reports.
	CheckFixNone CheckFix = iota
	// CheckFixLeaks: clusters that nothing refers to are given up.
	CheckFixLeaks
	// CheckFixAll: what is wrong is made right, too.
	CheckFixAll
)

// CheckOptions say how an image is checked.
type CheckOptions struct {
	Fix CheckFix
}

// CheckResult is what a check has found, in the field's terms (ImageCheck).
type CheckResult struct {
	// CheckErrors keep the result from being complete.
	CheckErrors int64
	// What is wrong, after repairs; and what was repaired.
	Corruptions, Leaks           int64
	CorruptionsFixed, LeaksFixed int64
	// ImageEnd is the end of the last cluster in use, in bytes.
	ImageEnd int64
	// Clusters of the disk; those that have a place in the file, do not follow
	// on the one before, are compressed.
	Total, Allocated, Fragmented, Compressed int64
	// Messages are the first findings, for people.
	Messages []string
}

// Upkeep is long work on an image that guests use, done in steps. Each is done
// under an admission; between two of them the image is at rest. One goroutine
// at a time uses it. Data plane.
//
//blockd:io
type Upkeep interface {
	// Step does about n bytes of work, at least something; without more, or
	// with an error, it was the last.
	Step(ctx context.Context, n int64) (did int64, more bool, err error)
	// Remaining is about how many bytes of work are left; between steps.
	Remaining() int64
	// Close ends the work, finished or not. It does no I/O.
	Close()
}

// Check is the check of an image.
type Check interface {
	Upkeep
	// Result is what was found, once there are no more steps.
	Result() CheckResult
	// Lost tells, once there are no more steps, that everything was to be
	// repaired, and that structures are lost which cannot be made anew while
	// anybody uses the image; Result has this as a check error. Rebuild does that, in
	// a graph change that has drained the node, which has no other users. The check
	// has steps anew then.
	Lost() bool
	Rebuild(ctx context.Context) error
}

// Checker is a format that can check and repair an image while it is in use.
// Errors of StartCheck: EBUSY while other upkeep goes on, EIO for repairs of an
// image that cannot be written. Called by any goroutine, under an admission.
//
//blockd:io
type Checker interface {
	StartCheck(o CheckOptions) (Check, error)
}

// RangeLocker waits until nobody reads or writes bytes [off, off+n) of a node,
// and keeps everybody from it until unlock. Who holds a range waits for I/O of
// its own only.
type RangeLocker func(ctx context.Context, off, n int64) (unlock func(), err error)

// CompactOptions say how an image is compacted.
type CompactOptions struct {
	// Lock is for ranges of the image's own node. It is called within a step.
	Lock RangeLocker
}

// CompactResult is what a compaction has done.
type CompactResult struct {
	// Length of the image file in bytes.
	FileSizeBefore, FileSizeAfter int64
	// Clusters that were moved, and those that still lie where the file would
	// have ended without gaps.
	Moved, Unmovable int64
	// Discarded is how many free bytes within the file were discarded.
	Discarded int64
}

// Compaction is one that goes on.
type Compaction interface {
	Upkeep
	// Result is what was done, once there are no more steps.
	Result() CompactResult
}

// Compacter is a format that can give back space while it is in use. Errors are
// those of Checker.
//
//blockd:io
type Compacter interface {
	StartCompact(o CompactOptions) (Compaction, error)
}
