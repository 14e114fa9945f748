package luks

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"iter"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// KeyTimeLimit bounds how long one attempt to find a key may take, over all
// slots. Opening an image holds up other changes of the graph, and how much is
// to be computed stands in the image: 2^32 iterations a slot would be hours.
// cryptsetup's and the field's own images take about two seconds a slot.
const KeyTimeLimit = 2 * time.Minute

// Config is what volumes need from the program.
type Config struct {
	// Secret returns the password of a secret by its id. Errors are in the
	// field's words. On a worker.
	Secret func(id string) (string, error)
	// Clock is the real one.
	Clock clock.Clock
}

// Store is where a header and its key material are. Offsets are bytes; what
// lies past the end reads as zeroes. Errors are shown as they are.
//
//blockd:io
type Store interface {
	ReadAt(ctx context.Context, off int64, p []byte) error
	WriteAt(ctx context.Context, off int64, p []byte) error
	Flush(ctx context.Context) error
}

// Entering returns a store of which each access is admitted to the graph first.
func Entering(s Store, enter blockgraph.EnterFunc) Store { return entering{s, enter} }

type entering struct {
	s     Store
	enter blockgraph.EnterFunc
}

func (e entering) ReadAt(ctx context.Context, off int64, p []byte) error {
	return e.enter(ctx, func() error { return e.s.ReadAt(ctx, off, p) })
}

func (e entering) WriteAt(ctx context.Context, off int64, p []byte) error {
	return e.enter(ctx, func() error { return e.s.WriteAt(ctx, off, p) })
}

func (e entering) Flush(ctx context.Context) error {
	return e.enter(ctx, func() error { return e.s.Flush(ctx) })
}

// Volume is an opened header. Its cipher may be used at any time and by
// anybody; changes of key slots take turns.
type Volume struct {
	*Cipher
	cfg       Config
	keySecret string // the secret it was opened with
	turn      chan struct{}
	now       atomic.Pointer[header] // as on disk; changed by who has the turn
}

// access is a volume together with a way to its header. On a worker.
//
//blockd:blocking
type access struct {
	*Volume
	store Store
}

// Open finds the master key. keySecret names the secret with a password; errors
// call the option by its name, with prefix before it. On a worker.
//
//blockd:blocking
func Open(ctx context.Context, store Store, keySecret *string, prefix string, cfg Config) (*Volume, error) {
	return open(ctx, store, false, keySecret, prefix, cfg)
}

// open is Open, also of a detached header.
//
//blockd:blocking
func open(ctx context.Context, store Store, detached bool, keySecret *string, prefix string, cfg Config) (*Volume, error) {
	password, err := cfg.Password(keySecret, prefix)
	if err != nil {
		return nil, err
	}
	h, err := readHeader(ctx, store, detached)
	if err != nil {
		return nil, err
	}
	v := &Volume{cfg: cfg, keySecret: *keySecret, turn: make(chan struct{}, 1)}
	v.now.Store(h)
	key, err := (&access{v, store}).findKey(ctx, password)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	v.Cipher, err = newCipher(&h.spec, key)
	return v, err
}

// Inspect reads a header without a key: the volume tells what it is, and its
// content cannot be had (EACCES). On a worker.
//
//blockd:blocking
func Inspect(ctx context.Context, store Store, cfg Config) (*Volume, error) {
	return inspect(ctx, store, false, cfg)
}

// inspect is Inspect, also of a detached header.
//
//blockd:blocking
func inspect(ctx context.Context, store Store, detached bool, cfg Config) (*Volume, error) {
	h, err := readHeader(ctx, store, detached)
	if err != nil {
		return nil, err
	}
	v := &Volume{Cipher: &Cipher{}, cfg: cfg, turn: make(chan struct{}, 1)}
	v.now.Store(h)
	return v, nil
}

func readHeader(ctx context.Context, store Store, detached bool) (*header, error) {
	raw := make([]byte, headerSize)
	if err := store.ReadAt(ctx, 0, raw); err != nil {
		return nil, err
	}
	return parseHeader(raw, detached)
}

