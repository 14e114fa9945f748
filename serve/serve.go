package serve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"blockd/cli"
	"blockd/daemon"
	"blockd/qapi"
	"blockd/sockets"
)

// Plan is what the program is to run.
type Plan struct {
	// Options are worked off in their order, as those of the command line.
	Options []daemon.Option
	// Dir, unless "", is where the daemon works: relative names are of files
	// there.
	Dir string
	// Access says who may connect to unix sockets.
	Access sockets.Access
	// Warnings are what a person should know, a line each.
	Warnings []string
	// Started is what to tell a person once clients are served, a line each.
	Started []string
}

// settings are what the command line and the configuration file say.
type settings struct {
	dir, group              string
	qmp, users, paths       []string
	nbd, web                *setting // nil: not there
	objects, nodes, exports []daemon.Option
	log, trace              []daemon.Option
}

// setting is the value of an option, and where it stands; from nil: on the
// command line.
type setting struct {
	text string
	from *value
}

// option makes it an option of the daemon.
func (s *setting) option(name, text string) daemon.Option {
	if s.from != nil {
		return s.from.option(name, text)
	}
	return daemon.Option{Name: name, Value: text, Given: "--" + strings.TrimSuffix(name, "-server") + " " + s.text}
}

// Passed are the options of the drop-in command line that serve has, too, with
// what they are for; those that end in = take a value.
var Passed = [][2]string{
	{"daemonize", "run in the background; the parent exits once start-up is complete"},
	{"graph-history=N", "keep the last N changes of the block graph"},
	{"log=OPTIONS", "what to log, and where; may be given several times"},
	{"pidfile=PATH", "write the process id to a file after start-up"},
	{"scratch=OPTIONS", "where backups keep what guests overwrite"},
	{"trace=OPTIONS", "trace events by pattern; may be given several times"},
}

const long = `
Runs the daemon with a few options and a configuration file. Unix sockets are
this user's alone (mode 0600) unless --socket-group or --allow-uid says
otherwise; one at which somebody listens is not taken away. SIGHUP reads tokens
and TLS credentials again and opens the log's file anew, SIGTERM ends the daemon.

--dir is where it works: relative names of images, of sockets and of whatever
else are of files there, those in the configuration file and in commands, too.
(Only --config itself is looked for where you are.) Images elsewhere are not
opened then, unless --allow-path names them or their directory.

ADDRESS is unix:PATH or HOST:PORT; for --nbd ,tls-creds=ID ,tls-authz=ID and
,max-connections=N may follow, for --web what the daemon's --web takes
(blockd --help). The web address has the console and QMP unless ,qmp=off
follows.

With --socket-group the sockets have mode 0660 and that group. With --allow-uid
only processes of these users, of root and of the daemon's own may connect, as
the kernel says; without --socket-group the sockets have mode 0666 then.

The configuration file is YAML or JSON, with any of these keys. An option on the
command line replaces its key; objects, nodes and exports have the arguments of
object-add, blockdev-add and block-export-add:

  dir: /srv/images
  qmp: [/run/blockd/qmp.sock]
  nbd: {addr: {type: unix, path: /run/blockd/nbd.sock}}
  web: {addr: "127.0.0.1:8080", token-file: /etc/blockd/tokens}
  socket-group: storage
  allow-uid: [1000]
  allow-path: [/srv/images, /dev/vg0]
  objects:
    - {qom-type: throttle-group, id: slow, limits: {iops-total: 100}}
  nodes:
    - driver: qcow2
      node-name: disk
      file: {driver: file, filename: disk.qcow2}
  exports:
    - {type: nbd, id: e0, node-name: disk, writable: true}
  log: [{level: debug, subsystem: jobs}, {file: /var/log/blockd.log, format: json}]
  trace: "job_*"`

