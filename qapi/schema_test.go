package qapi

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// testSchema holds the commands and events whose types are in this package.
func testSchema() *Schema {
	s := NewSchema()
	of := func(v any) reflect.Type {
		if v == nil {
			return nil
		}
		rt := reflect.TypeOf(v)
		if rt.Kind() == reflect.Pointer { // of an interface, which has no other form as a value
			rt = rt.Elem()
		}
		return rt
	}
	for _, c := range []struct {
		name      string
		args, ret any
		features  []string
	}{
		{name: "blockdev-add", args: BlockdevOptions{}},
		{name: "blockdev-del", args: BlockdevDelArg{}},
		{name: "blockdev-create", args: BlockdevCreateArg{}},
		{name: "x-blockdev-amend", args: XBlockdevAmendArg{}, features: []string{"unstable"}},
		{name: "blockdev-reopen", args: BlockdevReopenArg{}},
		{name: "blockdev-set-active", args: BlockdevSetActiveArg{}},
		{name: "blockdev-snapshot", args: BlockdevSnapshot{}, features: []string{"allow-write-only-overlay"}},
		{name: "blockdev-snapshot-sync", args: BlockdevSnapshotSync{}},
		{name: "change-backing-file", args: ChangeBackingFileArg{}},
		{name: "block_resize", args: BlockResizeArg{}},
		{name: "block-set-write-threshold", args: BlockSetWriteThresholdArg{}},
		{name: "query-named-block-nodes", args: QueryNamedBlockNodesArg{}, ret: []BlockDeviceInfo{}},
		{name: "query-block", ret: []BlockInfo{}},
		{name: "query-blockstats", args: QueryBlockstatsArg{}, ret: []BlockStats{}},
		{name: "drive-backup", args: DriveBackup{}, features: []string{"deprecated"}},
		{name: "blockdev-backup", args: BlockdevBackup{}},
		{name: "block-stream", args: BlockStreamArg{}},
		{name: "block-commit", args: BlockCommitArg{}},
		{name: "transaction", args: TransactionArg{}},
		{name: "query-jobs", ret: []JobInfo{}},
		{name: "query-block-jobs", ret: []BlockJobInfo{}},
		{name: "job-pause", args: JobIDArg{}}, {name: "job-resume", args: JobIDArg{}},
		{name: "job-cancel", args: JobIDArg{}}, {name: "job-complete", args: JobIDArg{}},
		{name: "job-finalize", args: JobIDArg{}}, {name: "job-dismiss", args: JobIDArg{}},
		{name: "block-job-cancel", args: BlockJobCancelArg{}},
		{name: "block-job-set-speed", args: BlockJobSetSpeedArg{}},
		{name: "block-job-pause", args: BlockJobDeviceArg{}, features: []string{"deprecated"}},
		{name: "block-job-resume", args: BlockJobDeviceArg{}, features: []string{"deprecated"}},
		{name: "block-job-complete", args: BlockJobDeviceArg{}, features: []string{"deprecated"}},
		{name: "block-job-finalize", args: JobIDArg{}, features: []string{"deprecated"}},
		{name: "block-job-dismiss", args: JobIDArg{}, features: []string{"deprecated"}},
		{name: "blockdev-mirror", args: BlockdevMirror{}},
		{name: "drive-mirror", args: DriveMirror{}},
		{name: "block-job-change", args: BlockJobChangeOptions{}},
		{name: "blockdev-snapshot-internal-sync", args: BlockdevSnapshotInternal{}},
		{name: "blockdev-snapshot-delete-internal-sync", args: InternalSnapshotArg{}, ret: SnapshotInfo{}},
		{name: "block-export-add", args: BlockExportOptions{}},
		{name: "block-export-del", args: BlockExportDelArg{}},
		{name: "query-block-exports", ret: []BlockExportInfo{}},
		{name: "nbd-server-start", args: NbdServerStartArg{}},
		{name: "nbd-server-stop"},
		{name: "chardev-add", args: ChardevAddArg{}, ret: ChardevReturn{}},
		{name: "chardev-change", args: ChardevAddArg{}, ret: ChardevReturn{}},
		{name: "chardev-remove", args: ChardevIDArg{}},
		{name: "chardev-send-break", args: ChardevIDArg{}},
		{name: "query-chardev", ret: []ChardevInfo{}},
		{name: "query-chardev-backends", ret: []ChardevBackendInfo{}},
		{name: "object-add", args: ObjectOptions{}},
		{name: "object-del", args: ObjectDelArg{}},
		{name: "qom-list", args: QomPathArg{}, ret: []ObjectPropertyInfo{}},
		{name: "qom-get", args: QomGetArg{}, ret: new(any)},
		{name: "qom-set", args: QomSetArg{}},
		{name: "qom-list-get", args: QomListGetArg{}, ret: []ObjectPropertiesValues{}},
		{name: "qom-list-types", args: QomListTypesArg{}, ret: []ObjectTypeInfo{}},
		{name: "qom-list-properties", args: QomListPropertiesArg{}, ret: []ObjectPropertyInfo{}},
		{name: "qmp_capabilities", args: QmpCapabilitiesArg{}},
		{name: "query-version", ret: VersionInfo{}},
		{name: "query-commands", ret: []CommandInfo{}},
		{name: "query-qmp-schema", ret: []SchemaInfo{}},
		{name: "quit"},
		{name: "getfd", args: FdNameArg{}}, {name: "closefd", args: FdNameArg{}},
		{name: "add-fd", args: AddFdArg{}, ret: AddfdInfo{}},
		{name: "remove-fd", args: RemoveFdArg{}},
		{name: "query-fdsets", ret: []FdsetInfo{}},
	} {
		s.Command(c.name, of(c.args), of(c.ret), c.features...)
	}
	for name, data := range map[string]any{
		"JOB_STATUS_CHANGE": JobStatusChange{}, "BLOCK_JOB_COMPLETED": BlockJobCompleted{},
		"BLOCK_JOB_CANCELLED": BlockJobProgress{}, "BLOCK_JOB_READY": BlockJobProgress{},
		"BLOCK_JOB_ERROR": BlockJobError{}, "BLOCK_JOB_PENDING": BlockJobPending{},
		"BLOCK_IMAGE_CORRUPTED": BlockImageCorrupted{}, "BLOCK_IO_ERROR": BlockIOError{},
		"BLOCK_WRITE_THRESHOLD": BlockWriteThreshold{}, "BLOCK_EXPORT_DELETED": BlockExportDeleted{},
	} {
		s.Event(name, of(data))
	}
	return s
}

