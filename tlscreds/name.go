package tlscreds

import (
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
)

// Distinguished names as text, RFC 4514: the last part first, parts of one set
// joined by plus signs.

// attributes are the names that GnuTLS has for attribute types; others stand
// there as numbers with their value in hex.
var attributes = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "surName", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
	"2.5.4.15": "businessCategory", "2.5.4.17": "postalCode", "2.5.4.41": "name", "2.5.4.42": "givenName",
	"2.5.4.43": "initials", "2.5.4.44": "generationQualifier", "2.5.4.46": "dnQualifier", "2.5.4.65": "pseudonym",
	"0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC", "1.2.840.113549.1.9.1": "EMAIL",
	"1.3.6.1.4.1.311.60.2.1.1": "jurisdictionOfIncorporationLocalityName",
	"1.3.6.1.4.1.311.60.2.1.2": "jurisdictionOfIncorporationStateOrProvinceName",
	"1.3.6.1.4.1.311.60.2.1.3": "jurisdictionOfIncorporationCountryName",
}

type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type relativeNameSET []attribute

// DistinguishedName prints an encoded name; "" for what is none.
func DistinguishedName(der []byte) string {
	var name []relativeNameSET
	if rest, err := asn1.Unmarshal(der, &name); err != nil || len(rest) > 0 {
		return ""
	}
	var parts []string
	for _, set := range slices.Backward(name) {
		var values []string
		for _, a := range set {
			values = append(values, a.String())
		}
		parts = append(parts, strings.Join(values, "+"))
	}
	return strings.Join(parts, ",")
}

func (a attribute) String() string {
	name := attributes[a.Type.String()]
	var text string
	_, err := asn1.Unmarshal(a.Value.FullBytes, &text)
	if name == "" {
		name, err = a.Type.String(), errors.ErrUnsupported
	}
	// These two have one type of string only.
	if err != nil || (name == "DC" || name == "EMAIL") && a.Value.Tag != asn1.TagIA5String {
		return name + "=#" + hex.EncodeToString(a.Value.FullBytes)
	}
	return name + "=" + escape(text)
}

// escape quotes what RFC 4514 (2.4) asks for.
func escape(s string) string {
	var b strings.Builder
	for i, c := range []byte(s) {
		switch {
		case strings.IndexByte(`,+"\<>;`, c) >= 0, c == '#' && i == 0, c == ' ' && (i == 0 || i == len(s)-1):
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == 0:
			b.WriteString(`\00`)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
