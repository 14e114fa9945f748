package qcow2

import "context"

// reservation keeps free clusters from being allocated while something is done
// with their space that takes I/O: it is punched out, or the file is cut. Their
// counts stay 0, so a crash finds nothing. Who finds no other cluster waits.
type reservation struct {
	first, end int64 // clusters
	open       bool  // everything from first on
	done       chan struct{}
}

func (r *reservation) Error() string { return "qcow2: free clusters are reserved" }

// has tells whether a cluster is reserved. A nil reservation has none.
func (r *reservation) has(cluster int64) bool {
	return r != nil && cluster >= r.first && (r.open || cluster < r.end)
}

func (r *reservation) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reserve makes the reservation; there is no other. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) reserve(r *reservation) {
	r.done = make(chan struct{})
	d.reserved = r
}

// unreserve ends it. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) unreserve() {
	close(d.reserved.done)
	d.reserved = nil
}
