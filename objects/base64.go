package objects

import (
	"bytes"
	"strings"

	"blockd/qapi"
)

const base64Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

// decodeBase64 decodes as the field does, which is more lenient than
// encoding/base64: a group of four that is not complete at the end is dropped,
// and text may go on after padding. What is not of the alphabet, padding or a
// newline is refused.
func decodeBase64(text []byte) ([]byte, error) {
	if bytes.IndexByte(text, 0) >= 0 {
		return nil, qapi.Errorf("Base64 data contains embedded NUL characters")
	}
	out := make([]byte, 0, len(text)/4*3)
	var group [4]byte
	var bits uint32
	n := 0
	for _, c := range text {
		v := strings.IndexByte(base64Alphabet, c)
		switch {
		case c == '\n':
			continue
		case c == '=':
			v = 0
		case v < 0:
			return nil, qapi.Errorf("Base64 data contains invalid characters")
		}
		group[n] = c
		bits = bits<<6 | uint32(v)
		if n++; n < 4 {
			continue
		}
		n = 0
		out = append(out, byte(bits>>16))
		if group[2] != '=' {
			out = append(out, byte(bits>>8))
		}
		if group[3] != '=' {
			out = append(out, byte(bits))
		}
	}
	return out, nil
}
