package main

import (
	"context"
	"slices"
	"time"

	"blockd/clock"
	"blockd/objects/throttlegroup"
	"blockd/qapi"
	"blockd/qmp"
)

// This file limits backends: groups that are made by naming them.

// throttleDrive puts a drive with limits into its group.
func (b *backends) throttleDrive(d *drive) error {
	if d.throttling.Len() == 0 {
		return nil
	}
	name := d.id
	if g, ok := d.throttling.Get("group"); ok {
		name = g.(string)
		d.throttling.Delete("group")
	}
	var l qapi.ThrottleLimits
	if err := qapi.DecodeFlat(d.throttling, &l); err != nil {
		return err
	}
	return b.join(d.backend, name, &l)
}

// join makes a backend a member of a group with these limits.
func (b *backends) join(x *backend, name string, l *qapi.ThrottleLimits) error {
	c := throttlegroup.NewConfig()
	if err := c.Apply(l); err != nil {
		return err
	}
	if err := c.Validate(); err != nil {
		return err
	}
	g := b.groups[name]
	if g == nil {
		var clk clock.Clock = clock.Real()
		if b.m.stepped != nil {
			clk = b.m.stepped
		}
		g = throttlegroup.New(clk, c)
		b.groups[name] = g
	} else if err := g.SetLimits(c.Limits()); err != nil {
		return err
	}
	x.throttle = &throttled{group: name, limits: g, member: g.Join()}
	return nil
}

// maxSettling is how long a request that its limits let pass may take until the
// test goes on without it.
const maxSettling = 2 * time.Second

// settle returns when all requests of limited backends have ended or wait for
// their limits: an emulator's loop does all that there is to do before it takes
// the next command.
func (b *backends) settle(ctx context.Context) {
	clk := clock.Real()
	busy := func(x *backend) bool {
		return x.throttle != nil && x.throttle.aio.Load() > int64(x.throttle.member.Waiting())
	}
	for begun := clk.Now(); clock.Since(clk, begun) < maxSettling; {
		b.mu.Lock()
		list := slices.Clone(b.list)
		b.mu.Unlock()
		if !slices.ContainsFunc(list, busy) || clk.Sleep(ctx, time.Millisecond) != nil {
			return
		}
	}
}

// describe tells of the limits in query-block.
func (t *throttled) describe(info *qapi.BlockDeviceInfo) {
	if t == nil {
		return
	}
	c := t.limits.Config()
	for _, r := range []struct {
		to    *int64
		max   **int64
		limit throttlegroup.Limit
	}{
		{&info.BPS, &info.BPSMax, throttlegroup.BPSTotal},
		{&info.BPSRd, &info.BPSRdMax, throttlegroup.BPSRead},
		{&info.BPSWr, &info.BPSWrMax, throttlegroup.BPSWrite},
		{&info.IOPS, &info.IOPSMax, throttlegroup.IOPSTotal},
		{&info.IOPSRd, &info.IOPSRdMax, throttlegroup.IOPSRead},
		{&info.IOPSWr, &info.IOPSWrMax, throttlegroup.IOPSWrite},
	} {
		rate := c.Rates[r.limit]
		*r.to = int64(rate.Avg)
		if rate.Max != 0 {
			max := int64(rate.Max)
			*r.max = &max
		}
	}
	if c.IOPSSize != 0 {
		size := int64(c.IOPSSize)
		info.IOPSSize = &size
	}
	info.Group = &t.group
}

// ioThrottle is the argument of block_set_io_throttle.
type ioThrottle struct {
	Device *string `qapi:"device"`
	ID     *string `qapi:"id"`
	BPS    int64   `qapi:"bps"`
	BPSRd  int64   `qapi:"bps_rd"`
	BPSWr  int64   `qapi:"bps_wr"`
	IOPS   int64   `qapi:"iops"`
	IOPSRd int64   `qapi:"iops_rd"`
	IOPSWr int64   `qapi:"iops_wr"`

	BPSMax    *int64 `qapi:"bps_max"`
	BPSRdMax  *int64 `qapi:"bps_rd_max"`
	BPSWrMax  *int64 `qapi:"bps_wr_max"`
	IOPSMax   *int64 `qapi:"iops_max"`
	IOPSRdMax *int64 `qapi:"iops_rd_max"`
	IOPSWrMax *int64 `qapi:"iops_wr_max"`

	BPSMaxLength    *int64  `qapi:"bps_max_length"`
	BPSRdMaxLength  *int64  `qapi:"bps_rd_max_length"`
	BPSWrMaxLength  *int64  `qapi:"bps_wr_max_length"`
	IOPSMaxLength   *int64  `qapi:"iops_max_length"`
	IOPSRdMaxLength *int64  `qapi:"iops_rd_max_length"`
	IOPSWrMaxLength *int64  `qapi:"iops_wr_max_length"`
	IOPSSize        *int64  `qapi:"iops_size"`
	Group           *string `qapi:"group"`
}

func (a *ioThrottle) limits() *qapi.ThrottleLimits {
	return &qapi.ThrottleLimits{
		BPSTotal: &a.BPS, BPSRead: &a.BPSRd, BPSWrite: &a.BPSWr,
		IOPSTotal: &a.IOPS, IOPSRead: &a.IOPSRd, IOPSWrite: &a.IOPSWr,
		BPSTotalMax: a.BPSMax, BPSReadMax: a.BPSRdMax, BPSWriteMax: a.BPSWrMax,
		IOPSTotalMax: a.IOPSMax, IOPSReadMax: a.IOPSRdMax, IOPSWriteMax: a.IOPSWrMax,
		BPSTotalMaxLength: a.BPSMaxLength, BPSReadMaxLength: a.BPSRdMaxLength, BPSWriteMaxLength: a.BPSWrMaxLength,
		IOPSTotalMaxLength: a.IOPSMaxLength, IOPSReadMaxLength: a.IOPSRdMaxLength, IOPSWriteMaxLength: a.IOPSWrMaxLength,
		IOPSSize: a.IOPSSize,
	}
}

func (m *machine) registerThrottle(r *qmp.Registry) {
	qmp.Register(r, "block_set_io_throttle", qmp.CommandOptions{}, func(_ *qmp.Context, a *ioThrottle) (struct{}, error) {
		x, err := m.backends.find(a.Device, a.ID)
		if err != nil {
			return struct{}{}, err
		}
		if m.backends.present(x) == nil {
			return struct{}{}, qapi.Errorf("Device has no medium")
		}
		l := a.limits()
		c := throttlegroup.NewConfig()
		if err := c.Apply(l); err != nil {
			return struct{}{}, err
		}
		if x.throttle != nil {
			x.throttle.member.Release()
			x.throttle = nil
		}
		if !limited(c) {
			return struct{}{}, nil
		}
		name := x.name
		switch {
		case a.Group != nil:
			name = *a.Group
		case name == "" && x.dev != nil:
			name = x.dev.qdev()
		}
		return struct{}{}, m.backends.join(x, name, l)
	})
}

func limited(c throttlegroup.Config) bool {
	for _, r := range c.Rates {
		if r.Avg != 0 {
			return true
		}
	}
	return false
}
