package qapi

import (
	"fmt"
	"strings"
	"testing"
)

// read feeds input in pieces of the given size and lists what came out: values
// as JSON, errors as "! text".
func read(input string, piece int, end bool) []string {
	out := []string{}
	emit := func(v any, err error) {
		if err != nil {
			out = append(out, "! "+err.Error())
		} else {
			out = append(out, string(AppendJSON(nil, v)))
		}
	}
	p := NewParser()
	for len(input) > 0 {
		n := min(piece, len(input))
		p.Feed([]byte(input[:n]), emit)
		input = input[n:]
	}
	if end {
		p.End(emit)
	}
	return out
}

const perr = "! JSON parse error, "

var readerCases = []struct {
	name, input string
	want        []string
}{
	{"single quotes", `{'a':'\'"'}`, []string{`{"a": "'\""}`}},
	{"several values", "1 true\nnull \"x\"[]{}", []string{"1", "true", "null", `"x"`, "[]", "{}"}},
	{"duplicate key", `{"a":1,"a":2}7 `, []string{perr + "duplicate key", "7"}},
	{"64 bits", "[18446744073709551615,-9223372036854775808,9223372036854775807]",
		[]string{"[18446744073709551615, -9223372036854775808, 9223372036854775807]"}},
	{"past 64 bits", "[18446744073709551616,-9223372036854775809]",
		[]string{"[1.8446744073709552e+19, -9.2233720368547758e+18]"}},
	{"floats", "[1.5,1e3,1E-7,0.1,-0,-0.0,1e400,-5.5e-3,1e16,1e17,0.0001,0.00001]",
		[]string{"[1.5, 1000, 9.9999999999999995e-08, 0.10000000000000001, 0, -0, inf, -0.0054999999999999997, 10000000000000000, 1e+17, 0.0001, 1.0000000000000001e-05]"}},
	{"leading zero", "[01]2 ", []string{perr + "stray '01'", perr + "expecting value", "2"}},
	{"zero exponent", "[0e1]", []string{perr + "expected separator in list"}},
	{"bare point", `{"a":1.}{}`, []string{perr + "stray '1.}'", "{}"}},
	{"bare minus", `[-]`, []string{perr + "stray '-]'"}},
	{"bad exponent", `[1.5e+]`, []string{perr + "stray '1.5e+]'"}},
	{"keyword", `[tru]`, []string{perr + "invalid keyword 'tru'"}},
	{"capital", "FOO\"x{}", []string{perr + "stray 'F'", "{}"}},
	{"percent", "[%d]", []string{perr + "stray '%'", perr + "expecting value"}},
	{"bad escape", `["\q"]`, []string{perr + "invalid escape sequence in string"}},
	{"short unicode", `["\u12"]`, []string{perr + `\u12" is not a valid Unicode character`}},
	{"bad hex", `["\u12zz34"]`, []string{perr + `\u12zz is not a valid Unicode character`}},
	{"lone high surrogate", `["\ud83dx"]`, []string{perr + `\ud83d is not a valid Unicode character`}},
	{"high surrogate twice", `["\ud83d\ud83d"]`, []string{perr + `\ud83d is not a valid Unicode character`}},
	{"lone low surrogate", `["\udc00"]`, []string{perr + `\udc00 is not a valid Unicode character`}},
	{"pair of no character", `["\ud83f\udfff"]`, []string{perr + `\ud83f\udfff is not a valid Unicode character`}},
	{"no character", `["\uFFFE"]`, []string{perr + `\uFFFE is not a valid Unicode character`}},
	{"surrogates", `["\u00e9\ud83d\ude00"]`, []string{`["\u00E9\uD83D\uDE00"]`}},
	{"zero character", `["\u0000"]` + "[\"\xc0\x80\"]", []string{`["\u0000"]`, `["\u0000"]`}},
	{"escapes", `["\/\u007f\b\f\n\r\t\\"]` + "[\"\x7f\"]", []string{`["/\u007F\b\f\n\r\t\\"]`, `["\u007F"]`}},
	{"invalid utf-8", "[\"\x80\"][\"\xc3\"][\"\xef\xbf\xbe\"][\"\xed\xa0\x80\"][\"\xf4\x90\x80\x80\"]0 ",
		[]string{perr + "invalid UTF-8 sequence in string", perr + "invalid UTF-8 sequence in string", perr + "invalid UTF-8 sequence in string",
			perr + "invalid UTF-8 sequence in string", perr + "invalid UTF-8 sequence in string", "0"}},
	{"control character in string", "{\"a\":\"\x01\"}{}",
		[]string{perr + "stray '\"\x01'", perr + "expecting value", "{}"}},
	{"newline in string", "{\"a\":\"b\nc\"}{}", []string{perr + "stray '\"b\n'", perr + "expecting value", "{}"}},
	{"zero byte cuts the text", "\"abc\x00def\"\n5 ", []string{perr + "stray '\"abc'", "5"}},
	{"reset by 0xff", "{\"a\":[1,2 \xff {}", []string{perr + "stray '\xff'", "{}"}},
	{"comma at end", `{"a":1,}{}`, []string{perr + "expecting value", "{}"}},
	{"no comma", `{"a":1 "b":2}{}`, []string{perr + "expected separator in dict", "{}"}},
	{"no colon", `{"a" 1}{}`, []string{perr + "missing : in object pair", "{}"}},
	{"number as key", `{1:2}{}`, []string{perr + "key is not a string in object", "{}"}},
	{"list as key", `{[1]:2}{}`, []string{perr + "key is not a string in object", "{}"}},
	{"bracket for brace", `{]}{}`, []string{perr + "expecting value", perr + "expecting value", "{}"}},
	{"too many braces", `{"a":1}}}{}`, []string{`{"a": 1}`, perr + "expecting value", perr + "expecting value", "{}"}},
	{"colon in list", `["a":1]{}`, []string{perr + "expected separator in list", "{}"}},
	{"only separators", `,:`, []string{perr + "expecting value", perr + "expecting value"}},
}

