package main

import (
	"fmt"
	"slices"
	"strings"
)

// This file answers what the suite asks an emulator before it begins.

// machines is the list of machines: the default one and its alias.
const machines = `Supported machines are:
pc                   Standard PC (alias of pc-i440fx-7.2)
pc-i440fx-7.2        Standard PC (default)
`

// helpFor answers options that ask for help.
func helpFor(opts []option) (string, bool) {
	for _, o := range opts {
		switch {
		case o.value != "help":
			if o.name == "drive" && slices.Contains(parsePairs(o.value, ""), pair{"format", "help"}) {
				return formats(), true
			}
		case o.name == "machine" || o.name == "M":
			return machines, true
		case o.name == "device":
			return deviceHelp(), true
		}
	}
	return "", false
}

// formats lists the drivers that blockd has.
func formats() string {
	m := newMachine(nil)
	defer m.close()
	names := m.graph.DriverNames()
	slices.Sort(names)
	list := strings.Join(names, " ")
	return fmt.Sprintf("Supported formats: %s\nSupported formats (read-only): %s\n", list, list)
}
