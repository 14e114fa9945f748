package qmp

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"blockd/chardev"
	"blockd/clock"
)

// end closes a script: its answer tells that all others have come.
const end = "\n{'execute': 'no-such-end', 'id': 'END'}\n"

// scripts are raw input; an element is one write. Between elements nothing is
// awaited, so a script is also cut by chance.
var scripts = map[string][]string{
	"malformed":        {`{"a"}`, ` ]`, ` {"execute": "x" "id": 1}`, ` {"execute": "x", "id": 1,}`, " @ \n", " %s ", "tru "},
	"not objects":      {`"x"`, ` [] {} 1 null true 1.5 -3 `, `[1, {"a": 2}]`},
	"duplicate key":    {`{"execute": "x", "id": 1, "id": 2}`},
	"single quotes":    {`{'execute': 'query-version', 'id': 'a\'b"c'}`, `{'execute': "query-version", "id": '\"'}`},
	"several at once":  {`{"execute":"query-version"}{"execute":"query-version","id":2} {"execute":"foo"}` + "\r\n\t" + `{"execute":"bar"}`},
	"cut anywhere":     strings.Split(`{ "exe|cute" :| "query-|version" , "id" : { "a|" : [ 1|2 , -|3.2|5e|1 , nu|ll ] } |}`, "|"),
	"newlines inside":  {"{\n\"execute\"\r\n:\t\"query-version\"\n}\n"},
	"junk members":     {`{"execute":"x","bar":1}`, `{"execute":"x","bar":1,"id":5}`, `{"a":1,"b":1,"c":1}`, `{"c":1,"b":1,"a":1,"id":0}`, `{"return":{}}`, `{"execute":1,"bar":1}`, `{"zzz":1,"arguments":1,"execute":2,"id":1}`, `{"id":1,"arguments":1}`, `{"arguments":[],"execute":1}`, `{"execute":"query-version","return":1,"arguments":1}`},
	"wrong types":      {`{"execute":1}`, `{"execute":null}`, `{"execute":["x"]}`, `{"execute":"query-version","arguments":null}`, `{"execute":"query-version","arguments":[]}`, `{"execute":"query-version","arguments":"x"}`, `{"execute":"query-version","arguments":{"a":1},"id":1}`},
	"lacking":          {`{}`, `{"id":5}`, `{"id":null}`, `{"arguments":{}}`, `{"execute":""}`, `{"execute":"","id":1}`},
	"ids":              {`{"execute":"x","id":1.50}`, `{"execute":"x","id":18446744073709551615}`, `{"execute":"x","id":18446744073709551616}`, `{"execute":"x","id":-9223372036854775808}`, `{"execute":"x","id":-9223372036854775809}`, `{"execute":"x","id":null}`, `{"execute":"x","id":true}`, `{"execute":"x","id":[1,{"a":null},[]]}`, `{"execute":"x","id":{}}`, `{"execute":"x","id":"é€😀\u00e9\ud83d\ude00\n\u0001` + "\x7f" + `"}`, `{"execute":"x","id":0.1}`, `{"execute":"x","id":1e30}`, `{"execute":"x","id":-0.0}`, `{"execute":"x","id":""}`, `{"execute":"x","id":{"z":1,"a":2,"m":{"b":1}}}`},
	"ids on success":   {`{"execute":"query-version","id":null}`, `{"execute":"query-version","id":[1]}`, `{"execute":"query-version","id":{"b":1,"a":2}}`},
	"bad strings":      {`{"execute":"f\u0000oo"}`, `{"execute":"x","id":"\x"}` + "\n", `{"execute":"x","id":"\ud800"}` + "\n", "{\"execute\":\"x\",\"id\":\"\xff\xfe\"}\n", "{\"execute\":\"x\",\"id\":\"a\nb\"}\n", "\xef\xbb\xbf{\"execute\":\"x\"}", "\x1b{\"execute\":\"x\"}", "\xff{\"execute\":\"x\"}"},
	"deep":             {strings.Repeat("[", 1025), strings.Repeat("]", 3)},
	"deep enough":      {`{"execute":"x","id":` + strings.Repeat("[", 1023) + strings.Repeat("]", 1023) + `}`},
	"negotiated twice": {`{"execute":"qmp_capabilities"}`, `{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}`, `{"execute":"qmp_capabilities","arguments":{"enable":1}}`, `{"execute":"qmp_capabilities","arguments":{"x":1}}`},
	"oob not enabled":  {`{"exec-oob":"query-version","id":1}`, `{"exec-oob":5,"id":1}`, `{"exec-oob":"query-version"}`, `{"execute":"query-version","exec-oob":"query-version","id":1}`},
	"quit arguments":   {`{"execute":"quit","arguments":{"a":1}}`},
	"chardev texts": {
		`{"execute":"chardev-add","arguments":{"id":"mon","backend":{"type":"null","data":{}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"1x","backend":{"type":"null","data":{}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"n1","backend":{"type":"null","data":{}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"n1","backend":{"type":"null","data":{}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"n2","backend":{"type":"null"}}}`,
		`{"execute":"chardev-add","arguments":{"id":"n3","backend":{"type":"foo","data":{}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s4","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"nosuch"}},"server":false}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s6","backend":{"type":"socket","data":{"addr":{"type":"inet","data":{"host":"127.0.0.1","port":"7780","ipv4":false,"ipv6":false}},"server":true,"wait":false}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s7","backend":{"type":"socket","data":{"addr":{"type":"vsock","data":{"cid":"x","port":"1"}},"server":true}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s8","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"u4"}},"server":false,"wait":false}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s9","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"u9"}},"server":true,"tls-creds":"x"}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s10","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/"}},"server":true}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s11","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"` + strings.Repeat("a", 109) + `"}},"server":true}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s12","backend":{"type":"socket","data":{"addr":{"type":"inet","data":{"host":"1.2.3.4","port":"0"}},"server":true}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"s13","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"u9"}},"bogus":true}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"f","backend":{"type":"file","data":{"out":"/nosuch/f"}}}}`,
		`{"execute":"chardev-remove","arguments":{"id":"nosuch"}}`,
		`{"execute":"chardev-remove","arguments":{"id":"mon"}}`,
		`{"execute":"chardev-remove","arguments":{"id":"n1"}}`,
		`{"execute":"chardev-remove","arguments":{"id":"n1"}}`,
		`{"execute":"chardev-remove","arguments":{"id":"1x"}}`,
		`{"execute":"chardev-change","arguments":{"id":"nosuch","backend":{"type":"null","data":{}}}}`,
		`{"execute":"chardev-change","arguments":{"id":"mon","backend":{"type":"null","data":{}}}}`,
		`{"execute":"chardev-add","arguments":{"id":"other","backend":{"type":"null","data":{}}}}`,
		`{"execute":"chardev-change","arguments":{"id":"other","backend":{"type":"file","data":{"out":"/nosuch/file"}}}}`,
		`{"execute":"chardev-send-break","arguments":{"id":"nosuch"}}`,
	},
}

