package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/filters/blkdebug"
	"blockd/filters/blklogwrites"
	"blockd/filters/blkverify"
	"blockd/filters/compress"
	"blockd/filters/copybeforewrite"
	"blockd/filters/copyonread"
	"blockd/filters/preallocate"
	"blockd/filters/quorum"
	"blockd/filters/snapshotaccess"
	"blockd/filters/throttle"
	"blockd/formats/luks"
	"blockd/formats/qcow2"
	"blockd/formats/raw"
	"blockd/monitor"
	"blockd/protocols/file"
	"blockd/protocols/nbd"
	"blockd/protocols/null"
	"blockd/qapi"
)

// drivers is what the graph is made of.
type drivers struct {
	types      []*blockgraph.DriverType
	createFile monitor.FileCreator
	formats    map[string]monitor.FormatCreator
}

func newDrivers(d *Daemon, c Config, clk clock.Clock) drivers {
	warn := func(text string) { d.complain("warning: " + text) }
	host := file.New(file.Config{
		Opener: func(name string, flags int) (*os.File, func(), error) {
			return d.QMP.FdSets().Open(name, flags)
		},
		Policy: pathPolicy(c.AllowedPaths),
		Warn:   warn,
	})
	rawType := raw.DriverType(raw.Config{
		Probe: func(head []byte) string { return d.Graph.Probe(head) },
		Warn: func(text string) { // it says itself that it is one, in several lines
			for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
				d.complain(line)
			}
		},
	})
	types := host.DriverTypes()
	types = append(types, null.DriverTypes(clk)...)
	types = append(types, blkdebug.Type(func(name string, fromHeader bool) ([]byte, error) {
		return host.ReadFile(name, maxRules, fromHeader)
	}))
	types = append(types, nbd.Type(nbd.Config{Clock: clk, TakeFD: d.takeSocket, Credentials: d.Objects.TLSClient, Log: slog.Default()}))
	keys := luks.Config{Secret: d.Objects.SecretText, Clock: clk}
	persistence := qapi.Qcow2BitmapPersistenceCrashSafe
	if c.BitmapsOnClose {
		persistence = qapi.Qcow2BitmapPersistenceOnClose
	}
	types = append(types, rawType, luks.DriverType(keys), qcow2.DriverType(keys, persistence), copybeforewrite.Type(clk), copyonread.Type(), throttle.Type(d.Objects),
		blklogwrites.Type(), blkverify.Type(), compress.Type(), preallocate.Type(), snapshotaccess.Type(),
		quorum.Type(d.QMP.Hub().Emit))
	return drivers{
		types:      types,
		createFile: host.Create,
		formats: map[string]monitor.FormatCreator{
			"luks": func(ctx context.Context, f monitor.ImageFiles, o *qapi.BlockdevCreateOptions) error {
				return luks.CreateImage(ctx, f.File, f.Data, o.LUKS, keys)
			},
			"qcow2": func(ctx context.Context, f monitor.ImageFiles, o *qapi.BlockdevCreateOptions) error {
				return qcow2.Create(ctx, qcow2.Files{File: f.File, Data: f.Data, DataName: f.DataName, Keys: keys}, o.Qcow2)
			},
		},
	}
}

// maxRules bounds a file of blkdebug rules, in bytes.
const maxRules = 1 << 20

// pathPolicy is what --allow-path names: files, and directories with all below
// them. Empty: everything.
type pathPolicy []string

// AllowOpen refuses what is not below an allowed path. The path is absolute
// and free of symbolic links.
//
//blockd:io
func (p pathPolicy) AllowOpen(path string, _ bool) error {
	if len(p) == 0 {
		return nil
	}
	for _, a := range p {
		if real, err := filepath.EvalSymlinks(a); err == nil {
			a = real
		}
		if abs, err := filepath.Abs(a); err == nil {
			a = abs
		}
		if path == a || strings.HasPrefix(path, strings.TrimSuffix(a, "/")+"/") {
			return nil
		}
	}
	return blockgraph.Errorf(syscall.EACCES, "%s", blockgraph.Strerror(syscall.EACCES))
}
