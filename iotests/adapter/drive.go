package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"blockd/blockgraph"
	"blockd/objects"
	"blockd/qapi"
)

// This file makes drives out of -drive: a backend with its medium, and for some
// interfaces a device.

// renamed are older names of options.
var renamed = map[string]string{
	"iops": "throttling.iops-total", "iops_rd": "throttling.iops-read", "iops_wr": "throttling.iops-write",
	"bps": "throttling.bps-total", "bps_rd": "throttling.bps-read", "bps_wr": "throttling.bps-write",
	"iops_max": "throttling.iops-total-max", "iops_rd_max": "throttling.iops-read-max", "iops_wr_max": "throttling.iops-write-max",
	"bps_max": "throttling.bps-total-max", "bps_rd_max": "throttling.bps-read-max", "bps_wr_max": "throttling.bps-write-max",
	"iops_size": "throttling.iops-size", "group": "throttling.group", "readonly": "read-only",
}

// cacheMode is what `cache=` stands for.
type cacheMode struct{ writeback, direct, noFlush bool }

var cacheModes = map[string]cacheMode{
	"none": {true, true, false}, "off": {true, true, false}, "writeback": {true, false, false},
	"writethrough": {false, false, false}, "directsync": {false, true, false}, "unsafe": {true, false, true},
}

func parseCacheMode(name string) (cacheMode, error) {
	mode, ok := cacheModes[name]
	if !ok {
		return mode, qapi.Errorf("invalid cache option")
	}
	return mode, nil
}

// drive is a parsed -drive.
type drive struct {
	iface, media string
	file         string
	options      *qapi.Object // of the node, flat
	throttling   *qapi.Object // of the backend
	backend      *backend
	id           string
}

// legacy are options with which -drive hda=FILE and its kin stand for a drive.
var legacy = map[string]string{"hda": "ide", "fda": "floppy", "fdb": "floppy"}

// addDrive works off -drive, -hda, -fda and -fdb.
func (b *backends) addDrive(name, value string) error {
	pairs := parsePairs(value, "")
	if iface, ok := legacy[name]; ok {
		pairs = []pair{{"if", iface}, {"file", value}}
	}
	d, err := b.parseDrive(pairs)
	if err != nil {
		return err
	}
	if err := b.openDrive(d); err != nil {
		return err
	}
	switch d.iface {
	case "virtio":
		return b.m.devices.attachTo(d.backend, "virtio-blk-pci")
	case "ide":
		kind := "ide-hd"
		if d.media == "cdrom" {
			kind = "ide-cd"
		}
		return b.m.devices.attachTo(d.backend, kind)
	case "floppy":
		return b.m.devices.attachTo(d.backend, "floppy")
	}
	return nil
}

func (b *backends) parseDrive(pairs []pair) (*drive, error) {
	d := &drive{iface: "ide", media: "disk", options: &qapi.Object{}, throttling: &qapi.Object{}, backend: &backend{dinfo: true}}
	cache := ""
	hasCache := map[string]bool{}
	for _, p := range pairs {
		key := p.key
		if to, ok := renamed[key]; ok {
			if slices.ContainsFunc(pairs, func(q pair) bool { return q.key == to }) {
				return nil, qapi.Errorf("'%s' and its alias '%s' can't be used at the same time", to, key)
			}
			key = to
		}
		switch {
		case key == "if":
			d.iface = p.value
		case key == "media":
			if p.value != "disk" && p.value != "cdrom" {
				return nil, qapi.Errorf("'%s' invalid media", p.value)
			}
			d.media = p.value
		case key == "file":
			d.file = p.value
		case key == "id":
			d.id = p.value
		case key == "format" && slices.ContainsFunc(pairs, func(q pair) bool { return q.key == "driver" }):
			return nil, qapi.Errorf("Cannot specify both 'driver' and 'format'")
		case key == "format":
			d.options.Set("driver", p.value)
		case key == "aio", key == "index", key == "unit", key == "bus", key == "werror", key == "rerror":
		case strings.HasPrefix(key, "stats-"):
		case key == "cache":
			cache = p.value
		case key == "cache.writeback":
			d.backend.writeThrough = p.value == "off"
			hasCache[key] = true
		case strings.HasPrefix(key, "throttling."):
			d.throttling.Set(strings.TrimPrefix(key, "throttling."), p.value)
		default:
			hasCache[key] = true
			d.options.Set(key, p.value)
		}
	}
	if cache != "" {
		mode, err := parseCacheMode(cache)
		if err != nil {
			return nil, err
		}
		if !hasCache["cache.writeback"] {
			d.backend.writeThrough = !mode.writeback
		}
		if !hasCache["cache.direct"] {
			d.options.Set("cache.direct", onOff(mode.direct))
		}
		if !hasCache["cache.no-flush"] {
			d.options.Set("cache.no-flush", onOff(mode.noFlush))
		}
	}
	ro, _ := d.options.Get("read-only")
	d.backend.readOnly = ro == "on" || d.media == "cdrom"
	d.name(b)
	return d, nil
}

