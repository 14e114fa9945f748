package qapi

// Arguments and results of the job commands, and the data of job events.

// JobType is the kind of a job.
type JobType string

// Values of JobType.
const (
	JobTypeCommit JobType = "commit"
	JobTypeStream JobType = "stream"
	JobTypeMirror JobType = "mirror"
	JobTypeBackup JobType = "backup"
	JobTypeAmend  JobType = "amend"
	JobTypeCreate JobType = "create"
	// Not in QEMU.
	JobTypeXCheck   JobType = "x-check"
	JobTypeXCompact JobType = "x-compact"
)

// QAPIEnum lists the values that blockd accepts.
func (JobType) QAPIEnum() []string {
	return []string{"commit", "stream", "mirror", "backup", "amend", "create", "x-check", "x-compact"}
}

// JobStatus is a state of the job state machine.
type JobStatus string

// Values of JobStatus.
const (
	JobStatusUndefined JobStatus = "undefined"
	JobStatusCreated   JobStatus = "created"
	JobStatusRunning   JobStatus = "running"
	JobStatusPaused    JobStatus = "paused"
	JobStatusReady     JobStatus = "ready"
	JobStatusStandby   JobStatus = "standby"
	JobStatusWaiting   JobStatus = "waiting"
	JobStatusPending   JobStatus = "pending"
	JobStatusAborting  JobStatus = "aborting"
	JobStatusConcluded JobStatus = "concluded"
	JobStatusNull      JobStatus = "null"
)

// QAPIEnum lists the values that blockd accepts.
func (JobStatus) QAPIEnum() []string {
	return []string{"undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting", "concluded", "null"}
}

// IoOperationType is the direction of a failed request.
type IoOperationType string

// Values of IoOperationType.
const (
	IoOperationTypeRead  IoOperationType = "read"
	IoOperationTypeWrite IoOperationType = "write"
)

// QAPIEnum lists the values that blockd accepts.
func (IoOperationType) QAPIEnum() []string {
	return []string{"read", "write"}
}

// BlockErrorAction is what was done about a failed request.
type BlockErrorAction string

// Values of BlockErrorAction.
const (
	BlockErrorActionIgnore BlockErrorAction = "ignore"
	BlockErrorActionReport BlockErrorAction = "report"
	BlockErrorActionStop   BlockErrorAction = "stop"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockErrorAction) QAPIEnum() []string {
	return []string{"ignore", "report", "stop"}
}

// JobIDArg is the argument of job-pause, job-resume, job-cancel, job-complete,
// job-finalize, job-dismiss, block-job-finalize and block-job-dismiss.
type JobIDArg struct {
	ID string `qapi:"id"`
}

// BlockJobDeviceArg is the argument of block-job-pause, block-job-resume and
// block-job-complete.
type BlockJobDeviceArg struct {
	// The job's id.
	Device string `qapi:"device"`
}

// BlockJobCancelArg is the argument of block-job-cancel.
type BlockJobCancelArg struct {
	// The job's id.
	Device string `qapi:"device"`
	// Abort a job that is ready instead of completing it. Default false.
	Force *bool `qapi:"force"`
}

// BlockJobSetSpeedArg is the argument of block-job-set-speed.
type BlockJobSetSpeedArg struct {
	// The job's id.
	Device string `qapi:"device"`
	// Bytes per second; 0 is no limit.
	Speed int64 `qapi:"speed"`
}

// JobScratch tells what a job's scratch holds, in bytes. Not in QEMU.
type JobScratch struct {
	// Data in memory.
	Memory int64 `qapi:"memory"`
	// Data in the temporary file.
	Spilled int64 `qapi:"spilled"`
	// The most of both together so far.
	Peak    int64 `qapi:"peak"`
	MaxSize int64 `qapi:"max-size"`
	// How often there was no room.
	Full int64 `qapi:"full"`
}

// JobInfo describes a job. The unit of progress is the job's own; bytes for
// all that copy.
type JobInfo struct {
	ID              string    `qapi:"id"`
	Type            JobType   `qapi:"type"`
	Status          JobStatus `qapi:"status"`
	CurrentProgress int64     `qapi:"current-progress"`
	TotalProgress   int64     `qapi:"total-progress"`
	Error           *string   `qapi:"error"`
	// Requests of a cancelled job that have not returned; its nodes stay in
	// use. Not in QEMU.
	XOrphans *int64      `qapi:"x-orphans,features=unstable"`
	XScratch *JobScratch `qapi:"x-scratch,features=unstable"`
	// The number of the command that began it. Not in QEMU.
	XRequest *uint64 `qapi:"x-request,features=unstable"`
	// Of a mirror and of a commit of the active layer.
	XConvergence *JobConvergence `qapi:"x-convergence,features=unstable"`
	// Of x-blockdev-check and x-blockdev-compact, when they have succeeded.
	XCheck   *ImageCheck   `qapi:"x-check,features=unstable"`
	XCompact *ImageCompact `qapi:"x-compact,features=unstable"`
}

