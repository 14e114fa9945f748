package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs/chain"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerBackingFile(r *qmp.Registry) {
	qmp.Register(r, "change-backing-file", qmp.CommandOptions{}, m.changeBackingFile)
}

// changeBackingFile has an image's header name another backing file. The graph
// stays as it is, and so does the format in the header: the one of the present
// backing file.
func (m *Monitor) changeBackingFile(c *qmp.Context, a *qapi.ChangeBackingFileArg) (struct{}, error) {
	return struct{}{}, m.update(c, "change-backing-file", func(tx *blockgraph.Tx) error {
		device, err := findRoot(tx, a.Device)
		if err != nil {
			return err
		}
		image, err := chain.Lookup(tx, a.ImageNodeName)
		if err != nil {
			return err
		}
		base, format := chain.Next(tx, image), ""
		switch {
		case base != nil:
			format = base.Type().Name
		case !image.Type().Filter: // a filter cannot do it at all
			return qapi.Errorf("not allowing backing file change on an image without a backing file")
		}
		if err := tx.CheckBlocked(device, blockgraph.OpChange); err != nil {
			return err
		}
		if !chain.Contains(tx, device, image) {
			return qapi.Errorf("'%s' and image file are not in the same chain", a.Device)
		}
		readOnly := tx.State(image).ReadOnly
		if readOnly {
			if err := tx.SetReadOnly(image, false); err != nil {
				return err
			}
		}
		if err := chain.WriteHeader(tx, image, a.BackingFile, format); err != nil {
			return qapi.Errorf("Could not change backing file to '%s': %s", a.BackingFile, blockgraph.Strerror(err))
		}
		if readOnly {
			return tx.SetReadOnly(image, true)
		}
		return nil
	})
}
