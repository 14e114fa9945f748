package qcow2

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blockd/qapi"
)

// Every width of refcounts, at some cluster sizes, in every version: what the rival
// makes is made, what it refuses is refused in its words, and what is made takes a
// write, a snapshot where its counts can tell of one, and a check of both.
func TestCreateOptionsBesideTheRival(t *testing.T) {
	img := tool(t, "qemu-img")
	refused := 0
	for _, bits := range []int64{0, 1, 2, 3, 4, 8, 16, 32, 64, 128} {
		for _, size := range []uint64{256, 512, 8 << 10, 16 << 10, 2 << 20, 4 << 20} {
			for _, kind := range []struct {
				name string
				opts []imageOption
			}{
				{"compat=1.1", nil},
				{"compat=0.10", []imageOption{v2}},
				{"compat=1.1,extended_l2=on", []imageOption{extended}},
				{"compat=0.10,extended_l2=on", []imageOption{v2, extended}},
			} {
				if middle := bits == 2 || bits == 4 || bits == 32; middle && size != 16<<10 || bits != 16 && size == 2<<20 {
					continue // dear, and like their neighbours
				}
				if usual := bits == 16 || size == 16<<10; !usual && kind.opts != nil || usual && size == 8<<10 && kind.opts == nil {
					continue // the two together decide nothing
				}
				line := fmt.Sprintf("%s,refcount_bits=%d,cluster_size=%d", kind.name, bits, size)
				path := filepath.Join(t.TempDir(), "i")
				out, err := exec.Command(img, "create", "-q", "-f", "qcow2", "-o", line, path, "4M").CombinedOutput()
				theirs := strings.TrimPrefix(strings.TrimSpace(string(out)), "qemu-img: "+path+": ")
				o := &qapi.BlockdevCreateOptionsQcow2{Size: 4 << 20}
				for _, set := range append(kind.opts, clusterSize(size), refcountBits(bits)) {
					set(o)
				}
				f := &memFile{}
				ours := (loneFile{f: f}).create(ctxb, o)
				switch {
				case (err == nil) != (ours == nil):
					t.Errorf("%s: %v, the rival: %s", line, ours, theirs)
				case ours != nil && ours.Error() != theirs:
					t.Errorf("%s: %q, the rival: %q", line, ours, theirs)
				case ours != nil:
					refused++
					if len(f.b) > 0 {
						t.Errorf("%s: refused, and yet written", line)
					}
				default:
					d := openImage(t, f, nil)
					put(t, d, 5000, fill(1, 5000))
					_, err := d.CreateSnapshot(ctxb, "s", time.Unix(1, 0))
					if (err == nil) != (bits > 1) {
						t.Errorf("%s: a snapshot: %v", line, err)
					}
					put(t, d, 6000, fill(2, 100))
					closeImage(t, d)
					mustCheck(t, f, true)
					if size == 512 || bits == 16 && size < 2<<20 {
						fieldCheck(t, f)
					}
				}
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}