// JobHistory is the states that a job went through. Not in QEMU.
type JobHistory struct {
	ID   string  `qapi:"id"`
	Type JobType `qapi:"type"`
	// The number of the command that began it.
	Request *uint64 `qapi:"request"`
	// The oldest first. A job that is gone ends with null.
	States []JobStateSince `qapi:"states"`
	// How many states after the first eight are no longer there.
	Dropped int64   `qapi:"dropped"`
	Error   *string `qapi:"error"`
}

// JobStateSince is a state with the time of its beginning.
type JobStateSince struct {
	Status    JobStatus    `qapi:"status"`
	Timestamp JobStateTime `qapi:"timestamp"`
}

// JobStateTime is a time of day, like an event's.
type JobStateTime struct {
	Seconds      int64 `qapi:"seconds"`
	Microseconds int64 `qapi:"microseconds"`
}

// JobConvergence tells how a copy fares against those who write to its source.
// Rates are bytes per second, averages over the last seconds.
type JobConvergence struct {
	// What the job copies.
	CopyRate int64 `qapi:"copy-rate"`
	// What guests make dirty meanwhile.
	DirtyRate int64 `qapi:"dirty-rate"`
	// Seconds until everything is copied, at these rates; absent when they do
	// not lead there.
	RemainingTime *int64 `qapi:"remaining-time"`
}

// BlockJobInfo describes a block job in the older form. Len and Offset are the
// job's progress, in bytes.
type BlockJobInfo struct {
	Type JobType `qapi:"type,discriminator"`
	// The job's id.
	Device string `qapi:"device"`
	Len    int64  `qapi:"len"`
	Offset int64  `qapi:"offset"`
	Busy   bool   `qapi:"busy"`
	Paused bool   `qapi:"paused"`
	// Bytes per second; 0 is no limit.
	Speed        int64               `qapi:"speed"`
	IOStatus     BlockDeviceIoStatus `qapi:"io-status"`
	Ready        bool                `qapi:"ready"`
	Status       JobStatus           `qapi:"status"`
	AutoFinalize bool                `qapi:"auto-finalize"`
	AutoDismiss  bool                `qapi:"auto-dismiss"`
	Error        *string             `qapi:"error"`
	// Requests of a cancelled job that have not returned; its nodes stay in
	// use. Not in QEMU.
	XOrphans *int64              `qapi:"x-orphans,features=unstable"`
	XScratch *JobScratch         `qapi:"x-scratch,features=unstable"`
	XCheck   *ImageCheck         `qapi:"x-check,features=unstable"`
	XCompact *ImageCompact       `qapi:"x-compact,features=unstable"`
	Mirror   *BlockJobInfoMirror `qapi:",case=mirror"`
}

// BlockJobInfoMirror is what is known of a mirror job besides.
type BlockJobInfoMirror struct {
	// The target has all of the source, and guests' writes reach it before they
	// complete.
	ActivelySynced bool `qapi:"actively-synced"`
}

// BlockJobChangeOptions is the argument of block-job-change.
type BlockJobChangeOptions struct {
	ID     string                       `qapi:"id"`
	Type   JobType                      `qapi:"type,discriminator"`
	Mirror *BlockJobChangeOptionsMirror `qapi:",case=mirror"`
}

// BlockJobChangeOptionsMirror is what can be changed in a mirror job.
type BlockJobChangeOptionsMirror struct {
	CopyMode MirrorCopyMode `qapi:"copy-mode"`
}

// JobStatusChange is the data of JOB_STATUS_CHANGE.
type JobStatusChange struct {
	ID     string    `qapi:"id"`
	Status JobStatus `qapi:"status"`
}

// BlockJobCompleted is the data of BLOCK_JOB_COMPLETED. Len and Offset are
// bytes.
type BlockJobCompleted struct {
	Type   JobType `qapi:"type"`
	Device string  `qapi:"device"`
	Len    int64   `qapi:"len"`
	Offset int64   `qapi:"offset"`
	// Bytes per second.
	Speed int64   `qapi:"speed"`
	Error *string `qapi:"error"`
	// Of x-blockdev-check and x-blockdev-compact, when they have succeeded. Not in
	// QEMU.
	XCheck   *ImageCheck   `qapi:"x-check,features=unstable"`
	XCompact *ImageCompact `qapi:"x-compact,features=unstable"`
}

// BlockJobProgress is the data of BLOCK_JOB_CANCELLED and BLOCK_JOB_READY. Len
// and Offset are bytes.
type BlockJobProgress struct {
	Type   JobType `qapi:"type"`
	Device string  `qapi:"device"`
	Len    int64   `qapi:"len"`
	Offset int64   `qapi:"offset"`
	// Bytes per second.
	Speed int64 `qapi:"speed"`
}

// BlockJobError is the data of BLOCK_JOB_ERROR.
type BlockJobError struct {
	Device    string           `qapi:"device"`
	Operation IoOperationType  `qapi:"operation"`
	Action    BlockErrorAction `qapi:"action"`
}

// BlockJobPending is the data of BLOCK_JOB_PENDING.
type BlockJobPending struct {
	Type JobType `qapi:"type"`
	ID   string  `qapi:"id"`
}
