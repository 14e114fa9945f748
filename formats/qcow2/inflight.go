package qcow2

import "context"

// Allocations in flight. Whoever changes the mapping of guest clusters and has
// to do I/O before the change registers them; every other change of the same
// clusters waits until that is over. So a later write always lands on top, and
// a mapping that is being replaced stays what it is.

// claim is a range of guest clusters [from, to) whose mapping is about to
// change.
type claim struct {
	from, to int64
	done     chan struct{}
}

// claimed returns a claim that overlaps with clusters [from, to), or nil. Of
// several it is the one that begins first. Driver.mu is held.
//
// +checklocks:d.mu
func (d *Driver) claimed(from, to int64) *claim {
	var first *claim
	for _, c := range d.claims {
		if c.from < to && from < c.to && (first == nil || c.from < first.from) {
			first = c
		}
	}
	return first
}

// claim registers clusters [from, to), which nobody else claims. Driver.mu is
// held.
//
// +checklocks:d.mu
func (d *Driver) claim(from, to int64) *claim {
	c := &claim{from: from, to: to, done: make(chan struct{})}
	d.claims = append(d.claims, c)
	return c
}

// unclaim ends a claim and lets those go on who wait for it. Driver.mu is
// held.
//
// +checklocks:d.mu
func (d *Driver) unclaim(c *claim) {
	for i, x := range d.claims {
		if x == c {
			last := len(d.claims) - 1
			d.claims[i], d.claims[last] = d.claims[last], nil
			d.claims = d.claims[:last]
			break
		}
	}
	close(c.done)
}

// wait waits for the end of a claim.
func (c *claim) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