// Password returns what unlocks an image; errors call the option by its name, with
// prefix before it.
//
//blockd:blocking
func (c Config) Password(keySecret *string, prefix string) (string, error) {
	if keySecret == nil {
		return "", invalid("Parameter '%skey-secret' is required for cipher", prefix)
	}
	return c.Secret(*keySecret)
}

// Create makes a new volume with one key, in slot 0. place is called when all
// options are checked and gives it room of so many bytes, whose content does
// not matter. On a worker.
//
//blockd:blocking
func Create(ctx context.Context, o *qapi.QCryptoBlockCreateOptionsLUKS, prefix string, cfg Config, place func(n int64) (Store, error)) (*Volume, error) {
	return create(ctx, o, false, prefix, cfg, place)
}

// create is Create, also of a detached header.
//
//blockd:blocking
func create(ctx context.Context, o *qapi.QCryptoBlockCreateOptionsLUKS, detached bool, prefix string, cfg Config, place func(n int64) (Store, error)) (*Volume, error) {
	password, err := cfg.Password(o.KeySecret, prefix)
	if err != nil {
		return nil, err
	}
	s, err := newSpec(o)
	if err != nil {
		return nil, err
	}
	iterTime := or(o.IterTime, defaultIterTime)
	h := newHeader(s, uuid.NewString(), detached)
	key := make([]byte, h.keyBytes)
	rand.Read(key)
	defer clear(key)
	rand.Read(h.digestSalt[:])
	newHash := hashes[s.keyHash]
	// An eighth, as cryptsetup has it: each slot that is tried takes it.
	h.digestIterations, err = calibrate(ctx, newHash, digestSize, iterTime, Slots)
	if err != nil {
		return nil, err
	}
	h.digestIterations = max(h.digestIterations, minMasterIterations)
	digest, err := derive(ctx, newHash, key, h.digestSalt[:], h.digestIterations, digestSize)
	if err != nil {
		return nil, err
	}
	copy(h.digest[:], digest)
	h.encode()
	v := &Volume{cfg: cfg, keySecret: *o.KeySecret, turn: make(chan struct{}, 1)}
	if v.Cipher, err = newCipher(s, key); err != nil {
		return nil, err
	}
	v.now.Store(h)
	filled, err := v.fill(ctx, password, key, iterTime)
	if err != nil {
		return nil, err
	}
	store, err := place(h.room())
	if err != nil {
		return nil, err
	}
	return v, (&access{v, store}).writeNew(ctx, filled)
}

// HeaderLength returns how many bytes of a new volume with these options come
// before its data.
func HeaderLength(o *qapi.QCryptoBlockCreateOptionsLUKS) (int64, error) {
	s, err := newSpec(o)
	if err != nil {
		return 0, err
	}
	return newHeader(s, "", false).room(), nil
}

// writeNew writes the header of a new volume. What was there before is no
// volume any more before its key material is overwritten.
func (v *access) writeNew(ctx context.Context, filled *filledSlot) error {
	if err := v.store.WriteAt(ctx, 0, make([]byte, headerSize)); err != nil {
		return err
	}
	if err := v.store.Flush(ctx); err != nil {
		return err
	}
	h := v.now.Load()
	if err := v.store.WriteAt(ctx, SectorSize, h.sectorOf(1)); err != nil {
		return err
	}
	return v.install(ctx, 0, filled)
}

// PayloadOffset is where the data begins, in bytes from the start of the
// header, or of its own file with a detached one.
func (v *Volume) PayloadOffset() int64 { return int64(v.now.Load().payloadOffset) * SectorSize }

