package img

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"blockd/blockgraph"
	"blockd/qapi"
)

// This file has the tables of the options of -o, in qemu-img's words: which a format
// has, in which order they are announced, and what `-o help` says of them.

// kind is what the value of an option is.
type kind string

const (
	aWord   kind = "str"
	aSize   kind = "size"
	aNumber kind = "num"
	aSwitch kind = "bool (on/off)"
)

// option is one that a format has.
type option struct {
	key   string
	kind  kind
	help  string
	value string // that is announced though not given
}

// options are those of a format, in the order in which they are announced.
type options []option

// ofFile are the options of the file below the format.
var ofFile = options{
	{"nocow", aSwitch, "overwrite in place, on file systems that copy on write", ""},
	{"preallocation", aWord, "what is allocated at once: off, falloc, full", ""},
	{"extent_size_hint", aSize, "bytes by which XFS allocates, 0 for its own choice", ""},
}

// ofVolume are the options of a LUKS volume that is made.
var ofVolume = options{
	{"key-secret", aWord, "id of the secret with the password", ""},
	{"cipher-alg", aWord, "cipher", ""},
	{"cipher-mode", aWord, "mode of the cipher", ""},
	{"ivgen-alg", aWord, "where sectors get their initial vectors from", ""},
	{"ivgen-hash-alg", aWord, "hash for those", ""},
	{"hash-alg", aWord, "hash for the password", ""},
	{"iter-time", aNumber, "milliseconds that trying a password takes", ""},
}

// ofKeys are the options that change the keys of a LUKS volume.
var ofKeys = options{
	{"state", aWord, "active to set a key, inactive to erase it", ""},
	{"new-secret", aWord, "id of the secret with the new password", ""},
	{"old-secret", aWord, "id of the secret with the password whose keys are erased", ""},
	{"keyslot", aNumber, "key slot", ""},
	{"iter-time", aNumber, "milliseconds that trying the new password takes", ""},
}

var diskSize = option{"size", aSize, "size of the disk", ""}

// created are the options of a new image, by format.
var created = map[string]options{
	"raw": {diskSize},
	"luks": slices.Concat(options{diskSize}, ofVolume, options{
		{"detached-header", aSwitch, "FILE is only the header, for a disk elsewhere", ""},
		{"preallocation", aWord, "what is allocated at once: off, metadata, falloc, full", ""},
	}),
	"qcow2": slices.Concat(
		options{
			{"encryption", aSwitch, "deprecated: on stands for encrypt.format=aes", ""},
			{"encrypt.format", aWord, "luks or aes", ""},
		}, within("encrypt.", ofVolume),
		options{
			{"cluster_size", aSize, "bytes of a cluster", "65536"},
			{"extended_l2", aSwitch, "tables with subclusters", "off"},
			{"preallocation", aWord, "what is allocated at once: off, metadata, falloc, full", ""},
			{"compression_type", aWord, "how clusters are compressed: zlib, zstd", "zlib"},
			diskSize,
			{"compat", aWord, "version: v2 (0.10) or v3 (1.1)", ""},
			{"backing_file", aWord, "image below this one", ""},
			{"backing_fmt", aWord, "its format", ""},
			{"data_file", aWord, "file of its own for the data", ""},
			{"data_file_raw", aSwitch, "that file stays valid as a raw image", ""},
			{"lazy_refcounts", aSwitch, "write reference counts late", "off"},
			{"refcount_bits", aNumber, "bits of a reference count", "16"},
		}),
}

// amended are the options that can be changed, by format.
var amended = map[string]options{
	"luks": ofKeys,
	"qcow2": slices.Concat(within("encrypt.", ofKeys), options{
		diskSize,
		{"compat", aWord, "version: v2 (0.10) or v3 (1.1)", ""},
		// These two stay as they are.
		{"backing_file", aWord, "image below this one, as it is", ""},
		{"backing_fmt", aWord, "its format, as it is", ""},
		{"data_file", aWord, "name of the file with the data, where there is one", ""},
		{"data_file_raw", aSwitch, "that file stays valid as a raw image, which can only end", ""},
		{"lazy_refcounts", aSwitch, "write reference counts late", ""},
		{"refcount_bits", aNumber, "bits of a reference count", ""},
	}),
}

