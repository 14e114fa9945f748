package main

import (
	"fmt"
	"strings"
)

// This file reads an emulator's command line: options with one or two dashes,
// each with or without a value.

type option struct {
	name, value string
}

// takesValue are the options that are known, and whether a value follows.
var takesValue = map[string]bool{
	"accel": true, "add-fd": true, "blockdev": true, "chardev": true, "cpu": true, "device": true,
	"display": true, "drive": true, "fda": true, "fdb": true, "global": true, "hda": true, "incoming": true,
	"m": true, "M": true, "machine": true, "mon": true, "monitor": true, "nodefaults": false,
	"nographic": false, "object": true, "qmp": true, "qmp-pretty": true, "qtest": true, "S": false,
	"serial": true, "set": true, "snapshot": false, "vga": true,
}

func parseOptions(args []string) ([]option, error) {
	var opts []option
	for i := 0; i < len(args); i++ {
		a := args[i]
		name := strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		value, known := takesValue[name]
		switch {
		case !strings.HasPrefix(a, "-"): // an image for the first disk
			opts = append(opts, option{"hda", a})
			continue
		case !known:
			return nil, fmt.Errorf("%s: invalid option", a)
		}
		o := option{name: name}
		if value {
			if i++; i == len(args) {
				return nil, fmt.Errorf("%s: requires an argument", a)
			}
			o.value = args[i]
		}
		opts = append(opts, o)
	}
	return opts, nil
}

func values(opts []option, name string) []string {
	var list []string
	for _, o := range opts {
		if o.name == name {
			list = append(list, o.value)
		}
	}
	return list
}

// pair is a key and its value as they stand in an option.
type pair struct{ key, value string }

// parsePairs reads key=value pairs as the emulator's older options have them: a
// comma in a value is doubled, a key alone is a switch, and a first value alone
// is that of the implied key.
func parsePairs(s, implied string) []pair {
	var list []pair
	for first := true; s != ""; first = false {
		var item strings.Builder
		for {
			i := strings.IndexByte(s, ',')
			if i < 0 {
				item.WriteString(s)
				s = ""
				break
			}
			item.WriteString(s[:i])
			s = s[i+1:]
			if !strings.HasPrefix(s, ",") {
				break
			}
			item.WriteByte(',')
			s = s[1:]
		}
		k, v, ok := strings.Cut(item.String(), "=")
		switch {
		case ok:
		case first && implied != "":
			k, v = implied, k
		default:
			v = "on"
		}
		list = append(list, pair{k, v})
	}
	return list
}
