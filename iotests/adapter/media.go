package main

import (
	"context"

	"blockd/blockgraph"
	"blockd/objects"
	"blockd/qapi"
	"blockd/qmp"
)

// This file exchanges the media of devices.

type mediaArg struct {
	Device   *string `qapi:"device"`
	ID       *string `qapi:"id"`
	Force    *bool   `qapi:"force"`
	NodeName *string `qapi:"node-name"`
}

type changeMedium struct {
	Device       *string `qapi:"device"`
	ID           *string `qapi:"id"`
	Filename     string  `qapi:"filename"`
	Format       *string `qapi:"format"`
	Force        *bool   `qapi:"force"`
	ReadOnlyMode *string `qapi:"read-only-mode"`
}

type trayMoved struct {
	Device   string `qapi:"device"`
	ID       string `qapi:"id"`
	TrayOpen bool   `qapi:"tray-open"`
}

func (m *machine) registerMedia(r *qmp.Registry) {
	qmp.RegisterEvent[trayMoved](r, "DEVICE_TRAY_MOVED")
	qmp.Extend(r, "nbd-server-add", func(_ *qmp.Context, a *qapi.NbdServerAddArg, next func() (struct{}, error)) (struct{}, error) {
		v, err := next()
		if x := m.backends.byName(a.Device); err == nil && x != nil {
			m.backends.noteExport(x, qapi.Or(a.Name, a.Device))
		}
		return v, err
	})
	command := func(name string, f func(ctx context.Context, x *backend, a *mediaArg) error) {
		qmp.Register(r, name, qmp.CommandOptions{}, func(c *qmp.Context, a *mediaArg) (struct{}, error) {
			x, err := m.backends.find(a.Device, a.ID)
			if err == nil {
				err = f(c, x, a)
			}
			return struct{}{}, err
		})
	}
	command("eject", m.eject)
	command("blockdev-open-tray", func(_ context.Context, x *backend, a *mediaArg) error { return m.openTray(x, a.ID) })
	command("blockdev-close-tray", func(_ context.Context, x *backend, a *mediaArg) error { return m.closeTray(x) })
	command("blockdev-remove-medium", func(ctx context.Context, x *backend, a *mediaArg) error {
		return m.removeMedium(ctx, x, a.ID)
	})
	command("blockdev-insert-medium", func(ctx context.Context, x *backend, a *mediaArg) error {
		if a.NodeName == nil {
			return qapi.Errorf("Parameter 'node-name' is missing")
		}
		return m.insertMedium(ctx, x, *a.NodeName)
	})
	qmp.Register(r, "blockdev-change-medium", qmp.CommandOptions{}, func(c *qmp.Context, a *changeMedium) (struct{}, error) {
		x, err := m.backends.find(a.Device, a.ID)
		if err == nil {
			err = m.changeMedium(c, x, a)
		}
		return struct{}{}, err
	})
}

// find returns the backend of a command that names it, or its device.
func (b *backends) find(device, id *string) (*backend, error) {
	switch {
	case device != nil && id != nil, device == nil && id == nil:
		return nil, qapi.Errorf("Need exactly one of 'device' and 'id'")
	case id != nil:
		return b.byDevice(*id)
	}
	if x := b.byName(*device); x != nil {
		return x, nil
	}
	return nil, objects.NotFound(*device)
}

// byDevice returns the backend of a device by its id or path.
func (b *backends) byDevice(id string) (*backend, error) {
	d := b.m.devices.find(id)
	if d == nil {
		return nil, objects.NotFound(id)
	}
	if d.drive == nil || d.virtio && (id == d.id || id == d.path) {
		return nil, qapi.Errorf("Device does not have a block device backend")
	}
	return d.drive, nil
}

// label names a backend's device in messages.
func label(x *backend, id *string) string {
	if id != nil {
		return *id
	}
	return x.name
}

// eject opens the tray and removes the medium.
func (m *machine) eject(ctx context.Context, x *backend, a *mediaArg) error {
	if err := m.openTray(x, a.ID); err != nil && x.dev != nil {
		return err
	}
	return m.removeMedium(ctx, x, a.ID)
}

func (m *machine) openTray(x *backend, id *string) error {
	switch {
	case x.dev == nil:
		return qapi.Errorf("Device '%s' has no tray", label(x, id)) // nothing is in the way
	case !x.dev.cd:
		return qapi.Errorf("Device '%s' is not removable", label(x, id))
	case !x.dev.tray:
		return nil
	}
	m.moveTray(x, true)
	return nil
}

