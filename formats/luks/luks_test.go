package luks

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"hash"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/pbkdf2"

	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/qapi"
)

var ctxb = context.Background()

func ptr[T any](v T) *T { return &v }

// passwords are the secrets of the tests.
var passwords = map[string]string{"s": "hunter", "n": "new one", "w": "wrong"}

func testConfig() Config {
	return Config{Clock: clock.Real(), Secret: func(id string) (string, error) {
		p, ok := passwords[id]
		if !ok {
			return "", fmt.Errorf("No secret with id '%s'", id)
		}
		return p, nil
	}}
}

// memStore is a header in memory that logs what is written.
type memStore struct {
	b    []byte
	log  []op
	fail int // writes and flushes until one fails; 0: never
}

// op is one write, or a flush without data.
type op struct {
	off  int64
	data []byte
}

func (s *memStore) ReadAt(_ context.Context, off int64, p []byte) error {
	clear(p)
	if off < int64(len(s.b)) {
		copy(p, s.b[off:])
	}
	return nil
}

func (s *memStore) count() error {
	if s.fail > 0 {
		if s.fail--; s.fail == 0 {
			return fmt.Errorf("no more")
		}
	}
	return nil
}

func (s *memStore) WriteAt(_ context.Context, off int64, p []byte) error {
	if err := s.count(); err != nil {
		return err
	}
	s.log = append(s.log, op{off, bytes.Clone(p)})
	s.apply(op{off, p})
	return nil
}

func (s *memStore) apply(o op) {
	if n := int(o.off) + len(o.data); n > len(s.b) {
		s.b = append(s.b, make([]byte, n-len(s.b))...)
	}
	copy(s.b[o.off:], o.data)
}

func (s *memStore) Flush(context.Context) error {
	if err := s.count(); err != nil {
		return err
	}
	s.log = append(s.log, op{})
	return nil
}

// cheap are options of a volume that is made quickly.
func cheap() *qapi.QCryptoBlockCreateOptionsLUKS {
	o := &qapi.QCryptoBlockCreateOptionsLUKS{IterTime: ptr(int64(0))}
	o.KeySecret = ptr("s")
	o.CipherAlg = ptr(qapi.QCryptoCipherAlgorithmAES128)
	return o
}

func newVolume(t testing.TB, o *qapi.QCryptoBlockCreateOptionsLUKS) (*Volume, *memStore) {
	t.Helper()
	s := &memStore{}
	v, err := Create(ctxb, o, "", testConfig(), func(int64) (Store, error) { return s, nil })
	if err != nil {
		t.Fatal(err)
	}
	s.log = nil
	return v, s
}

func expectError(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestDeriveIsPBKDF2(t *testing.T) {
	for name, h := range hashes {
		for _, n := range []int{1, 16, 20, 48, 64, 100} {
			for _, iterations := range []uint32{1, 2, 50, cancelEvery + 1} {
				if iterations > cancelEvery && n != 48 {
					continue // long, and each block is the same
				}
				got, err := derive(ctxb, h, []byte("password"), []byte("salt"), iterations, n)
				if err != nil {
					t.Fatal(err)
				}
				want, err := pbkdf2.Key(func() hash.Hash { return h() }, "password", []byte("salt"), int(iterations), n)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s, %d iterations, %d bytes: %x, want %x", name, iterations, n, got, want)
				}
			}
		}
	}
}

func TestDeriveEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(ctxb)
	why := fmt.Errorf("enough")
	cancel(why)
	if _, err := derive(ctx, hashes[qapi.QCryptoHashAlgorithmSHA1], nil, nil, 1<<32-1, 64); err != why {
		t.Errorf("%v", err)
	}
}