func TestReaderAnswersLikeTheField(t *testing.T) {
	for _, c := range readerCases {
		t.Run(c.name, func(t *testing.T) {
			for _, piece := range []int{1, 2, 7, 1 << 20} {
				got := read(c.input, piece, false)
				if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
					t.Errorf("pieces of %d:\n got %q\nwant %q", piece, got, c.want)
				}
			}
		})
	}
}

func TestIncompleteInputWaits(t *testing.T) {
	for _, in := range []string{`{`, `{"a"`, `[1,`, `"abc`, `12`, `nul`, `'a\`} {
		if got := read(in, 1, false); len(got) != 0 {
			t.Errorf("%q: answered %q before the end", in, got)
		}
	}
}

func TestEndOfInputReportsTheRest(t *testing.T) {
	for in, want := range map[string]string{
		`{`:    perr + "premature EOI",
		`[1,`:  perr + "premature EOI",
		`"abc`: perr + "stray '\"abc'",
		`12`:   "12",
		`null`: "null",
	} {
		if got := read(in, 3, true); len(got) != 1 || got[0] != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := read(" \n", 1, true); len(got) != 0 {
		t.Errorf("blank input gave %q", got)
	}
}

func TestNestingPast1024IsRefused(t *testing.T) {
	deep := strings.Repeat("[", 1024) + strings.Repeat("]", 1024)
	if got := read(deep, 4096, false); len(got) != 1 || strings.HasPrefix(got[0], "!") {
		t.Errorf("1024 levels were refused")
	}
	got := read(strings.Repeat("[", 1025)+"\n7 ", 4096, false)
	if len(got) != 2 || got[0] != "! JSON nesting depth limit exceeded" || got[1] != "7" {
		t.Errorf("1025 levels gave %q", got)
	}
}

func TestTokensPast64MiBAreRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	var got []string
	emit := func(v any, err error) {
		if err != nil {
			got = append(got, err.Error())
		} else {
			got = append(got, fmt.Sprint(v))
		}
	}
	p := NewParser()
	block := []byte(strings.Repeat("a", 1<<20))
	p.Feed([]byte(`"`), emit)
	for range 64 {
		p.Feed(block, emit)
	}
	if fmt.Sprint(got) != "[JSON token size limit exceeded]" {
		t.Fatalf("one long string gave %.100q", got)
	}
	p.Reset()
	got = nil
	p.Feed([]byte("["), emit)
	for range 65 {
		p.Feed([]byte(`"`), emit)
		p.Feed(block, emit)
		p.Feed([]byte(`",`), emit)
		if len(got) > 0 {
			break
		}
	}
	if len(got) == 0 || got[0] != "JSON token size limit exceeded" {
		t.Fatalf("many long strings gave %.100q", got)
	}
}

func TestTokenCountIsLimited(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	var got []string
	emit := func(v any, err error) { got = append(got, fmt.Sprint(err)) }
	p := NewParser()
	p.Feed([]byte("["), emit)
	block := []byte(strings.Repeat("1,", 1<<16))
	for range 17 {
		p.Feed(block, emit)
		if len(got) > 0 {
			break
		}
	}
	if len(got) == 0 || got[0] != "JSON token count limit exceeded" {
		t.Fatalf("gave %.100q", got)
	}
}

func TestParserCanBeResetForANewClient(t *testing.T) {
	var got []string
	emit := func(v any, err error) { got = append(got, fmt.Sprint(v, err)) }
	p := NewParser()
	p.Feed([]byte(`{"a": ["half`), emit)
	p.Reset()
	p.Feed([]byte(`[]`), emit)
	if len(got) != 1 || got[0] != "[] <nil>" {
		t.Errorf("got %q", got)
	}
}

func TestParseJSONTakesExactlyOneValue(t *testing.T) {
	for in, want := range map[string]string{
		`{}{}`: "Expecting at most one JSON value",
		`{}x`:  "Expecting at most one JSON value",
		`{`:    "JSON parse error, premature EOI",
		``:     "Expecting a JSON value",
	} {
		if _, err := ParseJSON([]byte(in)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", in, err, want)
		}
	}
	if v, err := ParseJSON([]byte(` 18446744073709551615 `)); err != nil || v != uint64(18446744073709551615) {
		t.Errorf("got %v, %v", v, err)
	}
}
