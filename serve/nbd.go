package serve

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"blockd/qapi"
)

// nbdOptions is the value of --nbd.
type nbdOptions struct {
	Addr           string  `qapi:"addr"`
	TLSCreds       *string `qapi:"tls-creds"`
	TLSAuthz       *string `qapi:"tls-authz"`
	MaxConnections *uint32 `qapi:"max-connections"`
}

// serveNBD adds the server. In a configuration file it may have the members of
// --nbd-server.
func (s *settings) serveNBD(p *Plan) error {
	if strings.HasPrefix(s.nbd.text, "{") {
		p.addNBD(s.nbd, s.nbd.text, s.nbd.text)
		return nil
	}
	var o nbdOptions
	err := qapi.DecodeOption(s.nbd.text, "addr", &o)
	addr := qapi.NewObject()
	if err == nil {
		if path, ok := strings.CutPrefix(o.Addr, "unix:"); ok {
			addr = qapi.NewObject("type", "unix", "path", path)
		} else if host, port, split := net.SplitHostPort(o.Addr); split == nil {
			addr = qapi.NewObject("type", "inet", "host", host, "port", port)
		} else {
			err = qapi.Errorf("Parameter 'addr' expects HOST:PORT or unix:PATH")
		}
	}
	if err != nil {
		if s.nbd.from != nil {
			return s.nbd.from.mistake("%w", err)
		}
		return fmt.Errorf("--nbd %s: %w", s.nbd.text, err)
	}
	server := qapi.NewObject("addr", addr)
	if o.TLSCreds != nil {
		server.Set("tls-creds", *o.TLSCreds)
	}
	if o.TLSAuthz != nil {
		server.Set("tls-authz", *o.TLSAuthz)
	}
	if o.MaxConnections != nil {
		server.Set("max-connections", int64(*o.MaxConnections))
	}
	p.addNBD(s.nbd, string(qapi.AppendJSON(nil, server)), o.Addr)
	return nil
}

// addNBD adds the option, and a warning if others than users of this machine
// reach exports without more ado. What is wrong with the option is said when it
// is worked off.
func (p *Plan) addNBD(s *setting, text, shown string) {
	p.Options = append(p.Options, s.option("nbd-server", text))
	p.Started = append(p.Started, "NBD at "+shown)
	var o qapi.NbdServerOptions
	if qapi.DecodeOption(text, "", &o) != nil || o.TLSCreds != nil || o.Addr.Inet == nil {
		return
	}
	if a, err := netip.ParseAddr(o.Addr.Inet.Host); o.Addr.Inet.Host != "localhost" && (err != nil || !a.IsLoopback()) {
		p.Warnings = append(p.Warnings, "warning: NBD without TLS at "+shown+": whoever reaches it uses the exports")
	}
}