func TestIterationsFollowTheComputingTime(t *testing.T) {
	now, calls := time.Duration(0), 0
	rate, err := measure(ctxb, hashes[qapi.QCryptoHashAlgorithmSHA1], 20, func() time.Duration {
		calls++
		if calls%2 == 0 {
			now += 10 * time.Millisecond << (calls/2 - 1) // each try takes twice as long
		}
		return now
	})
	if err != nil || rate != 409600 || calls != 4 {
		t.Errorf("rate %d by %d looks at the clock, %v", rate, calls, err)
	}
	for _, c := range []struct {
		rate      uint64
		ms        int64
		share     uint64
		want      uint32
		errorText string
	}{
		{1000000, 2000, 1, 2000000, ""},
		{1000000, 2000, 8, 250000, ""},
		{1000000, 0, 1, 0, ""},
		{1 << 33, 1000, 1, 0, "PBKDF iterations 8589934592 larger than 4294967295: Numerical result out of range"},
		{1000000, -1, 1, 0, "PBKDF iterations 1000000 too large to scale: Numerical result out of range"},
	} {
		n, err := scale(c.rate, c.ms, c.share)
		if n != c.want || (err == nil) != (c.errorText == "") || err != nil && err.Error() != c.errorText {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
	}
}

func TestSplitKeyComesBackAndNeedsEveryStripe(t *testing.T) {
	for name, newHash := range hashes {
		key := []byte("0123456789abcdef0123456789abcdef0123456789abcdef")
		split := afSplit(newHash(), key)
		if got := afMerge(newHash(), split, len(key)); !bytes.Equal(got, key) {
			t.Errorf("%s: %x", name, got)
		}
		split[rand.IntN(len(split))] ^= 1
		if got := afMerge(newHash(), split, len(key)); bytes.Equal(got, key) {
			t.Errorf("%s: the key does not depend on every byte", name)
		}
	}
}

// The first vector of IEEE 1619 for xts, and the first sector of dm-crypt's
// plain64 with number 0x123456789a.
func TestCipherIsTheStandards(t *testing.T) {
	key, _ := hex.DecodeString("27182818284590452353602874713526" + "31415926535897932384626433832795")
	c, err := newCipher(&spec{cipher: qapi.QCryptoCipherAlgorithmAES128, mode: qapi.QCryptoCipherModeXTS, ivgen: qapi.QCryptoIVGenAlgorithmPlain64}, key)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, SectorSize)
	for i := range p {
		p[i] = byte(i)
	}
	c.Encrypt(p, 0)
	want, _ := hex.DecodeString("27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c")
	if !bytes.Equal(p[:32], want) {
		t.Errorf("%x", p[:32])
	}
	c.Decrypt(p, 0)
	for i := range p {
		if p[i] != byte(i) {
			t.Fatalf("byte %d is %#x", i, p[i])
		}
	}
}

func TestPlainTakesTheLow32Bits(t *testing.T) {
	for _, mode := range []qapi.QCryptoCipherMode{qapi.QCryptoCipherModeCBC, qapi.QCryptoCipherModeXTS} {
		s := &spec{cipher: qapi.QCryptoCipherAlgorithmAES128, mode: mode, ivgen: qapi.QCryptoIVGenAlgorithmPlain}
		c, err := newCipher(s, []byte("0123456789abcdefFEDCBA9876543210")[:s.keyBytes()])
		if err != nil {
			t.Fatal(err)
		}
		a, b := make([]byte, SectorSize), make([]byte, SectorSize)
		c.Encrypt(a, 7)
		c.Encrypt(b, 1<<32+7)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: the numbers 7 and 2^32+7 differ", mode)
		}
	}
}

func BenchmarkEncrypt(b *testing.B) {
	for _, mode := range []qapi.QCryptoCipherMode{qapi.QCryptoCipherModeCBC, qapi.QCryptoCipherModeXTS} {
		b.Run(string(mode), func(b *testing.B) {
			o := cheap()
			o.CipherMode, o.CipherAlg = &mode, nil
			v, _ := newVolume(b, o)
			p := make([]byte, 64<<10)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				v.Encrypt(p, 0)
			}
		})
	}
}

