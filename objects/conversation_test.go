package objects

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockd/chardev"
	"blockd/clock"
	"blockd/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

//go:embed testdata/conversation.txt
var conversation string

type exchange struct{ say, hear string }

func exchanges(t *testing.T) []exchange {
	t.Helper()
	var list []exchange
	for line := range strings.Lines(conversation) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "> "):
			list = append(list, exchange{say: line[2:]})
		case strings.HasPrefix(line, "< "):
			list[len(list)-1].hear = line[2:]
		}
	}
	if len(list) < 150 {
		t.Fatalf("only %d exchanges", len(list))
	}
	return list
}

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// client speaks QMP.
type client struct {
	t testing.TB
	c net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, r *Registry) *client {
	t.Helper()
	q := qmp.NewRegistry()
	qmp.RegisterCommands(q)
	RegisterCommands(q, r)
	chardevs := chardev.NewRegistry(chardev.Config{Clock: clock.Real()})
	s := qmp.NewServer(qmp.Config{Registry: q, Clock: clock.Real(), Chardevs: chardevs})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s.Close(ctx)
		chardevs.Close()
	})
	path := filepath.Join(t.TempDir(), "mon")
	o, err := chardev.ParseOption("socket,id=mon,server=on,wait=off,path=" + path)
	if err == nil {
		err = chardevs.Add(t.Context(), o)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := qmp.ParseMonitorOption("mon")
	if err == nil {
		err = s.AddMonitor(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	c := &client{t: t, c: conn, r: bufio.NewReader(conn)}
	c.line()
	c.ask(`{"execute": "qmp_capabilities"}`)
	return c
}

func (c *client) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimRight(s, "\r\n")
}

func (c *client) ask(text string) string {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.c, text); err != nil {
		c.t.Fatal(err)
	}
	return c.line()
}

func TestConversation(t *testing.T) {
	c := dial(t, New(clock.Real()))
	for _, e := range exchanges(t) {
		if got := c.ask(e.say); got != e.hear {
			t.Errorf("%s\n got %s\nwant %s", e.say, got, e.hear)
		}
	}
}

// askRival has the rival answer lines on a monitor.
func askRival(t *testing.T, lines []string) []string {
	t.Helper()
	const program = "qemu-storage-daemon"
	if _, err := exec.LookPath(program); err != nil {
		t.Skip("needs " + program)
	}
	cmd := exec.Command(program, "--chardev", "stdio,id=mon0", "--monitor", "mon0")
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}` + "\n" + strings.Join(lines, "\n") + "\n" + `{"execute":"quit"}` + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\r\n"), "\r\n")
	if len(got) != len(lines)+3 {
		t.Fatalf("%d answers to %d commands: %q", len(got)-3, len(lines), got)
	}
	return got[2 : len(got)-1]
}

func TestConversationWithRival(t *testing.T) {
	var say []string
	list := exchanges(t)
	for _, e := range list {
		say = append(say, e.say)
	}
	for i, got := range askRival(t, say) {
		if got != list[i].hear {
			t.Errorf("%s\nrival %s\n want %s", list[i].say, got, list[i].hear)
		}
	}
}

// TestTypesAgainstRival compares the listings of types, with those left out
// that blockd does not have.
func TestTypesAgainstRival(t *testing.T) {
	var say []string
	for _, args := range []string{`{}`, `{"abstract":true}`, `{"abstract":false}`,
		`{"implements":"user-creatable"}`, `{"implements":"user-creatable","abstract":true}`,
		`{"implements":"object"}`, `{"implements":"object","abstract":true}`,
		`{"implements":"interface"}`, `{"implements":"interface","abstract":true}`,
		`{"implements":"secret_common"}`, `{"implements":"secret_common","abstract":true}`, `{"implements":"iothread"}`} {
		say = append(say, fmt.Sprintf(`{"execute":"qom-list-types","arguments":%s}`, args))
	}
	c := dial(t, New(clock.Real()))
	type info struct {
		Name, Parent string
		Abstract     bool
	}
	parse := func(text string) []info {
		var a struct{ Return []info }
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatal(err)
		}
		for i := range a.Return {
			if a.Return[i].Name == "authz-list-file" {
				a.Return[i].Name = "authz-listfile" // the rival spells it in two ways
			}
		}
		return slices.DeleteFunc(a.Return, func(i info) bool { return classOf(i.Name) == nil })
	}
	for i, rival := range askRival(t, say) {
		ours := c.ask(say[i])
		if got, want := parse(ours), parse(rival); !slices.Equal(got, want) || len(want) == 0 {
			t.Errorf("%s\n got %v\nrival %v", say[i], got, want)
		}
	}
}

// TestBase64AgainstRival decodes texts of all sorts. The rival tells how long
// an initialisation vector is when it is not 16 bytes.
func TestBase64AgainstRival(t *testing.T) {
	texts := []string{"A", "AB", "ABC", "ABCD", "ABCDE", "A===", "AB==", "ABC=", "====", "A=BC", "=ABC", "AB=C", "AB==CD==", "AB\nCD", "\n", "=",
		"ABCD====", "AB==C", "A B", "A-_B", "ABC\r", "ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNO=", "ABCDEFGHIJKLMN=P", "+/+/"}
	say := []string{`{"execute":"object-add","arguments":{"qom-type":"secret","id":"key","data":"01234567890123456789012345678901"}}`}
	for _, s := range texts {
		q, _ := json.Marshal(s)
		say = append(say, fmt.Sprintf(`{"execute":"object-add","arguments":{"qom-type":"secret","id":"s","data":"","keyid":"key","iv":%s}}`, q))
	}
	c := dial(t, New(clock.Real()))
	for i, rival := range askRival(t, say) {
		if ours := c.ask(say[i]); ours != rival {
			t.Errorf("%s\n ours %s\nrival %s", say[i], ours, rival)
		}
	}
}
