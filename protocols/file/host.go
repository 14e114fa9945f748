package file

import (
	"os"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// Opener opens names of the form /dev/fdset/N with flags of open(2): it
// returns a duplicate of a descriptor of the set whose access mode fits. Its
// error is a syscall.Errno or wraps one. The caller closes the file, and calls
// release, once, when it uses what it got no more: the set is kept until then.
type Opener func(name string, flags int) (f *os.File, release func(), err error)

// Policy decides which files may be opened and created. path is absolute and
// free of symbolic links; fromHeader tells that an image header named the
// file, not the user. Any goroutine.
type Policy interface {
	AllowOpen(path string, fromHeader bool) error
}

// Config is what the drivers need from the program. The zero value opens
// everything and knows no descriptor sets.
type Config struct {
	Opener Opener
	Policy Policy
	// Calls bounds the blocking system calls; nil is the process's bound.
	Calls *ioengine.Calls
	// CopyRange has CopyRangeFrom use copy_file_range. Off, it is refused: on
	// most file systems it gains nothing over a copy through memory.
	CopyRange bool
	// Warn tells the user of something that is no error; nil drops it.
	Warn func(text string)
}

// Host is the files of this host, seen through a Config.
type Host struct {
	cfg Config
}

// New returns the host's files.
func New(cfg Config) *Host {
	if cfg.Calls == nil {
		cfg.Calls = ioengine.ProcessCalls
	}
	if cfg.Warn == nil {
		cfg.Warn = func(string) {}
	}
	return &Host{cfg: cfg}
}

// DriverTypes returns the drivers `file` and `host_device` for the graph's
// registry.
func (h *Host) DriverTypes() []*blockgraph.DriverType {
	return []*blockgraph.DriverType{h.driverType("file", false), h.driverType("host_device", true)}
}

func (h *Host) driverType(name string, device bool) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name:     name,
		Protocol: true,
		Open:     (&opener{host: h, driver: name, device: device}).open,
		StrongOptions: func(o *qapi.BlockdevOptions) *qapi.Object {
			return qapi.NewObject("filename", o.File.Filename)
		},
		Required:      []blockgraph.RequiredOption{{Name: "filename", Text: unnamed(name)}},
		PlainFilename: func(o *qapi.BlockdevOptions) (string, bool) { return o.File.Filename, true },
		Reopenable:    reopenable,
	}
}
