package qmp

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"blockd/qapi"

	"golang.org/x/sys/unix"
)

// fdsetPrefix begins the file names that stand for a set of descriptors.
const fdsetPrefix = "/dev/fdset/"

// maxSetFDs bounds the descriptors in all sets together.
const maxSetFDs = 4096

// FdSets are the sets of descriptors that clients passed with add-fd. A file
// name /dev/fdset/N opens a copy of the one whose access mode fits. A set lasts
// while it has descriptors or copies of them are open.
//
//blockd:io
type FdSets struct {
	mu      sync.Mutex
	sets    []*fdset // by ascending id
	total   int
	clients int // +checklocks:mu
}

type fdset struct {
	id   int64
	fds  []setFD // in the order in which they were added
	dups int     // copies that are open
}

type setFD struct {
	file   *os.File
	number int
	opaque *string
}

// NewFdSets returns no sets.
func NewFdSets() *FdSets { return &FdSets{} }

func (s *FdSets) find(id int64) (int, bool) {
	return slices.BinarySearchFunc(s.sets, id, func(set *fdset, id int64) int {
		switch {
		case set.id < id:
			return -1
		case set.id > id:
			return 1
		}
		return 0
	})
}

// refuseFD gives up a descriptor that add cannot take.
//
//blockd:io
func refuseFD(f *os.File, reason string) (qapi.AddfdInfo, error) {
	f.Close()
	return qapi.AddfdInfo{}, qapi.Errorf("%s", reason)
}

// Add is the command add-fd. It owns f; id nil: a new set, or the first free one.
func (s *FdSets) Add(f *os.File, id *int64, opaque *string) (qapi.AddfdInfo, error) {
	if id != nil && *id < 0 {
		return refuseFD(f, "Parameter 'fdset-id' expects a non-negative value")
	}
	number := -1
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { number = int(fd) })
	}
	if err != nil {
		return refuseFD(f, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= maxSetFDs {
		return refuseFD(f, "Too many file descriptors")
	}
	wanted := s.firstFree()
	if id != nil {
		wanted = *id
	}
	i, ok := s.find(wanted)
	if !ok {
		s.sets = slices.Insert(s.sets, i, &fdset{id: wanted})
	}
	set := s.sets[i]
	set.fds = append(set.fds, setFD{file: f, number: number, opaque: opaque})
	s.total++
	return qapi.AddfdInfo{FdsetID: wanted, FD: int64(number)}, nil
}

// firstFree is the smallest id without a set.
func (s *FdSets) firstFree() int64 {
	id := int64(0)
	for _, set := range s.sets {
		if set.id != id {
			break
		}
		id++
	}
	return id
}

// remove is the command remove-fd: one descriptor of the set, or all. Copies
// that are open stay so.
func (s *FdSets) remove(id int64, number *int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(id)
	if ok {
		set := s.sets[i]
		found := number == nil
		set.fds = slices.DeleteFunc(set.fds, func(fd setFD) bool {
			if number != nil && int64(fd.number) != *number {
				return false
			}
			found = true
			s.closeFD(fd)
			return true
		})
		if found {
			s.tidy(set)
			return nil
		}
	}
	name := fmt.Sprintf("fdset-id:%d", id)
	if number != nil {
		name += fmt.Sprintf(", fd:%d", *number)
	}
	return qapi.Errorf("File descriptor named '%s' not found", name)
}

func (s *FdSets) closeFD(fd setFD) {
	fd.file.Close()
	s.total--
}

// tidy removes the set once nothing is left of it; s.mu is held.
//
// +checklocks:s.mu
func (s *FdSets) tidy(set *fdset) {
	if len(set.fds) > 0 || set.dups > 0 {
		return
	}
	if i, ok := s.find(set.id); ok && s.sets[i] == set {
		s.sets = slices.Delete(s.sets, i, i+1)
	}
}

// Query is the result of query-fdsets: the newest ids first.
func (s *FdSets) Query() []qapi.FdsetInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []qapi.FdsetInfo{}
	for _, set := range slices.Backward(s.sets) {
		info := qapi.FdsetInfo{FdsetID: set.id, FDs: []qapi.FdsetFdInfo{}}
		for _, fd := range set.fds {
			info.FDs = append(info.FDs, qapi.FdsetFdInfo{FD: int64(fd.number), Opaque: fd.opaque})
		}
		list = append(list, info)
	}
	return list
}

