package nbd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"blockd/nbdproto"
)

// Comparisons with the installed storage daemon: the same image, the same
// words, the same answers.

// sparseFile makes a file with data in the given MiBs, and the same in memory.
func sparseFile(t *testing.T, size int64, data ...int64) (string, *ram) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := newRAM(size, 1<<20)
	for _, i := range data {
		p := m.data[i<<20 : (i+1)<<20]
		for j := range p {
			p[j] = byte(j>>12) + byte(i) + 1
		}
		m.mark(i<<20, 1<<20, 1)
		if _, err := f.WriteAt(p, i<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path, m
}

// beside starts a server and the rival with the same image as export "n".
func beside(t *testing.T, writable bool) (ours, theirs string) {
	t.Helper()
	file, m := sparseFile(t, 16<<20, 1, 2, 5, 15)
	m.flat = true
	opts := "nbd,id=e,node-name=n,name=n,description=a disk,allocation-depth=on"
	if writable {
		opts += ",writable=on"
	}
	theirs = rival(t, "file,node-name=n,filename="+file, opts)
	s, ours := server(t, Config{}) // no limit on connections, which is 7.2's default
	desc := "a disk"
	add(t, s, m, ExportConfig{Writable: writable, Description: &desc, AllocationDepth: true})
	return ours, theirs
}

func TestNbdinfoSaysTheSameAsOfTheRival(t *testing.T) {
	tool := needs(t, "nbdinfo")
	for _, writable := range []bool{false, true} {
		ours, theirs := beside(t, writable)
		for _, args := range [][]string{
			{"--json"}, {"--json", "--list"}, {"--json", "--map"}, {"--map"}, {"--map", "--totals"},
			{"--json", "--map=qemu:allocation-depth"}, {"--size"}, {"--can", "multi-conn"}, {"--can", "fast-zero"},
		} {
			ask := func(sock string) string {
				uri := "nbd+unix:///n?socket=" + sock
				if slices.Contains(args, "--list") {
					uri = "nbd+unix:///?socket=" + sock
				}
				out, err := exec.Command(tool, append(slices.Clone(args), uri)...).CombinedOutput()
				text := strings.ReplaceAll(string(out), sock, "SOCKET")
				return fmt.Sprintf("%s%v", text, err)
			}
			got, want := ask(ours), ask(theirs)
			if got != want {
				t.Errorf("writable=%v %v:\n%s\nthe rival:\n%s", writable, args, got, want)
			}
		}
	}
}

// word is one thing that a client says in the handshake.
type word struct {
	what    string
	option  nbdproto.Option
	payload []byte
}

func TestHandshakeAnswersAreTheRivals(t *testing.T) {
	ours, theirs := beside(t, true)
	str := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	meta := func(name string, q ...string) []byte {
		return (&nbdproto.MetaRequest{Name: name, Queries: q}).Append(nil)
	}
	info := func(name string, q ...nbdproto.InfoType) []byte {
		return (&nbdproto.InfoRequest{Name: name, Requests: q}).Append(nil)
	}
	words := []word{
		{"unknown option", 99, []byte("x")},
		{"list", nbdproto.OptList, nil},
		{"list with payload", nbdproto.OptList, []byte("x")},
		{"starttls", nbdproto.OptStartTLS, nil},
		{"set meta too early", nbdproto.OptSetMetaContext, meta("n", "base:allocation")},
		{"list meta, all", nbdproto.OptListMetaContext, meta("n")},
		{"structured replies", nbdproto.OptStructuredReply, nil},
		{"structured replies again", nbdproto.OptStructuredReply, nil},
		{"list meta base:", nbdproto.OptListMetaContext, meta("n", "base:")},
		{"list meta qemu:", nbdproto.OptListMetaContext, meta("n", "qemu:")},
		{"list meta qemu:dirty-bitmap:", nbdproto.OptListMetaContext, meta("n", "qemu:dirty-bitmap:")},
		{"list meta nonsense", nbdproto.OptListMetaContext, meta("n", "x:y", "base", "")},
		{"set meta base:", nbdproto.OptSetMetaContext, meta("n", "base:")},
		{"set meta", nbdproto.OptSetMetaContext, meta("n", "qemu:allocation-depth", "base:allocation", "base:allocation")},
		{"set meta of nothing", nbdproto.OptSetMetaContext, meta("zz", "base:allocation")},
		{"set meta with long query", nbdproto.OptSetMetaContext, meta("n", strings.Repeat("x", 5000), "base:allocation")},
		{"info", nbdproto.OptInfo, info("n")},
		{"info with all", nbdproto.OptInfo, info("n", 0, 1, 2, 3, 4, 99)},
		{"info of nothing", nbdproto.OptInfo, info("zz")},
		{"info, long unknown name", nbdproto.OptInfo, info(strings.Repeat("z", 200))},
		{"info cut short", nbdproto.OptInfo, str("n")},
		{"info trailing", nbdproto.OptInfo, append(info("n"), 0)},
		{"info NUL", nbdproto.OptInfo, info("n\x00")},
		{"go", nbdproto.OptGo, info("n", 3)},
	}
	talk := func(path string) (all [][]optionReply) {
		c := dial(t, path).greet(both)
		for _, w := range words {
			all = append(all, c.option(w.option, w.payload))
		}
		return all
	}
	got, want := talk(ours), talk(theirs)
	for i, w := range words {
		for k := range want[i] {
			if k >= len(got[i]) {
				t.Errorf("%s: %d replies, the rival has %d", w.what, len(got[i]), len(want[i]))
				break
			}
			g, r := got[i][k], want[i][k]
			// Error texts are for people, and their own words.
			if g.typ != r.typ || !g.typ.IsError() && !bytes.Equal(g.payload, r.payload) {
				t.Errorf("%s, reply %d: %#x %q, the rival: %#x %q", w.what, k, g.typ, g.payload, r.typ, r.payload)
			}
		}
		if len(got[i]) > len(want[i]) {
			t.Errorf("%s: %d replies, the rival has %d", w.what, len(got[i]), len(want[i]))
		}
	}
}

func TestRequestsAreAnsweredAsByTheRival(t *testing.T) {
	const size = 16 << 20
	for _, writable := range []bool{true, false} {
		ours, theirs := beside(t, writable)
		for _, structured := range []bool{true, false} {
			a, b := connect(t, ours, structured), connect(t, theirs, structured)
			ask := func(what string, r nbdproto.Request, data int) {
				t.Helper()
				say := func(c *client) string {
					c.send(r, make([]byte, data)...)
					var all strings.Builder
					n := 0
					if r.Type == nbdproto.CmdRead {
						n = int(r.Length)
					}
					for {
						k := c.chunk(n)
						fmt.Fprintf(&all, "[structured %v type %d done %v error %d", k.Structured, k.Type, k.Done, k.Error)
						if k.Error == nbdproto.OK && r.Type == nbdproto.CmdBlockStatus {
							fmt.Fprintf(&all, " % x", k.payload)
						}
						all.WriteString("]")
						if !k.Structured || k.Done {
							return all.String()
						}
					}
				}
				if got, want := say(a), say(b); got != want {
					t.Errorf("writable=%v %s: %s, the rival: %s", writable, what, got, want)
				}
			}
			for _, x := range badRequests {
				if x.r.Offset >= 1<<20-512 && x.r.Offset <= 1<<21 {
					x.r.Offset += size - 1<<20
				}
				ask(x.what, x.r, x.data)
			}
			for _, x := range []struct {
				what string
				r    nbdproto.Request
				data int
			}{
				{"read", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1 << 20, Length: 4096}, 0},
				{"read of data", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1 << 20, Length: 1 << 20}, 0},
				{"sparse read", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 0, Length: 8 << 20}, 0},
				{"read with DF", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 0, Length: 8 << 20, Flags: nbdproto.FlagDF}, 0},
				{"read with FUA", nbdproto.Request{Type: nbdproto.CmdRead, Offset: 1 << 20, Length: 512, Flags: nbdproto.FlagFUA}, 0},
				{"read nothing", nbdproto.Request{Type: nbdproto.CmdRead}, 0},
				{"status", nbdproto.Request{Type: nbdproto.CmdBlockStatus, Length: size}, 0},
				{"status of one", nbdproto.Request{Type: nbdproto.CmdBlockStatus, Length: size, Flags: nbdproto.FlagReqOne}, 0},
				{"status of a part", nbdproto.Request{Type: nbdproto.CmdBlockStatus, Offset: 1<<20 + 4096, Length: 3 << 20}, 0},
				{"write", nbdproto.Request{Type: nbdproto.CmdWrite, Offset: 1 << 20, Length: 512}, 512},
				{"write nothing", nbdproto.Request{Type: nbdproto.CmdWrite, Offset: size}, 0},
				{"flush", nbdproto.Request{Type: nbdproto.CmdFlush}, 0},
				{"flush with FUA", nbdproto.Request{Type: nbdproto.CmdFlush, Flags: nbdproto.FlagFUA}, 0},
				{"cache", nbdproto.Request{Type: nbdproto.CmdCache, Length: 1 << 20}, 0},
				{"trim nothing", nbdproto.Request{Type: nbdproto.CmdTrim}, 0},
				{"zero nothing", nbdproto.Request{Type: nbdproto.CmdWriteZeroes}, 0},
				{"zero", nbdproto.Request{Type: nbdproto.CmdWriteZeroes, Offset: 2 << 20, Length: 1 << 20, Flags: nbdproto.FlagFUA}, 0},
			} {
				ask(x.what, x.r, x.data)
			}
		}
	}
}

