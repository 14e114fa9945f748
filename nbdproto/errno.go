package nbdproto

import "syscall"

// Errno is an error number of the protocol. The values are those of Linux, but
// only the listed ones exist.
type Errno uint32

// The error numbers (proto.md, "Error values").
const (
	OK           Errno = 0
	EPERM        Errno = 1
	EIO          Errno = 5
	ENOMEM       Errno = 12
	EINVAL       Errno = 22
	ENOSPC       Errno = 28
	EOVERFLOW    Errno = 75
	ENOTSUP      Errno = 95
	ESHUTDOWN    Errno = 108
	unknownErrno       = EINVAL
)

// errnoTable says which system errors have a number of their own; all others
// become EINVAL.
var errnoTable = [...]struct {
	sys  syscall.Errno
	wire Errno
}{
	{0, OK},
	{syscall.EPERM, EPERM},
	{syscall.EROFS, EPERM},
	{syscall.EIO, EIO},
	{syscall.ENOMEM, ENOMEM},
	{syscall.EDQUOT, ENOSPC},
	{syscall.EFBIG, ENOSPC},
	{syscall.ENOSPC, ENOSPC},
	{syscall.EOVERFLOW, EOVERFLOW},
	{syscall.ENOTSUP, ENOTSUP},
	{syscall.ESHUTDOWN, ESHUTDOWN},
	{syscall.EINVAL, EINVAL},
}

// ToWire returns the number for a system error.
func ToWire(e syscall.Errno) Errno {
	for _, row := range errnoTable {
		if row.sys == e {
			return row.wire
		}
	}
	return unknownErrno
}

// System returns the system error for a number; EINVAL for one that the
// protocol does not have.
func (e Errno) System() syscall.Errno {
	switch e {
	case OK, EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN:
		return syscall.Errno(e)
	}
	return syscall.EINVAL
}