var oobScript = []string{
	`{"execute":"qmp_capabilities","arguments":{"enable":["oob","oob"]},"id":1}`,
	`{"exec-oob":"query-version","id":1}`, `{"exec-oob":"foo","id":3}`, `{"exec-oob":"qmp_capabilities"}`, `{"exec-oob":5,"id":1}`,
	`{"execute":"query-version","exec-oob":"query-version","id":1}`, `{"exec-oob":"query-version","execute":1}`,
	`{"exec-oob":"query-version","arguments":{"x":1}}`, `{"exec-oob":"query-version","arguments":1}`, `{"exec-oob":"query-version","zzz":1}`,
}

// play sends a script and returns everything up to the answer to its end.
func play(t *testing.T, path, negotiation string, script []string) string {
	t.Helper()
	c := connect(t, path)
	got := c.line() + "\n"
	if negotiation != "" {
		got += c.ask(negotiation) + "\n"
	}
	for _, part := range script {
		c.send(part)
	}
	c.send(end)
	got += c.until(`"END"`)
	c.c.Close()
	return got
}

func compare(t *testing.T, ours, rival, negotiation string, scripts map[string][]string) {
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			want := play(t, rival, negotiation, script)
			got := play(t, ours, negotiation, script)
			if got != want {
				t.Errorf("script %q\n got %q\nwant %q", script, got, want)
			}
		})
	}
}

