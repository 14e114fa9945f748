package chardev

import (
	"strconv"

	"blockd/qapi"

	"golang.org/x/sys/unix"
)

// listenBacklog is the number of clients that may wait while one is connected.
const listenBacklog = 1

// SocketFD returns the socket that a client of the monitor has passed under the
// name in an address, which the caller owns from now on. Errors are *qapi.Error.
func SocketFD(name string, fds FDSource) (int, error) { return takeNamedFD(fds)(name) }

// InheritedSocket is the fd address of the command line: an inherited
// descriptor, by its number or, of those that the service manager has handed
// over, by its name. The caller owns it from now on. Errors are *qapi.Error.
func (r *Registry) InheritedSocket(s string) (int, error) {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return checkSocket(int(n), s)
	}
	if fd, ok := r.cfg.Activated.Take(s); ok {
		return checkSocket(fd, s)
	}
	return -1, qapi.Errorf("Unable to parse FD number %s", s)
}

func checkSocket(fd int, name string) (int, error) {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return -1, qapi.Errorf("File descriptor '%s' is not a socket", name)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}
