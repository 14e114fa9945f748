package nbd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func needs(t testing.TB, tool string) string {
	t.Helper()
	p, err := exec.LookPath(tool)
	if err != nil {
		t.Skip("needs " + tool)
	}
	return p
}

func needsFioNBD(t testing.TB) {
	t.Helper()
	out, _ := exec.Command(needs(t, "fio"), "--enghelp").CombinedOutput()
	if !strings.Contains(string(out), "\tnbd") {
		t.Skip("needs fio with the nbd engine")
	}
}

// fio runs one job and returns its IOPS.
func fio(t testing.TB, socket, export string, args ...string) float64 {
	t.Helper()
	cmd := exec.Command("fio", append([]string{"--name=t", "--ioengine=nbd", "--output-format=json",
		"--uri=nbd+unix:///" + export + "?socket=" + socket}, args...)...)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	var r struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:]
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, j := range r.Jobs {
		sum += j.Read.IOPS + j.Write.IOPS
	}
	return sum
}

// rival starts the installed storage daemon with an export "n" of a node made
// with the given option, and returns its socket.
func rival(t testing.TB, blockdev string, export string) string {
	t.Helper()
	dir := t.TempDir()
	sock, pid := filepath.Join(dir, "r"), filepath.Join(dir, "pid")
	cmd := exec.Command(needs(t, "qemu-storage-daemon"), "--blockdev", blockdev,
		"--nbd-server", "addr.type=unix,addr.path="+sock, "--export", export,
		"--pidfile", pid, "--daemonize")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("rival: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		b, err := os.ReadFile(pid)
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if _, err := fmt.Sscan(string(b), &n); err != nil {
			t.Fatal(err)
		}
		p, err := os.FindProcess(n)
		if err != nil {
			t.Fatal(err)
		}
		_ = p.Kill()
	})
	return sock
}

// TestFioVerifiesRandomWrites has fio check what it wrote through many requests
// in flight.
func TestFioVerifiesRandomWrites(t *testing.T) {
	needsFioNBD(t)
	s, path := server(t, Config{})
	add(t, s, newRAM(8<<20, 64<<10), ExportConfig{Writable: true})
	fio(t, path, "n", "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=1", "--size=8m",
		"--iodepth=32", "--verify=crc32c", "--do_verify=1", "--norandommap=0")
}
