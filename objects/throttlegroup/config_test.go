package throttlegroup

import (
	"testing"

	"blockd/qapi"
)

func limits(t testing.TB, json string) *qapi.ThrottleLimits {
	t.Helper()
	v, err := qapi.ParseJSON([]byte(json))
	if err != nil {
		t.Fatal(err)
	}
	l := &qapi.ThrottleLimits{}
	if err := qapi.Decode(v, l); err != nil {
		t.Fatal(err)
	}
	return l
}

func apply(t testing.TB, json string) (Config, error) {
	t.Helper()
	c := NewConfig()
	err := c.Apply(limits(t, json))
	if err == nil {
		err = c.Validate()
	}
	return c, err
}

func config(t testing.TB, json string) Config {
	t.Helper()
	c, err := apply(t, json)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The texts are those of qemu-storage-daemon 7.2.
func TestContradictingLimitsAreRefused(t *testing.T) {
	const (
		totals   = "bps/iops/max total values and read/write values cannot be used at the same time"
		tooHigh  = "bps/iops/max values must be within [0, 1000000000000000]"
		noRate   = "burst length set without burst rate"
		noAvg    = "bps_max/iops_max require corresponding bps/iops values"
		tooLow   = "bps_max/iops_max cannot be lower than bps/iops"
		tooLong  = "burst length too high for this burst rate"
		noIOPS   = "iops size requires an iops value to be set"
		noLength = "the burst length cannot be 0"
	)
	for _, c := range [][2]string{
		{`{}`, ""},
		{`{"iops-total":100,"bps-read":5,"bps-write":6}`, ""},
		{`{"iops-total":1,"iops-read":1}`, totals},
		{`{"iops-total":1,"iops-write":1}`, totals},
		{`{"bps-total":7,"bps-read":3}`, totals},
		{`{"bps-total":7,"bps-total-max":9,"bps-read-max":3}`, totals},
		{`{"iops-size":10}`, noIOPS},
		{`{"iops-size":10,"bps-total":1}`, noIOPS},
		{`{"iops-size":10,"iops-read":1}`, ""},
		{`{"iops-size":-10,"iops-read":1}`, ""},
		{`{"iops-total":-1}`, tooHigh},
		{`{"iops-total":1000000000000001}`, tooHigh},
		{`{"iops-total":1000000000000000}`, ""},
		{`{"iops-total":1,"iops-total-max":1000000000000001}`, tooHigh},
		{`{"iops-total-max-length":0}`, noLength},
		{`{"iops-total":10,"iops-total-max-length":2}`, noRate},
		{`{"iops-total-max-length":-1}`, noRate},
		{`{"iops-total":10,"iops-total-max":1000000000000,"iops-total-max-length":1001}`, tooLong},
		{`{"iops-total":10,"iops-total-max":1000000000000,"iops-total-max-length":1000}`, ""},
		{`{"iops-total-max":2}`, noAvg},
		{`{"iops-total":10,"iops-total-max":2}`, tooLow},
		{`{"iops-total":10,"iops-total-max":10}`, ""},
		{`{"iops-total-max-length":4294967296}`, "iops-total-max-length value must be in the range [0, 4294967295]"},
		{`{"bps-write-max-length":4294967296}`, "bps-write-max-length value must be in the range [0, 4294967295]"},
	} {
		_, err := apply(t, c[0])
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c[1] {
			t.Errorf("%s: %q, want %q", c[0], got, c[1])
		}
	}
}

func TestLimitsComeBackAsTheyWereSet(t *testing.T) {
	const set = `{"bps-read":1,"bps-read-max":2,"bps-read-max-length":3,"bps-write":4,"bps-write-max":5,"bps-write-max-length":6,` +
		`"iops-total":7,"iops-total-max":8,"iops-total-max-length":9,"iops-size":-10}`
	c := config(t, set)
	got := c.Limits()
	want := limits(t, set)
	for _, p := range []**int64{&want.BPSTotal, &want.BPSTotalMax, &want.IOPSRead, &want.IOPSReadMax, &want.IOPSWrite, &want.IOPSWriteMax} {
		*p = new(int64(0))
	}
	for _, p := range []**int64{&want.BPSTotalMaxLength, &want.IOPSReadMaxLength, &want.IOPSWriteMaxLength} {
		*p = new(int64(1))
	}
	if g, w := string(qapi.AppendJSON(nil, got)), string(qapi.AppendJSON(nil, want)); g != w {
		t.Fatalf("got  %s\nwant %s", g, w)
	}
}
