package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerSnapshots(r *qmp.Registry) {
	qmp.Register(r, "blockdev-snapshot", qmp.CommandOptions{Features: []string{"allow-write-only-overlay"}}, func(c *qmp.Context, a *qapi.BlockdevSnapshot) (struct{}, error) {
		return struct{}{}, m.runActions(c, "blockdev-snapshot", []action{&snapshot{m: m, node: a.Node, overlay: a.Overlay}})
	})
	qmp.Register(r, "blockdev-snapshot-sync", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockdevSnapshotSync) (struct{}, error) {
		return struct{}{}, m.runActions(c, "blockdev-snapshot-sync", []action{&snapshotSync{m: m, BlockdevSnapshotSync: *a}})
	})
}

// snapshot puts an overlay that is already a node on top of another node.
type snapshot struct {
	m             *Monitor
	node, overlay string
	old           *blockgraph.Node
}

func (s *snapshot) kind() string { return "blockdev-snapshot" }

func (s *snapshot) source(tx *blockgraph.Tx) *blockgraph.Node { return sourceNode(tx, s.node) }

func (s *snapshot) finish(tx *blockgraph.Tx) error { return retire(tx, s.old) }

func (s *snapshot) prepare(tx *blockgraph.Tx) error {
	old, err := findNode(tx, s.node)
	if err != nil {
		return err
	}
	if err := snapshotAllowed(tx, old); err != nil {
		return err
	}
	overlay, err := findNode(tx, s.overlay)
	if err != nil {
		return err
	}
	s.old = old
	return putOnTop(tx, overlay, old)
}

// snapshotSync makes the overlay's image, too.
type snapshotSync struct {
	m *Monitor
	qapi.BlockdevSnapshotSync
	old *blockgraph.Node
}

func (s *snapshotSync) kind() string { return "blockdev-snapshot-sync" }

func (s *snapshotSync) source(tx *blockgraph.Tx) *blockgraph.Node {
	n, _ := tx.LookUp(s.Device, s.NodeName)
	return n
}

func (s *snapshotSync) finish(tx *blockgraph.Tx) error { return retire(tx, s.old) }

func (s *snapshotSync) prepare(tx *blockgraph.Tx) error {
	old, err := tx.LookUp(s.Device, s.NodeName)
	if err != nil {
		return err
	}
	if err := snapshotAllowed(tx, old); err != nil {
		return err
	}
	if s.NodeName != nil && s.SnapshotNodeName == nil {
		return qapi.Errorf("New overlay node-name missing")
	}
	if s.SnapshotNodeName != nil && tx.Find(*s.SnapshotNodeName) != nil {
		return qapi.Errorf("New overlay node-name already in use")
	}
	format := "qcow2"
	if s.Format != nil {
		format = *s.Format
	}
	if s.Mode == nil || *s.Mode != qapi.NewImageModeExisting {
		if err := s.m.createImage(tx, NewImage{
			File: s.SnapshotFile, Format: format, Size: old.Size(),
			Backing: tx.Filename(old), BackingFormat: old.Type().Name,
		}); err != nil {
			return err
		}
	}
	o := tx.State(old).Options
	overlay, err := s.m.openImage(tx, s.SnapshotFile, format, func(n *qapi.BlockdevOptions) {
		n.NodeName = s.SnapshotNodeName
		n.Cache, n.Discard, n.ReadOnly = o.Cache, o.Discard, o.ReadOnly
		noBacking(tx, n)
	})
	if err != nil {
		return err
	}
	s.old = old
	return putOnTop(tx, overlay, old)
}

// noBacking has an image opened without its backing file, where its format
// knows one.
func noBacking(tx *blockgraph.Tx, o *qapi.BlockdevOptions) {
	if t := tx.Graph().DriverType(string(o.Driver)); t != nil && t.BackingOption != nil {
		*t.BackingOption(o) = &qapi.BlockdevRefOrNull{Null: &qapi.Null{}}
	}
}

func snapshotAllowed(tx *blockgraph.Tx, old *blockgraph.Node) error {
	if err := tx.CheckBlocked(old, blockgraph.OpExternalSnap); err != nil {
		return err
	}
	if err := tx.Drain(old); err != nil {
		return err
	}
	if !old.ReadOnly() {
		if err := old.Flush(tx.Context()); err != nil {
			return qapi.Errorf("An IO error has occurred")
		}
	}
	return nil
}

func putOnTop(tx *blockgraph.Tx, overlay, old *blockgraph.Node) error {
	switch {
	case tx.Used(overlay)&blockgraph.PermConsistentRead != 0:
		return qapi.Errorf("The overlay is already in use")
	case overlay.Type().Filter:
		return qapi.Errorf("Filters cannot be used as overlays")
	case tx.State(overlay).Backing() != nil:
		return qapi.Errorf("The overlay already has a backing image")
	case overlay.Type().BackingOption == nil:
		return qapi.Errorf("The overlay does not support backing images")
	}
	if tx.State(old).Inactive && !tx.State(overlay).Inactive {
		// An overlay works on top of a disk that is being handed over, too.
		if err := tx.Inactivate(overlay); err != nil {
			return inactivating("node", err)
		}
	}
	return tx.Append(overlay, old)
}

// retire makes an image read-only that has an overlay now: it only has readers,
// unless a user of its own keeps it writable. A filter that cannot be reopened
// stays as it is, and goes on to do its work below the overlay.
func retire(tx *blockgraph.Tx, old *blockgraph.Node) error {
	if _, ok := old.Driver().(blockgraph.Reopener); !ok {
		return nil
	}
	const writes = blockgraph.PermWrite | blockgraph.PermWriteUnchanged | blockgraph.PermResize
	if tx.Used(old)&writes != 0 {
		return nil
	}
	return tx.SetReadOnly(old, true)
}

// openImage opens an image by its file name: of the given format, or of the
// one that its content tells if that is "".
func (m *Monitor) openImage(tx *blockgraph.Tx, name, format string, edit func(o *qapi.BlockdevOptions)) (*blockgraph.Node, error) {
	file, _, err := m.graph.ParseFilename(name)
	if err != nil {
		return nil, err
	}
	if format != "" && tx.Graph().DriverType(format) == nil {
		return nil, qapi.Errorf("Unknown driver '%s'", format)
	}
	if format == string(qapi.BlockdevDriverFile) && file.Definition != nil {
		// The file itself is the disk.
		edit(file.Definition)
		return tx.OpenRef(&file)
	}
	return tx.OpenImage(file, format, edit)
}
