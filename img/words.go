package img

import (
	"fmt"
	"strings"

	"blockd/qapi"
)

// This file reads the words of -o, as qemu-img has them: NAME=VALUE,... with commas
// doubled within a value. A name alone is a switch that is on or, with "no" before it,
// off.

// parseOptions reads -o options, which may be given several times.
func parseOptions(list []string) (*qapi.Object, error) {
	if err := checkLists(list); err != nil {
		return nil, err
	}
	var given []string
	for _, word := range optionWords(strings.Join(list, ",")) {
		if !strings.Contains(word, "=") {
			if name, off := strings.CutPrefix(word, "no"); off {
				word = name + "=off"
			} else {
				word += "=on"
			}
		}
		given = append(given, word)
	}
	return qapi.ParseKeyval(strings.Join(given, ","), "")
}

// checkLists refuses lists that are empty, or begin or end with a comma.
func checkLists(lists []string) error {
	for _, list := range lists {
		name := strings.TrimLeft(list, ",")
		value := strings.TrimRight(list, ",")
		if name == "" || (len(list)-len(name))%2 != 0 || (len(list)-len(value))%2 != 0 {
			return fmt.Errorf("Invalid option list: %s", list)
		}
	}
	return nil
}

// optionWords cuts a list at its commas, but for those that are doubled.
func optionWords(list string) []string {
	var words []string
	start := 0
	for i := 0; i < len(list); i++ {
		switch {
		case list[i] != ',':
		case strings.HasPrefix(list[i+1:], ","):
			i++
		default:
			words = append(words, list[start:i])
			start = i + 1
		}
	}
	if start < len(list) {
		words = append(words, list[start:])
	}
	return words
}

// wantsHelp tells whether one of the words of -o asks what there is.
func wantsHelp(list []string) bool {
	for _, word := range optionWords(strings.Join(list, ",")) {
		if word == "help" || word == "?" {
			return true
		}
	}
	return false
}
