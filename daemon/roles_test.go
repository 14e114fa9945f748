package daemon

import (
	"testing"

	"blockd/qmp"
)

// TestEachCommandHasARole requires a rule for every command that the daemon has.
func TestEachCommandHasARole(t *testing.T) {
	d := New(Config{})
	defer d.Close()
	commands := d.Registry.Commands()
	if len(commands) < 80 {
		t.Errorf("there are %d commands only", len(commands))
	}
	for _, c := range commands {
		if _, ruled := qmp.RoleFor(c.Name); !ruled {
			t.Errorf("%s: qmp/roles.go has no rule for it", c.Name)
		}
	}
}
