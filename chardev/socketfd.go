package chardev

import (
	"strconv"

	"blockd/qapi"

	"golang.org/x/sys/unix"
)

// listenBacklog is the number of clients that may wait while one is connected.
const listenBacklog = 1

// SocketFD returns the socket that the name in an address stands for, which the
// caller owns from now on: what fds finds or, when that is nil, the inherited
// descriptor of that number. Errors are *qapi.Error.
func SocketFD(name string, fds FDSource) (int, error) {
	if fds == nil {
		return takeNumberedFD(name)
	}
	return takeNamedFD(fds)(name)
}

// takeNumberedFD is the fd address of the command line: an inherited
// descriptor, which the device then owns.
func takeNumberedFD(s string) (int, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return -1, qapi.Errorf("Unable to parse FD number %s", s)
	}
	return checkSocket(int(n), s)
}

func checkSocket(fd int, name string) (int, error) {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return -1, qapi.Errorf("File descriptor '%s' is not a socket", name)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}
