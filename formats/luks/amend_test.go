package luks

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"blockd/clock"
	"blockd/qapi"
)

// amend adds or erases keys cheaply.
func amend(v *Volume, s Store, o qapi.QCryptoBlockAmendOptionsLUKS, force bool) error {
	if o.State == qapi.QCryptoBlockLUKSKeyslotStateActive && o.IterTime == nil {
		o.IterTime = ptr(int64(0))
	}
	return v.Amend(ctxb, s, &o, force)
}

const (
	active   = qapi.QCryptoBlockLUKSKeyslotStateActive
	inactive = qapi.QCryptoBlockLUKSKeyslotStateInactive
)

func mustAmend(t testing.TB, v *Volume, s Store, o qapi.QCryptoBlockAmendOptionsLUKS, force bool) {
	t.Helper()
	if err := amend(v, s, o, force); err != nil {
		t.Fatal(err)
	}
}

// opens tells whether a secret opens what a store has.
func opens(b []byte, secret string) bool {
	_, err := Open(ctxb, &memStore{b: b}, &secret, "", testConfig())
	return err == nil
}

// opener is opens for many images that are almost the same: it looks once at
// each that differs in what Open reads, the header and the key material of
// active slots.
type opener map[[sha256.Size]byte]bool

func (known opener) opens(t testing.TB, b []byte, secret string) bool {
	t.Helper()
	seen := sha256.New()
	seen.Write([]byte(secret))
	seen.Write(b[:headerSize])
	if h, err := parseHeader(b[:headerSize], false); err == nil {
		for i := range h.slots {
			if from := int(h.slots[i].offset) * SectorSize; h.slots[i].active && from < len(b) {
				seen.Write(b[from:min(from+materialSize(h.keyBytes), len(b))])
			}
		}
	}
	key := [sha256.Size]byte(seen.Sum(nil))
	if _, ok := known[key]; !ok {
		known[key] = opens(b, secret)
	}
	return known[key]
}

func TestAmendErrorsAreTheFields(t *testing.T) {
	v, s := newVolume(t, cheap())
	before := bytes.Clone(s.b)
	slot := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		o    qapi.QCryptoBlockAmendOptionsLUKS
		want string
	}{
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active}, "'new-secret' is required to activate a keyslot"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), OldSecret: ptr("s")}, "'old-secret' must not be given when activating keyslots"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: slot(8)}, "Invalid keyslot 8 specified, must be between 0 and 7"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: slot(-1)}, "Invalid keyslot 4294967295 specified, must be between 0 and 7"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: slot(0)}, "Refusing to overwrite active keyslot 0 - please erase it first"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("none")}, "No secret with id 'none'"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Secret: ptr("w")}, "Invalid password, cannot unlock any keyslot"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Secret: ptr("none")}, "No secret with id 'none'"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive}, "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, NewSecret: ptr("n")}, "'new-secret' must not be given when erasing keyslots"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, IterTime: slot(1)}, "'iter-time' must not be given when erasing keyslots"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Secret: ptr("s")}, "'secret' must not be given when erasing keyslots"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: slot(-1)}, "Invalid keyslot -1 specified, must be between 0 and 7"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: slot(0)}, "Attempt to erase the only active keyslot 0 which will erase all the data in the image irreversibly - refusing operation"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: slot(3)}, "Given keyslot 3 is already erased (inactive) "},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: slot(0), OldSecret: ptr("w")}, "Given keyslot 0 doesn't contain the given old password for erase operation"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, OldSecret: ptr("w")}, "No keyslots match given (old) password for erase operation"},
		{qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, OldSecret: ptr("s")}, "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation"},
	} {
		expectError(t, amend(v, s, c.o, false), c.want)
	}
	if !bytes.Equal(s.b, before) || len(s.log) > 0 {
		t.Error("a refused change has written")
	}
}