// Info describes the volume. Any goroutine.
func (v *Volume) Info() *qapi.QCryptoBlockInfoLUKS {
	h := v.now.Load()
	info := &qapi.QCryptoBlockInfoLUKS{
		CipherAlg: h.spec.cipher, CipherMode: h.spec.mode, IVGenAlg: h.spec.ivgen, HashAlg: h.spec.keyHash,
		DetachedHeader: h.detached,
		PayloadOffset:  int64(h.payloadOffset) * SectorSize, MasterKeyIters: int64(h.digestIterations), UUID: h.uuid,
	}
	if h.spec.ivgen == qapi.QCryptoIVGenAlgorithmEssiv {
		info.IVGenHashAlg = &h.spec.ivHash
	}
	for i := range h.slots {
		s := &h.slots[i]
		slot := qapi.QCryptoBlockInfoLUKSSlot{Active: s.active, KeyOffset: int64(s.offset) * SectorSize}
		if s.active {
			iters, n := int64(s.iterations), int64(stripes)
			slot.Iters, slot.Stripes = &iters, &n
		}
		info.Slots = append(info.Slots, slot)
	}
	return info
}

// findKey returns the master key from the first slot that has the password.
func (v *access) findKey(ctx context.Context, password string) ([]byte, error) {
	for key, err := range v.try(ctx, password, -1) {
		if err != nil || key.master != nil {
			return key.master, err
		}
	}
	return nil, blockgraph.Errorf(syscall.EINVAL, "Invalid password, cannot unlock any keyslot")
}

// slotsWith returns which slots have a password, among all or only one.
func (v *access) slotsWith(ctx context.Context, password string, only int) ([]int, error) {
	var has []int
	for key, err := range v.try(ctx, password, only) {
		if err != nil {
			return nil, err
		}
		if key.master != nil {
			has = append(has, key.slot)
			clear(key.master)
		}
	}
	return has, nil
}

// tried is what a slot has for a password: the master key, or nil.
type tried struct {
	slot   int
	master []byte
}

// try tries a password on all slots, or on one unless only is -1, within
// KeyTimeLimit. It ends with the first error.
func (v *access) try(ctx context.Context, password string, only int) iter.Seq2[tried, error] {
	return func(yield func(tried, error) bool) {
		limited, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		timer := v.cfg.Clock.AfterFunc(KeyTimeLimit, func() { cancel(errTooSlow) })
		defer timer.Stop()
		for i := range Slots {
			if only >= 0 && i != only {
				continue
			}
			key, err := v.tryKey(limited, i, password)
			if !yield(tried{i, key}, err) || err != nil {
				return
			}
		}
	}
}

var errTooSlow = blockgraph.Errorf(syscall.ETIMEDOUT, "Trying the key slots takes longer than %d seconds: the iteration counts in the LUKS header are too large", int(KeyTimeLimit.Seconds()))

// tryKey returns the master key if slot i has the password, else nil.
func (v *access) tryKey(ctx context.Context, i int, password string) ([]byte, error) {
	h := v.now.Load()
	s := &h.slots[i]
	if !s.active {
		return nil, nil
	}
	newHash := hashes[h.spec.keyHash]
	slotKey, err := derive(ctx, newHash, []byte(password), s.salt[:], s.iterations, h.keyBytes)
	if err != nil {
		return nil, err
	}
	defer clear(slotKey)
	material := make([]byte, materialSize(h.keyBytes))
	defer clear(material)
	if err := v.store.ReadAt(ctx, int64(s.offset)*SectorSize, material); err != nil {
		return nil, err
	}
	c, err := newCipher(&h.spec, slotKey)
	if err != nil {
		return nil, err
	}
	c.Decrypt(material, 0)
	key := afMerge(newHash(), material, h.keyBytes)
	digest, err := derive(ctx, newHash, key, h.digestSalt[:], h.digestIterations, digestSize)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(digest, h.digest[:]) == 0 {
		return nil, nil
	}
	return key, nil
}

// materialSize is the length of encrypted key material: whole sectors.
func materialSize(keyBytes int) int {
	return (keyBytes*stripes + SectorSize - 1) / SectorSize * SectorSize
}
