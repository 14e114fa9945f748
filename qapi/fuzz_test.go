package qapi

import (
	"bytes"
	"math"
	"slices"
	"testing"
)

// FuzzParser checks that cutting the input changes nothing, and that what was
// read prints to something that reads back the same.
func FuzzParser(f *testing.F) {
	for _, c := range readerCases {
		f.Add([]byte(c.input), byte(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, piece byte) {
		run := func(piece int) (out [][]byte) {
			emit := func(v any, err error) {
				if err != nil {
					out = append(out, []byte("! "+err.Error()))
					return
				}
				text := AppendJSON(nil, v)
				out = append(out, text)
				if changesByPrinting(v) {
					return
				}
				again, err := ParseJSON(text)
				if err != nil || !bytes.Equal(AppendJSON(nil, again), text) {
					t.Fatalf("%s reads back as %s (%v)", text, AppendJSON(nil, again), err)
				}
			}
			p := NewParser()
			for rest := data; len(rest) > 0; {
				n := min(piece, len(rest))
				p.Feed(rest[:n], emit)
				rest = rest[n:]
			}
			p.End(emit)
			return out
		}
		whole, cut := run(len(data)+1), run(int(piece)+1)
		if !bytes.Equal(bytes.Join(whole, []byte("\n")), bytes.Join(cut, []byte("\n"))) {
			t.Fatalf("pieces change the result: %q, %q", whole, cut)
		}
	})
}

// changesByPrinting tells whether v holds what the field's text cannot carry:
// two keys in one bucket, which change places each time, infinity, or the
// double -0, which reads as an integer.
func changesByPrinting(v any) bool {
	switch v := v.(type) {
	case float64:
		return math.IsInf(v, 0) || v == 0 && math.Signbit(v)
	case []any:
		return slices.ContainsFunc(v, changesByPrinting)
	case *Object:
		seen := map[uint16]bool{}
		for k, x := range v.All() {
			if seen[keyBucket(k)] || changesByPrinting(x) {
				return true
			}
			seen[keyBucket(k)] = true
		}
	}
	return false
}

// FuzzOption checks that no option string breaks the readers, and that what
// they accept prints and decodes again.
func FuzzOption(f *testing.F) {
	for _, c := range optionErrors {
		f.Add(c.in)
	}
	f.Add("qcow2,file.driver=file,file.filename=a,,b,backing=n,cache.direct=on,overlap-check.template=all")
	f.Add("{'driver':'raw','file':{'driver':'null-co'}}")
	f.Fuzz(func(t *testing.T, s string) {
		var o BlockdevOptions
		if err := DecodeOption(s, "driver", &o); err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatalf("%q: error %v is a %T", s, err, err)
			}
			return
		}
		text := AppendJSON(nil, &o)
		v, err := ParseJSON(text)
		if err != nil {
			t.Fatalf("%q prints as %s: %v", s, text, err)
		}
		var again BlockdevOptions
		if err := Decode(v, &again); err != nil || !bytes.Equal(AppendJSON(nil, &again), text) {
			t.Fatalf("%q prints as %s, then as %s (%v)", s, text, AppendJSON(nil, &again), err)
		}
	})
}
