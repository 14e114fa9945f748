package throttlegroup

import (
	"math"

	"blockd/qapi"
)

// Limit names one of the six limits of a group.
type Limit int

// The limits. A request counts against the total and against that of its
// direction; a group sets one or the other.
const (
	BPSTotal Limit = iota
	BPSRead
	BPSWrite
	IOPSTotal
	IOPSRead
	IOPSWrite
	limitCount
)

// ValueMax is the highest rate, per second (the field: THROTTLE_VALUE_MAX). A
// burst may not be longer than that many bytes or requests either.
const ValueMax = 1_000_000_000_000_000

// Rate is one limit: Avg bytes or requests per second in the long run, Max per
// second in bursts that last for up to Length seconds. Zero is no limit, and
// no bursts.
type Rate struct {
	Avg, Max, Length uint64
}

// Config is all limits of a group. Make one with NewConfig: a Length of zero
// is not valid.
type Config struct {
	Rates [limitCount]Rate
	// IOPSSize is how many bytes make a request count as one; longer ones count
	// by their length. Zero: each counts as one.
	IOPSSize uint64
}

// NewConfig returns a Config without limits.
func NewConfig() Config {
	var c Config
	for i := range c.Rates {
		c.Rates[i].Length = 1
	}
	return c
}

// limited tells whether any limit is set.
func (c *Config) limited() bool {
	for i := range c.Rates {
		if c.Rates[i].Avg > 0 {
			return true
		}
	}
	return false
}

// Members are where a rate is in a struct of options: average, maximum and
// length of bursts, by Limit.
type Members [limitCount][3]**int64

// LimitMembers returns the members of l.
func LimitMembers(l *qapi.ThrottleLimits) Members {
	return Members{
		BPSTotal:  {&l.BPSTotal, &l.BPSTotalMax, &l.BPSTotalMaxLength},
		BPSRead:   {&l.BPSRead, &l.BPSReadMax, &l.BPSReadMaxLength},
		BPSWrite:  {&l.BPSWrite, &l.BPSWriteMax, &l.BPSWriteMaxLength},
		IOPSTotal: {&l.IOPSTotal, &l.IOPSTotalMax, &l.IOPSTotalMaxLength},
		IOPSRead:  {&l.IOPSRead, &l.IOPSReadMax, &l.IOPSReadMaxLength},
		IOPSWrite: {&l.IOPSWrite, &l.IOPSWriteMax, &l.IOPSWriteMaxLength},
	}
}

// Names are the members of the six limits in the schema; those of bursts have
// "-max" and "-max-length" added.
var Names = [limitCount]string{
	BPSTotal: "bps-total", BPSRead: "bps-read", BPSWrite: "bps-write",
	IOPSTotal: "iops-total", IOPSRead: "iops-read", IOPSWrite: "iops-write",
}

// Apply sets what is present in l. Negative numbers become ones that Validate
// refuses, except for an iops-size, which is then without effect, as in the
// field. Errors are *qapi.Error.
func (c *Config) Apply(l *qapi.ThrottleLimits) error {
	for i, m := range LimitMembers(l) {
		r := &c.Rates[i]
		if v := *m[0]; v != nil {
			r.Avg = uint64(*v)
		}
		if v := *m[1]; v != nil {
			r.Max = uint64(*v)
		}
		if v := *m[2]; v != nil {
			if *v > math.MaxUint32 {
				return qapi.Errorf("%s-max-length value must be in the range [0, %d]", Names[i], uint32(math.MaxUint32))
			}
			r.Length = uint64(*v)
		}
	}
	if l.IOPSSize != nil {
		c.IOPSSize = uint64(*l.IOPSSize)
	}
	return nil
}

// Limits returns the configuration with every member present.
func (c *Config) Limits() *qapi.ThrottleLimits {
	l := &qapi.ThrottleLimits{}
	for i, m := range LimitMembers(l) {
		r := &c.Rates[i]
		for k, v := range [3]uint64{r.Avg, r.Max, r.Length} {
			*m[k] = new(int64(v))
		}
	}
	l.IOPSSize = new(int64(c.IOPSSize))
	return l
}

// Validate refuses limits that contradict each other. Errors are *qapi.Error.
func (c *Config) Validate() error {
	if err := c.validateTotals(); err != nil {
		return err
	}
	if c.IOPSSize != 0 && c.Rates[IOPSTotal].Avg == 0 && c.Rates[IOPSRead].Avg == 0 && c.Rates[IOPSWrite].Avg == 0 {
		return qapi.Errorf("iops size requires an iops value to be set")
	}
	for i := range c.Rates {
		if err := c.Rates[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

// validateTotals: a total excludes limits of the two directions, averages and
// bursts each for themselves.
func (c *Config) validateTotals() error {
	for _, total := range []Limit{BPSTotal, IOPSTotal} {
		t, r, w := c.Rates[total], c.Rates[total+1], c.Rates[total+2]
		if t.Avg != 0 && (r.Avg != 0 || w.Avg != 0) || t.Max != 0 && (r.Max != 0 || w.Max != 0) {
			return qapi.Errorf("bps/iops/max total values and read/write values cannot be used at the same time")
		}
	}
	return nil
}

func (r *Rate) validate() error {
	switch {
	case r.Avg > ValueMax || r.Max > ValueMax:
		return qapi.Errorf("bps/iops/max values must be within [0, %d]", int64(ValueMax))
	case r.Length == 0:
		return qapi.Errorf("the burst length cannot be 0")
	case r.Length > 1 && r.Max == 0:
		return qapi.Errorf("burst length set without burst rate")
	case r.Max != 0 && r.Length > ValueMax/r.Max:
		return qapi.Errorf("burst length too high for this burst rate")
	case r.Max != 0 && r.Avg == 0:
		return qapi.Errorf("bps_max/iops_max require corresponding bps/iops values")
	case r.Max != 0 && r.Max < r.Avg:
		return qapi.Errorf("bps_max/iops_max cannot be lower than bps/iops")
	}
	return nil
}