// IsFdset tells whether a file name stands for a set.
func IsFdset(path string) bool { return strings.HasPrefix(path, fdsetPrefix) }

// statusFlags are what a copy takes over from the flags of the open.
const statusFlags = unix.O_APPEND | unix.O_NONBLOCK | unix.O_ASYNC | unix.O_DIRECT | unix.O_NOATIME

// Open opens /dev/fdset/N: it copies the newest descriptor of set N whose
// access mode is that of flags, gives it the status flags of flags (which all
// copies of that descriptor share), and truncates it for O_TRUNC. The caller
// closes the file and then calls release, once. Any plane may call it, where
// system calls are allowed.
func (s *FdSets) Open(path string, flags int) (f *os.File, release func(), err error) {
	id, perr := strconv.ParseInt(strings.TrimPrefix(path, fdsetPrefix), 10, 64)
	if !IsFdset(path) || perr != nil || id < 0 {
		return nil, nil, qapi.Errorf("Could not parse fdset %s", path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	set, fd, err := s.dup(id, flags)
	if err != nil {
		errno, text := unix.Errno(0), err.Error()
		if e, ok := err.(unix.Errno); ok {
			errno, text = e, capital(e.Error())
		}
		return nil, nil, &FdsetError{Errno: errno, desc: qapi.Errorf("Could not dup FD for %s flags %x: %s",
			path, flags&^unix.O_CLOEXEC, text)}
	}
	set.dups++
	var once sync.Once
	return os.NewFile(uintptr(fd), path), func() {
		once.Do(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			set.dups--
			if set.dups == 0 && s.clients == 0 {
				s.closeSet(set) // as clientLeaves would have
			}
			s.tidy(set)
		})
	}, nil
}

func (s *FdSets) dup(id int64, flags int) (*fdset, int, error) {
	i, ok := s.find(id)
	if !ok {
		return nil, -1, unix.ENOENT
	}
	set := s.sets[i]
	for _, member := range slices.Backward(set.fds) {
		has, err := unix.FcntlInt(uintptr(member.number), unix.F_GETFL, 0)
		if err != nil {
			return nil, -1, err
		}
		if has&unix.O_ACCMODE != flags&unix.O_ACCMODE {
			continue
		}
		fd, err := unix.FcntlInt(uintptr(member.number), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, -1, err
		}
		if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, has&^statusFlags|flags&statusFlags); err == nil && flags&unix.O_TRUNC != 0 {
			err = unix.Ftruncate(fd, 0)
		}
		if err != nil {
			unix.Close(fd)
			return nil, -1, err
		}
		return set, fd, nil
	}
	return nil, -1, unix.EACCES
}

func capital(s string) string {
	if s != "" && s[0] >= 'a' && s[0] <= 'z' {
		return string(s[0]-'a'+'A') + s[1:]
	}
	return s
}

// FdsetError is the error of Open: Errno for the kind, and the field's text.
type FdsetError struct {
	Errno unix.Errno
	desc  *qapi.Error
}

func (e *FdsetError) Error() string { return e.desc.Desc }

// Unwrap gives the *qapi.Error and the errno.
func (e *FdsetError) Unwrap() []error { return []error{e.desc, e.Errno} }

func (s *FdSets) clientArrives() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients++
}

// clientLeaves closes, with the last client of all monitors, what nobody has
// opened: nobody else could ask for it by a number that only clients know.
func (s *FdSets) clientLeaves() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients--; s.clients > 0 {
		return
	}
	s.sets = slices.DeleteFunc(s.sets, func(set *fdset) bool {
		if set.dups > 0 {
			return false
		}
		s.closeSet(set)
		return true
	})
}

func (s *FdSets) closeSet(set *fdset) {
	for _, fd := range set.fds {
		s.closeFD(fd)
	}
	set.fds = nil
}

// Close closes every descriptor; open copies stay open.
func (s *FdSets) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, set := range s.sets {
		s.closeSet(set)
	}
	s.sets = nil
}
