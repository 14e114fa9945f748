package qmp

import (
	"os"
	"sync"

	"blockd/qapi"
)

// maxNamedFDs bounds the descriptors that getfd keeps for one monitor.
const maxNamedFDs = 1024

// fdNames are the descriptors that clients of one monitor stored by name. They
// outlive the client that stored them, as in the field.
//
//blockd:io
type fdNames struct {
	mu    sync.Mutex
	files map[string]*os.File // +checklocks:mu
}

// put owns f from now on; a descriptor of that name is closed.
func (n *fdNames) put(name string, f *os.File) error {
	if name != "" && name[0] >= '0' && name[0] <= '9' {
		f.Close()
		return qapi.Errorf("Parameter 'fdname' expects a name not starting with a digit")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.files[name]
	if old == nil && len(n.files) >= maxNamedFDs {
		f.Close()
		return qapi.Errorf("Too many file descriptors")
	}
	if n.files == nil {
		n.files = map[string]*os.File{}
	}
	n.files[name] = f
	if old != nil {
		old.Close()
	}
	return nil
}

func (n *fdNames) remove(name string) *os.File {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.files[name]
	delete(n.files, name)
	return f
}

// take hands the descriptor over to the caller.
func (n *fdNames) take(name string) (*os.File, error) {
	if f := n.remove(name); f != nil {
		return f, nil
	}
	return nil, qapi.Errorf("File descriptor named '%s' has not been found", name)
}

func (n *fdNames) closeOne(name string) error {
	f := n.remove(name)
	if f == nil {
		return qapi.Errorf("File descriptor named '%s' not found", name)
	}
	f.Close()
	return nil
}

func (n *fdNames) closeAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.files {
		f.Close()
	}
	n.files = nil
}
