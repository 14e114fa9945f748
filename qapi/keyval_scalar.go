package qapi

import (
	"errors"
	"math"
	"math/bits"
	"reflect"
	"strconv"
	"strings"
)

// keyvalScalar converts the string of a key=value pair to the member's type.
func keyvalScalar(p *typePlan, s string, dst reflect.Value, name string) *decodeError {
	switch p.kind {
	case planString:
		dst.SetString(s)
	case planEnum:
		return setEnum(p, s, dst, name)
	case planBool:
		b, ok := parseBool(s)
		if !ok {
			return expects("'on' or 'off'")
		}
		dst.SetBool(b)
	case planNumber:
		f, err := strconv.ParseFloat(strings.TrimLeft(s, cSpace), 64)
		if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			return expects("number")
		}
		dst.SetFloat(f)
	case planInt:
		n, ok := parseCInt(s)
		if !ok {
			return expects("integer")
		}
		return setInt(p, n, dst, name)
	case planUint:
		if p.size {
			n, err := ParseSize(s)
			if err != nil {
				return expects("size")
			}
			return setUint(p, n, dst, name)
		}
		n, ok := parseCUint(s)
		if !ok {
			return expects("integer")
		}
		return setUint(p, n, dst, name)
	}
	return nil
}

// cSpace is what C's number parsers skip in front of a number.
const cSpace = " \t\n\v\f\r"

func parseBool(s string) (value, ok bool) {
	switch s {
	case "on", "yes", "true", "y":
		return true, true
	case "off", "no", "false", "n":
		return false, true
	}
	return false, false
}

// cMagnitude reads an integer as C's strtoul with base 0 does: white space,
// sign, then hexadecimal, octal or decimal digits to the end.
func cMagnitude(s string) (n uint64, negative, ok bool) {
	s = strings.TrimLeft(s, cSpace)
	if s != "" && (s[0] == '-' || s[0] == '+') {
		negative = s[0] == '-'
		s = s[1:]
	}
	base := 10
	switch {
	case len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x':
		s, base = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		base = 8
	}
	if s == "" || s[0] == '-' || s[0] == '+' {
		return 0, false, false
	}
	n, err := strconv.ParseUint(s, base, 64)
	return n, negative, err == nil
}

func parseCInt(s string) (int64, bool) {
	n, negative, ok := cMagnitude(s)
	switch {
	case !ok:
		return 0, false
	case negative:
		return -int64(n), n <= 1<<63
	}
	return int64(n), n <= math.MaxInt64
}

func parseCUint(s string) (uint64, bool) {
	n, negative, ok := cMagnitude(s)
	if negative {
		n = -n // wraps, as in the field
	}
	return n, ok
}

// Errors of ParseSize.
var (
	ErrSizeSyntax = errors.New("not a size")
	ErrSizeRange  = errors.New("size out of range")
)

// ParseSize reads a count of bytes: a decimal or hexadecimal number, or a
// decimal fraction, with an optional suffix B, K, M, G, T, P or E in either
// case (powers of 1024; a fraction other than 0 needs a suffix other than B, and
// hexadecimal takes none).
func ParseSize(s string) (uint64, error) {
	s = strings.TrimLeft(s, cSpace)
	if len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x' {
		n, err := strconv.ParseUint(s[2:], 16, 64)
		return n, sizeError(err)
	}
	digits := 0
	for digits < len(s) && (isDigit(s[digits]) || s[digits] == '.') {
		digits++
	}
	number, suffix := s[:digits], s[digits:]
	shift, ok := sizeShift(suffix)
	if !ok || number == "" {
		return 0, ErrSizeSyntax
	}
	whole, fraction, _ := strings.Cut(number, ".")
	if whole == "" {
		return 0, ErrSizeSyntax
	}
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil {
		return 0, sizeError(err)
	}
	if shift == 0 && strings.Trim(fraction, "0") != "" {
		return 0, ErrSizeSyntax
	}
	high, low := bits.Mul64(n, 1<<shift)
	if high != 0 {
		return 0, ErrSizeRange
	}
	if fraction != "" {
		f, err := strconv.ParseFloat("0."+fraction, 64)
		if err != nil {
			return 0, ErrSizeSyntax
		}
		low, high = bits.Add64(low, uint64(f*float64(uint64(1)<<shift)+0.5), 0)
		if high != 0 {
			return 0, ErrSizeRange
		}
	}
	return low, nil
}

func sizeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, strconv.ErrRange):
		return ErrSizeRange
	}
	return ErrSizeSyntax
}

// sizeShift is the power of two of a suffix; no suffix means bytes.
func sizeShift(suffix string) (uint, bool) {
	if suffix == "" {
		return 0, true
	}
	if len(suffix) != 1 {
		return 0, false
	}
	i := strings.IndexByte("BKMGTPE", suffix[0]&^0x20)
	return uint(10 * i), i >= 0
}
