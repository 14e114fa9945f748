package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

// setBlock changes entry i of the refcount table.
func (p *patient) setBlock(i int64, e uint64) {
	binary.BigEndian.PutUint64(p.f.b[int64(p.h.refTableOffset)+i*8:], e)
}

func (p *patient) block(i int64) uint64 {
	return binary.BigEndian.Uint64(p.f.b[int64(p.h.refTableOffset)+i*8:])
}

func (p *patient) l2() uint64 { return binary.BigEndian.Uint64(p.f.b[p.h.l1Offset:]) & l1OffsetMask }

// lostEntries are entries of a refcount table that name no block that can be one.
func lostEntries(p *fuzzParts) []uint64 {
	end := (uint64(len(p.b)) + uint64(p.h.clusterSize) - 1) &^ uint64(p.h.clusterSize-1)
	return []uint64{
		1 << 40, 1 << 62, end, uint64(p.refBlock()) + 512, uint64(p.refBlock()) | 1,
		p.h.l1Offset, p.h.refTableOffset, uint64(p.l2()),
	}
}

// losses are ways to lose refcount structures.
var losses = []damage{
	{name: "block-far-away", do: func(p *patient) { p.setBlock(0, 1<<26) }},
	{name: "block-at-end", do: func(p *patient) { p.setBlock(0, uint64(p.h.clusters(int64(len(p.f.b)))<<p.h.clusterBits)) }},
	{name: "block-past-all-offsets", do: func(p *patient) { p.setBlock(0, 1<<63) }},
	{name: "block-reserved-bit", do: func(p *patient) { p.setBlock(0, p.block(0)|4) }},
	{name: "block-over-data", do: func(p *patient) { p.setBlock(0, uint64(p.host(3)<<p.h.clusterBits)) }},
	{name: "block-over-L1", do: func(p *patient) { p.setBlock(0, p.h.l1Offset) }},
	{name: "block-over-L2", do: func(p *patient) { p.setBlock(0, p.l2()) }},
	{name: "block-over-table", do: func(p *patient) { p.setBlock(0, p.h.refTableOffset) }},
	{name: "block-twice", do: func(p *patient) { p.setBlock(1, p.block(0)) }},
	{name: "no-block", do: func(p *patient) { p.setBlock(0, 0) }},
	{name: "table-far-away", do: func(p *patient) { binary.BigEndian.PutUint64(p.f.b[fieldRefTableOffset:], 1<<26) }},
	{name: "table-over-data", do: func(p *patient) {
		binary.BigEndian.PutUint64(p.f.b[fieldRefTableOffset:], uint64(p.host(5)<<p.h.clusterBits))
	}},
	{name: "table-over-L1", do: func(p *patient) { binary.BigEndian.PutUint64(p.f.b[fieldRefTableOffset:], p.h.l1Offset) }},
	{name: "no-table", do: func(p *patient) { binary.BigEndian.PutUint32(p.f.b[fieldRefTableSize:], 0) }},
	{name: "zeroes", do: func(p *patient) { clear(p.f.b[p.h.refTableOffset:][:p.h.clusterSize]) }},
}

