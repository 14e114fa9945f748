package main

import (
	"fmt"
	"math"

	"blockd/daemon"
	"blockd/jobs/scratch"
	"blockd/qapi"
)

// scratchRoom makes the room for backups' scratches, as --scratch says; the
// last one counts. The error names the option.
func scratchRoom(opts []daemon.Option) (*scratch.Pool, error) {
	var given string
	var c scratch.Config
	for _, o := range opts {
		if o.Name != "scratch" {
			continue
		}
		given = o.Given + ": "
		var a qapi.ScratchOptions
		if err := qapi.DecodeOption(o.Value, "directory", &a); err != nil {
			return nil, fmt.Errorf("%s%w", given, err)
		}
		c = scratch.Config{}
		if a.Directory != nil {
			c.Directory = *a.Directory
		}
		for _, n := range []struct {
			name string
			from *uint64
			to   *int64
		}{{"memory", a.Memory, &c.Memory}, {"max-size", a.MaxSize, &c.Spill}} {
			if n.from == nil {
				continue
			}
			if *n.from == 0 || *n.from > math.MaxInt64 {
				return nil, fmt.Errorf("%sParameter '%s' expects a size from 1 to %d", given, n.name, int64(math.MaxInt64))
			}
			*n.to = int64(*n.from)
		}
	}
	p, err := scratch.NewPool(c)
	if err != nil {
		return nil, fmt.Errorf("%s%w", given, err)
	}
	return p, nil
}
