package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
	"blockd/qmp"
)

// This file has the human monitor's commands about disks: each is said by way of
// QMP's.

// letters takes the leading one-letter options off a command's words.
func letters(args []string, known string) (set map[byte]bool, rest []string, ok bool) {
	set = map[byte]bool{}
	for len(args) > 0 && len(args[0]) == 2 && args[0][0] == '-' {
		if strings.IndexByte(known, args[0][1]) < 0 {
			return nil, nil, false
		}
		set[args[0][1]] = true
		args = args[1:]
	}
	return set, args, true
}

func (m *machine) hmpInfo(ctx context.Context, args []string) (string, error) {
	if len(args) == 0 {
		return "", errUsage
	}
	switch args[0] {
	case "block":
		set, rest, ok := letters(args[1:], "nv")
		if !ok || len(rest) > 1 || set['v'] {
			return "", errUsage
		}
		return m.hmpInfoBlock(ctx, set['n'], strings.Join(rest, ""))
	case "block-jobs":
		return m.hmpInfoJobs(ctx)
	}
	return "unknown command: 'info " + args[0] + "'\n", nil
}

// hmpInfoBlock tells of drives, or of nodes if asked for or if no drive has that
// name; "" is all.
func (m *machine) hmpInfoBlock(ctx context.Context, nodes bool, name string) (string, error) {
	var b strings.Builder
	if !nodes {
		drives, err := m.backends.QueryBlock(ctx)
		if err != nil {
			return "", err
		}
		for i := range drives {
			d := &drives[i]
			if name != "" && d.Device != name {
				continue
			}
			if i > 0 {
				b.WriteByte('\n')
			}
			describeDrive(&b, d)
		}
		if name == "" || b.Len() > 0 {
			return b.String(), nil
		}
	}
	for i, n := range m.nodes() {
		if name != "" && n.Name() != name {
			continue
		}
		info, err := m.daemon.Monitor.NodeInfo(ctx, n)
		if err != nil {
			return "", err
		}
		if info == nil {
			continue // it has gone
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(info.NodeName)
		describeMedium(&b, info, "")
	}
	return b.String(), nil
}

func describeDrive(b *strings.Builder, d *qapi.BlockInfo) {
	switch {
	case d.Device != "" && d.Inserted != nil:
		fmt.Fprintf(b, "%s (%s)", d.Device, d.Inserted.NodeName)
	case d.Device != "":
		b.WriteString(d.Device)
	case d.Inserted != nil:
		b.WriteString(d.Inserted.NodeName)
	case d.Qdev != nil:
		b.WriteString(*d.Qdev)
	}
	var about strings.Builder
	if d.Qdev != nil {
		fmt.Fprintf(&about, "    Attached to:      %s\n", *d.Qdev)
	}
	if s := d.IOStatus; s != nil && *s != qapi.BlockDeviceIoStatusOk {
		fmt.Fprintf(&about, "    I/O status:       %s\n", *s)
	}
	if d.Removable {
		locked, tray := "not ", "closed"
		if d.Locked {
			locked = ""
		}
		if d.TrayOpen != nil && *d.TrayOpen {
			tray = "open"
		}
		fmt.Fprintf(&about, "    Removable device: %slocked, tray %s\n", locked, tray)
	}
	if d.Inserted == nil {
		b.WriteString(": [not inserted]\n" + about.String())
		return
	}
	describeMedium(b, d.Inserted, about.String())
}

// describeMedium tells of a node; about stands after the line that names it.
func describeMedium(b *strings.Builder, i *qapi.BlockDeviceInfo, about string) {
	fmt.Fprintf(b, ": %s (%s", i.File, i.Drv)
	if i.RO {
		b.WriteString(", read-only")
	}
	if i.Encrypted {
		b.WriteString(", encrypted")
	}
	b.WriteString(")\n" + about + "    Cache mode:       ")
	if i.Cache.Writeback {
		b.WriteString("writeback")
	} else {
		b.WriteString("writethrough")
	}
	if i.Cache.Direct {
		b.WriteString(", direct")
	}
	if i.Cache.NoFlush {
		b.WriteString(", ignore flushes")
	}
	b.WriteByte('\n')
	if i.BackingFile != nil {
		fmt.Fprintf(b, "    Backing file:     %s (chain depth: %d)\n", *i.BackingFile, i.BackingFileDepth)
	}
	if i.DetectZeroes != qapi.BlockdevDetectZeroesOptionsOff {
		fmt.Fprintf(b, "    Detect zeroes:    %s\n", i.DetectZeroes)
	}
}

func (m *machine) hmpInfoJobs(ctx context.Context) (string, error) {
	list, err := qmp.Call[struct{}, []any](ctx, m.daemon.Registry, "query-block-jobs", &struct{}{})
	if err != nil {
		return "", err
	}
	if len(list) == 0 {
		return "No active jobs\n", nil
	}
	var b strings.Builder
	for _, j := range list {
		var of [5]any
		for i, key := range []string{"type", "device", "offset", "len", "speed"} {
			of[i], _ = j.(*qapi.Object).Get(key)
		}
		fmt.Fprintf(&b, "Type %v, device %v: Completed %v of %v bytes, speed limit %v bytes/s\n", of[:]...)
	}
	return b.String(), nil
}

// hmpCommit merges a drive's image into its backing file, and returns when that
// is done.
func (m *machine) hmpCommit(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", errUsage
	}
	const id = "hmp-commit"
	keep, job := false, id
	a := &qapi.BlockCommitArg{JobID: &job, Device: args[0], AutoDismiss: &keep}
	err := m.update(ctx, "commit", func(tx *blockgraph.Tx) error {
		n, err := tx.LookUp(&args[0], &args[0])
		if err != nil {
			return err
		}
		if base := n.BackingChain(); base != nil {
			name := base.Name()
			a.BaseNode = &name
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if _, err := qmp.Call[qapi.BlockCommitArg, struct{}](ctx, m.daemon.Registry, "block-commit", a); err != nil {
		return "", err
	}
	return "", m.finish(ctx, id)
}

// finish has a job end that may have to be told to, and dismisses it.
func (m *machine) finish(ctx context.Context, id string) error {
	arg := &qapi.JobIDArg{ID: id}
	for {
		list, err := qmp.Call[struct{}, []any](ctx, m.daemon.Registry, "query-jobs", &struct{}{})
		if err != nil {
			return err
		}
		for _, v := range list {
			j := v.(*qapi.Object)
			if name, _ := j.Get("id"); name != id {
				continue
			}
			status, _ := j.Get("status")
			switch status {
			case string(qapi.JobStatusReady):
				// It may have been told already.
				_, _ = qmp.Call[qapi.JobIDArg, struct{}](ctx, m.daemon.Registry, "job-complete", arg)
			case string(qapi.JobStatusConcluded):
				_, err := qmp.Call[qapi.JobIDArg, struct{}](ctx, m.daemon.Registry, "job-dismiss", arg)
				if text, ok := j.Get("error"); ok && err == nil {
					err = qapi.Errorf("%v", text)
				}
				return err
			}
		}
		if err := clock.Real().Sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

func (m *machine) hmpBackup(ctx context.Context, args []string) (string, error) {
	set, rest, ok := letters(args, "nfc")
	if !ok || len(rest) < 2 || len(rest) > 3 {
		return "", errUsage
	}
	a := &qapi.DriveBackup{Target: rest[1]}
	a.Device, a.Sync = rest[0], qapi.MirrorSyncModeTop
	if set['f'] {
		a.Sync = qapi.MirrorSyncModeFull
	}
	if set['c'] {
		compress := true
		a.Compress = &compress
	}
	if len(rest) == 3 {
		a.Format = &rest[2]
	}
	a.Mode = newImage(set['n'])
	_, err := qmp.Call[qapi.DriveBackup, struct{}](ctx, m.daemon.Registry, "drive-backup", a)
	return "", err
}

func newImage(existing bool) *qapi.NewImageMode {
	mode := qapi.NewImageModeAbsolutePaths
	if existing {
		mode = qapi.NewImageModeExisting
	}
	return &mode
}

func (m *machine) hmpSnapshot(ctx context.Context, args []string) (string, error) {
	set, rest, ok := letters(args, "n")
	if !ok || len(rest) < 2 || len(rest) > 3 {
		return "", errUsage
	}
	a := &qapi.BlockdevSnapshotSync{Device: &rest[0], SnapshotFile: rest[1], Mode: newImage(set['n'])}
	if len(rest) == 3 {
		a.Format = &rest[2]
	}
	_, err := qmp.Call[qapi.BlockdevSnapshotSync, struct{}](ctx, m.daemon.Registry, "blockdev-snapshot-sync", a)
	return "", err
}

func (m *machine) hmpServerStart(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 || !strings.HasPrefix(args[0], "unix:") {
		return "", errUsage
	}
	a := &qapi.NbdServerStartArg{Addr: qapi.SocketAddressLegacy{Type: qapi.SocketAddressTypeUnix, Unix: &qapi.UnixSocketAddress{Path: args[0][len("unix:"):]}}}
	_, err := qmp.Call[qapi.NbdServerStartArg, struct{}](ctx, m.daemon.Registry, "nbd-server-start", a)
	return "", err
}

func (m *machine) hmpServerAdd(ctx context.Context, args []string) (string, error) {
	set, rest, ok := letters(args, "w")
	if !ok || len(rest) < 1 || len(rest) > 2 {
		return "", errUsage
	}
	writable := set['w']
	a := &qapi.NbdServerAddArg{Device: rest[0], Writable: &writable}
	if len(rest) == 2 {
		a.Name = &rest[1]
	}
	_, err := qmp.Call[qapi.NbdServerAddArg, struct{}](ctx, m.daemon.Registry, "nbd-server-add", a)
	return "", err
}
