package jobs

import (
	"blockd/blockgraph"
	"blockd/qapi"
)

// Blocker returns the field's blocker for a job of that kind, which forbids
// operations on the nodes it works on, so that nobody else reshapes them
// meanwhile.
//
//blockd:any
func Blocker(typ qapi.JobType, except ...blockgraph.Operation) *blockgraph.Blocker {
	b := &blockgraph.Blocker{Reason: "block device is in use by block job: " + string(typ), Except: map[blockgraph.Operation]bool{}}
	for _, op := range except {
		b.Except[op] = true
	}
	return b
}
