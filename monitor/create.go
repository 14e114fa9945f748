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
	qmp.Register(r, "blockdev-create", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockdevCreateArg) (struct{}, error) {
		_, err := m.creators().Start(c, m.jobs, a)
		return struct{}{}, err
	})
}

// creators are what blockdev-create can make.
func (m *Monitor) creators() create.Creators {
	return create.Creators{
		qapi.BlockdevDriverFile: func(ctx context.Context, _ *blockgraph.Graph, o *qapi.BlockdevCreateOptions) error {
			return m.CreateFile(ctx, o.File)
		},
		qapi.BlockdevDriverLUKS: func(ctx context.Context, g *blockgraph.Graph, o *qapi.BlockdevCreateOptions) error {
			return m.createFormat(ctx, g, o.LUKS.File, o.LUKS.Header, o, m.Formats["luks"])
		},
		qapi.BlockdevDriverQcow2: func(ctx context.Context, g *blockgraph.Graph, o *qapi.BlockdevCreateOptions) error {
			return m.createFormat(ctx, g, &o.Qcow2.File, o.Qcow2.DataFile, o, m.Formats["qcow2"])
		},
	}
}

// ImageFiles are what a format's image is written into, writable and resizable.
type ImageFiles struct {
	File *blockgraph.Edge // nil: there is only a header
	// Data is an external data file, or a detached header, or nil; DataName is its
	// name.
	Data     *blockgraph.Edge
	DataName string
}

// FormatCreator writes a format's empty image into files. It runs on a worker.
type FormatCreator func(ctx context.Context, f ImageFiles, o *qapi.BlockdevCreateOptions) error

// FileCreator makes a file.
type FileCreator func(ctx context.Context, o *qapi.BlockdevCreateOptionsFile) error

// openNew opens a file that an image is to be written to, with a root that may
// write and resize it.
func openNew(tx *blockgraph.Tx, ref *qapi.BlockdevRef) (*blockgraph.Node, *blockgraph.Root, error) {
	n, err := tx.OpenRef(ref)
	if err != nil {
		return nil, nil, err
	}
	root, err := tx.NewRoot(n, blockgraph.RootOptions{Perm: blockgraph.PermWrite | blockgraph.PermResize, Shared: blockgraph.PermAll})
	return n, root, err
}

// createFormat makes a format's image for blockdev-create; data is its external
// data file or detached header, or nil, and so may be ref. The graph token is held while the files are opened and
// given up, not while they are written.
func (m *Monitor) createFormat(ctx context.Context, g *blockgraph.Graph, ref, data *qapi.BlockdevRef, o *qapi.BlockdevCreateOptions, create FormatCreator) error {
	cause := blockgraph.Cause{Command: "blockdev-create"}
	var roots []*blockgraph.Root
	var dataName string
	err := g.Update(ctx, cause, func(tx *blockgraph.Tx) error {
		for _, ref := range []*qapi.BlockdevRef{ref, data} {
			if ref == nil {
				roots = append(roots, nil)
				continue
			}
			n, root, err := openNew(tx, ref)
			if err != nil {
				return err
			}
			roots = append(roots, root)
			if ref == data && o.Qcow2 != nil && roots[0].Node() == n {
				return sharedDataFile(tx, n)
			}
			if ref == data {
				dataName = tx.Filename(n)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = writeFormat(ctx, roots, dataName, o, create)
	return errors.Join(err, g.Update(context.WithoutCancel(ctx), cause, func(tx *blockgraph.Tx) error {
		for _, root := range roots {
			if root == nil {
				continue
			}
			if err := tx.CloseRoot(root); err != nil {
				return err
			}
		}
		return nil
	}))
}

// sharedDataFile is the error for an image in the same node as its data file. In the
// field it comes from opening the new image.
func sharedDataFile(tx *blockgraph.Tx, n *blockgraph.Node) error {
	image := tx.NewName()
	return qapi.Errorf("Permission conflict on node '%s': permissions 'resize' are both required by node '%s' (uses node '%s' as 'file' child) and unshared by node '%s' (uses node '%s' as 'data-file' child).", n.Name(), image, n.Name(), image, n.Name())
}

// writeFormat writes an image through the root of its file and, if there is
// one, that of its data file.
func writeFormat(ctx context.Context, roots []*blockgraph.Root, dataName string, o *qapi.BlockdevCreateOptions, create FormatCreator) error {
	f := ImageFiles{DataName: dataName}
	for i, root := range roots {
		if root == nil {
			continue
		}
		a, err := root.Enter(ctx)
		if err != nil {
			return err
		}
		defer a.Leave()
		if i == 0 {
			f.File = a.Edge()
		} else {
			f.Data = a.Edge()
		}
	}
	return create(ctx, f, o)
}

// NewImage describes an image to be made by a command that names a file.
type NewImage struct {
	File, Format           string
	Size                   int64 // bytes
	Backing, BackingFormat string
}

// createImage makes an image within a change. If the change fails, a file that
// did not exist before is removed again.
func (m *Monitor) createImage(tx *blockgraph.Tx, img NewImage) error {
	typ := tx.Graph().DriverType(img.Format)
	if typ == nil {
		return qapi.Errorf("Unknown file format '%s'", img.Format)
	}
	create := m.Formats[img.Format]
	if create == nil && img.Format != "raw" && typ.Name != string(qapi.BlockdevDriverFile) {
		return qapi.Errorf("Format driver '%s' does not support image creation", img.Format)
	}
	if strings.HasPrefix(img.File, "json:") {
		return qapi.Errorf("Unknown protocol 'json'") // options name what is there
	}
	ref, _, err := m.graph.ParseFilename(img.File)
	if err != nil {
		return err
	}
	if img.Backing != "" {
		if typ.BackingOption == nil {
			return qapi.Errorf("Backing file not supported for file format '%s'", img.Format)
		}
		if img.Backing == img.File {
			return qapi.Errorf("Error: Trying to create an image with the same filename as the backing file")
		}
	}
	o := &qapi.BlockdevCreateOptionsFile{}
	if ref.Definition.File == nil {
		return qapi.Errorf("Protocol driver '%s' does not support image creation", ref.Definition.Driver)
	}
	o.Filename = ref.Definition.File.Filename
	if m.Making != nil {
		m.Making(img)
	}
	if create == nil {
		o.Size = uint64(img.Size)
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
func fillImage(tx *blockgraph.Tx, ref *qapi.BlockdevRef, img NewImage, create FormatCreator) error {
	n, root, err := openNew(tx, ref)
	if err != nil {
		return err
	}
	o := &qapi.BlockdevCreateOptions{Driver: qapi.BlockdevDriver(img.Format)}
	if o.Driver == qapi.BlockdevDriverLUKS { // lacks its secret, and says so
		o.LUKS = &qapi.BlockdevCreateOptionsLUKS{File: ref, Size: uint64(img.Size)}
	}
	o.Qcow2 = &qapi.BlockdevCreateOptionsQcow2{File: *ref, Size: uint64(img.Size)}
	if img.Backing != "" {
		format := qapi.BlockdevDriver(img.BackingFormat)
		o.Qcow2.BackingFile, o.Qcow2.BackingFmt = &img.Backing, &format
	}
	if err := writeFormat(tx.Context(), []*blockgraph.Root{root}, "", o, create); err != nil {
		return err
	}
	if err := tx.CloseRoot(root); err != nil {
		return err
	}
	return tx.Dispose(n)
}
