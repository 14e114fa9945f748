package qapi

import (
	"testing"
)

// decodeTargets makes the argument struct of a command.
var decodeTargets = map[string]func() any{
	"blockdev-add":        func() any { return new(BlockdevOptions) },
	"blockdev-reopen":     func() any { return new(BlockdevReopenArg) },
	"blockdev-create":     func() any { return new(BlockdevCreateArg) },
	"nbd-server-start":    func() any { return new(NbdServerStartArg) },
	"chardev-add":         func() any { return new(ChardevAddArg) },
	"transaction":         func() any { return new(TransactionArg) },
	"block-export-add":    func() any { return new(BlockExportOptions) },
	"object-add":          func() any { return new(ObjectOptions) },
	"block_resize":        func() any { return new(BlockResizeArg) },
	"block-job-set-speed": func() any { return new(BlockJobSetSpeedArg) },
	"query-jobs":          func() any { return new(Empty) },
	"qmp_capabilities":    func() any { return new(QmpCapabilitiesArg) },
}

// decodeCases are arguments that are refused, with the text. Those with a
// version are 10.2's and cannot be tried on an older rival.
var decodeCases = []struct{ command, args, want, version string }{
	{command: "blockdev-add", args: `{}`, want: `Parameter 'driver' is missing`},
	{command: "blockdev-add", args: `{"driver":5}`, want: `Invalid parameter type for 'driver', expected: string`},
	{command: "blockdev-add", args: `{"driver":"nosuch"}`, want: `Parameter 'driver' does not accept value 'nosuch'`},
	{command: "blockdev-add", args: `{"driver":"vmdk"}`, want: `Parameter 'driver' does not accept value 'vmdk'`, version: "blockd has no vmdk"},
	{command: "blockdev-add", args: `{"driver":"null-co","node-name":null}`, want: `Invalid parameter type for 'node-name', expected: string`},
	{command: "blockdev-add", args: `{"driver":"file","filename":1,"node-name":"a"}`, want: `Invalid parameter type for 'filename', expected: string`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":{"driver":"file","filename":1}}`, want: `Invalid parameter type for 'file.filename', expected: string`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":{"driver":"file"}}`, want: `Parameter 'file.filename' is missing`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":{"driver":"nosuch"}}`, want: `Parameter 'driver' does not accept value 'nosuch'`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":{"filename":"x"}}`, want: `Parameter 'file.driver' is missing`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":{"driver":"raw","file":3}}`, want: `Invalid parameter type for 'file', expected: BlockdevRef`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":{"driver":"raw","file":{"driver":"null-co"},"bar":3}}`, want: `Parameter 'file.bar' is unexpected`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":3}`, want: `Invalid parameter type for 'file', expected: BlockdevRef`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":null}`, want: `Invalid parameter type for 'file', expected: BlockdevRef`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":"x","backing":1}`, want: `Invalid parameter type for 'backing', expected: BlockdevRefOrNull`},
	{command: "blockdev-add", args: `{"driver":"null-co","size":1.5}`, want: `Invalid parameter type for 'size', expected: integer`},
	{command: "blockdev-add", args: `{"driver":"null-co","size":18446744073709551615}`, want: `Invalid parameter type for 'size', expected: integer`},
	{command: "blockdev-add", args: `{"driver":"null-co","latency-ns":1.5}`, want: `Parameter 'latency-ns' expects uint64`},
	{command: "blockdev-add", args: `{"driver":"null-co","latency-ns":"1"}`, want: `Parameter 'latency-ns' expects uint64`},
	{command: "blockdev-add", args: `{"driver":"null-co","latency-ns":18446744073709551616}`, want: `Parameter 'latency-ns' expects uint64`},
	{command: "blockdev-add", args: `{"driver":"null-co","read-zeroes":"on"}`, want: `Invalid parameter type for 'read-zeroes', expected: boolean`},
	{command: "blockdev-add", args: `{"driver":"null-co","cache":1}`, want: `Invalid parameter type for 'cache', expected: object`},
	{command: "blockdev-add", args: `{"driver":"null-co","cache":{"direct":1}}`, want: `Invalid parameter type for 'cache.direct', expected: boolean`},
	{command: "blockdev-add", args: `{"driver":"null-co","cache":{"zz":1}}`, want: `Parameter 'cache.zz' is unexpected`},
	{command: "blockdev-add", args: `{"driver":"null-co","discard":"zz"}`, want: `Parameter 'discard' does not accept value 'zz'`},
	{command: "blockdev-add", args: `{"driver":"null-co","discard":1}`, want: `Invalid parameter type for 'discard', expected: string`},
	{command: "blockdev-add", args: `{"driver":"null-co","filename":"x"}`, want: `Parameter 'filename' is unexpected`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":"x","overlap-check":1}`, want: `Invalid parameter type for 'overlap-check', expected: Qcow2OverlapChecks`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":"x","overlap-check":"zz"}`, want: `Parameter 'overlap-check' does not accept value 'zz'`},
	{command: "blockdev-add", args: `{"driver":"qcow2","file":"x","overlap-check":{"template":"zz"}}`, want: `Parameter 'template' does not accept value 'zz'`},
	{command: "blockdev-add", args: `{"driver":"copy-before-write","file":"x","target":"y","cbw-timeout":-1}`, want: `Parameter 'cbw-timeout' expects uint32_t`},
	{command: "blockdev-add", args: `{"driver":"copy-before-write","file":"x","target":"y","min-cluster-size":"1k"}`, want: `Parameter 'min-cluster-size' expects uint64`, version: "9.2"},
	{command: "blockdev-reopen", args: `{"options":[{"driver":"zz"}]}`, want: `Parameter 'driver' does not accept value 'zz'`},
	{command: "blockdev-reopen", args: `{"options":[{"x":"zz"}]}`, want: `Parameter 'options[0].driver' is missing`},
	{command: "blockdev-reopen", args: `{"options":[1]}`, want: `Invalid parameter type for 'options[0]', expected: object`},
	{command: "blockdev-reopen", args: `{"options":[{"driver":"raw","file":{"driver":"file"}}]}`, want: `Parameter 'options[0].file.filename' is missing`},
	{command: "blockdev-reopen", args: `{"options":[{"driver":"raw","file":"a"},{"driver":"raw","file":"a","q":1}]}`, want: `Parameter 'options[1].q' is unexpected`},
	{command: "blockdev-reopen", args: `{"options":1}`, want: `Invalid parameter type for 'options', expected: array`},
	{command: "blockdev-create", args: `{"job-id":"j","options":{"driver":"file","filename":"x","size":"1"}}`, want: `Parameter 'options.size' expects uint64`},
	{command: "blockdev-create", args: `{"job-id":"j","options":{"driver":"qcow2","file":"x","size":1,"version":"v4"}}`, want: `Parameter 'version' does not accept value 'v4'`},
	{command: "nbd-server-start", args: `{}`, want: `Parameter 'addr' is missing`},
	{command: "nbd-server-start", args: `{"addr":{"type":"unix"}}`, want: `Parameter 'addr.data' is missing`},
	{command: "nbd-server-start", args: `{"addr":{"type":"unix","data":{}}}`, want: `Parameter 'addr.data.path' is missing`},
	{command: "nbd-server-start", args: `{"addr":{"type":"unix","data":1}}`, want: `Invalid parameter type for 'addr.data', expected: object`},
	{command: "nbd-server-start", args: `{"addr":{"type":"unix","data":{"path":"x"},"host":1}}`, want: `Parameter 'addr.host' is unexpected`},
	{command: "nbd-server-start", args: `{"addr":{"type":"inet","data":{"host":"x","port":1}}}`, want: `Invalid parameter type for 'addr.data.port', expected: string`},
	{command: "nbd-server-start", args: `{"addr":{"type":"inet","data":{"host":"x","port":"1","to":65536}}}`, want: `Parameter 'to' expects uint16_t`},
	{command: "nbd-server-start", args: `{"addr":{"type":"zz","data":{"host":"x"}}}`, want: `Parameter 'type' does not accept value 'zz'`},
	{command: "nbd-server-start", args: `{"max-connections":-1,"addr":{"type":"unix","data":{"path":"x"}}}`, want: `Parameter 'max-connections' expects uint32_t`, version: "10.2 has another order of members"},
	{command: "nbd-server-start", args: `{"max-connections":4294967296,"addr":{"type":"unix","data":{"path":"x"}}}`, want: `Parameter 'max-connections' expects uint32_t`},
	{command: "nbd-server-start", args: `{"max-connections":"x","addr":{"type":"unix","data":{"path":"x"}}}`, want: `Parameter 'max-connections' expects uint64`},
	{command: "chardev-add", args: `{"id":"a","backend":{"type":"null"}}`, want: `Parameter 'backend.data' is missing`},
	{command: "chardev-add", args: `{"id":"a","backend":{"type":"null","data":{"zz":1}}}`, want: `Parameter 'backend.data.zz' is unexpected`},
	{command: "chardev-add", args: `{"id":"a","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":1}}}}}`, want: `Invalid parameter type for 'backend.data.addr.data.path', expected: string`},
	{command: "transaction", args: `{"actions":[{"type":"abort"}]}`, want: `Parameter 'actions[0].data' is missing`},
	{command: "transaction", args: `{"actions":[{"type":"abort","data":{"x":1}}]}`, want: `Parameter 'actions[0].data.x' is unexpected`},
	{command: "transaction", args: `{"actions":[{"type":"blockdev-backup","data":{"device":"d","target":"t","sync":"x"}}]}`, want: `Parameter 'sync' does not accept value 'x'`},
	{command: "transaction", args: `{"actions":[{"type":"blockdev-backup","data":{"device":"d","sync":"full"}}]}`, want: `Parameter 'actions[0].data.target' is missing`},
	{command: "transaction", args: `{"actions":[],"properties":{"completion-mode":"x"}}`, want: `Parameter 'completion-mode' does not accept value 'x'`},
	{command: "block-export-add", args: `{"type":"nbd","id":"e","node-name":"n","bitmaps":[1]}`, want: `Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr`},
	{command: "block-export-add", args: `{"type":"nbd","id":"e","node-name":"n","bitmaps":[{"node":"a"}]}`, want: `Parameter 'bitmaps[0].name' is missing`},
	{command: "block-export-add", args: `{"type":"nbd","id":"e","node-name":"n","writable":1}`, want: `Invalid parameter type for 'writable', expected: boolean`},
	{command: "object-add", args: `{"qom-type":"zz","id":"a"}`, want: `Parameter 'qom-type' does not accept value 'zz'`},
	{command: "object-add", args: `{"qom-type":"secret"}`, want: `Parameter 'id' is missing`},
	{command: "object-add", args: `{"qom-type":"throttle-group","id":"a","limits":{"iops-total":"x"}}`, want: `Invalid parameter type for 'limits.iops-total', expected: integer`},
	{command: "block_resize", args: `{"node-name":"x","size":9223372036854775808}`, want: `Invalid parameter type for 'size', expected: integer`},
	{command: "block-job-set-speed", args: `{"device":"x"}`, want: `Parameter 'speed' is missing`},
	{command: "query-jobs", args: `{"a":1}`, want: `Parameter 'a' is unexpected`},
	{command: "qmp_capabilities", args: `{"enable":["x"]}`, want: `Parameter 'null' does not accept value 'x'`, version: "the negotiation is over"},
	{command: "qmp_capabilities", args: `{"enable":[1]}`, want: `Invalid parameter type for 'enable[0]', expected: string`, version: "the negotiation is over"},
}

func TestDecodeRefusesWithTheTextsOfTheField(t *testing.T) {
	for _, c := range decodeCases {
		t.Run(c.command+c.args, func(t *testing.T) {
			v, err := ParseJSON([]byte(c.args))
			if err != nil {
				t.Fatal(err)
			}
			err = Decode(v, decodeTargets[c.command]())
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if _, ok := err.(*Error); !ok {
				t.Errorf("error is a %T", err)
			}
		})
	}
}

func decodeText(t *testing.T, text string, into any) {
	t.Helper()
	v, err := ParseJSON([]byte(text))
	if err == nil {
		err = Decode(v, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func TestDecodeFillsUnionsAndAlternates(t *testing.T) {
	var o BlockdevOptions
	decodeText(t, `{"driver":"qcow2","node-name":"n","read-only":false,"file":{"driver":"host_device","filename":"/f"},"backing":null,"overlap-check":{"template":"all","active-l1":true}}`, &o)
	q := o.Qcow2
	switch {
	case o.Driver != BlockdevDriverQcow2 || *o.NodeName != "n" || o.AutoReadOnly != nil || *o.ReadOnly:
		t.Error("common members")
	case o.File != nil || o.Raw != nil || q == nil:
		t.Error("branches")
	case q.File.Reference != nil || q.File.Definition.File.Filename != "/f":
		t.Error("file")
	case q.Backing == nil || q.Backing.Null == nil || q.Backing.Reference != nil:
		t.Error("backing")
	case q.OverlapCheck.Mode != nil || *q.OverlapCheck.Flags.Template != "all" || !*q.OverlapCheck.Flags.ActiveL1:
		t.Error("overlap-check")
	}
}

func TestDecodeKeepsPresenceOfLists(t *testing.T) {
	var absent, empty BlockExportOptions
	decodeText(t, `{"type":"nbd","id":"e","node-name":"n"}`, &absent)
	decodeText(t, `{"type":"nbd","id":"e","node-name":"n","bitmaps":[]}`, &empty)
	if absent.NBD == nil || absent.NBD.Bitmaps != nil {
		t.Error("an absent list is not nil")
	}
	if empty.NBD.Bitmaps == nil {
		t.Error("an empty list became absent")
	}
}

func TestDecodeTakesNegativeUnsignedLikeTheField(t *testing.T) {
	var o BlockdevOptions
	decodeText(t, `{"driver":"null-co","latency-ns":-1}`, &o)
	if *o.Null.LatencyNs != 1<<64-1 {
		t.Errorf("got %d", *o.Null.LatencyNs)
	}
}
