package qapi

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

// ParseIntrospection reads the result of query-qmp-schema as JSON text.
func ParseIntrospection(data []byte) ([]SchemaInfo, error) {
	v, err := ParseJSON(data)
	if err != nil {
		return nil, err
	}
	var s []SchemaInfo
	if err := Decode(v, &s); err != nil {
		return nil, fmt.Errorf("not a schema: %w", err)
	}
	return s, nil
}

//go:embed absent.txt
var absentText string

// TypeDifferences lists how the types of this package differ from QEMU 10.2's,
// in the form of SchemaDifference.String: what is absent within the arguments
// and results of commands and events that exist here. It is the checked-in file
// absent.txt, which is to shrink. A registry of commands is expected to differ
// by this list and by its own list of whole commands and events.
func TypeDifferences() []string {
	var list []string
	for line := range strings.Lines(absentText) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	return list
}

// CheckDifferences compares differences with a list of those that are known,
// and returns a complaint for each that is missing on either side. Only
// "absent" and "extra" may be listed: everything else is a mistake.
func CheckDifferences(diffs []SchemaDifference, known []string) []string {
	var complaints []string
	found := make(map[string]bool, len(diffs))
	for _, d := range diffs {
		found[d.String()] = true
		if !slices.Contains(known, d.String()) {
			complaints = append(complaints, "not listed: "+d.String())
		}
	}
	for _, k := range known {
		if !found[k] {
			complaints = append(complaints, "listed, but no longer so: "+k)
		}
		if !strings.HasPrefix(k, "absent ") && !strings.HasPrefix(k, "extra ") {
			complaints = append(complaints, "not allowed in the list: "+k)
		}
	}
	return complaints
}
