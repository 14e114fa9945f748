package scratch

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/ioengine"
)

const (
	keySize   = 32
	nonceSize = 12
	tagSize   = 16
)

// errDamaged: what is in the file is not what was written to it.
var errDamaged = errors.New("the scratch file was damaged")

// spill is the temporary file of a scratch: slots of one cluster each, used
// again as they become free. The file does not shrink before its end.
type spill struct {
	dir     string
	cluster int64

	mu sync.Mutex
	// +checklocks:mu
	file *ioengine.File // nil: not made yet, or closed
	// +checklocks:mu
	aead cipher.AEAD
	// +checklocks:mu
	sealed uint64 // how many entries were: the next nonce
	// +checklocks:mu
	slots int64 // of the file
	// +checklocks:mu
	empty []int64 // slots without an entry
	// +checklocks:mu
	users int // slots in use; the file stays open while there are any
	// +checklocks:mu
	dropped bool
}

// sealed is where an entry is in the file, and what opens it.
type sealed struct {
	slot  int64
	nonce uint64
	tag   [tagSize]byte
}

func (f *spill) init(dir string, cluster int64) { f.dir, f.cluster = dir, cluster }

// openSpill makes a file that has no name, or whose name is gone before
// anybody writes to it.
func openSpill(dir string, calls *ioengine.Calls) (*ioengine.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return calls.NewFile(fd), nil
	}
	if err != unix.EOPNOTSUPP && err != unix.EISDIR && err != unix.EINVAL {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	var nonce [8]byte
	rand.Read(nonce[:])
	name := filepath.Join(dir, ".blockd-scratch-"+hex.EncodeToString(nonce[:]))
	fd, err = unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	if err := unix.Unlink(name); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return calls.NewFile(fd), nil
}

// open makes the file, if there is none yet.
func (f *spill) open() error {
	f.mu.Lock()
	there := f.file != nil || f.dropped
	f.mu.Unlock()
	if there {
		return nil
	}
	var key [keySize]byte
	rand.Read(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	file, err := openSpill(f.dir, ioengine.ProcessCalls)
	if err != nil {
		return err
	}
	f.mu.Lock()
	if f.file == nil && !f.dropped {
		f.file, f.aead = file, aead
		file = nil
	}
	f.mu.Unlock()
	closing{file}.close() // another was first
	return nil
}

// slot returns a free slot and a nonce for it.
func (f *spill) slot() (sealed, *ioengine.File, cipher.AEAD, error) {
	if err := f.open(); err != nil {
		return sealed{}, nil, nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dropped {
		return sealed{}, nil, nil, ErrDropped
	}
	s := sealed{nonce: f.sealed}
	f.sealed++
	f.users++
	if k := len(f.empty); k > 0 {
		s.slot = f.empty[k-1]
		f.empty = f.empty[:k-1]
	} else {
		s.slot = f.slots
		f.slots++
	}
	return s, f.file, f.aead, nil
}

func (s *sealed) iv() (iv [nonceSize]byte) {
	binary.BigEndian.PutUint64(iv[nonceSize-8:], s.nonce)
	return iv
}

// write stores data, at most a cluster.
func (f *spill) write(ctx context.Context, data []byte) (sealed, error) {
	s, file, aead, err := f.slot()
	if err != nil {
		return s, err
	}
	b := ioengine.Bounce(len(data) + tagSize)
	defer b.Release()
	iv := s.iv()
	out := aead.Seal(b.Bytes()[:0], iv[:], data, nil)
	copy(s.tag[:], out[len(data):])
	if _, err := file.WriteV(ctx, s.slot*f.cluster, [][]byte{out[:len(data)]}); err != nil {
		f.give(s.slot)
		return s, err
	}
	return s, nil
}

// read fills data, of the length that was written.
func (f *spill) read(ctx context.Context, s *sealed, data []byte) error {
	f.mu.Lock()
	file, aead := f.file, f.aead
	f.mu.Unlock()
	b := ioengine.Bounce(len(data) + tagSize)
	defer b.Release()
	in := b.Bytes()
	n, err := file.ReadV(ctx, s.slot*f.cluster, [][]byte{in[:len(data)]})
	if err == nil && n < int64(len(data)) {
		err = syscall.EIO
	}
	if err != nil {
		return err
	}
	copy(in[len(data):], s.tag[:])
	iv := s.iv()
	if _, err := aead.Open(data[:0:len(data)], iv[:], in, nil); err != nil {
		return errDamaged
	}
	return nil
}

// free ends the use of entries' slots.
func (f *spill) free(entries []*entry) {
	for _, e := range entries {
		f.give(e.seal.slot)
	}
}

func (f *spill) give(slot int64) {
	f.mu.Lock()
	f.users--
	f.empty = append(f.empty, slot)
	last := f.last()
	f.mu.Unlock()
	last.close()
}

// drop closes the file, when the last slot's use has ended.
func (f *spill) drop() {
	f.mu.Lock()
	f.dropped = true
	last := f.last()
	f.mu.Unlock()
	last.close()
}

type closing struct{ *ioengine.File }

// last takes the file to be closed out, if it is time.
//
// +checklocks:f.mu
func (f *spill) last() closing {
	if !f.dropped || f.users > 0 {
		return closing{}
	}
	c := closing{f.file}
	f.file, f.aead, f.empty = nil, nil, nil
	return c
}

func (c closing) close() {
	if c.File != nil {
		_ = c.File.Close() // nobody will read it
	}
}
