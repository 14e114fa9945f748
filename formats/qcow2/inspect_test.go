package qcow2

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"

	"blockd/blockgraph"
)

// inspect checks an image that is open, with windows of so many clusters; 0 is
// the usual ones. What is lost is made anew: nobody else uses the image.
func inspect(t testing.TB, d *Driver, fix blockgraph.CheckFix, window int64) blockgraph.CheckResult {
	t.Helper()
	u, err := d.StartCheck(blockgraph.CheckOptions{Fix: fix})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if window > 0 {
		u.(*inspection).window = window
	}
	for {
		_, more, err := u.Step(ctxb, 4096)
		if err != nil {
			t.Fatal(err)
		}
		if !more && u.Lost() {
			if err := u.Rebuild(ctxb); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !more {
			return u.Result()
		}
	}
}

// fieldResult is what qemu-img check prints of an image, repaired first as fix
// says, and the image afterwards.
func fieldResult(t testing.TB, f *memFile, fix blockgraph.CheckFix) (map[string]any, *memFile) {
	t.Helper()
	qemuImg := tool(t, "qemu-img")
	path := save(t, f, "field.qcow2")
	args := []string{"check", "-f", "qcow2", "--output=json", "-T", "unsafe"}
	switch fix {
	case blockgraph.CheckFixLeaks:
		args = append(args, "-r", "leaks")
	case blockgraph.CheckFixAll:
		args = append(args, "-r", "all")
	}
	cmd := exec.Command(qemuImg, append(args, path)...)
	out, err := cmd.Output()
	var e *exec.ExitError
	if err != nil && (!errors.As(err, &e) || e.ExitCode() == 1) {
		t.Fatalf("qemu-img check: %v", err)
	}
	var got map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	delete(got, "filename")
	delete(got, "format")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return got, &memFile{b: b}
}

// asField gives a result the shape of the field's.
func asField(r blockgraph.CheckResult) map[string]any {
	m := map[string]any{"check-errors": float64(r.CheckErrors)}
	for name, n := range map[string]int64{
		"image-end-offset": r.ImageEnd, "corruptions": r.Corruptions, "leaks": r.Leaks,
		"corruptions-fixed": r.CorruptionsFixed, "leaks-fixed": r.LeaksFixed,
		"total-clusters": r.Total, "allocated-clusters": r.Allocated,
		"fragmented-clusters": r.Fragmented, "compressed-clusters": r.Compressed,
	} {
		if n != 0 {
			m[name] = float64(n)
		}
	}
	return m
}

// damage is one way in which an image can be wrong.
type damage struct {
	name string
	do   func(p *patient)
	// rebuilt: the field makes new refcount structures, at another place.
	rebuilt bool
}

// patient is an image on disk that is to be damaged.
type patient struct {
	f *memFile
	h *header
}

func (p *patient) setCount(cluster int64, n uint64) {
	index := cluster >> p.h.refBlockBits
	block := int64(binary.BigEndian.Uint64(p.f.b[int64(p.h.refTableOffset)+index*8:]))
	setRefAt(p.f.b[block:block+p.h.clusterSize], p.h.refcountOrder, cluster&(1<<p.h.refBlockBits-1), n)
}

func (p *patient) entry(i int64) []byte {
	table := binary.BigEndian.Uint64(p.f.b[int64(p.h.l1Offset)+(i>>p.h.l2Bits)*8:]) & l1OffsetMask
	return p.f.b[int64(table)+(i&(1<<p.h.l2Bits-1))*8:][:8]
}

func (p *patient) change(i int64, f func(e uint64) uint64) {
	b := p.entry(i)
	binary.BigEndian.PutUint64(b, f(binary.BigEndian.Uint64(b)))
}

func (p *patient) host(i int64) int64 {
	return int64(binary.BigEndian.Uint64(p.entry(i))&l2OffsetMask) >> p.h.clusterBits
}

var damages = []damage{
	{name: "none", do: func(*patient) {}},
	{name: "leak", do: func(p *patient) {
		p.change(3, func(uint64) uint64 { return 0 })
		p.change(9, func(uint64) uint64 { return 0 })
	}},
	{name: "leak-of-reference", do: func(p *patient) { p.setCount(p.host(4), 2) }},
	{name: "count-too-low", rebuilt: true, do: func(p *patient) { p.setCount(p.host(5), 0) }},
	{name: "count-of-table-too-high", do: func(p *patient) {
		p.setCount(int64(binary.BigEndian.Uint64(p.f.b[p.h.l1Offset:])&l1OffsetMask)>>p.h.clusterBits, 3)
	}},
	{name: "no-copied-flag", do: func(p *patient) {
		for i := range int64(7) {
			p.change(2*i, func(e uint64) uint64 { return e &^ flagCopied })
		}
	}},
	{name: "no-copied-flag-of-table", do: func(p *patient) { p.f.b[p.h.l1Offset] &^= 0x80 }},
	{name: "overlap", do: func(p *patient) {
		e := binary.BigEndian.Uint64(p.entry(2))
		p.change(7, func(uint64) uint64 { return e })
	}},
}

func newPatient(t testing.TB, cs uint64, clusters int64, opts ...imageOption) *patient {
	f := newImage(t, clusters*int64(cs)*2, append(opts, clusterSize(cs))...)
	d := openImage(t, f, nil)
	for i := range clusters {
		put(t, d, i*int64(cs), fill(byte(i+1), int(cs)))
	}
	put(t, d, (clusters+5)*int64(cs), fill(9, 5*512)) // a hole, and a cluster in part
	closeImage(t, d)
	return patientOf(t, f)
}

func patientOf(t testing.TB, f *memFile) *patient {
	h, _, _, err := readHeader(ctxb, f)
	if err != nil {
		t.Fatal(err)
	}
	return &patient{f: f, h: h}
}

// TestRepairLeavesWhatTheFieldLeaves damages images and compares what is found
// and repaired with what qemu-img finds and repairs.
func TestRepairLeavesWhatTheFieldLeaves(t *testing.T) {
	tool(t, "qemu-img")
	fixes := map[string]blockgraph.CheckFix{"none": blockgraph.CheckFixNone, "leaks": blockgraph.CheckFixLeaks, "all": blockgraph.CheckFixAll}
	everything := damage{name: "everything", rebuilt: true, do: func(p *patient) {
		for _, x := range damages {
			x.do(p)
		}
	}}
	for _, x := range append(damages[:len(damages):len(damages)], everything) {
		for name, fix := range fixes {
			if x.rebuilt && fix == blockgraph.CheckFixLeaks {
				continue // the field gives up
			}
			for _, cs := range []uint64{512, 65536} {
				t.Run(fmt.Sprintf("%s-%s-%d", x.name, name, cs), func(t *testing.T) {
					p := newPatient(t, cs, 40)
					x.do(p)
					want, repaired := fieldResult(t, p.f, fix)
					d := openImage(t, p.f, nil)
					content := get(t, d, 0, d.size.Load())
					got := asField(inspect(t, d, fix, 0))
					closeImage(t, d)
					if x.rebuilt && fix == blockgraph.CheckFixAll {
						delete(want, "image-end-offset")
						delete(got, "image-end-offset")
					}
					if fmt.Sprint(got) != fmt.Sprint(want) {
						t.Errorf("found %v\nthe field %v", got, want)
					}
					d = openImage(t, repaired, nil)
					if other := get(t, d, 0, d.size.Load()); !bytes.Equal(other, content) {
						t.Errorf("content differs at %#x", firstDiff(other, content))
					}
					closeImage(t, d)
					if fix == blockgraph.CheckFixAll {
						mustCheck(t, p.f, true)
						fieldCheck(t, p.f)
					}
				})
			}
		}
	}
}

// TestCheckIsRightWhileGuestsWrite checks a sound image, and then a damaged one,
// all the time while guests write, zero and discard.
func TestCheckIsRightWhileGuestsWrite(t *testing.T) {
	for _, tc := range []struct {
		name   string
		window int64
		opts   []imageOption
	}{
		{"512", 0, []imageOption{clusterSize(512)}},
		{"windows", 256, []imageOption{clusterSize(512), refcountBits(64)}},
		{"4096", 0, []imageOption{clusterSize(4096)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			checkBesideGuests(t, seed, tc.window, tc.opts)
		})
	}
}

func checkBesideGuests(t *testing.T, seed uint64, window int64, opts []imageOption) {
	const size = 1 << 20
	f := newImage(t, size, opts...)
	d := openImage(t, f, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	model := make([]byte, size)
	const guests = 4
	for i := range int64(guests) {
		r := &modelRegion{from: i * size / guests, bytes: model[i*size/guests : (i+1)*size/guests]}
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					modelWorker(t, d, r, rnd, 5)
				}
			}
		})
	}
	checks := func(n int, want func(r blockgraph.CheckResult) bool, fix blockgraph.CheckFix) {
		for range n {
			if r := inspect(t, d, fix, window); !want(r) {
				t.Errorf("found %+v", r)
			}
		}
	}
	sound := func(r blockgraph.CheckResult) bool {
		return r.Corruptions == 0 && r.Leaks == 0 && r.CheckErrors == 0 && r.CorruptionsFixed == 0 && r.LeaksFixed == 0
	}
	checks(8, sound, blockgraph.CheckFixNone)
	checks(2, sound, blockgraph.CheckFixAll)
	// Leak clusters: they are counted and nothing refers to them.
	const leaks = 5
	for range leaks {
		off, err := d.allocateRun(ctxb, 1)
		if err == nil {
			err = writeAt(ctxb, f, off, make([]byte, d.h.clusterSize))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	checks(4, func(r blockgraph.CheckResult) bool { return r.Corruptions == 0 && r.Leaks == leaks }, blockgraph.CheckFixNone)
	checks(1, func(r blockgraph.CheckResult) bool {
		return r.Corruptions == 0 && r.Leaks == 0 && r.LeaksFixed == leaks
	}, blockgraph.CheckFixLeaks)
	checks(2, sound, blockgraph.CheckFixNone)
	close(stop)
	wg.Wait()
	if got := get(t, d, 0, size); !bytes.Equal(got, model) {
		t.Errorf("content differs at %#x", firstDiff(got, model))
	}
	closeImage(t, d)
	mustCheck(t, f, true)
	fieldCheck(t, f)
}
