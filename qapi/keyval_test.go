package qapi

import (
	"os/exec"
	"strings"
	"testing"
)

func TestParseKeyval(t *testing.T) {
	for _, c := range []struct{ in, implied, want string }{
		{"", "driver", `{}`},
		{"null-co,node-name=a", "driver", `{"driver": "null-co", "node-name": "a"}`},
		{"driver=x,size=8", "driver", `{"size": "8", "driver": "x"}`},
		{"file,filename=a,,b,node-name=x,", "driver", `{"driver": "file", "node-name": "x", "filename": "a,b"}`},
		{"null-co,node-name=a,,", "driver", `{"driver": "null-co", "node-name": "a,"}`},
		{"a=1,a=2", "", `{"a": "2"}`},
		{"a.b=1,a.c=2,a.b=3", "", `{"a": {"c": "2", "b": "3"}}`},
		{"a.1=y,a.0=x", "", `{"a": ["x", "y"]}`},
		{"a.00=x", "", `{"a": ["x"]}`},
		{"a.0=x,a.00=z", "", `{"a": ["z"]}`},
		{"a.0.0=b", "", `{"a": [["b"]]}`},
		{"a.0.k=1,a.1.k=2", "", `{"a": [{"k": "1"}, {"k": "2"}]}`},
		{"__org.foo_bar-x=1", "", `{"__org.foo_bar-x": "1"}`},
		{"a==b", "", `{"a": "=b"}`},
		{"a=", "", `{"a": ""}`},
		{"a=1,help=2", "", `{"a": "1", "help": "2"}`},
	} {
		o, err := ParseKeyval(c.in, c.implied)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		want, err := ParseJSON([]byte(c.want))
		if err != nil {
			t.Fatal(err)
		}
		if got, w := string(AppendJSON(nil, o)), string(AppendJSON(nil, want)); got != w {
			t.Errorf("%q: got %s, want %s", c.in, got, w)
		}
	}
}

// optionErrors are arguments of --blockdev that are refused, with the text.
var optionErrors = []struct{ in, want string }{
	{"{}{}", "Expecting at most one JSON value"},
	{"{", "JSON parse error, premature EOI"},
	{"", "Parameter 'driver' is missing"},
	{"  ", "Parameter 'driver' does not accept value '  '"},
	{"[]", "Parameter 'driver' does not accept value '[]'"},
	{"helpx", "Parameter 'driver' does not accept value 'helpx'"},
	{"null-co,size=zz", "Parameter 'size' expects integer"},
	{"null-co,size=1k", "Parameter 'size' expects integer"},
	{"null-co,size=", "Parameter 'size' expects integer"},
	{"null-co,size=1 ", "Parameter 'size' expects integer"},
	{"null-co,size=9223372036854775808", "Parameter 'size' expects integer"},
	{"null-co,latency-ns=1x", "Parameter 'latency-ns' expects integer"},
	{"null-co,latency-ns=18446744073709551616", "Parameter 'latency-ns' expects integer"},
	{"null-co,read-zeroes=maybe", "Parameter 'read-zeroes' expects 'on' or 'off'"},
	{"null-co,read-zeroes", "Expected '=' after parameter 'read-zeroes'"},
	{"null-co,a.b", "Expected '=' after parameter 'a.b'"},
	{"null-co,foo=1", "Parameter 'foo' is unexpected"},
	{"null-co,foo.bar=1", "Parameter 'foo' is unexpected"},
	{"null-co,foo.0=1", "Parameter 'foo' is unexpected"},
	{"null-co,cache.zz=on", "Parameter 'cache.zz' is unexpected"},
	{"null-co,cache=on", "Invalid parameter type for 'cache', expected: object"},
	{"null-co,cache=on,cache.direct=on", "Parameters 'cache.*' used inconsistently"},
	{"null-co,cache.direct=on,cache=on", "Parameters 'cache.*' used inconsistently"},
	{"null-co,cache.direct.x=1,cache.direct=on", "Parameters 'cache.direct.*' used inconsistently"},
	{"null-co,node-name.x=1", "Parameters 'node-name.*' are unexpected"},
	{"null-co,size.x=1", "Parameters 'size.*' are unexpected"},
	{"null-co,discard.x=1", "Parameters 'discard.*' are unexpected"},
	{"null-co,discard=zz", "Parameter 'discard' does not accept value 'zz'"},
	{"raw,file.driver=null-co,file.zz=1", "Parameter 'file.zz' is unexpected"},
	{"raw,file.driver=null-co,file.size=zz", "Parameter 'file.size' expects integer"},
	{"raw,file.driver=file", "Parameter 'file.filename' is missing"},
	{"raw,file.driver=zz", "Parameter 'driver' does not accept value 'zz'"},
	{"qcow2,file.0=1", "Invalid parameter type for 'file', expected: BlockdevRef"},
	{"qcow2,file=x,overlap-check=5", "Parameter 'overlap-check' does not accept value '5'"},
	{"copy-before-write,file=x,target=y,cbw-timeout=4294967296", "Parameter 'cbw-timeout' expects uint32_t"},
	{"copy-before-write,file=x,target=y,bitmap.node=n", "Parameter 'bitmap.name' is missing"},
	{"null-co,a.1=x", "Parameter 'a.0' missing"},
	{"null-co,a.0=x,a.2=x", "Parameter 'a.1' missing"},
	{"null-co,a.01=b", "Parameter 'a.0' missing"},
	{"null-co,foo.bar.1=1", "Parameter 'foo.bar.0' missing"},
	{"null-co,foo.99999999999999999999=1", "Parameter 'foo.0' missing"},
	{"null-co,a.0=x,a.b=y", "Parameters 'a.*' used inconsistently"},
	{",", "Invalid parameter ''"},
	{"=x", "Invalid parameter ''"},
	{"a=b,=c", "Invalid parameter ''"},
	{"null-co,,x", "Invalid parameter ''"},
	{"help,,", "Invalid parameter ''"},
	{"1a=b", "Invalid parameter '1a'"},
	{"a..b=c", "Invalid parameter 'a..b'"},
	{".a=b", "Invalid parameter '.a'"},
	{"a.=b", "Invalid parameter 'a.'"},
	{"a.-b=c", "Invalid parameter 'a.-b'"},
	{"a b=c", "Invalid parameter 'a b'"},
	{"0=a,1=b", "Invalid parameter '0'"},
	{strings.Repeat("x", 130) + "=1", "Parameter '" + strings.Repeat("x", 130) + "' is too long"},
	{strings.Repeat("x", 128) + ".a=1", "Parameter fragment '" + strings.Repeat("x", 128) + "' is too long"},
	{"a." + strings.Repeat("x", 130) + "=1", "Parameter fragment '" + strings.Repeat("x", 130) + "' is too long"},
	{"help", "Help is not available for this option"},
	{"?", "Help is not available for this option"},
	{"null-co,node-name=a,help", "Help is not available for this option"},
}

