package raw

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"blockd/blockgraph"
)

// damage changes a file of bitmaps as a hostile or failing storage may, with
// checksums that hold or not.
func damage(rng *rand.Rand, file []byte) []byte {
	b := bytes.Clone(file)
	be := binary.BigEndian
	h, slot, err := chooseHeader(b[:dataStart])
	if err != nil {
		panic(err)
	}
	head := b[slot*slotSize:][:recordSize]
	dir := b[h.dir.off:h.dir.end()]
	values := []uint64{0, 1, 8, 512, slotSize, dataStart, 1 << 20, uint64(len(b)), uint64(len(b)) - 1, 1 << 40, 1 << 62, math.MaxInt64, 1 << 63, math.MaxUint64}
	any64 := func() uint64 { return values[rng.IntN(len(values))] + rng.Uint64N(3) - 1 }
	switch rng.IntN(6) {
	case 0: // a field of the header
		be.PutUint64(head[8+8*rng.IntN(14):], any64())
	case 1: // a field of the first entry
		be.PutUint64(dir[8*rng.IntN(2):], any64())
	case 2:
		dir[rng.IntN(len(dir))] ^= 1 << rng.IntN(8)
	case 3: // shorter
		return b[:rng.IntN(len(b)+1)]
	case 4: // anywhere, without a checksum
		for range 1 + rng.IntN(8) {
			b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
		}
		return b
	case 5: // the directory ends elsewhere
		be.PutUint64(head[112:], uint64(rng.IntN(len(b))))
	}
	if off, n := int64(be.Uint64(head[104:])), int64(be.Uint64(head[112:])); off >= 0 && n >= 0 && n <= int64(len(b)) && off <= int64(len(b))-n {
		be.PutUint32(head[120:], crc32.Checksum(b[off:off+n], crcTable))
	}
	be.PutUint32(head[recordSize-4:], crc32.Checksum(head[:recordSize-4], crcTable))
	return b
}

// TestDamagedFilesOfBitmapsDoNoHarm: what is refused stays as it is, what is taken
// goes on, and the image never changes but by its guest.
func TestDamagedFilesOfBitmapsDoNoHarm(t *testing.T) {
	path := image(t, 1<<20)
	s := openSided(t, path, sidecarAlone)
	s.add("a")
	s.add("b")
	s.write(8192, 4096)
	file, err := os.ReadFile(path + sideSuffix) // not clean, and believed
	do(t, err)
	s.close()
	want, err := os.ReadFile(path)
	do(t, err)
	taken := 0
	for seed := range uint64(100) {
		bad := damage(rand.New(rand.NewPCG(seed, 1)), file)
		do(t, os.WriteFile(path+sideSuffix, bad, 0o644))
		w := newWorld(t)
		r, err := w.open(func(tx *blockgraph.Tx) (*blockgraph.Node, error) { return tx.Open(sideOptions(path, sidecarAlone)) })
		if err != nil {
			if now, _ := os.ReadFile(path + sideSuffix); !bytes.Equal(now, bad) {
				t.Fatalf("seed %d: refused (%v) and changed", seed, err)
			}
			continue
		}
		taken++
		s := &sided{w, r}
		s.write(8192, 4096) // what is there
		s.add("new")
		s.close()
		if st, err := os.Stat(path + sideSuffix); err != nil || st.Size() > 1<<20 {
			t.Fatalf("seed %d: %d bytes (%v)", seed, st.Size(), err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, want) {
			t.Fatalf("seed %d: another image (%v)", seed, err)
		}
		if s = openSided(t, path, sidecarAlone); s.dirty("new") != 0 {
			t.Fatalf("seed %d: a new bitmap is dirty", seed)
		}
		s.close()
	}
	if taken < 5 || taken > 95 {
		t.Errorf("%d of 100 were taken", taken)
	}
}