// combinations are all ciphers, modes, generators and hashes that the field's
// tool can make and blockd has; unless all tests are asked for, a few that have
// each of them once.
func combinations(f func(args ...string)) {
	if os.Getenv("BLOCKD_TEST_ALL") != "1" {
		for _, args := range [][]string{
			{"cipher-alg=aes-192", "cipher-mode=xts", "ivgen-alg=essiv", "hash-alg=sha256"},
			{"cipher-alg=aes-128", "cipher-mode=cbc", "ivgen-alg=essiv", "hash-alg=sha1"},
			{"cipher-alg=aes-256", "cipher-mode=xts", "ivgen-alg=plain64", "hash-alg=sha512"},
			{"cipher-alg=aes-256", "cipher-mode=cbc", "ivgen-alg=plain", "hash-alg=sha384"},
			{"cipher-alg=cast5-128", "cipher-mode=cbc", "ivgen-alg=plain64", "hash-alg=md5"},
			{"cipher-alg=twofish-256", "cipher-mode=xts", "ivgen-alg=essiv", "hash-alg=ripemd160"},
			{"cipher-alg=twofish-192", "cipher-mode=xts", "ivgen-alg=plain64", "ivgen-hash-alg=md5"},
			{"cipher-alg=twofish-128", "cipher-mode=cbc", "ivgen-alg=plain64", "ivgen-hash-alg=sha1"},
		} {
			f(args...)
		}
		return
	}
	for alg := range ciphers {
		for _, mode := range []string{"xts", "cbc"} {
			if mode == "cbc" && (alg == qapi.QCryptoCipherAlgorithmAES192 || alg == qapi.QCryptoCipherAlgorithmTwofish192) {
				continue // the field's tool aborts
			}
			for _, iv := range []string{"plain", "plain64", "essiv"} {
				s := spec{cipher: alg, mode: qapi.QCryptoCipherMode(mode), ivgen: qapi.QCryptoIVGenAlgorithm(iv), ivHash: qapi.QCryptoHashAlgorithmSHA256}
				if s.check() == nil {
					f("cipher-alg="+string(alg), "cipher-mode="+mode, "ivgen-alg="+iv)
				}
			}
		}
	}
	for h := range hashes {
		f("hash-alg=" + string(h))
		f("hash-alg="+string(h), "cipher-alg=aes-128", "cipher-mode=cbc", "ivgen-hash-alg="+string(h))
	}
}

