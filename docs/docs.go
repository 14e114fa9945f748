// Package docs holds what the program itself shows of its documents.
package docs

import _ "embed" // for Commands

// Commands is commands.md: every command and event.
//
//go:embed commands.md
var Commands string
