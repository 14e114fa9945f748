package cli

import (
	"slices"
	"testing"

	"blockd/qapi"
	"blockd/qmpclient"
)

// testSchema is a small server's: a command whose argument is a union with a
// member that is an alternate, as blockdev-add's.
const testSchema = `[
{"name": "add", "meta-type": "command", "arg-type": "1", "ret-type": "9"},
{"name": "adjust", "meta-type": "command", "arg-type": "9", "ret-type": "9"},
{"name": "1", "meta-type": "object", "tag": "driver",
 "members": [{"name": "driver", "type": "2"}, {"name": "name", "type": "str", "default": null}, {"name": "ro", "type": "bool", "default": null}],
 "variants": [{"case": "raw", "type": "3"}, {"case": "null", "type": "4"}]},
{"name": "2", "meta-type": "enum", "values": ["raw", "null"], "members": [{"name": "raw"}, {"name": "null"}]},
{"name": "3", "meta-type": "object", "members": [{"name": "file", "type": "5"}, {"name": "sizes", "type": "[int]", "default": null}]},
{"name": "4", "meta-type": "object", "members": [{"name": "size", "type": "int", "default": null}]},
{"name": "5", "meta-type": "alternate", "members": [{"type": "1"}, {"type": "str"}]},
{"name": "9", "meta-type": "object", "members": []},
{"name": "[int]", "meta-type": "array", "element-type": "int"},
{"name": "str", "meta-type": "builtin", "json-type": "string"},
{"name": "int", "meta-type": "builtin", "json-type": "int"},
{"name": "bool", "meta-type": "builtin", "json-type": "boolean"}]`

func readTestSchema(t *testing.T) *schema {
	t.Helper()
	v, err := qapi.ParseJSON([]byte(testSchema))
	if err != nil {
		t.Fatal(err)
	}
	s := &schema{commands: map[string]*qapi.Object{}, types: map[string]*qapi.Object{}}
	for _, info := range qmpclient.ObjectsOf(v) {
		s.add(info)
	}
	return s
}

func TestWordsGetTheTypesOfTheSchema(t *testing.T) {
	s := readTestSchema(t)
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"driver=null", "size=64k", "name=12"}, `{"driver": "null", "name": "12", "size": 65536}`},
		{[]string{"ro=on", "driver=raw", "file=a,b", "sizes=1,2"}, `{"driver": "raw", "file": "a,b", "ro": true, "sizes": [1, 2]}`},
		{[]string{"driver=raw", "file.size=0x10", "file.driver=null"}, `{"driver": "raw", "file": {"driver": "null", "size": 16}}`},
		{[]string{"driver=raw", `file={"driver": "null", "size": 7}`}, `{"driver": "raw", "file": {"driver": "null", "size": 7}}`},
		{[]string{"driver=raw", "sizes.0=3", "sizes.1=4"}, `{"driver": "raw", "sizes": [3, 4]}`},
		// What does not fit is the server's to refuse.
		{[]string{"driver=null", "size=many", "other=1"}, `{"driver": "null", "other": "1", "size": "many"}`},
	} {
		v, err := s.arguments("add", c.words)
		if err != nil {
			t.Errorf("%q: %v", c.words, err)
			continue
		}
		want, _ := qapi.ParseJSON([]byte(c.want))
		if got := sortedJSON(v); got != sortedJSON(want) {
			t.Errorf("%q: got %s, want %s", c.words, got, c.want)
		}
	}
	if _, err := s.arguments("add", []string{"driver"}); err == nil {
		t.Error("a word without = was taken")
	}
}

// sortedJSON is the text of a value; AppendJSON sorts members.
func sortedJSON(v any) string { return string(qapi.AppendJSON(nil, v)) }

func TestCompletionFollowsTheSchema(t *testing.T) {
	s := readTestSchema(t)
	for _, c := range []struct {
		line string
		want []string
	}{
		{"a", []string{"add", "adjust"}},
		{"x", nil},
		{"add d", []string{"driver="}},
		{"add driver=", []string{"driver=null", "driver=raw"}},
		{"add driver=null ", []string{"name=", "ro=", "size="}},
		{"add driver=raw f", []string{"file="}},
		{"add driver=raw file.", []string{"file.driver=", "file.name=", "file.ro="}},
		{"add driver=raw file.driver=null file.s", []string{"file.size="}},
		{"add driver=raw file.driver=n", []string{"file.driver=null"}},
		{"add ro=t", []string{"ro=true"}},
		{"nothing ", nil},
	} {
		if got := s.complete(c.line); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.line, got, c.want)
		}
	}
}

func TestLinesAreSplitOutsideOfQuotesAndBraces(t *testing.T) {
	for line, want := range map[string][]string{
		"a b=c":                        {"a", "b=c"},
		`a  b="c d" e='f"g'`:           {"a", "b=c d", `e=f"g`},
		`a b={"x": "y } z", 'q': [1]}`: {"a", `b={"x": "y } z", 'q': [1]}`},
		`a b={"x": "\" }"} c`:          {"a", `b={"x": "\" }"}`, "c"},
		`a b=""`:                       {"a", "b="},
	} {
		got, err := splitLine(line)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, %v, want %q", line, got, err, want)
		}
	}
	if _, err := splitLine(`a "b`); err == nil {
		t.Error("an open quote was taken")
	}
}
