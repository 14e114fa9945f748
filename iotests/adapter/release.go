package main

import (
	"slices"
	"strings"
	"time"

	"blockd/clock"
	"blockd/qapi"
	"blockd/qmp"
)

// This file has replies look as those of the release whose suite is run: members
// that came later are left out.

func (m *machine) registerRelease(r *qmp.Registry) {
	olderReplies[qapi.QueryNamedBlockNodesArg, qapi.BlockDeviceInfo](r, "query-named-block-nodes", withoutNewerInfo)
	olderReplies[struct{}, qapi.BlockInfo](r, "query-block", func(o *qapi.Object) {
		if i, ok := member(o, "inserted"); ok {
			withoutNewerInfo(i)
		}
	})
	qmp.Extend(r, "query-jobs", afterEnds)
	olderReplies[struct{}, qapi.JobInfo](r, "query-jobs", withoutOwn)
	olderReplies[struct{}, qapi.BlockJobInfo](r, "query-block-jobs", withoutOwn)
	olderReplies[qapi.QueryBlockstatsArg, qapi.BlockStats](r, "query-blockstats", withoutNewerStats)
}

// maxEnding is how long the end of a job may hold up a question about jobs.
const maxEnding = 2 * time.Second

// afterEnds answers when no job is about to end with an error: an emulator takes
// no command meanwhile.
func afterEnds(c *qmp.Context, _ *struct{}, next func() ([]qapi.JobInfo, error)) ([]qapi.JobInfo, error) {
	clk := clock.Real()
	for begun := clk.Now(); ; {
		list, err := next()
		ending := slices.ContainsFunc(list, func(j qapi.JobInfo) bool { return j.Status == qapi.JobStatusAborting })
		if err != nil || !ending || clock.Since(clk, begun) > maxEnding {
			return list, err
		}
		if err := clk.Sleep(c, time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// olderReplies has each element of a command's list go through change.
func olderReplies[A, E any](r *qmp.Registry, name string, change func(o *qapi.Object)) {
	qmp.Extend(r, name, func(_ *qmp.Context, _ *A, next func() (any, error)) (any, error) {
		v, err := next()
		typed, ok := v.([]E)
		if err != nil || !ok {
			return v, err
		}
		list := make([]any, len(typed))
		for i := range typed {
			o := qapi.ToObject(&typed[i])
			change(o)
			list[i] = unsent(o)
		}
		return list, nil
	})
}

// unsent gives an object that was read as it is sent the order in which it will be
// sent so again: keys that meet in a bucket are sent last first.
func unsent(v any) any {
	switch v := v.(type) {
	case *qapi.Object:
		var keys []string
		for key := range v.All() {
			keys = append(keys, key)
		}
		o := &qapi.Object{}
		for _, key := range slices.Backward(keys) {
			member, _ := v.Get(key)
			o.Set(key, unsent(member))
		}
		return o
	case []any:
		for i := range v {
			v[i] = unsent(v[i])
		}
	}
	return v
}

func member(o *qapi.Object, key string) (*qapi.Object, bool) {
	v, _ := o.Get(key)
	m, ok := v.(*qapi.Object)
	return m, ok
}

func without(o *qapi.Object, which func(key string) bool) {
	var keys []string
	for key := range o.All() {
		if which(key) {
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		o.Delete(key)
	}
}

func withoutNewerInfo(o *qapi.Object) {
	o.Delete("children")
	o.Delete("active")
	for image, ok := member(o, "image"); ok; image, ok = member(image, "backing-image") {
		image.Delete("limits")
	}
}

// withoutOwn leaves out what no release of QEMU has.
func withoutOwn(o *qapi.Object) {
	without(o, func(key string) bool { return strings.HasPrefix(key, "x-") })
}

func withoutNewerStats(o *qapi.Object) {
	if s, ok := member(o, "stats"); ok {
		without(s, func(key string) bool { return strings.Contains(key, "zone_append") })
	}
	for _, key := range []string{"parent", "backing"} {
		if below, ok := member(o, key); ok {
			withoutNewerStats(below)
		}
	}
}