func TestNbdcopyMovesAnImageBothWays(t *testing.T) {
	tool := needs(t, "nbdcopy")
	s, path := server(t, Config{})
	file, _ := sparseFile(t, 16<<20, 0, 1, 7, 9)
	m := newRAM(16<<20, 64<<10)
	add(t, s, m, ExportConfig{Writable: true})
	uri := "nbd+unix:///n?socket=" + path
	if out, err := exec.Command(tool, "--allocated", file, uri).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	back := filepath.Join(t.TempDir(), "back")
	if out, err := exec.Command(tool, uri, back).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !bytes.Equal(m.data, want) || !bytes.Equal(got, want) {
		t.Error("the copies differ")
	}
}

func TestQemuImgReadsTheMapAndTheData(t *testing.T) {
	tool := needs(t, "qemu-img")
	file, m := sparseFile(t, 16<<20, 3, 4)
	s, path := server(t, Config{})
	add(t, s, m, ExportConfig{})
	uri := "nbd+unix:///n?socket=" + path
	if out, err := exec.Command(tool, "compare", "-f", "raw", "-F", "raw", file, uri).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := exec.Command(tool, "map", "--output=json", "-f", "raw", uri).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[1].Start != 3<<20 || got[1].Length != 2<<20 || !got[1].Data || got[0].Data || !got[2].Zero {
		t.Errorf("%s", out)
	}
}