// contentOf reads what guests see, and the internal snapshots; nothing of the
// refcounts is needed for it.
func contentOf(t testing.TB, f *memFile) []byte {
	t.Helper()
	n := binary.BigEndian.Uint32(f.b[fieldRefTableSize:])
	copyOf := &memFile{b: bytes.Clone(f.b)}
	if n == 0 {
		binary.BigEndian.PutUint32(copyOf.b[fieldRefTableSize:], 1)
	}
	d, err := open(ctxb, testChildren{copyOf, nil}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeImage(t, d)
	content := get(t, d, 0, d.size.Load())
	for _, s := range d.snapshots.Load().list {
		content = append(content, fmt.Sprint(s.id, s.name, s.l1Offset)...)
	}
	return content
}

// toRepair opens an image as `img check -r` does.
func toRepair(t testing.TB, f *memFile) *Driver {
	t.Helper()
	d, err := openFor(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, opening{repair: true})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// exitClass is what the exit code of a check says of a result.
func exitClass(m map[string]any) string {
	for _, what := range []string{"corruptions", "leaks", "check-errors"} {
		if n, _ := m[what].(float64); n > 0 {
			return what
		}
	}
	return "clean"
}

// patients are images in which structures are lost.
func lossPatients(t testing.TB) map[string]func() *patient {
	return map[string]func() *patient{
		"512":     func() *patient { return newPatient(t, 512, 40) },
		"64K":     func() *patient { return newPatient(t, 65536, 12) },
		"wide":    func() *patient { return newPatient(t, 512, 200, refcountBits(64)) },
		"v2":      func() *patient { return newPatient(t, 4096, 40, v2) },
		"1-bit":   func() *patient { return newPatient(t, 1024, 40, refcountBits(1)) },
		"bitmaps": func() *patient { return patientOf(t, withData(t, bitmapImageInForce(t))) },
		"shared": func() *patient {
			p := newPatient(t, 512, 40)
			d := openImage(t, p.f, nil)
			if _, err := d.CreateSnapshot(ctxb, "s", time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			put(t, d, 0, fill(7, 1500))
			closeImage(t, d)
			return patientOf(t, p.f)
		},
	}
}

// bitmapImageInForce has two bitmaps that can be used.
func bitmapImageInForce(t testing.TB) *memFile {
	f := newImage(t, 64<<10, clusterSize(512))
	d := openImage(t, f, nil)
	if err := d.StoreBitmaps(ctxb, bitmapsOf(d, 2)); err != nil {
		t.Fatal(err)
	}
	closeImage(t, d)
	return f
}

func withData(t testing.TB, f *memFile) *memFile {
	d := openImage(t, f, nil)
	put(t, d, 0, fill(3, 20<<10))
	closeImage(t, d)
	return f
}

// TestLostRefcountsAreRebuilt loses refcount structures in every way, and has them
// repaired: by a check, and by opening the image when it is dirty. qemu-img finds
// the same class of damage before and nothing afterwards.
func TestLostRefcountsAreRebuilt(t *testing.T) {
	for kind, patient := range lossPatients(t) {
		for _, x := range losses {
			t.Run(kind+"-"+x.name, func(t *testing.T) {
				p := patient()
				x.do(p)
				damaged := bytes.Clone(p.f.b)
				content := contentOf(t, p.f)
				t.Run("check", func(t *testing.T) {
					d := toRepair(t, p.f)
					r := inspect(t, d, blockgraph.CheckFixAll, 0)
					closeImage(t, d)
					if r.Corruptions+r.Leaks+r.CheckErrors > 0 || r.CorruptionsFixed == 0 {
						t.Errorf("found %+v", r)
					}
					holdRebuilt(t, p.f, content)
				})
				if p.h.version < 3 {
					return
				}
				t.Run("dirty", func(t *testing.T) {
					f := &memFile{b: bytes.Clone(damaged)}
					f.b[fieldIncompatible+7] |= incompatDirty
					if x.name == "no-table" {
						if _, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, false); err == nil || err.Error() != "Image does not contain a reference count table" {
							t.Errorf("%v", err)
						}
						return
					}
					d := openImage(t, f, nil)
					put(t, d, d.size.Load()-512, get(t, d, d.size.Load()-512, 512)) // it can be used
					closeImage(t, d)
					holdRebuilt(t, f, content)
				})
			})
		}
	}
}

// holdRebuilt holds that an image is sound and has its content.
func holdRebuilt(t *testing.T, f *memFile, content []byte) {
	t.Helper()
	if f.b[7] >= 3 && f.b[fieldIncompatible+7]&(incompatDirty|incompatCorrupt) != 0 {
		t.Error("the header says still that the image needs repair")
	}
	mustCheck(t, f, true)
	fieldCheck(t, f)
	if got := contentOf(t, f); !bytes.Equal(got, content) {
		t.Errorf("content differs at %#x", firstDiff(got, content))
	}
}

// TestRebuildEndsAsTheFieldDoes compares what is left, and the content, with what
// qemu-img check -r all leaves. Two kinds of damage it gives up on, with exit code
// 1; here they are repaired.
func TestRebuildEndsAsTheFieldDoes(t *testing.T) {
	tool(t, "qemu-img")
	for _, x := range losses {
		t.Run(x.name, func(t *testing.T) {
			p := newPatient(t, 4096, 20)
			x.do(p)
			content := contentOf(t, p.f)
			want, repaired := map[string]any{}, &memFile{b: bytes.Clone(p.f.b)}
			if x.name != "block-reserved-bit" && x.name != "table-over-data" {
				want, repaired = fieldResult(t, p.f, blockgraph.CheckFixAll)
			}
			d := toRepair(t, p.f)
			got := asField(inspect(t, d, blockgraph.CheckFixAll, 0))
			closeImage(t, d)
			if exitClass(got) != exitClass(want) {
				t.Errorf("left %v, the field %v", got, want)
			}
			if other := contentOf(t, repaired); !bytes.Equal(other, content) {
				t.Errorf("the field's content differs at %#x", firstDiff(other, content))
			}
		})
	}
}

// TestUnreadableRefcountsAreRebuilt: storage that cannot be read is lost, too.
func TestUnreadableRefcountsAreRebuilt(t *testing.T) {
	for _, what := range []string{"block", "table"} {
		t.Run(what, func(t *testing.T) {
			p := newPatient(t, 4096, 40)
			content := contentOf(t, p.f)
			bad := int64(p.block(0))
			if what == "table" {
				bad = int64(p.h.refTableOffset)
			}
			p.f.setFault(func(op string, off, n int64) error {
				if op == "read" && off <= bad && off+n > bad {
					return syscall.EIO
				}
				return nil
			})
			d := toRepair(t, p.f)
			if r := inspect(t, d, blockgraph.CheckFixAll, 0); r.Corruptions+r.Leaks+r.CheckErrors > 0 {
				t.Errorf("left %+v", r)
			}
			put(t, d, 0, get(t, d, 0, 4096))
			closeImage(t, d)
			p.f.setFault(nil)
			holdRebuilt(t, p.f, content)
		})
	}
}

// TestRebuildWithinAFileThatDoesNotGrow: on a block device the structures find
// room among the free clusters, or there is none.
func TestRebuildWithinAFileThatDoesNotGrow(t *testing.T) {
	for room, want := range map[int]error{2: nil, 1: syscall.ENOSPC} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			p := newPatient(t, 4096, 20)
			p.setBlock(0, 1<<26)
			content := contentOf(t, p.f)
			end := p.h.clusters(int64(len(p.f.b))) + int64(room) - 1 // the lost block is free, too
			p.f.b = append(p.f.b, make([]byte, end<<p.h.clusterBits-int64(len(p.f.b)))...)
			p.f.fixed = true
			d := toRepair(t, p.f)
			u := toRebuild(t, d)
			before := bytes.Clone(p.f.b)
			if err := u.Rebuild(ctxb); !errors.Is(err, want) {
				t.Errorf("%v, not %v", err, want)
			}
			u.Close()
			closeImage(t, d)
			if want == nil {
				holdRebuilt(t, p.f, content)
			} else if !bytes.Equal(p.f.b, before) {
				t.Error("the image has changed")
			}
		})
	}
}

