package blockgraph

import "blockd/qapi"

// Devices are what guests' disks are attached to, by names of their own, beside
// node-names (the field: names of BlockBackends). A storage daemon has none; an
// emulator tells the graph of its own, and commands that name a device find the
// node that is in it.
//
//blockd:global
type Devices interface {
	// Device returns the root of the device of that name, nil while nothing is
	// inserted. Control plane.
	Device(name string) (r *Root, found bool)
}

// UseDevices sets what devices there are. Before the first node is opened.
func (g *Graph) UseDevices(d Devices) { g.devices = d }

// Device returns the name of the device that the root belongs to, or "".
func (r *Root) Device() string { return r.device }

// LookUp finds a node as commands with both a device and a node-name do; either
// may be nil, and a device comes first.
func (tx *Tx) LookUp(device, nodeName *string) (*Node, error) {
	var d, name string
	if device != nil {
		d = *device
		if r, found := tx.g.device(d); found {
			if r == nil {
				return nil, qapi.Errorf("Device '%s' has no medium", d)
			}
			if e := tx.rootEdge(r); e != nil {
				return e.child, nil
			}
			return nil, qapi.Errorf("Device '%s' has no medium", d)
		}
	}
	if nodeName != nil {
		name = *nodeName
		if n := tx.Find(name); n != nil {
			return n, nil
		}
	}
	return nil, qapi.Errorf("Cannot find device='%s' nor node-name='%s'", d, name)
}

// FindNode is Find for commands that name a node only.
func (tx *Tx) FindNode(name string) (*Node, error) {
	if n := tx.Find(name); n != nil {
		return n, nil
	}
	return nil, qapi.Errorf("Node '%s' not found", name)
}

// DeviceName returns the name of a device that the node is in, or "". Jobs
// without an id of their own have this one.
func (tx *Tx) DeviceName(n *Node) string {
	for _, e := range tx.Parents(n) {
		if e.root != nil && e.root.device != "" {
			return e.root.device
		}
	}
	return ""
}

// deviceOrNode names a node in error texts: by its device, or else by its own
// name.
func (tx *Tx) deviceOrNode(n *Node) string {
	if d := tx.DeviceName(n); d != "" {
		return d
	}
	return n.name
}

// LookUp is Tx.LookUp in the published graph, by one name for both; nil: there
// is none. Control plane.
//
//blockd:global
func (g *Graph) LookUp(name string) *Node {
	if r, found := g.device(name); found {
		if r == nil {
			return nil
		}
		return r.Node()
	}
	return g.names[name]
}

// isDevice tells whether there is a device of that name.
//
//blockd:global
func (g *Graph) isDevice(name string) bool {
	_, found := g.device(name)
	return found
}

//blockd:global
func (g *Graph) device(name string) (r *Root, found bool) {
	if g.devices == nil {
		return nil, false
	}
	return g.devices.Device(name)
}