// referenceDir is where the reference material lies: in BLOCKD_REFERENCE, or
// beside the module.
func referenceDir() string {
	if dir := os.Getenv("BLOCKD_REFERENCE"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "shared", "reference")
}

// referenceSchema reads query-qmp-schema of QEMU 10.2.
func referenceSchema(t *testing.T) []SchemaInfo {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(referenceDir(), "qmp-schema-10.2.json"))
	if err != nil {
		t.Skip("needs the reference schema, in $BLOCKD_REFERENCE or ../shared/reference")
	}
	s, err := ParseIntrospection(data)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTypesMatchTheReference(t *testing.T) {
	diffs := CompareSchemas(testSchema().Introspect(), referenceSchema(t))
	// Which commands and events there are is for their registry's own test.
	diffs = slices.DeleteFunc(diffs, func(d SchemaDifference) bool { return !strings.Contains(d.Path, "/") })
	for _, e := range CheckDifferences(diffs, TypeDifferences()) {
		t.Error(e)
	}
}

func TestCompareSchemasSeesEveryKindOfDifference(t *testing.T) {
	parse := func(text string) []SchemaInfo {
		s, err := ParseIntrospection([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	base := `[{"name":"c","meta-type":"command","arg-type":"0","ret-type":"1","features":["f"]},
{"name":"E","meta-type":"event","arg-type":"1"},
{"name":"0","meta-type":"object","members":[{"name":"m","type":"int","default":null},{"name":"t","type":"2"},{"name":"l","type":"[str]"},{"name":"a","type":"3"}],"tag":"t","variants":[{"case":"x","type":"1"},{"case":"y","type":"1"}]},
{"name":"1","meta-type":"object","members":[]},
{"name":"2","meta-type":"enum","members":[{"name":"x"},{"name":"y","features":["deprecated"]}],"values":["x","y"]},
{"name":"3","meta-type":"alternate","members":[{"type":"str"},{"type":"1"}]},
{"name":"[str]","meta-type":"array","element-type":"str"},{"name":"str","meta-type":"builtin","json-type":"string"},{"name":"int","meta-type":"builtin","json-type":"int"}]`
	if d := CompareSchemas(parse(base), parse(base)); len(d) != 0 {
		t.Fatalf("equal schemas differ: %v", d)
	}
	for _, c := range [][3]string{
		{`"features":["f"]`, `"features":[]`, "absent c/$f"},
		{`"name":"E"`, `"name":"F"`, "absent E; extra F"},
		{`"type":"int","default":null`, `"type":"int"`, "another optionality c/arg-type/m"},
		{`{"name":"m","type":"int"`, `{"name":"m","type":"str"`, "str instead of int c/arg-type/m"},
		{`{"name":"m","type":"int"`, `{"name":"n","type":"int"`, "absent c/arg-type/m; extra c/arg-type/n"},
		{`"features":["deprecated"]`, `"features":[]`, "absent c/arg-type/t/^y/$deprecated"},
		{`{"name":"x"},`, ``, "members that are not the values c/arg-type/t; absent c/arg-type/t/^x"},
		{`{"case":"y","type":"1"}`, `{"case":"y","type":"4"}`, "a type that is not described c/arg-type/t=y"},
		{`,{"case":"y","type":"1"}`, ``, "absent c/arg-type/t=y"},
		{`{"type":"str"},{"type":"1"}`, `{"type":"str"}`, "absent c/arg-type/a/=object"},
		{`"element-type":"str"`, `"element-type":"int"`, "int instead of str c/arg-type/l/*"},
		{`{"name":"l","type":"[str]"},{"name":"a","type":"3"}`, `{"name":"a","type":"3"},{"name":"l","type":"[str]"}`, "another order of members c/arg-type"},
	} {
		changed := strings.Replace(base, c[0], c[1], 1)
		if changed == base {
			t.Fatalf("%s does not occur", c[0])
		}
		var got []string
		for _, d := range CompareSchemas(parse(changed), parse(base)) {
			got = append(got, d.String())
		}
		if s := strings.Join(got, "; "); s != c[2] {
			t.Errorf("%s -> %s: got %q, want %q", c[0], c[1], s, c[2])
		}
	}
}

func TestCheckDifferencesWantsTheListExact(t *testing.T) {
	got := CheckDifferences([]SchemaDifference{{"a", "absent"}, {"c", "another tag"}, {"d", "extra"}},
		[]string{"absent a", "absent b", "another tag c"})
	want := []string{"not listed: extra d", "listed, but no longer so: absent b", "not allowed in the list: another tag c"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q", got)
	}
}

func TestIntrospectionDescribesAllThatItMentions(t *testing.T) {
	s := testSchema().Introspect()
	known := index(s)
	if len(known) != len(s) {
		t.Error("a name is described twice")
	}
	mention := func(name, by string) {
		if known[name] == nil {
			t.Errorf("%s mentions %s", by, name)
		}
	}
	for _, e := range s {
		switch {
		case e.Command != nil:
			mention(e.Command.ArgType, e.Name)
			mention(e.Command.RetType, e.Name)
		case e.Event != nil:
			mention(e.Event.ArgType, e.Name)
		case e.Array != nil:
			mention(e.Array.ElementType, e.Name)
		case e.Object != nil:
			for _, m := range e.Object.Members {
				mention(m.Type, e.Name)
			}
			for _, v := range e.Object.Variants {
				mention(v.Type, e.Name)
			}
		}
	}
}
