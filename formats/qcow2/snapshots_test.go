package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"blockd/bitmaps"
	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/qapi"
)

func createSnapshot(t testing.TB, d *Driver, name string) string {
	t.Helper()
	id, err := d.CreateSnapshot(ctxb, name, time.Unix(1700000000, 123456000))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func revertTo(t testing.TB, d *Driver, name string) {
	t.Helper()
	r, err := d.PrepareRevert(ctxb, nil, &name)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Switch(ctxb, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Finish(ctxb); err != nil {
		t.Fatal(err)
	}
}

// What one side makes the other reads, goes back to and removes.
func TestSnapshotsAreTheFields(t *testing.T) {
	img := tool(t, "qemu-img")
	for _, tc := range []struct {
		name string
		opts []imageOption
	}{
		{"v3", nil}, {"v2", []imageOption{v2}}, {"512", []imageOption{clusterSize(512)}},
		{"wide-counts", []imageOption{refcountBits(64)}}, {"narrow-counts", []imageOption{refcountBits(4), clusterSize(4096)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const size = 3 << 20
			rnd := rand.New(rand.NewPCG(1, 1))
			f := newImage(t, size, tc.opts...)
			d := openImage(t, f, nil)
			one, two := randomBytes(rnd, size), randomBytes(rnd, size)
			clear(one[size/2:])
			put(t, d, 0, one[:size/2])
			createSnapshot(t, d, "ours")
			put(t, d, 0, two)
			c := fill(7, int(d.h.clusterSize))
			if err := d.WriteV(ctxb, 0, blockgraph.MakeIOVec(c), blockgraph.Compressed); err != nil {
				t.Fatal(err)
			}
			copy(two, c)
			createSnapshot(t, d, "with compressed")
			put(t, d, 512, fill(9, 1024))
			closeImage(t, d)
			mustCheck(t, f, true)
			fieldCheck(t, f)

			p := save(t, f, "a.qcow2")
			for name, want := range map[string][]byte{"ours": one, "with compressed": two} {
				out := filepath.Join(t.TempDir(), "raw")
				run(t, img, "convert", "-l", "snapshot.name="+name, "-O", "raw", p, out)
				if got, _ := os.ReadFile(out); !bytes.Equal(got, want) {
					t.Errorf("snapshot %q differs at %#x", name, firstDiff(got, want))
				}
			}
			run(t, img, "snapshot", "-a", "ours", p)
			run(t, img, "snapshot", "-d", "ours", p)
			run(t, img, "snapshot", "-c", "theirs", p)
			f = load(t, p)
			d = openImage(t, f, nil)
			if got := get(t, d, 0, size); !bytes.Equal(got, one) {
				t.Errorf("the disk differs at %#x", firstDiff(got, one))
			}
			var names []string
			for _, s := range d.InternalSnapshots() {
				names = append(names, s.ID+" "+s.Name)
			}
			if want := []string{"2 with compressed", "3 theirs"}; !slices.Equal(names, want) {
				t.Errorf("%q", names)
			}
			revertTo(t, d, "with compressed")
			if got := get(t, d, 0, size); !bytes.Equal(got, two) {
				t.Errorf("the disk differs at %#x", firstDiff(got, two))
			}
			put(t, d, 4096, fill(1, 100))
			for _, name := range []string{"with compressed", "theirs"} {
				if err := d.DeleteSnapshot(ctxb, nil, &name); err != nil {
					t.Fatal(err)
				}
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			fieldCheck(t, f)
			if at := d.snapshots.Load().at; at.to != 0 || binary.BigEndian.Uint64(f.b[fieldSnapshotsAt:]) != 0 {
				t.Errorf("the table of no snapshots is at %+v", at)
			}
		})
	}
}

// What a snapshot gives up is used again, so that an image does not grow by
// making and removing one.
func TestRemovedSnapshotsGiveTheirSpaceBack(t *testing.T) {
	const size = 2 << 20
	f := newImage(t, size, clusterSize(4096))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, size))
	var after int
	for i := range 6 {
		id := createSnapshot(t, d, "s")
		put(t, d, 0, fill(byte(i), size))
		flush(t, d)
		if err := d.DeleteSnapshot(ctxb, &id, nil); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			after = len(f.b)
		}
	}
	if len(f.b) > after {
		t.Errorf("the file grows: %d bytes, and was %d", len(f.b), after)
	}
	put(t, d, 0, fill(9, 512))
	closeImage(t, d)
	mustCheck(t, f, true)
	// A guest's write to clusters that are nobody else's again goes in place.
	if len(f.b) > after {
		t.Errorf("the file grows: %d bytes, and was %d", len(f.b), after)
	}
}

