package qapi

// Arguments and results of the protocol's own commands, and of descriptor
// passing.

// QMPCapability is what a client may enable during negotiation.
type QMPCapability string

// Values of QMPCapability.
const (
	QMPCapabilityOOB QMPCapability = "oob"
)

// QAPIEnum lists the values that blockd accepts.
func (QMPCapability) QAPIEnum() []string {
	return []string{"oob"}
}

// QmpCapabilitiesArg is the argument of qmp_capabilities.
type QmpCapabilitiesArg struct {
	Enable []QMPCapability `qapi:"enable,optional"`
}

// Empty is an object without members: no arguments, or no result.
type Empty struct {
}

// VersionTriple is a version number.
type VersionTriple struct {
	Major int64 `qapi:"major"`
	Minor int64 `qapi:"minor"`
	Micro int64 `qapi:"micro"`
}

// VersionInfo is the result of query-version, and part of the greeting.
type VersionInfo struct {
	QEMU    VersionTriple `qapi:"qemu"`
	Package string        `qapi:"package"`
}

// CommandInfo names a command, for query-commands.
type CommandInfo struct {
	Name string `qapi:"name"`
}

// FdNameArg is the argument of getfd and closefd.
type FdNameArg struct {
	FDName string `qapi:"fdname"`
}

// AddFdArg is the argument of add-fd.
type AddFdArg struct {
	FdsetID *int64  `qapi:"fdset-id"`
	Opaque  *string `qapi:"opaque"`
}

// AddfdInfo is the result of add-fd.
type AddfdInfo struct {
	FdsetID int64 `qapi:"fdset-id"`
	FD      int64 `qapi:"fd"`
}

// RemoveFdArg is the argument of remove-fd.
type RemoveFdArg struct {
	FdsetID int64  `qapi:"fdset-id"`
	FD      *int64 `qapi:"fd"`
}

// FdsetFdInfo describes a descriptor of a set.
type FdsetFdInfo struct {
	FD     int64   `qapi:"fd"`
	Opaque *string `qapi:"opaque"`
}

// FdsetInfo describes a set of descriptors.
type FdsetInfo struct {
	FdsetID int64         `qapi:"fdset-id"`
	FDs     []FdsetFdInfo `qapi:"fds"`
}