// within are options of a part of a format.
func within(prefix string, list options) options {
	var all options
	for _, o := range list {
		o.key = prefix + o.key
		all = append(all, o)
	}
	return all
}

// ofImage are all options of a new image in a file, those of the file last.
func ofImage(format string) options {
	all := slices.Clone(created[format])
	for _, o := range ofFile {
		if !all.have(o.key) {
			all = append(all, o)
		}
	}
	return all
}

func (list options) have(key string) bool {
	return slices.ContainsFunc(list, func(o option) bool { return o.key == key })
}

// check refuses options that are not in the list, and values that are none of theirs.
func (list options) check(given *qapi.Object) error {
	for key, v := range given.All() {
		i := slices.IndexFunc(list, func(o option) bool { return o.key == key })
		if i < 0 {
			return &unknownOption{key}
		}
		if err := list[i].check(v.(string)); err != nil {
			return err
		}
	}
	return nil
}

func (o option) check(word string) error {
	switch o.kind {
	case aSize:
		return checkSize(o.key, word)
	case aSwitch:
		if _, ok := switches[word]; !ok {
			return fmt.Errorf("Parameter '%s' expects 'on' or 'off'", o.key)
		}
	case aNumber:
		// As in C, a number below zero is a large one; whether it is too large is the
		// format's to say.
		if _, err := strconv.ParseUint(strings.TrimPrefix(word, "-"), 0, 64); err != nil {
			return fmt.Errorf("Parameter '%s' expects a number", o.key)
		}
	}
	return nil
}

// checkSize refuses what is no count of bytes.
func checkSize(key, word string) error {
	_, err := qapi.ParseSize(word)
	switch {
	case errors.Is(err, qapi.ErrSizeRange):
		return fmt.Errorf("Value '%s' is out of range for parameter '%s'", word, key)
	case err != nil:
		return blockgraph.WithHint(fmt.Errorf("Parameter '%s' expects a non-negative number below 2^64", key),
			"Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.")
	}
	return nil
}

// switches are the words for on and off.
var switches = map[string]bool{"on": true, "yes": true, "true": true, "y": true, "off": false, "no": false, "false": false, "n": false}

// isOn tells whether a switch is given, and on.
func isOn(given *qapi.Object, key string) bool {
	v, _ := given.Get(key)
	word, _ := v.(string)
	return switches[word]
}

// help tells a person what options there are.
func (list options) help(title string) string {
	var b strings.Builder
	b.WriteString(title + "\n")
	sorted := slices.SortedFunc(slices.Values(list), func(x, y option) int { return strings.Compare(x.key, y.key) })
	for _, o := range sorted {
		fmt.Fprintf(&b, "  %-22s - %s\n", fmt.Sprintf("%s=<%s>", o.key, o.kind), o.help)
	}
	return b.String()
}

// shown is a value as it is announced.
func (o option) shown(word string) string {
	switch o.kind {
	case aSize:
		if n, err := qapi.ParseSize(word); err == nil {
			return fmt.Sprint(n)
		}
	case aSwitch:
		if switches[word] {
			return "on"
		}
		return "off"
	case aWord:
		return strings.ReplaceAll(word, ",", ",,")
	}
	return word
}

// explain prints the options of a new image in a file or, without one, of its format.
func (s *session) explain(format, file string) error {
	if err := s.checkFormat(format); err != nil {
		return err
	}
	text := created[format].help(fmt.Sprintf("Supported %s options:", format)) + "\nThe file below may have more of them: name it to see them, too.\n"
	if file != "" {
		text = ofImage(format).help("Supported options:")
	}
	_, err := fmt.Fprint(s.env.Out, text)
	return err
}