func TestAnswersAgreeWithRival(t *testing.T) {
	rival := startRivalQSD(t, "mon")
	first := connect(t, rival)
	version := versionOf(t, first.line())
	first.c.Close()
	b := startServer(t, func(c *Config) { c.Version = version })
	t.Chdir(t.TempDir())

	compare(t, b.mon(), rival, `{"execute":"qmp_capabilities"}`, scripts)

	// With oob enabled the order of answers is open, so these go one by one.
	one, other := connect(t, b.mon()), connect(t, rival)
	one.line()
	other.line()
	for _, text := range oobScript {
		got, want := one.ask(text), other.ask(text)
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
	one.c.Close()
	other.c.Close()
	for name, script := range map[string][]string{
		"before negotiation": {`{"execute":"query-version","id":1}`, `{"exec-oob":"qmp_capabilities","id":1}`, `{"execute":"qmp_capabilities","arguments":{"enable":["foo"]},"id":1}`, `{"execute":"foo","id":1}`, `{"foo":1}`, `{"execute":"qmp_capabilities","arguments":{"enable":[]},"x":1}`},
		"late negotiation":   {`{"execute":"query-version"}{"execute":"qmp_capabilities","id":0}{"execute":"query-version"}`},
	} {
		compare(t, b.mon(), rival, "", map[string][]string{name: script})
	}
}

func TestPrettyAnswersAgreeWithRival(t *testing.T) {
	rival := startRivalQSD(t, "mon,pretty=on")
	first := connect(t, rival)
	version := versionOf(t, first.untilLine("}\r\n"))
	first.c.Close()
	b := startServer(t, func(c *Config) { c.Version = version })
	path := b.addMonitor(t, "pretty", ",pretty=on")
	script := []string{`{"execute":"qmp_capabilities"}`, `{"execute":"query-version","id":{}}`, `{"execute":"foo","id":[]}`, `{"execute":"foo","id":[1,{"a":[{}]},"x\ny"]}`}
	want, got := play(t, rival, "", script), play(t, path, "", script)
	if got != want {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

func TestMonitorOptionErrorsAgreeWithRival(t *testing.T) {
	rival, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		t.Skip("needs qemu-storage-daemon")
	}
	for _, option := range []string{"c", "chardev=c,mode=control", "n,mode=readline", "n,mode=foo", "n,pretty=foo",
		"n,foo=bar", "n,pretty", "mode=control", "", "help", "n,chardev=x", "n,,x"} {
		out, err := exec.Command(rival, "--chardev", "null,id=n", "--monitor", option).CombinedOutput()
		if err == nil {
			t.Errorf("%q: accepted by the rival", option)
		}
		want := strings.TrimSuffix(strings.ReplaceAll(string(out), "qemu-storage-daemon: --monitor "+option+": ", ""), "\n")
		b := &bench{Server: NewServer(Config{Clock: clock.Real(), Chardevs: chardev.NewRegistry(chardev.Config{Clock: clock.Real()})})}
		o, _ := chardev.ParseOption("null,id=n")
		if err := b.cfg.Chardevs.Add(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		m, err := ParseMonitorOption(option)
		if err == nil {
			err = b.AddMonitor(m)
		}
		b.Close(t.Context())
		b.cfg.Chardevs.Close()
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %q", option, err, want)
		}
	}
}

func TestDescriptorCommandsAgreeWithEmulator(t *testing.T) {
	rival := startRival(t, "qemu-system-x86_64", func(socket string) []string {
		return []string{"-nodefaults", "-machine", "none", "-display", "none", "-qmp", "unix:" + socket + ",server=on,wait=off"}
	})
	b := startServer(t, nil)
	ro, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	fd := int(ro.Fd())
	steps := []struct {
		text string
		fds  int
	}{
		{`{"execute":"getfd","arguments":{"fdname":"a"}}`, 0},
		{`{"execute":"getfd","arguments":{"fdname":"a"}}`, 1},
		{`{"execute":"getfd","arguments":{"fdname":"a"}}`, 1},
		{`{"execute":"getfd","arguments":{"fdname":"1a"}}`, 1},
		{`{"execute":"getfd","arguments":{"fdname":"1a"}}`, 0},
		{`{"execute":"getfd","arguments":{"fdname":""}}`, 1},
		{`{"execute":"getfd"}`, 0},
		{`{"execute":"closefd","arguments":{"fdname":"a"}}`, 0},
		{`{"execute":"closefd","arguments":{"fdname":"a"}}`, 0},
		{`{"execute":"closefd","arguments":{"fdname":"1a"}}`, 0},
		{`{"execute":"no-such"}`, 1}, // the descriptor waits for a command that takes it
		{`{"execute":"add-fd"}`, 0},
		{`{"execute":"no-such"}`, 2}, // one is taken, the other closed
		{`{"execute":"getfd","arguments":{"fdname":"b"}}`, 0},
		{`{"execute":"getfd","arguments":{"fdname":"c"}}`, 0},
		{`{"execute":"no-such"}`, 20},
		{`{"execute":"getfd","arguments":{"fdname":"d"}}`, 0},
		{`{"execute":"getfd","arguments":{"fdname":"e"}}`, 0},
		{`{"execute":"add-fd"}`, 1},
		{`{"execute":"add-fd","arguments":{"fdset-id":-1}}`, 1},
		{`{"execute":"add-fd","arguments":{"fdset-id":-1}}`, 0},
		{`{"execute":"add-fd","arguments":{"fdset-id":5,"opaque":"o"}}`, 1},
		{`{"execute":"add-fd","arguments":{"fdset-id":5,"opaque":"p"}}`, 1},
		{`{"execute":"add-fd","arguments":{"fdset-id":0}}`, 1},
		{`{"execute":"add-fd"}`, 1},
		{`{"execute":"add-fd","arguments":{"opaque":1}}`, 1},
		{`{"execute":"query-fdsets"}`, 0},
		{`{"execute":"remove-fd","arguments":{"fdset-id":9}}`, 0},
		{`{"execute":"remove-fd","arguments":{"fdset-id":5,"fd":99999}}`, 0},
		{`{"execute":"remove-fd","arguments":{"fdset-id":-3}}`, 0},
		{`{"execute":"remove-fd"}`, 0},
		{`{"execute":"remove-fd","arguments":{"fdset-id":5}}`, 0},
		{`{"execute":"query-fdsets"}`, 0},
		{`{"execute":"add-fd","id":7}`, 1},
	}
	number := regexp.MustCompile(`"fd": \d+`)
	run := func(path string) (lines []string) {
		c := negotiated(t, path)
		for _, s := range steps {
			if s.fds > 0 {
				fds := make([]int, s.fds)
				for i := range fds {
					fds[i] = fd
				}
				c.sendFDs(s.text, fds...)
			} else {
				c.send(s.text)
			}
			lines = append(lines, number.ReplaceAllString(c.line(), `"fd": N`))
		}
		c.c.Close()
		c = negotiated(t, path) // what nobody opened went with the last client
		lines = append(lines, c.ask(`{"execute":"query-fdsets"}`), c.ask(`{"execute":"closefd","arguments":{"fdname":"b"}}`))
		c.c.Close()
		return lines
	}
	want, got := run(rival), run(b.mon())
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("answer %d:\n got %s\nwant %s", i, got[i], want[i])
		}
	}
}
