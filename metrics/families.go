package metrics

import "slices"

// family is one metric with all its series.
type family struct {
	name    string
	help    string
	counter bool // else a gauge, or
	// histogram: it has distributions.
	histogram bool
	labels    []string
	index     int // in families.all
}

// families are all metrics, by what they are about.
type families struct {
	buildInfo                                                                                          *family
	nodeInfo, nodeSize, nodeHighest, nodeDiscards, nodeDiscard, nodeLookups, nodeCache                 *family
	userOps, userErrors, userBytes, userSeconds, userDuration, userInFlight, userHeld                  *family
	jobInfo, jobCurrent, jobFinal, jobFailed, jobScratch, jobFull, jobOrphans                          *family
	exportInfo, exportClients, nbdConnections, nbdMost                                                 *family
	graphNodes, graphUsers, graphOrphans, graphSteps, graphDrains, graphWaited, loopLatency            *family
	scratchBytes, bufferBytes, bufferWaits, fileCalls, fileBytes, fileInFlight, fileWaiting, fileWaits *family
	qmpCommands, qmpSeconds                                                                            *family
	leftOut                                                                                            *family

	all []*family // in the order of newFamilies
}

func newFamilies() *families {
	f := &families{}
	// A root's number is never given out twice, so that no counter falls; what it
	// belongs to, and its node at the moment.
	userLabels := []string{"user", "kind", "id", "node"}

	f.buildInfo = f.gauge("blockd_build_info", "Always 1: the version of the daemon.", "version")

	f.nodeInfo = f.gauge("blockd_node_info", "Always 1: a block node, with the driver that it was opened with.", "node", "driver", "read_only")
	f.nodeSize = f.gauge("blockd_node_size_bytes", "Length of the node.", "node")
	f.nodeHighest = f.gauge("blockd_node_highest_write_bytes", "End of the highest write since the node was opened.", "node")
	f.nodeDiscards = f.counter("blockd_node_discards_total", "Discards of a file or device, by outcome (ok, failed).", "node", "outcome")
	f.nodeDiscard = f.counter("blockd_node_discarded_bytes_total", "Bytes that discards have given up in a file or device.", "node")
	f.nodeLookups = f.counter("blockd_node_cache_lookups_total", "Look-ups in a cache of metadata of a qcow2 image (l2, refcount), by result (hit, miss).", "node", "cache", "result")
	f.nodeCache = f.gauge("blockd_node_cache_size_bytes", "The most that a cache of metadata of a qcow2 image keeps.", "node", "cache")

	f.userOps = f.counter("blockd_operations_total", "Requests of a user of the graph that succeeded, by operation (read, write, flush, discard, write-zeroes).", op(userLabels)...)
	f.userErrors = f.counter("blockd_operation_errors_total", "Requests of a user that failed.", op(userLabels)...)
	f.userBytes = f.counter("blockd_operation_bytes_total", "Bytes of the requests that succeeded.", op(userLabels)...)
	f.userSeconds = f.counter("blockd_operation_seconds_total", "Time that requests took, those that failed among them, from their admission on.", op(userLabels)...)
	f.userDuration = f.declare(&family{name: "blockd_operation_duration_seconds", histogram: true, labels: op(userLabels),
		help: "How long reads, writes and flushes of a user took, those that failed among them, from their admission on."})
	f.userInFlight = f.gauge("blockd_requests_in_flight", "Requests of a user that have been admitted and have not ended.", userLabels...)
	f.userHeld = f.counter("blockd_requests_held_total", "How often a request of a user had to wait for a graph change.", userLabels...)

	f.jobInfo = f.gauge("blockd_job_info", "Always 1: a job, with its type and status.", "job", "type", "status")
	f.jobCurrent = f.gauge("blockd_job_current_progress", "What a job has done, in its own unit: bytes for all that copy.", "job", "type")
	f.jobFinal = f.gauge("blockd_job_final_progress", "What a job has done and what is known to remain, in its own unit.", "job", "type")
	f.jobFailed = f.gauge("blockd_job_failed", "1 when the job has an error, else 0.", "job", "type")
	f.jobScratch = f.gauge("blockd_job_scratch_bytes", "What a backup keeps of what guests have overwritten, in memory and in its file.", "job", "type", "place")
	f.jobFull = f.counter("blockd_job_scratch_full_total", "How often a backup had no room to keep more, so that a guest waited for the target.", "job", "type")
	f.jobOrphans = f.gauge("blockd_job_orphaned_requests", "Requests that a cancelled job still waits for, because they do not return.", "job", "type")

	f.exportInfo = f.gauge("blockd_export_info", "Always 1: an export, with its node.", "export", "type", "node", "shutting_down")
	f.exportClients = f.gauge("blockd_export_clients", "Clients that use the export.", "export", "type")
	f.nbdConnections = f.gauge("blockd_nbd_connections", "Clients of the NBD server, those that have not chosen an export yet among them.")
	f.nbdMost = f.gauge("blockd_nbd_max_connections", "How many clients the NBD server takes, 0 for any number.")

	f.graphNodes = f.gauge("blockd_graph_nodes", "Nodes of the block graph.")
	f.graphUsers = f.gauge("blockd_graph_users", "Users of the block graph: exports, and the ends of jobs.")
	f.graphOrphans = f.gauge("blockd_graph_orphaned_nodes", "Nodes that are still being closed though their change is over, because their storage does not answer.")
	f.graphSteps = f.counter("blockd_graph_steps_total", "Changes of the block graph that were published.")
	f.graphDrains = f.counter("blockd_graph_drains_total", "How often a graph change waited for requests in flight.")
	f.graphWaited = f.counter("blockd_graph_drain_seconds_total", "Time that graph changes have waited for requests in flight and for nodes' own work.")
	f.loopLatency = f.gauge("blockd_loop_latency_seconds", "Time that this scrape waited for its turn on the control plane's loop.")

	f.scratchBytes = f.gauge("blockd_scratch_bytes", "What all backups keep of what guests have overwritten, in memory and in files.", "place")
	f.bufferBytes = f.gauge("blockd_buffer_bytes", "Buffers of admitted requests, of 268435456 bytes for the process.")
	f.bufferWaits = f.counter("blockd_buffer_waits_total", "How often a request waited for a buffer.")
	f.fileCalls = f.counter("blockd_file_calls_total", "System calls on files and devices, by operation (read, write, other).", "op")
	f.fileBytes = f.counter("blockd_file_bytes_total", "Bytes that system calls have read and written.", "op")
	f.fileInFlight = f.gauge("blockd_file_calls_in_flight", "System calls that are waiting for storage now.")
	f.fileWaiting = f.gauge("blockd_file_calls_waiting", "Requests that wait for a slot to make a system call.")
	f.fileWaits = f.counter("blockd_file_call_waits_total", "How often a request waited for a slot to make a system call.")

	f.qmpCommands = f.counter("blockd_qmp_commands_total", "QMP commands that have run, by outcome (ok, failed).", "command", "outcome")
	f.qmpSeconds = f.counter("blockd_qmp_command_seconds_total", "Time that QMP commands took.", "command")

	f.leftOut = f.gauge("blockd_left_out", "How many nodes, users, jobs and exports are not shown, because there are too many.", "what")
	return f
}

// op returns labels with that of the operation.
func op(labels []string) []string { return append(slices.Clone(labels), "op") }

func (f *families) gauge(name, help string, labels ...string) *family {
	return f.declare(&family{name: name, help: help, labels: labels})
}

func (f *families) counter(name, help string, labels ...string) *family {
	return f.declare(&family{name: name, help: help, counter: true, labels: labels})
}

func (f *families) declare(d *family) *family {
	d.index = len(f.all)
	f.all = append(f.all, d)
	return d
}