// Extra data that we do not know stays when the table is written again.
func TestSnapshotTableKeepsUnknownExtraData(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	createSnapshot(t, d, "a")
	l := d.snapshots.Load()
	l.list[0].extra = []byte("what a later version has")
	l.list[0].vmStateSize = 5 << 32
	l.list[0].icount = 77
	createSnapshot(t, d, "b")
	closeImage(t, d)
	fieldCheck(t, f)
	d = openImage(t, f, nil)
	s := d.snapshots.Load().list[0]
	if string(s.extra) != "what a later version has" || s.vmStateSize != 5<<32 || s.icount != 77 {
		t.Errorf("%+v", s)
	}
	closeImage(t, d)
}

// A count that does not fit refuses the snapshot and leaves everything as it was.
func TestSnapshotThatDoesNotFitTheCountsChangesNothing(t *testing.T) {
	f := newImage(t, 1<<20, refcountBits(2), clusterSize(4096))
	d := openImage(t, f, nil)
	put(t, d, 0, fill(1, 1<<20))
	createSnapshot(t, d, "a")
	createSnapshot(t, d, "b")
	_, err := d.CreateSnapshot(ctxb, "c", time.Unix(0, 0))
	if blockgraph.Errno(err) != syscall.EINVAL {
		t.Fatal(err)
	}
	if n := len(d.InternalSnapshots()); n != 2 {
		t.Errorf("%d snapshots", n)
	}
	if f.b[fieldIncompatible+7]&incompatDirty != 0 {
		t.Error("the dirty bit is set")
	}
	put(t, d, 4096, fill(2, 4096))
	closeImage(t, d)
	mustCheck(t, f, true)
	fieldCheck(t, f)
}

// Whatever fails on the way, nothing is lost: the next one to open the image finds
// the disk, and at most leaks once the dirty bit has been seen to.
func TestSnapshotChangesSurviveEachFailure(t *testing.T) {
	const size = 256 << 10
	for _, what := range []string{"create", "delete", "revert"} {
		t.Run(what, func(t *testing.T) {
			for n := 0; ; n++ {
				f := newImage(t, size, clusterSize(512))
				d := openImage(t, f, nil)
				one, two := fill(1, size), fill(2, size)
				put(t, d, 0, one)
				createSnapshot(t, d, "a")
				put(t, d, 0, two)
				flush(t, d)
				count := 0
				f.setFault(func(op string, _, _ int64) error {
					if op != "read" {
						if count++; count == n+1 {
							return syscall.EIO
						}
					}
					return nil
				})
				name := "a"
				var err error
				disk := two
				switch what {
				case "create":
					_, err = d.CreateSnapshot(ctxb, "b", time.Unix(0, 0))
				case "delete":
					err = d.DeleteSnapshot(ctxb, nil, &name)
				case "revert":
					var r blockgraph.Revert
					if r, err = d.PrepareRevert(ctxb, nil, &name); err == nil {
						if err = r.Switch(ctxb, nil); err != nil {
							err = r.Undo(ctxb, nil, err)
						} else {
							disk = one
							err = r.Finish(ctxb)
						}
					}
				}
				f.setFault(nil)
				if got := get(t, d, 0, size); !bytes.Equal(got, disk) {
					t.Fatalf("failure %d (%v): the disk has changed", n, err)
				}
				put(t, d, 512, disk[512:1024])
				closeImage(t, d)
				closeImage(t, openImage(t, f, nil))
				mustCheck(t, f, false)
				d = openImage(t, f, nil)
				if got := get(t, d, 0, size); !bytes.Equal(got, disk) {
					t.Fatalf("failure %d (%v): the disk has changed", n, err)
				}
				for _, s := range d.snapshots.Load().list {
					want := two
					if s.name == "a" {
						want = one
					}
					if got := readSnapshot(t, f, nil, &s); !bytes.Equal(got, want) {
						t.Fatalf("failure %d (%v): snapshot %s has changed", n, err, s.name)
					}
				}
				closeImage(t, d)
				if count <= n {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
			}
		})
	}
}

// Going back to a snapshot of another length changes disk, length and stored
// bitmaps in one moment.
func TestRevertToAnotherLengthIsOneMoment(t *testing.T) {
	const small, large = 100 << 10, 700 << 10
	for _, order := range [][2]int64{{small, large}, {large, small}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			f := newImage(t, order[0], clusterSize(512))
			d := openImage(t, f, nil)
			put(t, d, 0, fill(1, int(order[0])))
			createSnapshot(t, d, "a")
			if err := d.Truncate(ctxb, order[1], true, "", false); err != nil {
				t.Fatal(err)
			}
			put(t, d, 0, fill(2, int(order[1])))
			b := &blockgraph.DirtyBitmap{Name: "b", Persistent: true, Bits: bitmaps.New(order[1], 512)}
			if err := d.StoreBitmaps(ctxb, []*blockgraph.DirtyBitmap{b}); err != nil {
				t.Fatal(err)
			}
			c := &crashDisk{t: t, f: f, d: d, base: bytes.Clone(f.b), snaps: &crashSnapshots{}}
			c.snaps.c = c
			f.record = true
			name := "a"
			r, err := d.PrepareRevert(ctxb, nil, &name)
			if err != nil {
				t.Fatal(err)
			}
			next := *b
			next.Bits = b.Bits.Clone()
			if err := next.Bits.Resize(r.Size()); err != nil {
				t.Fatal(err)
			}
			for _, x := range r.Changed() {
				next.Bits.Set(x.Off, min(x.N, r.Size()-x.Off))
			}
			if err := r.Switch(ctxb, []*blockgraph.DirtyBitmap{&next}); err != nil {
				t.Fatal(err)
			}
			if err := r.Finish(ctxb); err != nil {
				t.Fatal(err)
			}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			for k := range len(f.log) + 1 {
				for way := range uint64(3) {
					g := c.rebuild(k, func(op, sector int) bool {
						return way == 0 || way > 1 && graphtest.CrashMix(seed^way+uint64(op)<<32+uint64(sector))&1 == 0
					})
					d := openImage(t, g, nil)
					size := d.size.Load()
					was := byte(2)
					if size == order[0] {
						was = 1
					}
					if got := get(t, d, 0, size); !bytes.Equal(got, fill(was, int(size))) {
						t.Fatalf("crash at %d: the disk of %d bytes is neither of the two", k, size)
					}
					if list := d.bitmaps.want; len(list) != 1 || list[0].Inconsistent || list[0].Bits.Size() != size || list[0].Bits.Get(0) != (was == 1) {
						t.Fatalf("crash at %d: %+v", k, list)
					}
					closeImage(t, d)
					mustCheck(t, g, false)
				}
			}
			closeImage(t, d)
			mustCheck(t, f, true)
			fieldCheck(t, f)
		})
	}
}

