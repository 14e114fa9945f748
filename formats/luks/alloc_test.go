//go:build !race

package luks

import (
	"testing"

	"blockd/qapi"
)

// The race detector drops what is pooled, so this file is left out with it.

func TestCipherAllocatesNothing(t *testing.T) {
	for _, mode := range []qapi.QCryptoCipherMode{qapi.QCryptoCipherModeCBC, qapi.QCryptoCipherModeXTS} {
		o := cheap()
		o.CipherMode, o.IVGenAlg = &mode, ptr(qapi.QCryptoIVGenAlgorithmEssiv)
		v, _ := newVolume(t, o)
		p := make([]byte, 16*SectorSize)
		if n := testing.AllocsPerRun(100, func() {
			v.Encrypt(p, 5)
			v.Decrypt(p, 5)
		}); n > 0.5 {
			t.Errorf("%s: %v allocations", mode, n)
		}
	}
}