func (m *machine) closeTray(x *backend) error {
	switch {
	case x.dev == nil || !x.dev.cd:
		return qapi.Errorf("Device '%s' is not removable", x.name)
	case !x.dev.tray:
		return nil
	}
	m.moveTray(x, false)
	return nil
}

func (m *machine) moveTray(x *backend, open bool) {
	if x.dev.trayOpen.Swap(open) != open {
		m.emit("DEVICE_TRAY_MOVED", &trayMoved{Device: x.name, ID: x.dev.qdev(), TrayOpen: open})
	}
}

func (m *machine) removeMedium(ctx context.Context, x *backend, id *string) error {
	switch {
	case x.dev != nil && !x.dev.cd:
		return qapi.Errorf("Device '%s' is not removable", label(x, id))
	case x.dev != nil && x.dev.tray && !x.dev.trayOpen.Load():
		return qapi.Errorf("Tray of device '%s' is not open", label(x, id))
	}
	err := m.update(ctx, "blockdev-remove-medium", func(tx *blockgraph.Tx) error {
		r := m.backends.rootOf(x)
		if r == nil {
			return nil
		}
		if err := tx.CheckBlocked(r.Node(), blockgraph.OpEject); err != nil {
			return err
		}
		if err := tx.CloseRoot(r); err != nil {
			return err
		}
		tx.OnCommit(func() { m.backends.setRoot(x, nil) })
		return nil
	})
	if err != nil {
		return err
	}
	hard := qapi.BlockExportRemoveModeHard
	for _, name := range m.backends.takeExports(x) {
		// It may have been removed already.
		_, _ = qmp.Call[qapi.NbdServerRemoveArg, struct{}](ctx, m.daemon.Registry, "nbd-server-remove", &qapi.NbdServerRemoveArg{Name: name, Mode: &hard})
	}
	return nil
}

func (m *machine) insertMedium(ctx context.Context, x *backend, name string) error {
	return m.update(ctx, "blockdev-insert-medium", func(tx *blockgraph.Tx) error {
		n, err := tx.FindNode(name)
		if err != nil {
			return err
		}
		for _, e := range tx.Parents(n) {
			if e.Root() != nil && e.Root().Job() == "" {
				return qapi.Errorf("Node '%s' is already in use", name)
			}
		}
		return m.insert(tx, x, n)
	})
}

// insert puts a node into an empty backend.
func (m *machine) insert(tx *blockgraph.Tx, x *backend, n *blockgraph.Node) error {
	switch {
	case x.dev != nil && !x.dev.cd:
		return qapi.Errorf("Device is not removable")
	case x.dev != nil && x.dev.tray && !x.dev.trayOpen.Load():
		return qapi.Errorf("Tray of the device is not open")
	case m.backends.rootOf(x) != nil:
		return qapi.Errorf("There already is a medium in the device")
	}
	perm, shared := blockgraph.Perm(0), blockgraph.PermAll
	if x.dev != nil {
		x.dev.readOnly = !x.dev.writable || tx.State(n).ReadOnly
		perm, shared = m.devices.perms(x.dev)
	}
	r, err := m.backends.insert(tx, x, n, perm, shared)
	if err != nil {
		return err
	}
	tx.OnCommit(func() { m.backends.setRoot(x, r) })
	return nil
}

// changeMedium opens an image and puts it in place of the present medium.
func (m *machine) changeMedium(ctx context.Context, x *backend, a *changeMedium) error {
	o := qapi.NewObject("read-only", onOff(x.readOnly), "auto-read-only", "on")
	if a.ReadOnlyMode != nil && *a.ReadOnlyMode != "retain" {
		o.Set("read-only", onOff(*a.ReadOnlyMode == "read-only"))
		o.Set("auto-read-only", "off")
	}
	if a.Format != nil {
		o.Set("driver", *a.Format)
	}
	var next *blockgraph.Node
	err := m.update(ctx, "blockdev-change-medium", func(tx *blockgraph.Tx) (err error) {
		if next, err = tx.OpenDrive(a.Filename, o); err == nil {
			tx.SetMonitorOwned(next, true) // until it is inserted
		}
		return err
	})
	if err != nil {
		return err
	}
	if err = m.openTray(x, a.ID); err == nil || x.dev == nil {
		err = m.removeMedium(ctx, x, a.ID)
	}
	insertErr := m.update(ctx, "blockdev-change-medium", func(tx *blockgraph.Tx) error {
		tx.SetMonitorOwned(next, false)
		if err != nil {
			return nil
		}
		return m.insert(tx, x, next)
	})
	if err == nil {
		err = insertErr
	}
	if err == nil && x.dev != nil {
		x.readOnly = next.ReadOnly()
		err = m.closeTray(x)
	}
	return err
}
