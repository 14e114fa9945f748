package chardev

import (
	"fmt"
	"strconv"
	"strings"

	"blockd/qapi"
)

// The argument of --chardev is in the field's older option syntax, which
// --blockdev and the rest have left: one flat set of options for all back
// ends, the type of each checked by name, flags without a value.

// Options is a parsed --chardev.
type Options struct {
	ID      string
	Backend qapi.ChardevBackend
	// Warnings are to be printed, one line or more each, even when parsing
	// failed; the caller puts program and option in front.
	Warnings []string
}

// Help is the error for an option that asks for help: Text goes to standard
// output, and the program ends with success.
type Help struct{ Text string }

func (h *Help) Error() string { return "help was asked for" }

type optionKind int

const (
	optString optionKind = iota
	optBool
	optNumber
)

// optionKinds are all options that any back end takes; a back end ignores what
// is not its own, as the field does.
var optionKinds = map[string]optionKind{
	"backend": optString, "path": optString, "input-path": optString,
	"host": optString, "port": optString, "fd": optString,
	"localaddr": optString, "localport": optString,
	"to": optNumber, "ipv4": optBool, "ipv6": optBool,
	"wait": optBool, "server": optBool, "delay": optBool, "nodelay": optBool,
	"reconnect": optNumber, "reconnect-ms": optNumber,
	"telnet": optBool, "tn3270": optBool, "websocket": optBool,
	"tls-creds": optString, "tls-authz": optString,
	"width": optNumber, "height": optNumber, "cols": optNumber, "rows": optNumber,
	"mux": optBool, "signal": optBool, "name": optString, "debug": optNumber,
	"size": optString, "chardev": optString, "append": optBool,
	"logfile": optString, "logappend": optBool, "logtimestamp": optBool,
	"abstract": optBool, "tight": optBool,
}

type optionSet map[string]string

// ParseOption parses the argument of --chardev. Errors are *qapi.Error in the
// field's words, or *Help. The Options returned with an error carry only
// warnings.
func ParseOption(arg string) (Options, error) {
	var out Options
	set := optionSet{}
	idSeen := false
	help := false
	for i, rest := 0, arg; rest != ""; i++ {
		var name, value string
		var flag bool
		name, value, flag, rest = NextPair(rest)
		if flag {
			if i == 0 {
				name, value, flag = "backend", name, false
			} else if name == "help" || name == "?" {
				help = true
				continue
			}
		}
		if name == "backend" && (value == "help" || value == "?") {
			help = true
			continue
		}
		if flag {
			prefix := ""
			name, value, prefix = shortBool(name)
			out.Warnings = append(out.Warnings, fmt.Sprintf(
				"warning: short-form boolean option '%s%s' deprecated\nPlease use %s=%s instead", prefix, name, name, value))
		}
		if name == "id" {
			if idSeen {
				continue // the first one names the device
			}
			idSeen = true
			if !wellFormedID(value) {
				return out, qapi.Errorf("Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting with a letter.")
			}
			out.ID = value
			continue
		}
		if err := checkOption(name, value); err != nil {
			return out, err
		}
		set[name] = value
	}
	if help {
		return out, &Help{Text: helpText()}
	}
	if !idSeen {
		return out, qapi.Errorf("chardev: no id specified")
	}
	b, err := set.backend(out.ID)
	if err != nil {
		return Options{Warnings: out.Warnings}, err
	}
	out.Backend = b
	return out, nil
}

// NextPair cuts the first name=value off s, in the older syntax of the field's
// options; flag is a name without a value. A doubled comma in a value is one
// comma.
func NextPair(s string) (name, value string, flag bool, rest string) {
	end := strings.IndexAny(s, "=,")
	if end < 0 {
		return s, "", true, ""
	}
	name, s = s[:end], s[end:]
	if s[0] == ',' {
		return name, "", true, s[1:]
	}
	s = s[1:]
	var sb strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == ',' {
			if i+1 == len(s) || s[i+1] != ',' {
				return name, sb.String(), false, s[i+1:]
			}
			i++
		}
		sb.WriteByte(s[i])
	}
	return name, sb.String(), false, ""
}

// shortBool reads a flag: "server" is on, "noserver" off, unless an option is
// really called no-something.
func shortBool(flag string) (name, value, prefix string) {
	if _, known := optionKinds[flag]; !known && strings.HasPrefix(flag, "no") {
		return flag[2:], "off", "no"
	}
	return flag, "on", ""
}

func checkOption(name, value string) error {
	kind, known := optionKinds[name]
	if !known {
		return qapi.Errorf("Invalid parameter '%s'", name)
	}
	switch kind {
	case optBool:
		if value != "on" && value != "off" {
			return qapi.Errorf("Parameter '%s' expects 'on' or 'off'", name)
		}
	case optNumber:
		if _, ok := parseNumber(value); !ok {
			return qapi.Errorf("Parameter '%s' expects a number", name)
		}
	}
	return nil
}

