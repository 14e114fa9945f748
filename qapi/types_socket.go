package qapi

// Addresses of sockets, in the flat form and in the older one with a wrapper.

// SocketAddressType is the family of an address.
type SocketAddressType string

// Values of SocketAddressType.
const (
	SocketAddressTypeInet  SocketAddressType = "inet"
	SocketAddressTypeUnix  SocketAddressType = "unix"
	SocketAddressTypeVsock SocketAddressType = "vsock"
	SocketAddressTypeFD    SocketAddressType = "fd"
)

// QAPIEnum lists the values that blockd accepts.
func (SocketAddressType) QAPIEnum() []string {
	return []string{"inet", "unix", "vsock", "fd"}
}

// InetSocketAddressBase is a host and a port.
type InetSocketAddressBase struct {
	Host string `qapi:"host"`
	// Number or service name.
	Port string `qapi:"port"`
}

// InetSocketAddress is a TCP address.
type InetSocketAddress struct {
	InetSocketAddressBase
	// Host and port are numbers; do not resolve. Default false.
	Numeric *bool `qapi:"numeric"`
	// Listen on the first free port up to this one.
	To   *uint16 `qapi:"to"`
	IPv4 *bool   `qapi:"ipv4"`
	IPv6 *bool   `qapi:"ipv6"`
	// Default false.
	KeepAlive *bool `qapi:"keep-alive"`
	// Probes before the connection is dropped.
	KeepAliveCount *uint32 `qapi:"keep-alive-count"`
	// Seconds before the first probe.
	KeepAliveIdle *uint32 `qapi:"keep-alive-idle"`
	// Seconds between probes.
	KeepAliveInterval *uint32 `qapi:"keep-alive-interval"`
	// Default false.
	MPTCP *bool `qapi:"mptcp"`
}

// UnixSocketAddress is the address of a local socket.
type UnixSocketAddress struct {
	Path string `qapi:"path"`
	// In the abstract namespace of Linux. Default false.
	Abstract *bool `qapi:"abstract"`
	// An abstract name ends with its last byte, without padding. Default true.
	Tight *bool `qapi:"tight"`
}

// VsockSocketAddress is an AF_VSOCK address.
type VsockSocketAddress struct {
	CID  string `qapi:"cid"`
	Port string `qapi:"port"`
}

// FdSocketAddress is an inherited or passed descriptor.
type FdSocketAddress struct {
	// Number, or a name given with getfd.
	Str string `qapi:"str"`
}

// SocketAddress is an address in the flat form.
type SocketAddress struct {
	Type  SocketAddressType   `qapi:"type,discriminator"`
	Inet  *InetSocketAddress  `qapi:",case=inet"`
	Unix  *UnixSocketAddress  `qapi:",case=unix"`
	Vsock *VsockSocketAddress `qapi:",case=vsock"`
	FD    *FdSocketAddress    `qapi:",case=fd"`
}

// SocketAddressLegacy is an address whose branch stands under the member data.
type SocketAddressLegacy struct {
	Type  SocketAddressType   `qapi:"type,discriminator"`
	Inet  *InetSocketAddress  `qapi:",case=inet,wrap"`
	Unix  *UnixSocketAddress  `qapi:",case=unix,wrap"`
	Vsock *VsockSocketAddress `qapi:",case=vsock,wrap"`
	FD    *FdSocketAddress    `qapi:",case=fd,wrap"`
}