// Snapshots of version 2 may not differ in length, as in the field.
func TestVersion2RefusesSnapshotsOfAnotherLength(t *testing.T) {
	f := newImage(t, 1<<20, v2)
	d := openImage(t, f, nil)
	createSnapshot(t, d, "a")
	d.snapshots.Load().list[0].diskSize = 2 << 20
	name := "a"
	if _, err := d.PrepareRevert(ctxb, nil, &name); blockgraph.Errno(err) != syscall.ENOTSUP || err.Error() != "Can't resize a v2 image which has snapshots" {
		t.Fatal(err)
	}
	closeImage(t, d)
	mustCheck(t, f, true)
}

// Ids go on from the largest number, whatever else they are.
func TestSnapshotIDs(t *testing.T) {
	for _, tc := range []struct {
		ids  []string
		want string
	}{
		{nil, "1"}, {[]string{"1", "7", "3"}, "8"}, {[]string{"x", "4a"}, "5"},
		{[]string{"18446744073709551615", "0"}, "1"}, {[]string{"99999999999999999999999"}, "0"},
	} {
		var list []snapshot
		for _, id := range tc.ids {
			list = append(list, snapshot{id: id})
		}
		if got := nextSnapshotID(list); got != tc.want {
			t.Errorf("after %q: %s", tc.ids, got)
		}
	}
}

// A read-only image says that it may not be changed.
func TestSnapshotsOfReadOnlyImages(t *testing.T) {
	f := newImage(t, 1<<20)
	d := openImage(t, f, nil)
	createSnapshot(t, d, "a")
	closeImage(t, d)
	d, err := open(ctxb, testChildren{f, nil}, &qapi.BlockdevOptions{}, true)
	if err != nil {
		t.Fatal(err)
	}
	name := "a"
	if err := d.DeleteSnapshot(ctxb, nil, &name); err == nil || err.Error() != "Failed to remove snapshot from snapshot list: Operation not permitted" {
		t.Error(err)
	}
	if _, err := d.CreateSnapshot(ctxb, "b", time.Unix(0, 0)); blockgraph.Errno(err) != syscall.EPERM {
		t.Error(err)
	}
}

// snapshotOrders are the operations on snapshots whose order of writes is held.
var snapshotOrders = []writeOrder{
	{name: "snapshot-create", about: "a snapshot of a disk of two clusters", opts: small, start: written(0, 2*cs4K), run: snapshotted("a")},
	{name: "snapshot-create-v2", about: "the same in version 2", opts: append([]imageOption{v2}, small...), start: written(0, 2*cs4K), run: snapshotted("a")},
	{name: "snapshot-delete", about: "its removal, after one of the clusters was written to", opts: small, start: sinceSnapshot, run: func(t *testing.T, d *Driver) {
		if err := d.DeleteSnapshot(ctxb, nil, ptr("a")); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "snapshot-revert", about: "going back to it, after one of the clusters was written to", opts: small, start: sinceSnapshot, run: func(t *testing.T, d *Driver) {
		revertTo(t, d, "a")
	}},
}

func snapshotted(name string) func(*testing.T, *Driver) {
	return func(t *testing.T, d *Driver) { createSnapshot(t, d, name) }
}

func sinceSnapshot(t *testing.T, d *Driver) {
	written(0, 2*cs4K)(t, d)
	createSnapshot(t, d, "a")
	written(cs4K, 512)(t, d)
	flush(t, d)
}
