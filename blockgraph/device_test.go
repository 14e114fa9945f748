package blockgraph

import (
	"context"
	"testing"
)

// devices are roots by name; nil stands for a device without a medium.
type devices map[string]*Root

func (d devices) Device(name string) (*Root, bool) {
	r, found := d[name]
	return r, found
}

func TestCommandsFindNodesByDevice(t *testing.T) {
	g := newTestGraph()
	d := devices{"empty": nil}
	g.UseDevices(d)
	n := add(t, g, memOptions("n", 4096))
	other := add(t, g, memOptions("drive0", 4096)) // a device's name comes first
	update(t, g, func(tx *Tx) (err error) {
		d["drive0"], err = tx.NewRoot(n, RootOptions{Device: "drive0", Shared: PermAll})
		return err
	})
	find := func(tx *Tx, device, node string) string {
		t.Helper()
		found, err := tx.LookUp(&device, &node)
		if err != nil {
			return err.Error()
		}
		return found.Name()
	}
	update(t, g, func(tx *Tx) error {
		for _, c := range []struct{ device, node, want string }{
			{"drive0", "drive0", "n"},
			{"", "drive0", "drive0"},
			{"n", "n", "n"},
			{"empty", "empty", "Device 'empty' has no medium"},
			{"x", "y", "Cannot find device='x' nor node-name='y'"},
		} {
			if got := find(tx, c.device, c.node); got != c.want {
				t.Errorf("device %q node %q: %s, want %s", c.device, c.node, got, c.want)
			}
		}
		if a, b := tx.DeviceName(n), tx.DeviceName(other); a != "drive0" || b != "" {
			t.Errorf("names of devices are %q and %q", a, b)
		}
		for _, name := range []string{"drive0", "empty"} {
			if _, err := tx.Open(memOptions(name, 4096)); err == nil || err.Error() != "node-name="+name+" is conflicting with a device id" {
				t.Errorf("a node of the name of a device: %v", err)
			}
		}
		// A change sees what it has staged.
		if err := tx.SetRootNode(d["drive0"], other); err != nil {
			return err
		}
		if got := find(tx, "drive0", ""); got != "drive0" {
			t.Errorf("after the device was moved: %s", got)
		}
		return nil
	})
	if err := g.Update(context.Background(), Cause{}, func(tx *Tx) error { return tx.CloseRoot(d["drive0"]) }); err != nil {
		t.Fatal(err)
	}
}