// TestLibnbdFindsItsWay plays with libnbd's own client, strict mode off.
func TestLibnbdFindsItsWay(t *testing.T) {
	const script = `
import errno, sys
try:
    import nbd
except ImportError:
    print("no libnbd"); sys.exit(0)
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
assert h.get_size() == 1 << 20
assert h.can_multi_conn() and h.can_df() and h.can_fast_zero() and h.can_cache()
h.pwrite(b"x" * 70000, 1000, nbd.CMD_FLAG_FUA)
assert h.pread(70000, 1000) == b"x" * 70000
chunks = []
h.pread_structured(70000, 1000, lambda d, o, s, e: chunks.append((o, len(d), s)) or 0, nbd.CMD_FLAG_DF)
assert chunks == [(1000, 70000, nbd.READ_DATA)], chunks
h.zero(65536, 0); h.trim(65536, 0); h.flush(); h.cache(4096, 0)
seen = []
h.block_status(1 << 20, 0, lambda m, o, e, err: seen.extend(e) or 0)
assert sum(seen[::2]) == 1 << 20, seen
for f in (lambda: h.pread(512, 1 << 20), lambda: h.pwrite(b"x" * 512, 1 << 20), lambda: h.zero(1024, (1 << 20) - 512),
          lambda: h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE), lambda: h.flush(nbd.CMD_FLAG_FAST_ZERO)):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == errno.EINVAL, e
    else:
        raise AssertionError("accepted")
cookies = []
bufs = [nbd.Buffer(4096) for _ in range(200)]
for i, b in enumerate(bufs):
    cookies.append(h.aio_pread(b, i * 4096))
while cookies:
    h.poll(20000)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
h.shutdown()
print("good")
`
	py := "/usr/bin/python3"
	if _, err := os.Stat(py); err != nil {
		t.Skip("needs python3")
	}
	s, path := server(t, Config{})
	add(t, s, newRAM(1<<20, 65536), ExportConfig{Writable: true})
	out, err := exec.Command(py, "-c", script, "nbd+unix:///n?socket="+path).CombinedOutput()
	switch {
	case strings.Contains(string(out), "no libnbd"):
		t.Skip("needs libnbd for python3")
	case err != nil || !strings.Contains(string(out), "good"):
		t.Errorf("%v\n%s", err, out)
	}
}