// fieldCreates has the field's tool make an image. On a busy machine it may not
// be able to measure its computing time, and false comes back.
func fieldCreates(t testing.TB, img string, args ...string) bool {
	t.Helper()
	for range 5 {
		out, err := exec.Command(img, append([]string{"create", "-q", "--object", secretArg}, args...)...).CombinedOutput()
		if err == nil {
			return true
		}
		if !strings.Contains(string(out), "Unable to get accurate CPU usage") {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Log("qemu-img cannot measure its computing time on this machine now")
	return false
}

const secretArg = "secret,id=s,data=hunter"

// The field's tool measures its computing time for seconds. Without this test a
// volume of the field's is read in package qcow2, in an image.
func TestFieldsVolumesAreReadInEveryCipher(t *testing.T) {
	if os.Getenv("BLOCKD_TEST_ALL") != "1" {
		return
	}
	img, io := graphtest.Tool(t, "qemu-img"), graphtest.Tool(t, "qemu-io")
	dir := t.TempDir()
	combinations(func(args ...string) {
		path := filepath.Join(dir, "f.luks")
		if !fieldCreates(t, img, "-f", "luks", "-o", "key-secret=s,iter-time=10,"+strings.Join(args, ","), path, "64k") {
			return
		}
		graphtest.Run(t, io, "--object", secretArg, "-c", "write -P 0x5a 0 64k", "--image-opts", "driver=luks,key-secret=s,file.filename="+path)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		v, err := Open(ctxb, &memStore{b: b}, ptr("s"), "", testConfig())
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		data := b[v.PayloadOffset():]
		v.Decrypt(data, 0)
		if !bytes.Equal(data, bytes.Repeat([]byte{0x5a}, 64<<10)) {
			t.Errorf("%v: content differs", args)
		}
	})
}

func TestFieldReadsOurVolumesInEveryCipher(t *testing.T) {
	io := graphtest.Tool(t, "qemu-io")
	dir := t.TempDir()
	combinations(func(args ...string) {
		o := cheap()
		o.CipherAlg = nil
		for _, a := range args {
			name, value, _ := strings.Cut(a, "=")
			switch name {
			case "cipher-alg":
				o.CipherAlg = ptr(qapi.QCryptoCipherAlgorithm(value))
			case "cipher-mode":
				o.CipherMode = ptr(qapi.QCryptoCipherMode(value))
			case "ivgen-alg":
				o.IVGenAlg = ptr(qapi.QCryptoIVGenAlgorithm(value))
			case "ivgen-hash-alg":
				o.IVGenHashAlg = ptr(qapi.QCryptoHashAlgorithm(value))
			case "hash-alg":
				o.HashAlg = ptr(qapi.QCryptoHashAlgorithm(value))
			}
		}
		v, s := newVolume(t, o)
		data := bytes.Repeat([]byte{0xa5}, 64<<10)
		v.Encrypt(data, 0)
		s.apply(op{v.PayloadOffset(), data})
		path := filepath.Join(dir, "o.luks")
		if err := os.WriteFile(path, s.b, 0o600); err != nil {
			t.Fatal(err)
		}
		graphtest.Run(t, io, "--object", secretArg, "-c", "read -P 0xa5 0 64k", "--image-opts", "driver=luks,key-secret=s,file.filename="+path)
	})
}

// The field has no 24-byte keys in cbc mode: their key material is no whole
// number of sectors. cryptsetup has.
func TestKeyMaterialOfOddLength(t *testing.T) {
	o := cheap()
	o.CipherAlg, o.CipherMode = ptr(qapi.QCryptoCipherAlgorithmAES192), ptr(qapi.QCryptoCipherModeCBC)
	v, s := newVolume(t, o)
	w, err := Open(ctxb, s, ptr("s"), "", testConfig())
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, SectorSize)
	v.Encrypt(p, 9)
	w.Decrypt(p, 9)
	if !bytes.Equal(p, make([]byte, SectorSize)) {
		t.Error("the keys differ")
	}
}

func TestOpenErrorsAreTheFields(t *testing.T) {
	_, s := newVolume(t, cheap())
	for _, c := range []struct {
		secret *string
		want   string
	}{
		{nil, "Parameter 'encrypt.key-secret' is required for cipher"},
		{ptr("none"), "No secret with id 'none'"},
		{ptr("w"), "Invalid password, cannot unlock any keyslot"},
	} {
		_, err := Open(ctxb, s, c.secret, "encrypt.", testConfig())
		expectError(t, err, c.want)
	}
	o := cheap()
	o.IVGenAlg, o.IVGenHashAlg = ptr(qapi.QCryptoIVGenAlgorithmEssiv), ptr(qapi.QCryptoHashAlgorithmSHA512)
	_, err := Create(ctxb, o, "", testConfig(), nil)
	expectError(t, err, "No AES cipher with key size 64 available")
}

func activeSlots(v *Volume) []int {
	var list []int
	for i, s := range v.Info().Slots {
		if s.Active {
			list = append(list, i)
		}
	}
	return list
}

func expectSlots(t testing.TB, v *Volume, want ...int) {
	t.Helper()
	if got := activeSlots(v); !slices.Equal(got, want) {
		t.Errorf("slots %v are active, not %v", got, want)
	}
}
