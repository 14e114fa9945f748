package qapi

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// The oracle of the reader, the writer and the decoder is the field's own
// daemon: the same bytes must get the same answers.

const rivalProgram = "qemu-storage-daemon"

// askRival sends bytes to a monitor on stdio and returns the lines after the
// negotiation.
func askRival(t *testing.T, input string) []string {
	t.Helper()
	if _, err := exec.LookPath(rivalProgram); err != nil {
		t.Skip("needs " + rivalProgram)
	}
	cmd := exec.Command(rivalProgram, "--chardev", "stdio,id=s", "--monitor", "s")
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}` + input + "\n" + `{"execute":"quit"}` + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", rivalProgram, err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\r\n"), "\r\n")
	if len(lines) < 3 {
		t.Fatalf("too few answers: %q", out)
	}
	return lines[2 : len(lines)-1]
}

func TestReaderAgainstRival(t *testing.T) {
	for _, c := range readerCases {
		t.Run(c.name, func(t *testing.T) {
			// A value that is no command gets an error that does not show it, so
			// compare errors in kind and place, and values by their number.
			got := askRival(t, c.input)
			if len(got) != len(c.want) {
				t.Fatalf("rival answers %q, table has %q", got, c.want)
			}
			for i, w := range c.want {
				desc, isError := strings.CutPrefix(w, "! ")
				if !isError {
					if strings.Contains(got[i], "JSON parse error") {
						t.Errorf("rival refuses %q: %s", w, got[i])
					}
					continue
				}
				want := string(AppendJSON(nil, NewObject("error", Errorf("%s", desc))))
				if got[i] != want {
					t.Errorf("rival %s\n ours %s", got[i], want)
				}
			}
		})
	}
}

func TestWriterAgainstRival(t *testing.T) {
	ids := []string{
		`{"b":1,"a":2,"c":{"z":1,"y":[{},[]]}}`,
		`"\u00e9\ud83d\ude00\n\t\u0000\b\f\r\"\\\/\u007f\u001f"`,
		"\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"",
		`[1.5,1e3,1E-7,0.1,-0,-0.0,1e400,-1e400,123456789012345678901234567890,12345678.9,1e15,123456789e-5,5e-324,1.7976931348623157e308,0.3,100.0,3e22]`,
		`[18446744073709551615,-9223372036854775808,true,false,null]`,
	}
	var wide bytes.Buffer
	wide.WriteByte('{')
	for i := range 600 {
		if i > 0 {
			wide.WriteByte(',')
		}
		fmt.Fprintf(&wide, `"key-%d":%d`, i*7919%1000, i)
	}
	wide.WriteByte('}')
	ids = append(ids, wide.String())
	for _, id := range ids {
		got := askRival(t, `{"execute":"query-version","id":`+id+`}`)
		if len(got) != 1 {
			t.Fatalf("%.60s: rival answers %q", id, got)
		}
		_, text, _ := strings.Cut(got[0], `, "id": `)
		text = strings.TrimSuffix(text, "}")
		v, err := ParseJSON([]byte(id))
		if err != nil {
			t.Fatalf("%.60s: %v", id, err)
		}
		if ours := string(AppendJSON(nil, v)); ours != text {
			t.Errorf("rival %s\n ours %s", text, ours)
		}
	}
}

func TestDecoderAgainstRival(t *testing.T) {
	for _, c := range decodeCases {
		if c.version != "" {
			continue
		}
		t.Run(c.command+c.args, func(t *testing.T) {
			got := askRival(t, fmt.Sprintf(`{"execute":"%s","arguments":%s}`, c.command, c.args))
			want := string(AppendJSON(nil, NewObject("error", Errorf("%s", c.want))))
			if len(got) != 1 || got[0] != want {
				t.Errorf("rival %q\n ours %q", got, want)
			}
		})
	}
}
