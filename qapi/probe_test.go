package qapi

import (
	"strings"
	"testing"
)

// probe answers a query in libvirt's notation: members by name, +value for the
// branch of a union, ^value for a value of an enum, $name for a feature.
func probe(schema []SchemaInfo, query string) bool {
	types := index(schema)
	steps := strings.Split(query, "/")
	at := types[steps[0]]
	for _, step := range steps[1:] {
		if at == nil {
			return false
		}
		for at.Array != nil {
			at = types[at.Array.ElementType]
		}
		next := ""
		switch {
		case step == "arg-type" && at.Command != nil:
			next = at.Command.ArgType
		case step == "ret-type" && at.Command != nil:
			next = at.Command.RetType
		case step[0] == '^':
			for _, v := range at.values() {
				if v == step[1:] {
					return true
				}
			}
		case step[0] == '$':
			for _, f := range at.Features {
				if f == step[1:] {
					return true
				}
			}
		case step[0] == '+' && at.Object != nil:
			for _, v := range at.Object.Variants {
				if v.Case == step[1:] {
					next = v.Type
				}
			}
		case at.Object != nil:
			next = at.Object.memberType(step)
		}
		at = types[next]
	}
	return at != nil
}

func TestLibvirtFindsWhatItProbesFor(t *testing.T) {
	schema := testSchema().Introspect()
	for query, want := range map[string]bool{
		"blockdev-add/arg-type/+file/aio/^io_uring":                           true,
		"blockdev-add/arg-type/+file/drop-cache":                              true,
		"blockdev-add/arg-type/+file/$dynamic-auto-read-only":                 true,
		"blockdev-add/arg-type/+qcow2/discard-no-unref":                       true,
		"block-stream/arg-type/backing-mask-protocol":                         true,
		"block-commit/arg-type/backing-mask-protocol":                         true,
		"blockdev-snapshot/$allow-write-only-overlay":                         true,
		"nbd-server-start/arg-type/tls-creds":                                 true,
		"blockdev-set-active":                                                 true,
		"transaction/arg-type/actions/+blockdev-backup/data/filter-node-name": true,
		"blockdev-add/arg-type/+nvme":                                         false,
		"blockdev-add/arg-type/+nbd/tls-hostname":                             true,
		"blockdev-add/arg-type/driver/^vmdk":                                  false,
	} {
		if got := probe(schema, query); got != want {
			t.Errorf("%s: %v", query, got)
		}
	}
}