func TestKeysComeAndGo(t *testing.T) {
	v, s := newVolume(t, cheap())
	for i := range 7 {
		o := qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n")}
		if i == 3 {
			o.Keyslot = ptr(int64(6))
		}
		mustAmend(t, v, s, o, false)
	}
	expectSlots(t, v, 0, 1, 2, 3, 4, 5, 6, 7)
	expectError(t, amend(v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n")}, false), "Can't add a keyslot - all keyslots are in use")
	mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("w"), Keyslot: ptr(int64(6))}, true)
	if !opens(s.b, "s") || !opens(s.b, "n") || !opens(s.b, "w") {
		t.Error("a key is lost")
	}
	mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, OldSecret: ptr("n")}, false)
	expectSlots(t, v, 0, 6)
	if !opens(s.b, "s") || opens(s.b, "n") || !opens(s.b, "w") {
		t.Error("the wrong key is gone")
	}
	mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: ptr(int64(0))}, true)
	expectSlots(t, v, 0, 6)
	if opens(s.b, "s") || !opens(s.b, "n") {
		t.Error("slot 0 was not replaced")
	}
	mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, OldSecret: ptr("n")}, true)
	mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: ptr(int64(6))}, true)
	expectSlots(t, v)
	if h, err := parseHeader(s.b[:headerSize], false); err != nil || h.active() != 0 {
		t.Errorf("%v, %v", h, err)
	}
}

// Two nodes over one file, each of which has read the header.
func TestAmendGoesByTheHeaderAsItIs(t *testing.T) {
	a, s := newVolume(t, cheap())
	b, err := Open(ctxb, s, ptr("s"), "", testConfig())
	if err != nil {
		t.Fatal(err)
	}
	mustAmend(t, a, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n")}, false)
	mustAmend(t, a, s, qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, OldSecret: ptr("s")}, false)
	expectError(t, amend(b, s, qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: ptr(int64(1))}, false),
		"Attempt to erase the only active keyslot 1 which will erase all the data in the image irreversibly - refusing operation")
	mustAmend(t, b, s, qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: ptr(int64(0))}, true)
	if !opens(s.b, "n") {
		t.Error("the key that another node has added is gone")
	}
	s.b[fieldUUID]++
	expectError(t, amend(b, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("w"), Secret: ptr("n")}, false),
		"The LUKS header is another one than when the image was opened")
}

func TestErasedKeyMaterialIsOverwritten(t *testing.T) {
	v, s := newVolume(t, cheap())
	mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n")}, false)
	h := v.now.Load()
	from, n := int(h.slots[0].offset)*SectorSize, materialSize(h.keyBytes)
	before := bytes.Clone(s.b[from : from+n])
	s.log = nil
	mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, Keyslot: ptr(int64(0))}, false)
	same := 0
	for i, c := range s.b[from : from+n] {
		if c == before[i] {
			same++
		}
	}
	if same > n/100 {
		t.Errorf("%d of %d bytes are still there", same, n)
	}
	passes, flushes := 0, 0
	for i, o := range s.log {
		if int(o.off) == from {
			passes++
			if s.log[i+1].data == nil {
				flushes++
			}
		}
	}
	if passes != wipePasses || flushes != wipePasses {
		t.Errorf("%d passes, %d of them flushed", passes, flushes)
	}
}

// A crash at each write of a change, with any of the writes since the last
// flush lost, any of their sectors torn off: somebody who has the old password
// or the new one can open the volume.
func TestCrashLeavesOldOrNewKeys(t *testing.T) {
	slot := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name    string
		prepare []qapi.QCryptoBlockAmendOptionsLUKS
		change  qapi.QCryptoBlockAmendOptionsLUKS
		force   bool
	}{
		{"add", nil, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n")}, false},
		{"add to the slot in two sectors", nil, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: slot(6)}, false},
		{"add to the last slot", nil, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: slot(7)}, false},
		{"replace the only key", nil, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: slot(0)}, true},
		{"replace the only key, in two sectors", []qapi.QCryptoBlockAmendOptionsLUKS{
			{State: active, NewSecret: ptr("s"), Keyslot: slot(6)}, {State: inactive, Keyslot: slot(0)},
		}, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: slot(6)}, true},
		{"erase the older key", []qapi.QCryptoBlockAmendOptionsLUKS{{State: active, NewSecret: ptr("n"), Keyslot: slot(6)}},
			qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, OldSecret: ptr("s")}, false},
		{"erase the newer key, in two sectors", []qapi.QCryptoBlockAmendOptionsLUKS{{State: active, NewSecret: ptr("n"), Keyslot: slot(6)}},
			qapi.QCryptoBlockAmendOptionsLUKS{State: inactive, OldSecret: ptr("n")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, s := newVolume(t, cheap())
			known := opener{}
			for _, o := range c.prepare {
				mustAmend(t, v, s, o, false)
			}
			base := bytes.Clone(s.b)
			s.log = nil
			mustAmend(t, v, s, c.change, c.force)
			states := crashStates(base, s.log, func(b []byte, how string) {
				if !known.opens(t, b, "s") && !known.opens(t, b, "n") {
					t.Errorf("%s: neither key opens the volume", how)
				}
			})
			if states < 7 {
				t.Errorf("only %d states", states)
			}
		})
	}
}

