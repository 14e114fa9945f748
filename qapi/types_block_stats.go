package qapi

// Results of query-blockstats. Times are nanoseconds, sizes bytes.

// QueryBlockstatsArg is the argument of query-blockstats.
type QueryBlockstatsArg struct {
	// List nodes instead of roots. Default false.
	QueryNodes *bool `qapi:"query-nodes"`
}

// BlockDeviceTimedStats are averages over a past interval.
type BlockDeviceTimedStats struct {
	// Seconds.
	IntervalLength          int64   `qapi:"interval_length"`
	MinRdLatencyNs          int64   `qapi:"min_rd_latency_ns"`
	MaxRdLatencyNs          int64   `qapi:"max_rd_latency_ns"`
	AvgRdLatencyNs          int64   `qapi:"avg_rd_latency_ns"`
	MinWrLatencyNs          int64   `qapi:"min_wr_latency_ns"`
	MaxWrLatencyNs          int64   `qapi:"max_wr_latency_ns"`
	AvgWrLatencyNs          int64   `qapi:"avg_wr_latency_ns"`
	MinZoneAppendLatencyNs  int64   `qapi:"min_zone_append_latency_ns"`
	MaxZoneAppendLatencyNs  int64   `qapi:"max_zone_append_latency_ns"`
	AvgZoneAppendLatencyNs  int64   `qapi:"avg_zone_append_latency_ns"`
	MinFlushLatencyNs       int64   `qapi:"min_flush_latency_ns"`
	MaxFlushLatencyNs       int64   `qapi:"max_flush_latency_ns"`
	AvgFlushLatencyNs       int64   `qapi:"avg_flush_latency_ns"`
	AvgRdQueueDepth         float64 `qapi:"avg_rd_queue_depth"`
	AvgWrQueueDepth         float64 `qapi:"avg_wr_queue_depth"`
	AvgZoneAppendQueueDepth float64 `qapi:"avg_zone_append_queue_depth"`
}

// BlockLatencyHistogramInfo counts requests by latency.
type BlockLatencyHistogramInfo struct {
	// Nanoseconds, ascending.
	Boundaries []uint64 `qapi:"boundaries"`
	// One more than Boundaries.
	Bins []uint64 `qapi:"bins"`
}

// BlockDeviceStats are the counters of a root or a node.
type BlockDeviceStats struct {
	RdBytes               int64 `qapi:"rd_bytes"`
	WrBytes               int64 `qapi:"wr_bytes"`
	ZoneAppendBytes       int64 `qapi:"zone_append_bytes"`
	UnmapBytes            int64 `qapi:"unmap_bytes"`
	RdOperations          int64 `qapi:"rd_operations"`
	WrOperations          int64 `qapi:"wr_operations"`
	ZoneAppendOperations  int64 `qapi:"zone_append_operations"`
	FlushOperations       int64 `qapi:"flush_operations"`
	UnmapOperations       int64 `qapi:"unmap_operations"`
	RdTotalTimeNs         int64 `qapi:"rd_total_time_ns"`
	WrTotalTimeNs         int64 `qapi:"wr_total_time_ns"`
	ZoneAppendTotalTimeNs int64 `qapi:"zone_append_total_time_ns"`
	FlushTotalTimeNs      int64 `qapi:"flush_total_time_ns"`
	UnmapTotalTimeNs      int64 `qapi:"unmap_total_time_ns"`
	// End of the highest write so far, in bytes.
	WrHighestOffset  int64 `qapi:"wr_highest_offset"`
	RdMerged         int64 `qapi:"rd_merged"`
	WrMerged         int64 `qapi:"wr_merged"`
	ZoneAppendMerged int64 `qapi:"zone_append_merged"`
	UnmapMerged      int64 `qapi:"unmap_merged"`
	// Since the last request; absent if there was none.
	IdleTimeNs                  *int64                     `qapi:"idle_time_ns"`
	FailedRdOperations          int64                      `qapi:"failed_rd_operations"`
	FailedWrOperations          int64                      `qapi:"failed_wr_operations"`
	FailedZoneAppendOperations  int64                      `qapi:"failed_zone_append_operations"`
	FailedFlushOperations       int64                      `qapi:"failed_flush_operations"`
	FailedUnmapOperations       int64                      `qapi:"failed_unmap_operations"`
	InvalidRdOperations         int64                      `qapi:"invalid_rd_operations"`
	InvalidWrOperations         int64                      `qapi:"invalid_wr_operations"`
	InvalidZoneAppendOperations int64                      `qapi:"invalid_zone_append_operations"`
	InvalidFlushOperations      int64                      `qapi:"invalid_flush_operations"`
	InvalidUnmapOperations      int64                      `qapi:"invalid_unmap_operations"`
	AccountInvalid              bool                       `qapi:"account_invalid"`
	AccountFailed               bool                       `qapi:"account_failed"`
	TimedStats                  []BlockDeviceTimedStats    `qapi:"timed_stats"`
	RdLatencyHistogram          *BlockLatencyHistogramInfo `qapi:"rd_latency_histogram"`
	WrLatencyHistogram          *BlockLatencyHistogramInfo `qapi:"wr_latency_histogram"`
	ZoneAppendLatencyHistogram  *BlockLatencyHistogramInfo `qapi:"zone_append_latency_histogram"`
	FlushLatencyHistogram       *BlockLatencyHistogramInfo `qapi:"flush_latency_histogram"`
}

// BlockStatsSpecificFile counts discards of a file.
type BlockStatsSpecificFile struct {
	DiscardNbOk     uint64 `qapi:"discard-nb-ok"`
	DiscardNbFailed uint64 `qapi:"discard-nb-failed"`
	DiscardBytesOk  uint64 `qapi:"discard-bytes-ok"`
}

// BlockStatsSpecificQcow2 tells of the caches of metadata.
type BlockStatsSpecificQcow2 struct {
	XL2Cache       CacheStats `qapi:"x-l2-cache,features=unstable"`
	XRefcountCache CacheStats `qapi:"x-refcount-cache,features=unstable"`
}

// CacheStats tells how a cache has done since the node was opened.
type CacheStats struct {
	// Lookups that found what they needed, and those that had to read it.
	Hits   uint64 `qapi:"hits"`
	Misses uint64 `qapi:"misses"`
	// The most that it keeps, in bytes.
	Size uint64 `qapi:"size,size"`
}

// BlockStatsSpecific are the counters that one driver has of its own.
type BlockStatsSpecific struct {
	Driver BlockdevDriver `qapi:"driver,discriminator"`
	// For the drivers file and host_device.
	File  *BlockStatsSpecificFile  `qapi:",case=file|host_device"`
	Qcow2 *BlockStatsSpecificQcow2 `qapi:",case=qcow2"`
}

// BlockStats are the statistics of a root or a node with those below it.
type BlockStats struct {
	Device         *string             `qapi:"device"`
	Qdev           *string             `qapi:"qdev"`
	NodeName       *string             `qapi:"node-name"`
	Stats          BlockDeviceStats    `qapi:"stats"`
	DriverSpecific *BlockStatsSpecific `qapi:"driver-specific"`
	// The protocol node of a format.
	Parent  *BlockStats `qapi:"parent"`
	Backing *BlockStats `qapi:"backing"`
}
