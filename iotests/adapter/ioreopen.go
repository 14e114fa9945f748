package main

import (
	"context"

	"blockd/blockgraph"
	"blockd/qapi"
)

// This file is qemu-io's command that gives an open image other options.

// reopen gives the node new options, and its cache mode with -c. What is not said
// stays, but the node's cache mode is its own from then on.
func (s *ioSession) reopen(ctx context.Context, o *ioOptions) error {
	options := &qapi.Object{}
	for _, p := range parsePairs(o.val['o'], "") {
		options.Set(p.key, p.value)
	}
	node := s.current().Node()
	cache := *node.State().Options.Cache
	direct, noFlush, through := *cache.Direct, *cache.NoFlush, s.x != nil && s.x.writeThrough
	if o.set['c'] {
		mode, err := parseCacheMode(o.val['c'])
		if err != nil {
			return err
		}
		direct, noFlush, through = mode.direct, mode.noFlush, !mode.writeback
	}
	if s.x != nil && s.x.dev != nil && through != s.x.writeThrough {
		return qapi.Errorf("Cannot change cache.writeback: Device attached")
	}
	switch given := options.Has("cache.direct") || options.Has("cache.no-flush"); {
	case given && o.set['c']:
		return qapi.Errorf("Cannot set both -c and the cache options")
	case !given:
		options.Set("cache.direct", onOff(direct))
		options.Set("cache.no-flush", onOff(noFlush))
	}
	err := s.m.update(ctx, "qemu-io", func(tx *blockgraph.Tx) error { return tx.ReopenKeeping(node, options) })
	if err == nil && s.x != nil {
		s.x.writeThrough = through
	}
	return err
}
