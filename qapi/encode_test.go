package qapi

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
)

func TestKeysComeInTheOrderOfTheField(t *testing.T) {
	// As recorded from QEMU 7.2.
	for in, want := range map[string]string{
		`{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22},"package":"x"},"capabilities":["oob"]}}`:            `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}`,
		`{"timestamp":{"seconds":1,"microseconds":2},"event":"JOB_STATUS_CHANGE","data":{"id":"j","status":"created"}}`: `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "JOB_STATUS_CHANGE", "data": {"status": "created", "id": "j"}}`,
		`{"error":{"desc":"x","class":"GenericError"}}`:                                                                 `{"error": {"class": "GenericError", "desc": "x"}}`,
	} {
		v, err := ParseJSON([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(AppendJSON(nil, v)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestSameBucketNewestFirst(t *testing.T) {
	byBucket := map[uint16]string{}
	for i := 0; ; i++ {
		key := fmt.Sprint("k", i)
		other, ok := byBucket[keyBucket(key)]
		if !ok {
			byBucket[keyBucket(key)] = key
			continue
		}
		got := string(AppendJSON(nil, NewObject(other, int64(1), key, int64(2))))
		if want := fmt.Sprintf(`{"%s": 2, "%s": 1}`, key, other); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		return
	}
}

func TestStructsAndObjectsPrintTheSame(t *testing.T) {
	for _, text := range []string{
		`{"driver":"qcow2","node-name":"n","read-only":true,"file":{"driver":"file","filename":"/f"},"backing":null}`,
		`{"driver":"raw","file":"x","size":1}`,
		`{"driver":"null-co","latency-ns":18446744073709551615}`,
	} {
		var o BlockdevOptions
		decodeText(t, text, &o)
		v, _ := ParseJSON([]byte(text))
		if got, want := string(AppendJSON(nil, &o)), string(AppendJSON(nil, v)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	var c ChardevAddArg
	decodeText(t, `{"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"p"}},"server":false}}}`, &c)
	want := `{"id": "c", "backend": {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "p"}}, "server": false}}}`
	v, _ := ParseJSON([]byte(want))
	if got := string(AppendJSON(nil, &c)); got != string(AppendJSON(nil, v)) {
		t.Errorf("got %s", got)
	}
}

func TestListsOfStructs(t *testing.T) {
	jobs := []JobInfo{{ID: "a", Type: JobTypeBackup, Status: JobStatusRunning}}
	want := `[{"current-progress": 0, "status": "running", "total-progress": 0, "type": "backup", "id": "a"}]`
	if got := string(AppendJSON(nil, jobs)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := string(AppendJSON(nil, []JobInfo(nil))); got != "[]" {
		t.Errorf("no jobs print as %s", got)
	}
}

func TestPrettyUsesFourSpaces(t *testing.T) {
	v := NewObject("a", []any{}, "b", &Object{}, "c", []any{int64(1), []any{int64(2)}})
	want := "{\n    \"a\": [\n    ],\n    \"b\": {\n    },\n    \"c\": [\n        1,\n        [\n            2\n        ]\n    ]\n}"
	if got := string(AppendPretty(nil, v)); got != want {
		t.Errorf("got %s", got)
	}
	got := string(AppendPretty(nil, NewObject("return", Empty{})))
	if want := "{\n    \"return\": {\n    }\n}"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestInvalidUTF8IsReplacedSequenceBySequence(t *testing.T) {
	// As the field printed them.
	for in, want := range map[string]string{
		"\xf0\x9f\x98x": `"\uFFFDx"`,
		"\xed\xa0\x80x": `"\uFFFDx"`,
		"\xc0\x80\xc0\x81\xf8\x80\x80\x80\x80\x80z": `"\u0000\uFFFD\uFFFD\uFFFDz"`,
		"\x80\x80\xef\xbf\xbe\xf5\x80\x80\x80\xfe":  `"\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"`,
		"\xf0\x9f\xbf\xbf\xe9\xe9\xe9":              `"\uFFFD\uFFFD\uFFFD\uFFFD"`,
	} {
		if got := string(AppendJSON(nil, in)); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// TestRoundTripOfEveryType fills every argument and result type with random values, prints
// them and decodes the print, which must print the same again.
func TestRoundTripOfEveryType(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := testSchema()
	var types []reflect.Type
	for _, c := range s.commands {
		types = append(types, c.Args, c.Ret)
	}
	for _, e := range s.events {
		types = append(types, e.Data)
	}
	for _, rt := range types {
		if rt == nil {
			continue
		}
		for range 20 {
			v := reflect.New(rt)
			fill(r, planOf(rt), v.Elem(), 0)
			text := AppendJSON(nil, v.Interface())
			parsed, err := ParseJSON(text)
			if err != nil {
				t.Fatalf("%v: %v in %s", rt, err, text)
			}
			back := reflect.New(rt)
			if err := Decode(parsed, back.Interface()); err != nil {
				t.Fatalf("%v: %v in %s", rt, err, text)
			}
			if again := AppendJSON(nil, back.Interface()); string(again) != string(text) {
				t.Fatalf("%v: %s became %s", rt, text, again)
			}
			pretty := AppendPretty(nil, v.Interface())
			p, err := ParseJSON(pretty)
			if err != nil || string(AppendJSON(nil, p)) != string(AppendJSON(nil, parsed)) {
				t.Fatalf("%v: pretty form differs: %s (%v)", rt, pretty, err)
			}
		}
	}
}

// fill gives random values to all that a type requires and some that it allows.
func fill(r *rand.Rand, p *typePlan, v reflect.Value, depth int) {
	switch p.kind {
	case planBool:
		v.SetBool(r.IntN(2) == 0)
	case planInt:
		v.SetInt(int64(r.Uint64()) >> (64 - p.bits + r.IntN(p.bits)))
	case planUint:
		v.SetUint(r.Uint64() >> (64 - p.bits + r.IntN(p.bits)))
	case planNumber:
		v.SetFloat(r.NormFloat64() * 1e6)
	case planString:
		v.SetString([]string{"", "x", "é\"\\\n😀", "node-1"}[r.IntN(4)])
	case planEnum:
		v.SetString(p.values[r.IntN(len(p.values))])
	case planList:
		n := r.IntN(3)
		v.Set(reflect.MakeSlice(p.rt, n, n))
		for i := range n {
			fill(r, p.elem, v.Index(i), depth+1)
		}
	case planAlternate:
		f := p.alternates[r.IntN(len(p.alternates))]
		if depth > 3 {
			f = p.alternates[len(p.alternates)-1] // ends the recursion through nodes
		}
		fill(r, f.plan, f.target(v), depth+1)
	case planStruct:
		fillFields(r, p.fields, v, depth)
		if d := p.discriminator; d != nil {
			dv, _ := d.present(v)
			if br := p.byValue[dv.String()]; br != nil {
				fill(r, br.field.plan, br.field.target(v), depth)
			}
		}
	}
}

func fillFields(r *rand.Rand, fields []*fieldPlan, v reflect.Value, depth int) {
	for _, f := range fields {
		if f.optional && (depth > 4 || r.IntN(2) == 0) {
			continue
		}
		fill(r, f.plan, f.target(v), depth+1)
	}
}