// TestMarkedImagesAreRepaired: an image that is marked as corrupt is opened to be
// repaired, and for writing by nobody before.
func TestMarkedImagesAreRepaired(t *testing.T) {
	for _, fix := range []blockgraph.CheckFix{blockgraph.CheckFixLeaks, blockgraph.CheckFixAll} {
		p := newPatient(t, 4096, 20)
		p.f.b[fieldIncompatible+7] |= incompatDirty | incompatCorrupt
		want, _ := fieldResult(t, p.f, fix)
		if _, err := open(ctxb, testChildren{p.f, nil}, &qapi.BlockdevOptions{}, false); blockgraph.Errno(err) != syscall.EACCES {
			t.Fatal(err)
		}
		content := contentOf(t, p.f)
		d := toRepair(t, p.f)
		got := asField(inspect(t, d, fix, 0))
		closeImage(t, d)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("found %v\nthe field %v", got, want)
		}
		holdRebuilt(t, p.f, content)
	}
	// What is still wrong keeps the marks.
	p := newPatient(t, 4096, 20)
	p.f.b[fieldIncompatible+7] |= incompatCorrupt
	p.setCount(p.host(3), 0)
	d := toRepair(t, p.f)
	inspect(t, d, blockgraph.CheckFixLeaks, 0)
	closeImage(t, d)
	if p.f.b[fieldIncompatible+7]&incompatCorrupt == 0 {
		t.Error("a corrupt image has lost its mark")
	}
}

