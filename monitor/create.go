package monitor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"blockd/blockgraph"
	"blockd/jobs/create"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerCreate(r *qmp.Registry) {
	qmp.Register(r, "blockdev-create", qmp.CommandOptions{}, func(_ *qmp.Context, a *qapi.BlockdevCreateArg) (struct{}, error) {
		_, err := m.creators().Start(m.jobs, a)
		return struct{}{}, err
	})
}

// creators are what blockdev-create can make.
func (m *Monitor) creators() create.Creators {
	return create.Creators{
		qapi.BlockdevDriverFile: func(ctx context.Context, _ *blockgraph.Graph, o *qapi.BlockdevCreateOptions) error {
			return m.CreateFile(ctx, o.File)
		},
		qapi.BlockdevDriverQcow2: func(ctx context.Context, g *blockgraph.Graph, o *qapi.BlockdevCreateOptions) error {
			return m.createFormat(ctx, g, &o.Qcow2.File, o, m.Formats["qcow2"])
		},
	}
}

// FormatCreator writes a format's empty image into a file. It runs on a
// worker; file is writable and resizable.
type FormatCreator func(ctx context.Context, file *blockgraph.Edge, o *qapi.BlockdevCreateOptions) error

// FileCreator makes a file.
type FileCreator func(ctx context.Context, o *qapi.BlockdevCreateOptionsFile) error

const creating = blockgraph.PermWrite | blockgraph.PermResize

// createFormat makes a format's image for blockdev-create. The graph token is
// held while the file is opened and given up, not while it is written.
func (m *Monitor) createFormat(ctx context.Context, g *blockgraph.Graph, ref *qapi.BlockdevRef, o *qapi.BlockdevCreateOptions, create FormatCreator) error {
	cause := blockgraph.Cause{Command: "blockdev-create"}
	var root *blockgraph.Root
	err := g.Update(ctx, cause, func(tx *blockgraph.Tx) error {
		n, err := tx.OpenRef(ref)
		if err != nil {
			return err
		}
		root, err = tx.NewRoot(n, blockgraph.RootOptions{Perm: creating, Shared: blockgraph.PermAll})
		return err
	})
	if err != nil {
		return err
	}
	err = writeFormat(ctx, root, o, create)
	return errors.Join(err, g.Update(context.WithoutCancel(ctx), cause, func(tx *blockgraph.Tx) error { return tx.CloseRoot(root) }))
}

func writeFormat(ctx context.Context, root *blockgraph.Root, o *qapi.BlockdevCreateOptions, create FormatCreator) error {
	a, err := root.Enter(ctx)
	if err != nil {
		return err
	}
	defer a.Leave()
	return create(ctx, a.Edge(), o)
}

// newImage describes an image to be made by a command that names a file.
type newImage struct {
	file, format           string
	size                   int64 // bytes
	backing, backingFormat string
}

// createImage makes an image within a change. If the change fails, a file that
// did not exist before is removed again.
func (m *Monitor) createImage(tx *blockgraph.Tx, img newImage) error {
	typ := tx.Graph().DriverType(img.format)
	if typ == nil {
		return qapi.Errorf("Unknown file format '%s'", img.format)
	}
	create := m.Formats[img.format]
	if create == nil && img.format != "raw" {
		return qapi.Errorf("Format driver '%s' does not support image creation", img.format)
	}
	if strings.HasPrefix(img.file, "json:") {
		return qapi.Errorf("Unknown protocol 'json'") // options name what is there
	}
	ref, _, err := m.graph.ParseFilename(img.file)
	if err != nil {
		return err
	}
	if img.backing != "" {
		if typ.BackingOption == nil {
			return qapi.Errorf("Backing file not supported for file format '%s'", img.format)
		}
		if img.backing == img.file {
			return qapi.Errorf("Error: Trying to create an image with the same filename as the backing file")
		}
	}
	o := &qapi.BlockdevCreateOptionsFile{}
	if ref.Definition.File == nil {
		return qapi.Errorf("Protocol driver '%s' does not support image creation", ref.Definition.Driver)
	}
	o.Filename = ref.Definition.File.Filename
	if create == nil {
		o.Size = uint64(img.size)
	}
	if _, err := os.Stat(o.Filename); errors.Is(err, fs.ErrNotExist) {
		tx.OnAbort(func() { removeFile(o.Filename) })
	}
	if err := m.CreateFile(tx.Context(), o); err != nil {
		return err
	}
	if create == nil {
		return nil
	}
	return fillImage(tx, &ref, img, create)
}

// removeFile removes a file that may have been made through a symbolic link,
// which stays.
func removeFile(name string) {
	if real, err := filepath.EvalSymlinks(name); err == nil {
		os.Remove(real)
	}
}

// fillImage writes the format's structures through a file node that is closed
// again at once.
func fillImage(tx *blockgraph.Tx, ref *qapi.BlockdevRef, img newImage, create FormatCreator) error {
	n, err := tx.OpenRef(ref)
	if err != nil {
		return err
	}
	root, err := tx.NewRoot(n, blockgraph.RootOptions{Perm: creating, Shared: blockgraph.PermAll})
	if err != nil {
		return err
	}
	o := &qapi.BlockdevCreateOptions{Driver: qapi.BlockdevDriver(img.format)}
	o.Qcow2 = &qapi.BlockdevCreateOptionsQcow2{File: *ref, Size: uint64(img.size)}
	if img.backing != "" {
		format := qapi.BlockdevDriver(img.backingFormat)
		o.Qcow2.BackingFile, o.Qcow2.BackingFmt = &img.backing, &format
	}
	if err := writeFormat(tx.Context(), root, o, create); err != nil {
		return err
	}
	if err := tx.CloseRoot(root); err != nil {
		return err
	}
	return tx.Dispose(n)
}
