package cli

import (
	"strings"
	"unicode"
)

// Colours of a terminal. They say nothing that the text does not say, too.
const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint colours text on a terminal.
func (env *Environment) paint(colour, text string) string {
	if !env.Terminal || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// printable replaces what would steer a terminal: names come from images, and
// from other users of the daemon.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, text)
}