// parseNumber reads a number as the field's C library does: decimal, octal or
// hexadecimal by prefix, negative ones wrapping around.
func parseNumber(s string) (int64, bool) {
	if u, err := strconv.ParseUint(s, 0, 64); err == nil && !strings.ContainsRune(s, '_') {
		return int64(u), true
	}
	n, err := strconv.ParseInt(s, 0, 64)
	return n, err == nil && !strings.ContainsRune(s, '_')
}

// wellFormedID tells whether s is an identifier of the field.
func wellFormedID(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if letter || i > 0 && (c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_') {
			continue
		}
		return false
	}
	return s != ""
}

func (o optionSet) str(name string) *string {
	if v, ok := o[name]; ok {
		return &v
	}
	return nil
}

func (o optionSet) flag(name string) *bool {
	if v, ok := o[name]; ok {
		on := v == "on"
		return &on
	}
	return nil
}

func (o optionSet) number(name string) *int64 {
	if v, ok := o[name]; ok {
		n, _ := parseNumber(v)
		return &n
	}
	return nil
}

func (o optionSet) backend(id string) (qapi.ChardevBackend, error) {
	var b qapi.ChardevBackend
	kind, ok := o["backend"]
	if !ok {
		return b, qapi.Errorf("chardev: \"%s\" missing backend", id)
	}
	if isOn(o.flag("mux")) {
		return b, qapi.Errorf("Invalid parameter 'mux'")
	}
	b.Type = qapi.ChardevBackendKind(kind)
	common := qapi.ChardevCommon{Logfile: o.str("logfile"), Logappend: o.flag("logappend"), Logtimestamp: o.flag("logtimestamp")}
	switch b.Type {
	case qapi.ChardevBackendKindNull:
		b.Null = &common
	case qapi.ChardevBackendKindStdio:
		b.Stdio = &qapi.ChardevStdio{ChardevCommon: common, Signal: o.flag("signal")}
	case qapi.ChardevBackendKindFile:
		path, ok := o["path"]
		if !ok {
			return b, qapi.Errorf("chardev: file: no filename given")
		}
		b.File = &qapi.ChardevFile{ChardevCommon: common, Out: path, In: o.str("input-path"), Append: o.flag("append")}
	case qapi.ChardevBackendKindSocket:
		s, err := o.socket(common)
		if err != nil {
			return b, err
		}
		b.Socket = s
	default:
		return b, qapi.Errorf("'%s' is not a valid char driver name", kind)
	}
	return b, nil
}

func (o optionSet) socket(common qapi.ChardevCommon) (*qapi.ChardevSocket, error) {
	server := isOn(o.flag("server"))
	s := &qapi.ChardevSocket{
		ChardevCommon: common, Server: &server, Wait: o.flag("wait"),
		TLSCreds: o.str("tls-creds"), TLSAuthz: o.str("tls-authz"),
		Telnet: o.flag("telnet"), TN3270: o.flag("tn3270"), Websocket: o.flag("websocket"),
		ReconnectMs: o.number("reconnect-ms"),
	}
	if sec := o.number("reconnect"); sec != nil {
		ms := *sec
		if ms > 0 {
			ms = min(ms, maxReconnectMs/1000) * 1000
		}
		s.ReconnectMs = &ms
	}
	if server && s.Wait == nil {
		yes := true
		s.Wait = &yes
	}
	nodelay := isOn(o.flag("nodelay"))
	if d := o.flag("delay"); d != nil && !*d {
		nodelay = true
	}
	s.Nodelay = &nodelay

	path, host, fd := o.str("path"), o.str("host"), o.str("fd")
	given := 0
	for _, v := range []*string{path, host, fd} {
		if v != nil {
			given++
		}
	}
	if given > 1 {
		return nil, qapi.Errorf("None or one of 'path', 'fd' or 'host' option required.")
	}
	switch {
	case path != nil:
		s.Addr.Type = qapi.SocketAddressTypeUnix
		s.Addr.Unix = &qapi.UnixSocketAddress{Path: *path, Abstract: o.flag("abstract"), Tight: o.flag("tight")}
	case host != nil:
		port := o.str("port")
		if port == nil {
			return nil, qapi.Errorf("chardev: socket: no port given")
		}
		in := &qapi.InetSocketAddress{IPv4: o.flag("ipv4"), IPv6: o.flag("ipv6")}
		in.Host, in.Port = *host, *port
		if to := o.number("to"); to != nil {
			n := uint16(*to)
			in.To = &n
		}
		s.Addr.Type, s.Addr.Inet = qapi.SocketAddressTypeInet, in
	default:
		a := &qapi.FdSocketAddress{}
		if fd != nil {
			a.Str = *fd
		}
		s.Addr.Type, s.Addr.FD = qapi.SocketAddressTypeFD, a
	}
	return s, nil
}
