package qcow2

import (
	"blockd/qapi"
)

// optionSet is a way of creating and opening images that the crash tests and
// the tests against a model go through: a new option is a line here.
type optionSet struct {
	name string
	// cluster is the cluster size in bytes, v2 the version.
	cluster int64
	v2      bool
	opts    []imageOption
	run     qapi.BlockdevOptionsQcow2
}

// create returns the options for newImage.
func (s *optionSet) create(more ...imageOption) []imageOption {
	list := append([]imageOption{clusterSize(uint64(s.cluster))}, s.opts...)
	if s.v2 {
		list = append(list, v2)
	}
	return append(list, more...)
}

func zstdType(o *qapi.BlockdevCreateOptionsQcow2) {
	o.CompressionType = ptr(qapi.Qcow2CompressionTypeZstd)
}
func lazy(o *qapi.BlockdevCreateOptionsQcow2) { o.LazyRefcounts = ptr(true) }

// smallCache makes everything be evicted all the time.
var smallCache = qapi.BlockdevOptionsQcow2{L2CacheSize: ptr(int64(512)), L2CacheEntrySize: ptr(int64(512)), RefcountCacheSize: ptr(int64(1)), PassDiscardOther: ptr(true)}

var optionSets = []optionSet{
	{name: "512", cluster: 512},
	{name: "512-v2", cluster: 512, v2: true},
	{name: "1K-small-cache", cluster: 1024, run: smallCache},
	{name: "4K", cluster: 4096},
	{name: "4K-v2", cluster: 4096, v2: true},
	{name: "4K-small-cache", cluster: 4096, run: smallCache},
	{name: "64K", cluster: 65536},
	{name: "64K-v2", cluster: 65536, v2: true},
	{name: "refcounts-1", cluster: 512, opts: []imageOption{refcountBits(1)}},
	{name: "refcounts-2", cluster: 1024, opts: []imageOption{refcountBits(2)}},
	{name: "refcounts-4", cluster: 512, opts: []imageOption{refcountBits(4)}},
	{name: "refcounts-8", cluster: 2048, opts: []imageOption{refcountBits(8)}},
	{name: "refcounts-32", cluster: 512, opts: []imageOption{refcountBits(32)}},
	{name: "refcounts-64", cluster: 512, opts: []imageOption{refcountBits(64)}},
	{name: "lazy", cluster: 4096, opts: []imageOption{lazy}},
	{name: "zstd", cluster: 4096, opts: []imageOption{zstdType}},
	{name: "discard-no-unref", cluster: 1024, run: qapi.BlockdevOptionsQcow2{DiscardNoUnref: ptr(true)}},
	{name: "data-file", cluster: 1024, opts: []imageOption{external}},
	{name: "data-file-small-cache", cluster: 4096, opts: []imageOption{external}, run: smallCache},
	{name: "extended", cluster: 16 << 10, opts: []imageOption{extended}},
	{name: "extended-small-cache", cluster: 16 << 10, opts: []imageOption{extended}, run: smallCache},
	{name: "extended-64K", cluster: 64 << 10, opts: []imageOption{extended}},
	{name: "extended-no-unref", cluster: 16 << 10, opts: []imageOption{extended}, run: qapi.BlockdevOptionsQcow2{DiscardNoUnref: ptr(true)}},
	{name: "extended-preallocated", cluster: 16 << 10, opts: []imageOption{extended, prealloc(qapi.PreallocModeMetadata)}},
	{name: "extended-data-file", cluster: 16 << 10, opts: []imageOption{extended, external}},
	{name: "encrypted", cluster: 4096, opts: []imageOption{encrypted}},
	{name: "encrypted-v2", cluster: 1024, v2: true, opts: []imageOption{encryptedAES}},
	{name: "encrypted-extended", cluster: 16 << 10, opts: []imageOption{extended, encryptedAES}, run: smallCache},
	{name: "garbage", cluster: 1024, opts: []imageOption{dirty}},
	{name: "garbage-v2", cluster: 4096, v2: true, opts: []imageOption{dirty}, run: smallCache},
	{name: "garbage-extended", cluster: 16 << 10, opts: []imageOption{dirty, extended}},
	{name: "garbage-data-file", cluster: 4096, opts: []imageOption{dirty, external}},
	{name: "garbage-preallocated", cluster: 4096, opts: []imageOption{dirty, prealloc(qapi.PreallocModeMetadata)}},
	{name: "preallocated", cluster: 4096, opts: []imageOption{prealloc(qapi.PreallocModeMetadata)}},
}