// Command returns the subcommand. run runs a plan, until the
// end of the command's context at most, and returns the exit code.
func Command(env *cli.Environment, run func(context.Context, Plan) int) *cobra.Command {
	var s settings
	var config, nbd, web string
	cmd := &cobra.Command{
		Use: "serve [OPTION...]", Short: "Run the daemon, in a friendly way", Long: strings.TrimSpace(long),
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "read a configuration file, YAML or JSON")
	f.StringVar(&s.dir, "dir", "", "work in this directory, and open only images below it")
	f.StringArrayVar(&s.paths, "allow-path", nil, "open images that are this file or below it; may be given several times")
	f.StringArrayVar(&s.qmp, "qmp", nil, "serve QMP at this unix socket, or that of a service manager (fd:NAME), one client at a time; may be given several times")
	f.StringVar(&nbd, "nbd", "", "serve NBD at this address")
	f.StringVar(&web, "web", "", "serve the web console, metrics and QMP over WebSocket at this address")
	f.StringVar(&s.group, "socket-group", "", "let this group use the sockets, too")
	f.StringArrayVar(&s.users, "allow-uid", nil, "let this user, by number or name, use the sockets, too; may be given several times")
	for _, p := range Passed {
		name, value, takes := strings.Cut(p[0], "=")
		if takes {
			f.StringArray(name, nil, p[1])
			f.Lookup(name).Usage = "`" + value + "`: " + p[1]
		} else {
			f.Bool(name, false, p[1])
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		given := s // what the command line says replaces what the file does
		var warnings []string
		if config != "" {
			s = settings{}
			if err := readConfig(config, &s); err != nil {
				return err
			}
			if f.Changed("dir") && s.dir != "" && s.dir != given.dir {
				warnings = append(warnings, fmt.Sprintf("warning: --dir %s replaces the key dir of %s, %s", given.dir, config, s.dir))
			}
			s.replace(&given, f.Changed)
		}
		if f.Changed("nbd") {
			s.nbd = &setting{text: nbd}
		}
		if f.Changed("web") {
			s.web = &setting{text: web}
		}
		if err := given.noneEmpty(f.Changed); err != nil {
			return err
		}
		plan, err := s.plan()
		if err != nil {
			return err
		}
		plan.Warnings = append(warnings, plan.Warnings...)
		var passed []daemon.Option
		for _, p := range Passed {
			name, _, takes := strings.Cut(p[0], "=")
			if on, _ := f.GetBool(name); on {
				passed = append(passed, daemon.Option{Name: name, Given: "--" + name})
			}
			if !takes {
				continue
			}
			values, err := f.GetStringArray(name)
			if err != nil {
				return err
			}
			if len(values) == 0 {
				passed = append(passed, map[string][]daemon.Option{"log": s.log, "trace": s.trace}[name]...)
			}
			for _, v := range values {
				passed = append(passed, daemon.Option{Name: name, Value: v, Given: "--" + name + " " + v})
			}
		}
		plan.Options = append(passed, plan.Options...)
		if code := run(cmd.Context(), plan); code != 0 {
			return &cli.Exit{Code: code}
		}
		return nil
	}
	return cmd
}

// noneEmpty refuses options of the command line without a value, which a script
// makes of a variable that is not set: without a directory every image may be
// opened, for instance.
func (s *settings) noneEmpty(changed func(flag string) bool) error {
	for name, values := range map[string][]string{
		"dir": {s.dir}, "socket-group": {s.group}, "qmp": s.qmp, "allow-uid": s.users, "allow-path": s.paths,
	} {
		if changed(name) && slices.Contains(values, "") {
			return fmt.Errorf("--%s: a value is expected", name)
		}
	}
	return nil
}

// replace takes over what was given.
func (s *settings) replace(given *settings, changed func(flag string) bool) {
	if changed("dir") {
		s.dir = given.dir
	}
	if changed("socket-group") {
		s.group = given.group
	}
	for name, to := range map[string]*[]string{"qmp": &s.qmp, "allow-uid": &s.users, "allow-path": &s.paths} {
		if changed(name) {
			*to = map[string][]string{"qmp": given.qmp, "allow-uid": given.users, "allow-path": given.paths}[name]
		}
	}
}

// plan makes options of the settings, in an order in which each finds what it
// needs.
func (s *settings) plan() (Plan, error) {
	p := Plan{Dir: s.dir, Access: sockets.Access{Private: true, Exclusive: true}}
	if len(s.qmp) == 0 && s.nbd == nil && s.web == nil {
		return p, errors.New("nothing is to be served: give --qmp, --nbd or --web, or a --config with one of them")
	}
	if err := s.access(&p.Access); err != nil {
		return p, err
	}
	paths := s.paths
	if len(paths) == 0 && s.dir != "" {
		paths = []string{"."}
	}
	for _, path := range paths {
		p.Options = append(p.Options, daemon.Option{Name: "allow-path", Value: path, Given: "--allow-path " + path})
	}
	p.Options = slices.Concat(p.Options, s.objects, s.nodes)
	if s.nbd != nil {
		if err := s.serveNBD(&p); err != nil {
			return p, err
		}
	}
	p.Options = append(p.Options, s.exports...)
	for i, path := range s.qmp {
		id := fmt.Sprintf("qmp%d", i)
		// A service manager's socket has a name or a number.
		key, place := "path", path
		if name, activated := strings.CutPrefix(path, "fd:"); activated {
			key, place = "fd", name
		}
		p.Options = append(p.Options,
			daemon.Option{Name: "chardev", Value: "socket,id=" + id + ",server=on,wait=off," + key + "=" + strings.ReplaceAll(place, ",", ",,"), Given: "--qmp " + path},
			daemon.Option{Name: "monitor", Value: "chardev=" + id, Given: "--qmp " + path})
		p.Started = append(p.Started, "QMP at "+path)
	}
	if s.web != nil {
		text := s.web.text
		// The console is what a person expects there.
		if strings.HasPrefix(text, "{") {
			v, err := qapi.ParseJSON([]byte(text))
			if err != nil {
				return p, err
			}
			if o, ok := v.(*qapi.Object); ok && !o.Has("qmp") {
				o.Set("qmp", true)
				text = string(qapi.AppendJSON(nil, o))
			}
		} else if o, err := qapi.ParseKeyval(text, "addr"); err == nil && !o.Has("qmp") {
			text += ",qmp=on"
		}
		p.Options = append(p.Options, s.web.option("web", text))
		p.Started = append(p.Started, "the web console at "+s.web.text)
	}
	return p, nil
}

// access says who may use the sockets.
func (s *settings) access(a *sockets.Access) error {
	if s.group != "" {
		id, err := strconv.ParseUint(s.group, 10, 31)
		if err != nil {
			g, err := user.LookupGroup(s.group)
			if err != nil {
				return fmt.Errorf("socket-group: there is no group '%s'", s.group)
			}
			if id, err = strconv.ParseUint(g.Gid, 10, 31); err != nil {
				return fmt.Errorf("socket-group: %w", err)
			}
		}
		group := int(id)
		a.Group = &group
	}
	for _, name := range s.users {
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			u, err := user.Lookup(name)
			if err != nil {
				return fmt.Errorf("allow-uid: there is no user '%s'", name)
			}
			if id, err = strconv.ParseUint(u.Uid, 10, 32); err != nil {
				return fmt.Errorf("allow-uid: %w", err)
			}
		}
		if id == math.MaxUint32 {
			return fmt.Errorf("allow-uid: '%s' is no user", name)
		}
		a.Users = append(a.Users, uint32(id))
	}
	return nil
}

// Enter goes to the directory that a plan works in.
func (p *Plan) Enter() error {
	if p.Dir == "" {
		return nil
	}
	dir, err := filepath.Abs(p.Dir)
	if err == nil {
		err = os.Chdir(dir)
	}
	if err != nil {
		return fmt.Errorf("dir: cannot work in '%s': %s", p.Dir, sockets.Reason(err))
	}
	return nil
}
