package main

import (
	"fmt"
	"strings"

	"blockd/daemon"
)

// This file reads the command line as getopt_long does: long options with one
// or two values forms, unambiguous abbreviations, bundled short options.

type optionSpec struct {
	name  string
	short byte // 0: none
	value bool // takes a value
}

var optionSpecs = []optionSpec{
	{name: "allow-path", value: true},
	{name: "blockdev", value: true},
	{name: "chardev", value: true},
	{name: "daemonize"},
	{name: "export", value: true},
	{name: "graph-history", value: true},
	{name: "help", short: 'h'},
	{name: "log", value: true},
	{name: "monitor", value: true},
	{name: "nbd-server", value: true},
	{name: "object", value: true},
	{name: "pidfile", value: true},
	{name: "scratch", value: true},
	{name: "trace", short: 'T', value: true},
	{name: "version", short: 'V'},
	{name: "web", value: true},
}

// readOptions returns the options in their order. An argument that is none has
// the name "".
func readOptions(args []string) ([]daemon.Option, error) {
	var opts []daemon.Option
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			for _, rest := range args[i+1:] {
				opts = append(opts, daemon.Option{Given: rest})
			}
			return opts, nil
		case strings.HasPrefix(a, "--"):
			name, value, hasValue := strings.Cut(a[2:], "=")
			spec, err := matchLong(name)
			if err != nil {
				return nil, err
			}
			o := daemon.Option{Name: spec.name, Given: a}
			switch {
			case !spec.value && hasValue:
				return nil, fmt.Errorf("option '--%s' doesn't allow an argument", spec.name)
			case spec.value && hasValue:
				o.Value = value
			case spec.value && i+1 == len(args):
				return nil, fmt.Errorf("option '--%s' requires an argument", spec.name)
			case spec.value:
				i++
				o.Value = args[i]
				o.Given = a + " " + args[i]
			}
			opts = append(opts, o)
		case len(a) > 1 && a[0] == '-':
			for j := 1; j < len(a); j++ {
				spec := matchShort(a[j])
				if spec == nil {
					return nil, fmt.Errorf("invalid option -- '%c'", a[j])
				}
				o := daemon.Option{Name: spec.name, Given: a}
				if spec.value {
					o.Value = a[j+1:]
					if o.Value == "" {
						if i+1 == len(args) {
							return nil, fmt.Errorf("option requires an argument -- '%c'", a[j])
						}
						i++
						o.Value = args[i]
						o.Given = a + " " + args[i]
					}
					j = len(a)
				}
				opts = append(opts, o)
			}
		default:
			opts = append(opts, daemon.Option{Given: a})
		}
	}
	return opts, nil
}

func matchLong(name string) (*optionSpec, error) {
	var found []*optionSpec
	for i := range optionSpecs {
		s := &optionSpecs[i]
		if s.name == name {
			return s, nil
		}
		if strings.HasPrefix(s.name, name) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("unrecognized option '--%s'", name)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, s := range found {
		names = append(names, "'--"+s.name+"'")
	}
	return nil, fmt.Errorf("option '--%s' is ambiguous; possibilities: %s", name, strings.Join(names, " "))
}

func matchShort(c byte) *optionSpec {
	for i := range optionSpecs {
		if optionSpecs[i].short == c {
			return &optionSpecs[i]
		}
	}
	return nil
}