func TestDecodeOptionRefusesWithTheTextsOfTheField(t *testing.T) {
	for _, c := range optionErrors {
		err := DecodeOption(c.in, "driver", new(BlockdevOptions))
		if err == nil || err.Error() != c.want {
			t.Errorf("%q: got %v, want %s", c.in, err, c.want)
		}
	}
}

func TestDecodeOptionAgainstRival(t *testing.T) {
	if _, err := exec.LookPath(rivalProgram); err != nil {
		t.Skip("needs " + rivalProgram)
	}
	for _, c := range optionErrors {
		out, err := exec.Command(rivalProgram, "--blockdev", c.in).CombinedOutput()
		want := rivalProgram + ": --blockdev " + c.in + ": " + c.want + "\n"
		if err == nil || string(out) != want {
			t.Errorf("%q: rival says %q, table has %q (%v)", c.in, out, want, err)
		}
	}
}

func TestKeysPastTheNestingLimitAreRefused(t *testing.T) {
	for n, refused := range map[int]bool{maxNesting: false, maxNesting + 1: true} {
		key := strings.Repeat("a.", n-1) + "a"
		if _, err := ParseKeyval(key+"=1", ""); (err != nil) != refused {
			t.Errorf("%d fragments: %.60v", n, err)
		}
	}
}

func TestHelpIsToldApart(t *testing.T) {
	err := DecodeOption("file,help", "driver", new(BlockdevOptions))
	if !IsHelpRequest(err) {
		t.Errorf("%v is not seen as a request for help", err)
	}
	if IsHelpRequest(DecodeOption("file,helpx", "driver", new(BlockdevOptions))) || IsHelpRequest(nil) {
		t.Error("another error is seen as a request for help")
	}
}

func TestDecodeKeyvalConvertsScalars(t *testing.T) {
	var o BlockdevOptions
	err := DecodeOption("null-co,node-name=1,size=0x10,latency-ns=-1,read-zeroes=yes,cache.direct=off,discard=unmap", "driver", &o)
	if err != nil {
		t.Fatal(err)
	}
	if *o.NodeName != "1" || *o.Null.Size != 16 || *o.Null.LatencyNs != 1<<64-1 || !*o.Null.ReadZeroes || *o.Cache.Direct || *o.Discard != BlockdevDiscardOptionsUnmap {
		t.Errorf("got %s", AppendJSON(nil, &o))
	}
	for in, want := range map[string]int64{"010": 8, " 5": 5, "+7": 7, "-0x8000000000000000": -1 << 63, "9223372036854775807": 1<<63 - 1} {
		var o BlockdevOptions
		if err := DecodeOption("null-co,size="+in, "driver", &o); err != nil || *o.Null.Size != want {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestDecodeKeyvalTakesSizesWithSuffix(t *testing.T) {
	var o BlockdevOptions
	if err := DecodeOption("copy-before-write,file=a,target=b,min-cluster-size=64k", "driver", &o); err != nil || *o.CopyBeforeWrite.MinClusterSize != 65536 {
		t.Errorf("%v", err)
	}
}

func TestDecodeOptionTakesJSON(t *testing.T) {
	var o BlockdevOptions
	if err := DecodeOption("{'driver':'raw','file':'x'} ", "driver", &o); err != nil || *o.Raw.File.Reference != "x" {
		t.Errorf("%v", err)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "1": 1, "12B": 12, "1k": 1024, "1K": 1024, "1.5k": 1536, "1.5G": 3 << 29, "0.5T": 1 << 39,
		"0x10": 16, "1024.0": 1024, "1024.": 1024, "7.00b": 7, "18446744073709551615": 1<<64 - 1, "15E": 15 << 60, "2P": 2 << 50, "3M": 3 << 20,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", in, got, err, want)
		}
	}
	for in, want := range map[string]error{
		"": ErrSizeSyntax, "k": ErrSizeSyntax, "1.5": ErrSizeSyntax, "1.5B": ErrSizeSyntax, "-1": ErrSizeSyntax,
		"1kk": ErrSizeSyntax, "1.2.3k": ErrSizeSyntax, "16E": ErrSizeRange, "18446744073709551616": ErrSizeRange, "0x10k": ErrSizeSyntax,
	} {
		if got, err := ParseSize(in); err != want {
			t.Errorf("%s: got %d, %v, want %v", in, got, err, want)
		}
	}
}
