package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/objects"
	"blockd/qapi"
	"blockd/qmp"
)

// This file pretends that there are guest devices: they use a backend as a
// guest's disk would, and do nothing with it.

// kinds are the devices that the suite asks for, by the names that it gives
// them.
var kinds = map[string]kind{
	"virtio-blk": {virtio: true, disk: true}, "virtio-blk-pci": {virtio: true, disk: true},
	"scsi-hd": {disk: true}, "scsi-cd": {cd: true, tray: true}, "ide-hd": {disk: true}, "ide-cd": {cd: true, tray: true},
	"floppy":      {cd: true, writable: true},
	"virtio-scsi": {bus: true}, "virtio-scsi-pci": {bus: true}, "lsi53c895a": {bus: true}, "pci-bridge": {bus: true},
}

type kind struct {
	disk     bool // has a fixed medium
	cd       bool // its medium can be exchanged
	writable bool // although cd
	tray     bool
	bus      bool // has no medium
	virtio   bool // the disk is a part of it, and it goes at a reset only
}

// device is one of them.
type device struct {
	id, path string
	driver   string
	kind
	drive    *backend
	own      bool // the backend was made for it
	legacy   bool // the backend came with -drive, and goes with it
	shareRW  bool
	readOnly bool
	iothread string
	release  func() // of the iothread
	trayOpen atomic.Bool
	leaving  bool // at the next reset
}

func (d *device) removable() bool { return d.cd }
func (d *device) hasTray() bool   { return d.tray }

func (d *device) reportsStatus() bool { return d.disk || d.driver == "scsi-cd" || d.driver == "ide-cd" }

// diskPath is the path of the part of it that is the disk.
func (d *device) diskPath() string {
	if d.virtio {
		return d.path + "/virtio-backend"
	}
	return d.path
}

// qdev is how queries name it.
func (d *device) qdev() string {
	if d.id != "" && !d.virtio {
		return d.id
	}
	return d.diskPath()
}

// devices are all of them.
type devices struct {
	m *machine

	mu        sync.Mutex //blockd:short
	list      []*device
	anonymous int
}

func newDevices(m *machine) *devices { return &devices{m: m} }