// crashStates gives f the image after a crash at each point of a log: with all
// that was written, with nothing since the last flush, with only the last
// write, and with each of its sectors alone where they are few. Passes over key
// material that nobody refers to any more are looked at once.
func crashStates(base []byte, log []op, f func(b []byte, how string)) int {
	states := 0
	durable := &memStore{b: bytes.Clone(base)}
	var pending []op
	try := func(how string, ops ...op) {
		s := &memStore{b: bytes.Clone(durable.b)}
		for _, o := range ops {
			s.apply(o)
		}
		states++
		f(s.b, how)
	}
	wiped := map[int64]int{}
	for i, o := range log {
		if o.data == nil {
			for _, p := range pending {
				durable.apply(p)
			}
			pending = nil
			continue
		}
		pending = append(pending, o)
		if wiped[o.off]++; wiped[o.off] > 3 && len(o.data) > headerSize {
			states++
			continue
		}
		at := fmt.Sprintf("crash at %d", i)
		try(at+", all written", pending...)
		try(at + ", nothing written")
		try(at+", the last alone", o)
		for n := SectorSize; n < len(o.data) && n <= 4*SectorSize; n += SectorSize {
			try(fmt.Sprintf("%s, %d bytes of the last", at, n), append(slices.Clone(pending[:len(pending)-1]), op{o.off, o.data[:n]})...)
		}
	}
	try("in the end", pending...)
	return states
}

func TestFailedWriteLeavesOldOrNewKeys(t *testing.T) {
	first, made := newVolume(t, cheap())
	known := opener{}
	for fail := 1; ; fail++ {
		v := &Volume{Cipher: first.Cipher, cfg: first.cfg, keySecret: first.keySecret, turn: make(chan struct{}, 1)}
		v.now.Store(first.now.Load())
		s := &memStore{b: bytes.Clone(made.b), fail: fail}
		err := amend(v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("n"), Keyslot: ptr(int64(0))}, true)
		if !known.opens(t, s.b, "s") && !known.opens(t, s.b, "n") {
			t.Errorf("write %d fails: neither key opens the volume", fail)
		}
		// What a later change builds on is what the disk has, too.
		s.fail = 0
		if known.opens(t, s.b, "s") {
			mustAmend(t, v, s, qapi.QCryptoBlockAmendOptionsLUKS{State: active, NewSecret: ptr("w"), Secret: ptr("s")}, false)
			if !known.opens(t, s.b, "s") || !known.opens(t, s.b, "w") {
				t.Errorf("write %d fails: the next change loses a key", fail)
			}
		}
		if err == nil {
			if fail < 8 {
				t.Errorf("only %d writes and flushes", fail-1)
			}
			return
		}
		if fail > 12 {
			return // the passes of erasing, all alike
		}
	}
}

// A header with the greatest iteration counts does not hold anybody up for
// longer than the limit.
func TestTryingKeysEndsInTime(t *testing.T) {
	_, s := newVolume(t, cheap())
	h, err := parseHeader(s.b[:headerSize], false)
	if err != nil {
		t.Fatal(err)
	}
	h = h.with(0, func(s *keySlot) { s.iterations = 1<<32 - 1 })
	s.apply(op{0, h.raw[:]})
	clk := clock.NewVirtual()
	cfg := testConfig()
	cfg.Clock = clk
	done := make(chan error, 1)
	go func() {
		_, err := Open(ctxb, s, ptr("s"), "", cfg)
		done <- err
	}()
	for {
		select {
		case err := <-done:
			expectError(t, err, "Trying the key slots takes longer than 120 seconds: the iteration counts in the LUKS header are too large")
			return
		default:
			if d, ok := clk.Next(); ok {
				if d > KeyTimeLimit {
					t.Fatalf("it waits for %v", d)
				}
				clk.Step(d)
			}
		}
	}
}
