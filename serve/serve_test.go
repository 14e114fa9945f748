package serve

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blockd/cli"
	"blockd/daemon"
	"blockd/qapi"
)

// planOf runs the subcommand and returns its plan. %C in an argument is a file
// with the configuration.
func planOf(t *testing.T, config string, args ...string) (*Plan, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var plan *Plan
	cmd := Command(&cli.Environment{}, func(_ context.Context, p Plan) int {
		plan = &p
		return 0
	})
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "%C", path)
	}
	cmd.SetArgs(args)
	err := cmd.Execute()
	return plan, path, err
}

// describe is a plan as text.
func (p *Plan) describe() string {
	var b strings.Builder
	for _, o := range p.Options {
		fmt.Fprintf(&b, "--%s %s\n", o.Name, o.Value)
	}
	if p.Dir != "" {
		b.WriteString("dir " + p.Dir + "\n")
	}
	if p.Access.Group != nil {
		fmt.Fprintf(&b, "group %d\n", *p.Access.Group)
	}
	if p.Access.Users != nil {
		fmt.Fprintf(&b, "users %d\n", p.Access.Users)
	}
	for _, w := range p.Warnings {
		b.WriteString(w + "\n")
	}
	return b.String()
}

func TestPlans(t *testing.T) {
	const config = `
# all keys
dir: /srv/images
qmp: q.sock
nbd: {addr: {type: unix, path: n.sock}, max-connections: 5}
web:
  addr: "unix:w.sock"
  token-file: tokens
socket-group: 5
allow-uid: [1000, 1001]
allow-path: [/srv/images, /dev/vg0]
objects:
  - {qom-type: secret, id: s0, data: "123"}
nodes:
  - driver: qcow2
    node-name: disk
    file: {driver: file, filename: d.qcow2}
    read-only: true
exports:
  - {type: nbd, id: e0, node-name: disk}
log: [debug, {file: l, format: json}]
trace: "job_*"
`
	const json = "{\n\t\"qmp\": [\"a.sock\", \"b,c.sock\"],\n\t\"nodes\": [ {\"driver\": \"null-co\", \"node-name\": \"n\\u00e9\", \"size\": 18446744073709551615} ]\n}\n"
	for _, c := range []struct {
		name, config string
		args         []string
		want         string
	}{
		{"flags alone", "", []string{"--qmp", "q.sock", "--nbd", "127.0.0.1:10809", "--web", "127.0.0.1:0"}, `
--nbd-server {"addr": {"port": "10809", "host": "127.0.0.1", "type": "inet"}}
--chardev socket,id=qmp0,server=on,wait=off,path=q.sock
--monitor chardev=qmp0
--web 127.0.0.1:0,qmp=on
`},
		{"a directory is what may be opened", "", []string{"--dir", "/d", "--qmp", "q"}, `
--allow-path .
--chardev socket,id=qmp0,server=on,wait=off,path=q
--monitor chardev=qmp0
dir /d
`},
		{"NBD with TLS", "", []string{"--nbd", "[::]:1,tls-creds=t,tls-authz=a,max-connections=3"}, `
--nbd-server {"max-connections": 3, "addr": {"port": "1", "host": "::", "type": "inet"}, "tls-authz": "a", "tls-creds": "t"}
`},
		{"NBD for everybody", "", []string{"--nbd", "0.0.0.0:1"}, `
--nbd-server {"addr": {"port": "1", "host": "0.0.0.0", "type": "inet"}}
warning: NBD without TLS at 0.0.0.0:1: whoever reaches it uses the exports
`},
		{"of the program", "", []string{"--qmp", "q", "--pidfile", "p", "--daemonize", "--scratch", "/s,max-size=5", "--graph-history=7", "--allow-uid", "0", "--web", "unix:w,qmp=off"}, `
--daemonize 
--graph-history 7
--pidfile p
--scratch /s,max-size=5
--chardev socket,id=qmp0,server=on,wait=off,path=q
--monitor chardev=qmp0
--web unix:w,qmp=off
users [0]
`},
		{"a file", config, []string{"--config", "%C"}, `
--log debug
--log {"format": "json", "file": "l"}
--trace job_*
--allow-path /srv/images
--allow-path /dev/vg0
--object {"qom-type": "secret", "id": "s0", "data": "123"}
--blockdev {"node-name": "disk", "driver": "qcow2", "read-only": true, "file": {"driver": "file", "filename": "d.qcow2"}}
--nbd-server {"max-connections": 5, "addr": {"path": "n.sock", "type": "unix"}}
--export {"node-name": "disk", "type": "nbd", "id": "e0"}
--chardev socket,id=qmp0,server=on,wait=off,path=q.sock
--monitor chardev=qmp0
--web {"addr": "unix:w.sock", "token-file": "tokens", "qmp": true}
dir /srv/images
group 5
users [1000 1001]
`},
		{"the command line replaces keys", config, []string{"--config", "%C", "--dir", "/other", "--qmp", "q1", "--qmp", "q2", "--nbd", "unix:m", "--web", "unix:v", "--socket-group", "6", "--allow-uid", "7", "--allow-path", "/p", "--log", "error", "--trace", "-*"}, `
--log error
--trace -*
--allow-path /p
--object {"qom-type": "secret", "id": "s0", "data": "123"}
--blockdev {"node-name": "disk", "driver": "qcow2", "read-only": true, "file": {"driver": "file", "filename": "d.qcow2"}}
--nbd-server {"addr": {"path": "m", "type": "unix"}}
--export {"node-name": "disk", "type": "nbd", "id": "e0"}
--chardev socket,id=qmp0,server=on,wait=off,path=q1
--monitor chardev=qmp0
--chardev socket,id=qmp1,server=on,wait=off,path=q2
--monitor chardev=qmp1
--web unix:v,qmp=on
dir /other
group 6
users [7]
warning: --dir /other replaces the key dir of %C, /srv/images
`},
		{"JSON", json, []string{"--config", "%C"}, `
--blockdev {"node-name": "n\u00E9", "driver": "null-co", "size": 18446744073709551615}
--chardev socket,id=qmp0,server=on,wait=off,path=a.sock
--monitor chardev=qmp0
--chardev socket,id=qmp1,server=on,wait=off,path=b,,c.sock
--monitor chardev=qmp1
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, path, err := planOf(t, c.config, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got := "\n" + strings.ReplaceAll(p.describe(), path, "%C"); got != c.want {
				t.Errorf("%s\nwant %s", got, c.want)
			}
			if !p.Access.Private || !p.Access.Exclusive {
				t.Error("sockets are not private")
			}
		})
	}
}

// TestBadConfigurationsNameLineAndKey has the faults that are found before
// anything is done.
func TestBadConfigurationsNameLineAndKey(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{"qmp: a\nnode: []\n", ":2: node: there is no such key"},
		{"qmp: a\nqmp: b\n", ":2: qmp: the key is there twice, first in line 1"},
		{"nodes:\n  - driver: null-co\n    node-name: a\n    driver: raw\n", ":4: nodes[0].driver: the key is there twice, first in line 2"},
		{"nodes:\n  driver: null-co\n", ":2: nodes: a list is expected"},
		{"nodes:\n  - null-co\n", ":2: nodes[0]: a mapping is expected, the arguments of blockdev-add"},
		{"exports: [5]\n", ":1: exports[0]: a mapping is expected, the arguments of block-export-add"},
		{"objects: [[]]\n", ":1: objects[0]: a mapping is expected, the arguments of object-add"},
		{"dir: [a]\n", ":1: dir: a string is expected"},
		{"qmp:\n  - a\n  - 5\n", ":3: qmp[1]: a string is expected"},
		{"nbd: [a]\n", ":1: nbd: a string or a mapping is expected"},
		{"nbd: nonsense\n", ":1: nbd: Parameter 'addr' expects HOST:PORT or unix:PATH"},
		{"- a\n", ":1: a mapping is expected, with any of: dir, qmp, nbd, web, socket-group, allow-uid, allow-path, objects, nodes, exports, log, trace"},
		{"dir: \"\"\n", ":1: dir: a string is expected"},
		{"qmp: a\nallow-path: []\n", ":2: allow-path: the list is empty: leave the key out"},
		{"nodes:\n  - {read-only: !!bool hunter2}\n", ":2: nodes[0].read-only: true or false is expected"},
		{"log:\n  - debug\n  - 5\n", ":3: log[1]: a string is expected"},
		{"trace: {enable: x}\n", ":1: trace: a string is expected"},
		{"qmp: a\nweb: [\n", ":2: did not find expected node content"},
		{"qmp: a\n---\nqmp: b\n", ": more than one document is there"},
		{"objects: &x []\nnodes: *x\n", ":1: objects: anchors and aliases are not supported"},
		{"nodes:\n  - {<<: {a: 1}}\n", ":2: nodes[0].<<: a key is to be a string"},
		{"nodes:\n  - {1: a}\n", ":2: nodes[0].1: a key is to be a string"},
		{"dir: !mine a\n", ":1: dir: the tag !mine is not supported"},
		{"dir: !!binary YQ==\n", ":1: dir: the tag !!binary is not supported"},
		{"nodes: [{size: 18446744073709551616000}]\n", ""},
		{"nodes: [{size: .inf}]\n", ":1: nodes[0].size: no such number is supported"},
		{"nodes: [" + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + "]", "...: it is nested too deeply"},
		{strings.Repeat("[", 2000) + strings.Repeat("]", 2000), ""},
		{strings.Repeat("#\n", maxConfig), ": it is too long"},
	} {
		p, path, err := planOf(t, c.config, "--config", "%C", "--qmp", "q")
		switch {
		case strings.HasPrefix(c.want, "..."):
			if err == nil || !strings.HasSuffix(err.Error(), c.want[3:]) {
				t.Errorf("%.60q: %v, want %s", c.config, err, c.want)
			}
		case c.want == "": // read as something else, or refused: not a crash
		case err == nil || err.Error() != path+c.want:
			t.Errorf("%.60q: %v, want %s", c.config, err, c.want)
		case p != nil:
			t.Errorf("%.60q runs", c.config)
		}
	}
}

// TestFaultsOfArgumentsNameLineAndKey has those that are found when an option is
// worked off.
func TestFaultsOfArgumentsNameLineAndKey(t *testing.T) {
	const config = `
qmp: q
nodes:
  - driver: qcow2
    node-name: disk
    file:
      driver: file
      filenam: d.qcow2
      aio: nothing
exports:
  - type: nbd
    id: e0
web:
  addr: 127.0.0.1:0
`
	p, path, err := planOf(t, config, "--config", "%C")
	if err != nil {
		t.Fatal(err)
	}
	option := map[string]daemon.Option{}
	for _, o := range p.Options {
		option[o.Name] = o
	}
	for _, c := range []struct{ option, text, where string }{
		{"blockdev", "Parameter 'file.filenam' is unexpected", ":8: nodes[0].file.filenam: "},
		{"blockdev", "Parameter 'file.filename' is missing", ":6: nodes[0].file: "},
		{"blockdev", "Parameter 'aio' does not accept value 'nothing'", ":9: nodes[0].file.aio: "},
		{"blockdev", "Invalid parameter type for 'file', expected: object", ":6: nodes[0].file: "},
		{"blockdev", "Duplicate nodes with node-name='disk'", ":4: nodes[0]: "},
		{"export", "Parameter 'node-name' is missing", ":11: exports[0]: "},
		{"web", "Parameter 'addr' expects IP:PORT or unix:PATH", ":14: web.addr: "},
	} {
		got := option[c.option].Explain(qapi.Errorf("%s", c.text)).Error()
		if want := path + c.where + c.text; got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

func TestWhatCannotBeServed(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "nothing is to be served: give --qmp, --nbd or --web, or a --config with one of them"},
		{[]string{"--nbd", "x"}, "--nbd x: Parameter 'addr' expects HOST:PORT or unix:PATH"},
		{[]string{"--nbd", "unix:x,color=red"}, "--nbd unix:x,color=red: Parameter 'color' is unexpected"},
		{[]string{"--qmp", "q", "--allow-uid", "no-such-user"}, "allow-uid: there is no user 'no-such-user'"},
		{[]string{"--qmp", "q", "--allow-uid", "4294967295"}, "allow-uid: '4294967295' is no user"},
		{[]string{"--qmp", "q", "--socket-group", "no-such-group"}, "socket-group: there is no group 'no-such-group'"},
		{[]string{"--qmp", "q", "--dir", ""}, "--dir: a value is expected"},
		{[]string{"--qmp", "q", "--allow-path", "/a", "--allow-path", ""}, "--allow-path: a value is expected"},
		{[]string{"--qmp", ""}, "--qmp: a value is expected"},
		{[]string{"--qmp", "q", "--socket-group="}, "--socket-group: a value is expected"},
		{[]string{"--qmp", "q", "--config", "%C", "--dir", ""}, "--dir: a value is expected"},
		{[]string{"--qmp", "q", "--config", "/nonexistent/c"}, "/nonexistent/c: No such file or directory"},
	} {
		p, _, err := planOf(t, "", c.args...)
		if err == nil || err.Error() != c.want || p != nil {
			t.Errorf("%q: %v, want %s", c.args, err, c.want)
		}
	}
}

// TestWebOfAConfigurationMayStandBehindAProxy holds that the file may say what
// the option may, and that a mistake is found at its line.
func TestWebOfAConfigurationMayStandBehindAProxy(t *testing.T) {
	plan, path, err := planOf(t, "web:\n  addr: 127.0.0.1:0\n  token-file: /t\n  host: disks.example\n  origin: https://disks.example\n", "--config", "%C")
	if err != nil {
		t.Fatal(err)
	}
	web := plan.Options[len(plan.Options)-1]
	for _, member := range []string{`"host": "disks.example"`, `"origin": "https://disks.example"`, `"token-file": "/t"`, `"qmp": true`} {
		if web.Name != "web" || !strings.Contains(web.Value, member) {
			t.Errorf("--%s %s lacks %s", web.Name, web.Value, member)
		}
	}
	fault := web.Explain(qapi.Errorf("Parameter 'host' expects a name or an address, without a port"))
	if want := path + ":4: web.host: Parameter 'host' expects a name or an address, without a port"; fault.Error() != want {
		t.Errorf("%v", fault)
	}
}

// A path says more than a name, and a name than what a missing member is missing from,
// wherever in the document each of them stands.
func TestFaultsAreLookedForByPathFirst(t *testing.T) {
	const config = `
nodes:
  - file:
      driver: raw
      file:
        driver: file
        aio: nothing
    aio: here
    driver: qcow2
    node-name: deep
qmp: q
`
	p, path, err := planOf(t, config, "--config", "%C")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, where string }{
		{"Parameter 'driver' does not accept value 'qcow2'", ":9: nodes[0].driver: "},
		{"Parameter 'file.driver' does not accept value 'raw'", ":4: nodes[0].file.driver: "},
		{"Parameter 'aio' does not accept value 'nothing'", ":8: nodes[0].aio: "},
		{"Parameter 'file.file.filename' is missing", ":5: nodes[0].file.file: "},
		{"Parameter 'file.filename' is missing", ":3: nodes[0].file: "},
		{"Parameter 'filename' is missing", ":3: nodes[0]: "},
	} {
		for _, o := range p.Options {
			if o.Name != "blockdev" {
				continue
			}
			got := o.Explain(qapi.Errorf("%s", c.text)).Error()
			if want := path + c.where + c.text; got != want {
				t.Errorf("%s\nwant %s", got, want)
			}
		}
	}
}
