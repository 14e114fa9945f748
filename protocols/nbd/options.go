package nbd

import (
	"crypto/tls"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"blockd/blockgraph"
	"blockd/nbdproto"
	"blockd/qapi"
)

// Credentials returns the TLS configuration of the credentials with an id, for
// a client that means to talk to hostname; errors in the field's words.
type Credentials func(id, hostname string) (*tls.Config, error)

const (
	baseAllocation = "base:allocation"
	// defaultPort is the one that IANA gave to NBD.
	defaultPort = "10809"
	// maxConnections bounds x-connections.
	maxConnections = 16
)

// options are those of one node, checked.
type options struct {
	given          *qapi.BlockdevOptionsNbd
	export, meta   string
	secure         *tls.Config
	reconnectDelay time.Duration // 0: requests do not wait for a new link
	openTimeout    time.Duration // 0: one attempt
	connections    int
}

// once tells that there is one socket, which cannot be made anew.
func (o *options) once() bool { return o.given.Server.Type == qapi.SocketAddressTypeFD }

func readOptions(n *qapi.BlockdevOptionsNbd, cfg *Config) (*options, error) {
	o := &options{given: n, meta: baseAllocation, connections: 1}
	if n.Export != nil {
		o.export = *n.Export
	}
	if len(o.export) > nbdproto.MaxString {
		return nil, blockgraph.Errorf(syscall.EINVAL, "export name too long to send to server")
	}
	if n.XDirtyBitmap != nil {
		o.meta = *n.XDirtyBitmap
	}
	if len(o.meta) > nbdproto.MaxString {
		return nil, blockgraph.Errorf(syscall.EINVAL, "x-dirty-bitmap query too long to send to server")
	}
	if n.XConnections != nil {
		if *n.XConnections < 1 || *n.XConnections > maxConnections {
			return nil, blockgraph.Errorf(syscall.EINVAL, "Parameter 'x-connections' expects a value between 1 and %d", maxConnections)
		}
		o.connections = int(*n.XConnections)
	}
	if n.ReconnectDelay != nil && !o.once() {
		o.reconnectDelay = time.Duration(*n.ReconnectDelay) * time.Second
	}
	if n.OpenTimeout != nil {
		o.openTimeout = time.Duration(*n.OpenTimeout) * time.Second
	}
	if n.TLSCreds != nil {
		host := ""
		switch {
		case n.TLSHostname != nil:
			host = *n.TLSHostname
		case n.Server.Type == qapi.SocketAddressTypeInet:
			host = n.Server.Inet.Host
		}
		if cfg.Credentials == nil {
			return nil, blockgraph.Errorf(syscall.EINVAL, "No TLS credentials with id '%s'", *n.TLSCreds)
		}
		var err error
		if o.secure, err = cfg.Credentials(*n.TLSCreds, host); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// parseFilename reads the names nbd:HOST:PORT and nbd:unix:PATH, each with
// :exportname=NAME, and the URIs nbd://, nbd+tcp:// and nbd+unix://.
func parseFilename(name string, _ func(string) (qapi.BlockdevRef, error)) (*qapi.BlockdevOptions, error) {
	n := &qapi.BlockdevOptionsNbd{}
	var err error
	if strings.Contains(name, "://") {
		err = parseURI(name, n)
	} else {
		err = parsePlain(name, n)
	}
	if err != nil {
		return nil, err
	}
	return &qapi.BlockdevOptions{Driver: qapi.BlockdevDriverNbd, NBD: n}, nil
}

func parseURI(name string, n *qapi.BlockdevOptionsNbd) error {
	bad := blockgraph.Errorf(syscall.EINVAL, "No valid URL specified")
	u, err := url.Parse(name)
	if err != nil {
		return bad
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad
	}
	if export := strings.TrimPrefix(u.Path, "/"); export != "" {
		n.Export = &export
	}
	switch u.Scheme {
	case "nbd+unix":
		if u.Host != "" || len(q) != 1 || len(q["socket"]) != 1 {
			return bad
		}
		n.Server = unixServer(q.Get("socket"))
	case "nbd", "nbd+tcp":
		if u.Host == "" || len(q) != 0 {
			return bad
		}
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return bad
		}
		n.Server = inetServer(u.Hostname(), port)
	default:
		return bad
	}
	return nil
}

var errNoServer = blockgraph.Errorf(syscall.EINVAL, "NBD server address missing")

func parsePlain(name string, n *qapi.BlockdevOptionsNbd) error {
	host, export, named := strings.Cut(name, ":exportname=")
	if named && export != "" {
		n.Export = &export
	}
	host, ok := strings.CutPrefix(host, "nbd:")
	if !ok {
		return blockgraph.Errorf(syscall.EINVAL, "File name string for NBD must start with 'nbd:'")
	}
	if host == "" {
		return errNoServer
	}
	if path, ok := strings.CutPrefix(host, "unix:"); ok {
		n.Server = unixServer(path)
		return nil
	}
	i := strings.LastIndexByte(host, ':')
	if i < 0 {
		return blockgraph.Errorf(syscall.EINVAL, "error parsing address '%s'", host)
	}
	n.Server = inetServer(strings.Trim(host[:i], "[]"), host[i+1:])
	return nil
}

func unixServer(path string) qapi.SocketAddress {
	return qapi.SocketAddress{Type: qapi.SocketAddressTypeUnix, Unix: &qapi.UnixSocketAddress{Path: path}}
}

func inetServer(host, port string) qapi.SocketAddress {
	return qapi.SocketAddress{Type: qapi.SocketAddressTypeInet, Inet: &qapi.InetSocketAddress{
		InetSocketAddressBase: qapi.InetSocketAddressBase{Host: host, Port: port}}}
}

// filename is the name that opens the node again, if its options have one.
func filename(o *qapi.BlockdevOptions) (string, bool) {
	n := o.NBD
	var b strings.Builder
	switch s := &n.Server; {
	case n.TLSCreds != nil || n.TLSHostname != nil:
		return "", false
	case s.Type == qapi.SocketAddressTypeUnix && n.Export != nil:
		b.WriteString("nbd+unix:///" + *n.Export + "?socket=" + s.Unix.Path)
	case s.Type == qapi.SocketAddressTypeUnix:
		b.WriteString("nbd+unix://?socket=" + s.Unix.Path)
	case s.Type == qapi.SocketAddressTypeInet && s.Inet.IPv4 == nil && s.Inet.IPv6 == nil && s.Inet.To == nil:
		b.WriteString("nbd://" + s.Inet.Host + ":" + s.Inet.Port)
		if n.Export != nil {
			b.WriteString("/" + *n.Export)
		}
	default:
		return "", false
	}
	return b.String(), true
}

// strongOptions are those that decide about the content.
func strongOptions(o *qapi.BlockdevOptions) *qapi.Object {
	n := o.NBD
	server, err := qapi.ParseJSON(qapi.AppendJSON(nil, n.Server))
	if err != nil {
		panic(err) // our own encoding
	}
	s := qapi.NewObject("server", server)
	for _, opt := range []struct {
		name  string
		value *string
	}{{"export", n.Export}, {"tls-creds", n.TLSCreds}, {"tls-hostname", n.TLSHostname}} {
		if opt.value != nil {
			s.Set(opt.name, *opt.value)
		}
	}
	return s
}

// modernise turns the options host, port and path, by which older users say where the
// server is, into `server`. node begins the names of the node's options.
func modernise(o *qapi.Object, node string) error {
	old := map[string]string{}
	for _, name := range []string{"path", "host", "port"} {
		if v, ok := o.Get(node + name); ok {
			if s, ok := v.(string); ok {
				old[name] = s
			}
		}
	}
	if len(old) == 0 {
		return nil
	}
	for _, key := range o.Keys() {
		if strings.HasPrefix(key, node+"server.") {
			return blockgraph.Errorf(syscall.EINVAL, "Cannot use 'server' and path/host/port at the same time")
		}
	}
	path, isUnix := old["path"]
	host, isInet := old["host"]
	port, hasPort := old["port"]
	switch {
	case isUnix && isInet:
		return blockgraph.Errorf(syscall.EINVAL, "path and host may not be used at the same time")
	case isUnix && hasPort:
		return blockgraph.Errorf(syscall.EINVAL, "port may not be used without host")
	case isUnix:
		o.Set(node+"server.type", string(qapi.SocketAddressTypeUnix))
		o.Set(node+"server.path", path)
	case isInet:
		if !hasPort {
			port = defaultPort
		}
		o.Set(node+"server.type", string(qapi.SocketAddressTypeInet))
		o.Set(node+"server.host", host)
		o.Set(node+"server.port", port)
	default:
		return errNoServer
	}
	for name := range old {
		o.Delete(node + name)
	}
	return nil
}
