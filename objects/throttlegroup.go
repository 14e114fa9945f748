package objects

import (
	"math"

	"blockd/clock"
	"blockd/objects/throttlegroup"
	"blockd/qapi"
)

// ThrottleGroup is an object of type throttle-group.
type ThrottleGroup struct {
	group *throttlegroup.Group
}

// QOMType implements Object.
func (*ThrottleGroup) QOMType() qapi.ObjectType { return qapi.ObjectTypeThrottleGroup }

// Group returns the limits and those who share them. Any goroutine.
func (g *ThrottleGroup) Group() *throttlegroup.Group { return g.group }

// newThrottleGroup makes a group. Where the options give a limit by both of
// its names, the one in `limits` counts.
func newThrottleGroup(clk clock.Clock, p *qapi.ThrottleGroupProperties) (*ThrottleGroup, error) {
	c := throttlegroup.NewConfig()
	if p != nil {
		if err := applyLegacy(&c, p); err != nil {
			return nil, err
		}
		if p.Limits != nil {
			if err := c.Apply(p.Limits); err != nil {
				return nil, err
			}
		}
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &ThrottleGroup{throttlegroup.New(clk, c)}, nil
}

// applyLegacy sets limits that were given by their older names, which begin
// with "x-".
func applyLegacy(c *throttlegroup.Config, p *qapi.ThrottleGroupProperties) error {
	old := throttlegroup.Members{
		throttlegroup.BPSTotal:  {&p.XBPSTotal, &p.XBPSTotalMax, &p.XBPSTotalMaxLength},
		throttlegroup.BPSRead:   {&p.XBPSRead, &p.XBPSReadMax, &p.XBPSReadMaxLength},
		throttlegroup.BPSWrite:  {&p.XBPSWrite, &p.XBPSWriteMax, &p.XBPSWriteMaxLength},
		throttlegroup.IOPSTotal: {&p.XIOPSTotal, &p.XIOPSTotalMax, &p.XIOPSTotalMaxLength},
		throttlegroup.IOPSRead:  {&p.XIOPSRead, &p.XIOPSReadMax, &p.XIOPSReadMaxLength},
		throttlegroup.IOPSWrite: {&p.XIOPSWrite, &p.XIOPSWriteMax, &p.XIOPSWriteMaxLength},
	}
	l := &qapi.ThrottleLimits{IOPSSize: p.XIOPSSize}
	to := throttlegroup.LimitMembers(l)
	for i, m := range old {
		for k := range m {
			v := *m[k]
			if v == nil {
				continue
			}
			if *v < 0 {
				return errNegative
			}
			if k == 2 && *v > math.MaxUint32 {
				return qapi.Errorf("x-%s-max-length value must be in therange [0, %d]", throttlegroup.Names[i], uint32(math.MaxUint32))
			}
			*to[i][k] = v
		}
	}
	if p.XIOPSSize != nil && *p.XIOPSSize < 0 {
		return errNegative
	}
	return c.Apply(l)
}

var errNegative = qapi.Errorf("Property values cannot be negative")

// legacyProperty describes a limit by its older name: readable, and writable
// by object-add only, since limits must change together. name is without "x-".
func legacyProperty(name string) property {
	return property{
		name: "x-" + name, typ: "int",
		get: func(o Object) any {
			c := o.(*ThrottleGroup).group.Config()
			if name == "iops-size" {
				return int64(c.IOPSSize)
			}
			for i, n := range throttlegroup.Names {
				r := c.Rates[i]
				switch name {
				case n:
					return int64(r.Avg)
				case n + "-max":
					return int64(r.Max)
				case n + "-max-length":
					return int64(r.Length)
				}
			}
			panic("objects: no limit " + name)
		},
		set: func(Object, any) error { return qapi.Errorf("Property cannot be set after initialization") },
	}
}

var limitsProperty = property{
	name: "limits", typ: "ThrottleLimits",
	get: func(o Object) any {
		c := o.(*ThrottleGroup).group.Config()
		return c.Limits()
	},
	set: func(o Object, value any) error {
		var a struct {
			Limits qapi.ThrottleLimits `qapi:"limits"`
		}
		if err := qapi.Decode(qapi.NewObject("limits", value), &a); err != nil {
			return err
		}
		return o.(*ThrottleGroup).group.SetLimits(&a.Limits)
	},
}

// The order is the field's.
var throttleGroupProperties = []property{
	legacyProperty("bps-write-max-length"),
	legacyProperty("iops-total-max-length"),
	legacyProperty("iops-size"),
	limitsProperty,
	legacyProperty("bps-total"),
	legacyProperty("iops-read-max-length"),
	legacyProperty("bps-write"),
	legacyProperty("iops-write-max-length"),
	legacyProperty("bps-read-max"),
	legacyProperty("iops-read-max"),
	legacyProperty("bps-total-max"),
	legacyProperty("bps-read-max-length"),
	legacyProperty("iops-read"),
	legacyProperty("bps-read"),
	legacyProperty("bps-write-max"),
	legacyProperty("iops-total-max"),
	legacyProperty("iops-total"),
	legacyProperty("iops-write"),
	legacyProperty("bps-total-max-length"),
	legacyProperty("iops-write-max"),
}
