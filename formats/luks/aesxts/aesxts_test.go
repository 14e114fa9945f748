package aesxts

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/crypto/xts"
)

// reference encrypts or decrypts p by the library, sector by sector.
func reference(t testing.TB, o Options, p []byte, sector uint64, decrypt bool) {
	second := false
	x, err := xts.NewCipher(func(key []byte) (cipher.Block, error) {
		b, err := aes.NewCipher(key)
		if second && o.Essiv != nil && err == nil {
			e, err := aes.NewCipher(o.Essiv)
			return twice{b, e}, err
		}
		second = true
		return b, err
	}, o.Key)
	if err != nil {
		t.Fatal(err)
	}
	for ; len(p) > 0; p = p[SectorSize:] {
		n := sector
		if o.Narrow {
			n = uint64(uint32(sector))
		}
		if decrypt {
			x.Decrypt(p[:SectorSize], p[:SectorSize], n)
		} else {
			x.Encrypt(p[:SectorSize], p[:SectorSize], n)
		}
		sector++
	}
}

// twice encrypts by one key and then by another.
type twice struct {
	cipher.Block
	first cipher.Block
}

func (b twice) Encrypt(dst, src []byte) {
	b.first.Encrypt(dst, src)
	b.Block.Encrypt(dst, dst)
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestItIsTheLibrarysCipher(t *testing.T) {
	if !available() {
		t.Log("this processor has no instructions for AES")
		return
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, size := range []int{16, 24, 32} {
		for _, essiv := range []int{0, 16, 24, 32} {
			for _, narrow := range []bool{false, true} {
				o := Options{Key: random(rng, 2*size), Narrow: narrow}
				if essiv > 0 {
					o.Essiv = random(rng, essiv)
				}
				c := New(o)
				for _, sectors := range []int{1, 2, 7, 8, 9, 33} {
					for _, sector := range []uint64{0, 1, 1<<32 - 3, 1<<64 - 2, rng.Uint64()} {
						what := fmt.Sprintf("seed %d: keys of %d and %d bytes, narrow %v, %d sectors from %d", seed, size, essiv, narrow, sectors, sector)
						plain := random(rng, sectors*SectorSize+1) // of which the last byte is not to change
						want := bytes.Clone(plain)
						reference(t, o, want[:sectors*SectorSize], sector, false)
						got := bytes.Clone(plain)
						c.Encrypt(got[:sectors*SectorSize], sector)
						if !bytes.Equal(got, want) {
							t.Fatalf("%s: encrypted otherwise", what)
						}
						c.Decrypt(got[:sectors*SectorSize], sector)
						if !bytes.Equal(got, plain) {
							t.Fatalf("%s: decrypted otherwise", what)
						}
					}
				}
			}
		}
	}
}

func BenchmarkEncrypt(b *testing.B) {
	c := New(Options{Key: make([]byte, 64)})
	if c == nil {
		b.Log("this processor has no instructions for AES")
		return
	}
	p := make([]byte, 64<<10)
	for _, run := range []struct {
		name string
		f    func(p []byte, sector uint64)
	}{{"encrypt", c.Encrypt}, {"decrypt", c.Decrypt}} {
		b.Run(run.name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				run.f(p, 1)
			}
		})
	}
}