func deviceHelp() string {
	var b strings.Builder
	for _, n := range []string{"ide-cd", "ide-hd", "floppy", "scsi-cd", "scsi-hd", "virtio-blk-pci", "virtio-blk-device", "virtio-scsi-pci", "lsi53c895a", "pci-bridge"} {
		fmt.Fprintf(&b, "name %q, bus x", n)
		switch n {
		case "virtio-blk-pci":
			b.WriteString(`, alias "virtio-blk"`)
		case "virtio-scsi-pci":
			b.WriteString(`, alias "virtio-scsi"`)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (v *devices) register(r *qmp.Registry) {
	qmp.RegisterEvent[deviceDeleted](r, "DEVICE_DELETED")
	qmp.Register(r, "device_add", qmp.CommandOptions{}, func(c *qmp.Context, a *deviceAdd) (struct{}, error) {
		return struct{}{}, v.add(c, a)
	})
	qmp.Register(r, "device_del", qmp.CommandOptions{}, func(c *qmp.Context, a *idArg) (struct{}, error) {
		return struct{}{}, v.del(c, a.ID)
	})
	qmp.Extend(r, "qom-set", func(c *qmp.Context, a *qapi.QomSetArg, next func() (qapi.Empty, error)) (qapi.Empty, error) {
		if d := v.find(a.Path); d != nil && a.Property == "drive" {
			name, _ := a.Value.(string)
			return qapi.Empty{}, v.exchange(c, d, name)
		}
		return next()
	})
}

// deviceAdd is the argument of device_add, as far as the suite uses it.
type deviceAdd struct {
	Driver     string `qapi:"driver"`
	ID         string `qapi:"id,optional"`
	Bus        string `qapi:"bus,optional"`
	Drive      string `qapi:"drive,optional"`
	Iothread   string `qapi:"iothread,optional"`
	ShareRW    any    `qapi:"share-rw,optional"`
	WriteCache string `qapi:"write-cache,optional"`
	Addr       string `qapi:"addr,optional"`
	BootIndex  any    `qapi:"bootindex,optional"`
	ChassisNr  any    `qapi:"chassis_nr,optional"`
}

type idArg struct {
	ID string `qapi:"id"`
}

type deviceDeleted struct {
	Device *string `qapi:"device"`
	Path   string  `qapi:"path"`
}

// addOption works off -device.
func (v *devices) addOption(value string) error {
	o := &qapi.Object{}
	if strings.HasPrefix(value, "{") {
		parsed, err := qapi.ParseJSON([]byte(value))
		if err != nil {
			return err
		}
		o, _ = parsed.(*qapi.Object)
	} else {
		for _, p := range parsePairs(value, "driver") {
			o.Set(p.key, p.value)
		}
	}
	var a deviceAdd
	if err := qapi.Decode(o, &a); err != nil {
		return err
	}
	return v.add(v.m.life, &a)
}

func (v *devices) add(ctx context.Context, a *deviceAdd) error {
	k, ok := kinds[a.Driver]
	if !ok {
		return qapi.Errorf("'%s' is not a valid device model name", a.Driver)
	}
	d := &device{id: a.ID, driver: a.Driver, kind: k, iothread: a.Iothread}
	d.shareRW = a.ShareRW == true || a.ShareRW == "on"
	if d.id != "" && v.find(d.id) != nil {
		return qapi.Errorf("Duplicate device ID '%s'", d.id)
	}
	if a.Bus != "" && !k.bus {
		hba := v.hba(a.Bus)
		if hba == nil && strings.HasSuffix(a.Bus, ".0") && !strings.HasPrefix(a.Bus, "scsi.") && !strings.HasPrefix(a.Bus, "pci.") && !strings.HasPrefix(a.Bus, "ide.") {
			return qapi.Errorf("Bus '%s' not found", a.Bus)
		}
		if hba != nil {
			d.iothread = hba.iothread
		}
	} else if !k.bus && !k.virtio {
		if hba := v.hba(""); hba != nil {
			d.iothread = hba.iothread
		}
	}
	if d.path = "/machine/peripheral/" + d.id; d.id == "" {
		v.mu.Lock()
		d.path = fmt.Sprintf("/machine/peripheral-anon/device[%d]", v.anonymous)
		v.anonymous++
		v.mu.Unlock()
	}
	if k.bus {
		if d.iothread != "" {
			if d.release, ok = v.m.daemon.UseIothread(d.iothread); !ok {
				return objects.NotFound(d.iothread)
			}
		}
		v.m.daemon.Loop.Do(func() { v.enlist(d) })
		return nil
	}
	if a.Drive == "" && !d.cd {
		return qapi.Errorf("drive property not set")
	}
	d.drive = v.m.backends.byName(a.Drive)
	if d.drive == nil {
		d.drive, d.own = &backend{guest: d.qdev()}, true
	}
	if err := v.attach(ctx, d, a.Drive); err != nil {
		return err
	}
	switch a.WriteCache {
	case "on", "off":
		d.drive.writeThrough = a.WriteCache == "off"
	}
	return nil
}

// attachTo makes the device that a drive's interface asks for.
func (v *devices) attachTo(x *backend, driver string) error {
	d := &device{driver: driver, kind: kinds[driver], drive: x, legacy: true}
	place := "unattached" // the board's own
	if d.virtio {
		place = "peripheral-anon"
	}
	v.mu.Lock()
	d.path = fmt.Sprintf("/machine/%s/device[%d]", place, v.anonymous)
	v.anonymous++
	v.mu.Unlock()
	return v.attach(v.m.life, d, x.name)
}

// attach gives the device its backend, with a node in it if the name is that of
// one.
func (v *devices) attach(ctx context.Context, d *device, drive string) error {
	x := d.drive
	return v.m.update(ctx, "device_add", func(tx *blockgraph.Tx) error {
		r := v.m.backends.rootOf(x)
		var n *blockgraph.Node
		switch {
		case x.dev != nil:
			return qapi.Errorf("Drive '%s' is already in use by another block device", drive)
		case d.own && drive != "":
			if n = tx.Find(drive); n == nil {
				return qapi.Errorf("Property '%s.drive' can't find value '%s'", d.driver, drive)
			}
		case r != nil:
			n = r.Node()
		case !d.cd:
			return qapi.Errorf("Device needs media, but drive is empty")
		}
		if n != nil {
			d.readOnly = d.cd && !d.writable || tx.State(n).ReadOnly
			if d.driver == "ide-hd" {
				d.readOnly = false // it has no such disks
			}
			perm, shared := v.perms(d)
			var err error
			if err = v.move(tx, d, n); err != nil {
				return err
			}
			if r == nil {
				r, err = v.m.backends.insert(tx, x, n, perm, shared)
			} else {
				err = tx.SetRootPerms(r, perm, shared)
			}
			if err != nil {
				return err
			}
			tx.FixIothread(r, true)
		}
		tx.OnCommit(func() {
			if d.own {
				v.m.backends.enlist(x, r)
			}
			x.dev = d
			v.enlist(d)
		})
		return nil
	})
}

// move has a device's node belong to its thread.
func (v *devices) move(tx *blockgraph.Tx, d *device, n *blockgraph.Node) error {
	if d.iothread == "" {
		return nil
	}
	release, ok := v.m.daemon.UseIothread(d.iothread)
	if !ok {
		return objects.NotFound(d.iothread)
	}
	return tx.SetIothread(n, tx.UseIothread(d.iothread, release))
}

// perms are what a device needs and shares.
func (v *devices) perms(d *device) (perm, shared blockgraph.Perm) {
	perm = blockgraph.PermConsistentRead
	if !d.readOnly {
		perm |= blockgraph.PermWrite
	}
	if v.m.incoming {
		return perm, blockgraph.PermAll // no guest runs
	}
	shared = blockgraph.PermConsistentRead | blockgraph.PermWriteUnchanged
	if d.disk {
		shared |= blockgraph.PermResize
	}
	if d.shareRW {
		shared |= blockgraph.PermWrite
	}
	return perm, shared
}

// exchange replaces what a device has in it by another node.
func (v *devices) exchange(ctx context.Context, d *device, name string) error {
	return v.m.update(ctx, "qom-set", func(tx *blockgraph.Tx) error {
		n := tx.Find(name)
		r := v.m.backends.rootOf(d.drive)
		if n == nil || r == nil {
			return qapi.Errorf("Property '%s.drive' can't find value '%s'", d.driver, name)
		}
		if err := tx.Drain(r.Node()); err != nil {
			return err
		}
		return tx.SetRootNode(r, n)
	})
}

// del takes a device away; one that a guest would have to let go stays until the
// next reset.
func (v *devices) del(ctx context.Context, id string) error {
	d := v.find(id)
	if d == nil {
		return objects.NotFound(id)
	}
	if d.virtio {
		if d.leaving {
			return qapi.Errorf("Device %s is already in the process of unplug", id)
		}
		d.leaving = true
		return nil
	}
	return v.unplug(ctx, d)
}

// reset lets those go that were asked to.
func (v *devices) reset(ctx context.Context) error {
	for _, d := range v.snapshot() {
		if d.leaving {
			if err := v.unplug(ctx, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *devices) unplug(ctx context.Context, d *device) error {
	if x := d.drive; x != nil {
		if d.legacy || x.dinfo {
			v.cancelJobs(ctx, x)
		}
		err := v.m.update(ctx, "device_del", func(tx *blockgraph.Tx) error {
			r := v.m.backends.rootOf(x)
			if r != nil {
				var err error
				if d.own || d.legacy || x.dinfo || x.name == "" {
					err = tx.CloseRoot(r)
				} else {
					tx.FixIothread(r, false)
					err = tx.SetRootPerms(r, 0, blockgraph.PermAll)
				}
				if err != nil {
					return err
				}
			}
			tx.OnCommit(func() {
				x.dev = nil
				if d.own || d.legacy || x.dinfo {
					v.m.backends.delist(x)
				}
			})
			return nil
		})
		if err != nil {
			return err
		}
	}
	v.delist(d)
	if d.release != nil {
		d.release()
	}
	if d.virtio {
		v.m.emit("DEVICE_DELETED", &deviceDeleted{Path: d.diskPath()})
	}
	e := &deviceDeleted{Path: d.path}
	if d.id != "" {
		e.Device = &d.id
	}
	v.m.emit("DEVICE_DELETED", e)
	return nil
}

// cancelJobs cancels the jobs over a drive that is about to go.
func (v *devices) cancelJobs(ctx context.Context, x *backend) {
	var ids []string
	v.m.daemon.Loop.Do(func() {
		r := v.m.backends.rootOf(x)
		if r == nil || r.Node() == nil {
			return
		}
		for _, e := range r.Node().Parents() {
			if o := e.Root(); o != nil && o.Job() != "" {
				ids = append(ids, o.Job())
			}
		}
	})
	for _, id := range ids {
		_, _ = qmp.Call[qapi.JobIDArg, struct{}](ctx, v.m.daemon.Registry, "job-cancel", &qapi.JobIDArg{ID: id})
	}
}

//blockd:global
func (v *devices) enlist(d *device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = append(v.list, d)
}

func (v *devices) delist(d *device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, x := range v.list {
		if x == d {
			v.list = append(v.list[:i:i], v.list[i+1:]...)
			return
		}
	}
}

func (v *devices) snapshot() []*device {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]*device{}, v.list...)
}

// find returns a device by its id or path, the disk of one by its path.
func (v *devices) find(name string) *device {
	for _, d := range v.snapshot() {
		if d.id == name && name != "" || d.path == name || d.diskPath() == name || strings.HasSuffix(d.diskPath(), "/"+name) && strings.Contains(name, "/") {
			return d
		}
	}
	return nil
}

// hba returns the host adapter of a bus; "": the newest.
func (v *devices) hba(bus string) *device {
	var found *device
	for _, d := range v.snapshot() {
		if d.bus && d.driver != "pci-bridge" && (bus == "" || d.id != "" && strings.TrimSuffix(bus, ".0") == d.id) {
			found = d
		}
	}
	return found
}

// forget lets iothreads go, at the end.
func (v *devices) forget() {
	for _, d := range v.snapshot() {
		if d.release != nil {
			d.release()
		}
		v.delist(d)
	}
}
