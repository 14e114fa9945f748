package main

import (
	"reflect"
	"slices"
	"testing"
)

func TestOptionsHaveOneOrTwoDashes(t *testing.T) {
	got, err := parseOptions([]string{"-nodefaults", "--device", "x,id=d", "disk.img"})
	want := []option{{"nodefaults", ""}, {"device", "x,id=d"}, {"hda", "disk.img"}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"-unheard-of"}, {"-drive"}} {
		if _, err := parseOptions(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestPairsTakeDoubledCommasAndSwitches(t *testing.T) {
	for s, want := range map[string][]pair{
		"x,id=a":            {{"driver", "x"}, {"id", "a"}},
		"file=a,,b=c,flag":  {{"file", "a,b=c"}, {"flag", "on"}},
		"file=a,,,if=none":  {{"file", "a,"}, {"if", "none"}},
		"driver=y,k=v,k=v2": {{"driver", "y"}, {"k", "v"}, {"k", "v2"}},
		"":                  nil,
	} {
		if got := parsePairs(s, "driver"); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestMonitorWordsKeepQuotedOnesTogether(t *testing.T) {
	got := hmpWords(`-d  drive0 "write -P 1 0 64k" "a\"b"`)
	if want := []string{"-d", "drive0", "write -P 1 0 64k", `a"b`}; !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}

func TestOptionsOfQemuIO(t *testing.T) {
	o, ok := parseIO([]string{"-qP0x5e", "0", "-z", "64k"}, "qP:z")
	if !ok || !o.set['q'] || !o.set['z'] || o.pattern(1) != 0x5e || !reflect.DeepEqual(o.args, []string{"0", "64k"}) {
		t.Fatalf("%v %v", o, ok)
	}
	for _, bad := range [][]string{{"-x"}, {"-P"}} {
		if _, ok := parseIO(bad, "qP:z"); ok {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestBytesForPeople(t *testing.T) {
	for v, want := range map[float64]string{0: "0 bytes", 512: "512 bytes", 65536: "64 KiB", 3 << 19: "1.500 MiB", 1 << 40: "1 TiB"} {
		if got := bytesText(v); got != want {
			t.Errorf("%g: %q, want %q", v, got, want)
		}
	}
}
