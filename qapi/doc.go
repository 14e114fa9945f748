// Package qapi holds the data model of QMP: its values, the reader and the
// writer of its JSON, the decoding of values and of command line options into
// typed arguments, and the schema that describes those types to clients.
//
// # Values
//
// nil is null; bool, string, int64, float64, []any and *Object are what their
// names say; uint64 appears only for integers above the range of int64.
//
// # Types
//
// A command's argument type is a Go struct, and that struct is the schema: the
// decoder, the encoder and query-qmp-schema read the same field tags. The tag
// is `qapi:"name,option,..."`:
//
//	optional          the member may be absent (pointers are optional unless
//	                  tagged required; a nil slice is an absent list)
//	required          a pointer that must be present
//	size              an unsigned count of bytes; key=value input takes the
//	                  suffixes B, K, M, G, T, P and E
//	features=a|b      the member's features in the schema
//	discriminator     this enum member selects the branch of a flat union
//	case=a|b          (no name) pointer to the branch for these values
//	wrap              with case: the branch lies under a member "data"
//	alt               (no name) one branch of an alternate, chosen by JSON type
//
// An embedded struct is a base: its members come first. An enum is a string
// type with a method QAPIEnum() []string; a value that is not listed is refused
// by the decoder and unknown to the schema. The Go name of an alternate is
// printed in error texts, so it is the schema's name. The decoder never fills
// in defaults: absence stays visible.
//
// # Errors
//
// What a client can see is *Error, a QMP error class and a text. The texts of
// the decoder, the JSON reader and the key=value reader are those of the field
// to the letter.
//
// # Concurrency
//
// Nothing here blocks or does I/O. A Parser belongs to one goroutine. Type
// plans are built once per type under planMu, the only lock, and are immutable
// afterwards; everything else is a pure function. Any plane may call it. This
// is a leaf package: it imports nothing of this module.
//
//blockd:any
package qapi