// name gives a drive without an id one, counted per interface.
func (d *drive) name(b *backends) {
	n := b.counts[d.iface]
	b.counts[d.iface]++
	if d.id == "" {
		kind := "-hd"
		if d.media == "cdrom" {
			kind = "-cd"
		}
		switch d.iface {
		case "ide":
			d.id = fmt.Sprintf("ide%d%s%d", n/2, kind, n%2)
		case "scsi":
			d.id = fmt.Sprintf("scsi%d%s%d", n/7, kind, n%7)
		default:
			d.id = fmt.Sprintf("%s%d", d.iface, n)
		}
	}
	d.backend.name = d.id
}

// openDrive opens the medium, if there is one, and enlists the backend.
func (b *backends) openDrive(d *drive) error {
	if b.byName(d.id) != nil {
		return qapi.Errorf("Device with id '%s' already exists", d.id)
	}
	if err := b.throttleDrive(d); err != nil {
		return err
	}
	empty := d.file == "" && !slicesContainsOther(d.options)
	return b.m.update(b.m.life, "drive_add", func(tx *blockgraph.Tx) error {
		if !empty && tx.Find(d.id) != nil {
			return qapi.Errorf("Device name '%s' conflicts with an existing node name", d.id)
		}
		var r *blockgraph.Root
		if !empty {
			d.options.Set("read-only", onOff(d.backend.readOnly))
			if !d.options.Has("auto-read-only") {
				d.options.Set("auto-read-only", "on")
			}
			n, err := tx.OpenDrive(d.file, d.options)
			if err != nil {
				return err
			}
			if r, err = b.insert(tx, d.backend, n, blockgraph.PermConsistentRead, blockgraph.PermAll); err != nil {
				return err
			}
		}
		tx.OnCommit(func() { b.enlist(d.backend, r) })
		return nil
	})
}

// slicesContainsOther tells whether there are options that are not only about
// how a medium will be opened.
func slicesContainsOther(o *qapi.Object) bool {
	for k := range o.All() {
		switch k {
		case "read-only", "auto-read-only", "cache.direct", "cache.no-flush", "detect-zeroes":
		default:
			return true
		}
	}
	return false
}

// deleteDrive takes a drive away; a device that uses it stays without.
func (b *backends) deleteDrive(ctx context.Context, id string) error {
	x := b.byName(id)
	if x == nil {
		return objects.NotFound(id)
	}
	return b.m.update(ctx, "drive_del", func(tx *blockgraph.Tx) error {
		if r := b.rootOf(x); r != nil {
			if err := tx.CheckBlocked(r.Node(), blockgraph.OpDriveDel); err != nil {
				return err
			}
			if err := tx.CloseRoot(r); err != nil {
				return err
			}
		}
		tx.OnCommit(func() {
			if x.dev != nil {
				b.setRoot(x, nil)
			} else {
				b.delist(x)
			}
		})
		return nil
	})
}