// TestCrashDuringRebuild: at each instant the image has the old structures or the
// new ones, and can be repaired; its content never changes.
func TestCrashDuringRebuild(t *testing.T) {
	budget := 14
	if os.Getenv("BLOCKD_TEST_ALL") == "1" {
		budget = 2000
	}
	qemuImg, _ := exec.LookPath("qemu-img")
	for kind, patient := range lossPatients(t) {
		for _, x := range losses {
			t.Run(kind+"-"+x.name, func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				rnd := rand.New(rand.NewPCG(seed, 1))
				p := patient()
				x.do(p)
				content := contentOf(t, p.f)
				base := bytes.Clone(p.f.b)
				p.f.record = true
				d := toRepair(t, p.f)
				inspect(t, d, blockgraph.CheckFixAll, 0)
				closeImage(t, d)
				walk := graphtest.NewCrashWalk([][]byte{base}, [][]graphtest.CrashOp{p.f.log})
				walk.Everywhere(rnd, budget, func(string) bool { return false }, func(s *graphtest.CrashState, _ []string) {
					f := &memFile{b: s.Files[0]}
					for _, field := range []int{fieldRefTableOffset, fieldRefTableSize} {
						if now := f.b[field : field+4]; !bytes.Equal(now, base[field:field+4]) && !bytes.Equal(now, p.f.b[field:field+4]) {
							t.Fatalf("%v: the header names neither the old table nor the new one", s)
						}
					}
					if !bytes.Equal(f.b[fieldRefTableOffset:fieldRefTableSize+4], base[fieldRefTableOffset:fieldRefTableSize+4]) {
						if c, err := check(ctxb, f); err != nil || c.brokenRC || c.res.corruptions > 0 {
							t.Fatalf("%v: the new structures are unsound: %v %q", s, err, c.res.messages)
						}
						if qemuImg != "" && rnd.IntN(100) == 0 {
							if left, _ := fieldResult(t, f, blockgraph.CheckFixAll); exitClass(left) != "clean" {
								t.Fatalf("%v: the field cannot repair it: %v", s, left)
							}
						}
					}
					if got := contentOf(t, f); !bytes.Equal(got, content) {
						t.Fatalf("%v: content differs at %#x", s, firstDiff(got, content))
					}
					d := toRepair(t, f)
					inspect(t, d, blockgraph.CheckFixAll, 0)
					closeImage(t, d)
					mustCheck(t, f, true)
					if got := contentOf(t, f); !bytes.Equal(got, content) {
						t.Fatalf("%v: content after another repair differs at %#x", s, firstDiff(got, content))
					}
				})
			})
		}
	}
}

// Compressed data does not go on where it stood before a rebuild: new structures may
// have got that place, when what lay there was given up without its count.
func TestCompressedDataAfterARebuild(t *testing.T) {
	p := newPatient(t, 4096, 20)
	p.setBlock(0, 1<<26)
	content := contentOf(t, p.f)
	end := int64(len(p.f.b))
	p.f.b = append(p.f.b, make([]byte, 16*4096)...)
	p.f.fixed = true
	d := toRepair(t, p.f)
	d.mu.Lock()
	d.packAt = end + 512
	d.mu.Unlock()
	u := toRebuild(t, d)
	if err := u.Rebuild(ctxb); err != nil {
		t.Fatal(err)
	}
	u.Close()
	off := 22 * p.h.clusterSize // a hole
	fresh := fill(0x77, int(p.h.clusterSize))
	if err := d.WriteV(ctxb, off, blockgraph.MakeIOVec(fresh), blockgraph.Compressed); err != nil {
		t.Fatal(err)
	}
	copy(content[off:], fresh)
	closeImage(t, d)
	holdRebuilt(t, p.f, content)
}

// What is freed and not yet uncounted would be counted wrong by new structures.
func TestRebuildOfABusyImage(t *testing.T) {
	p := newPatient(t, 4096, 20)
	d := openImage(t, p.f, nil)
	if err := d.Discard(ctxb, 0, 4096); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(p.f.b)
	if err := d.rebuildRefcounts(ctxb); err != syscall.EBUSY {
		t.Error(err)
	}
	if !bytes.Equal(p.f.b, before) {
		t.Error("the image has changed")
	}
	if err := d.settle(ctxb); err != nil {
		t.Fatal(err)
	}
	if err := d.rebuildRefcounts(ctxb); err != nil {
		t.Error(err)
	}
	closeImage(t, d)
	mustCheck(t, p.f, true)
}
