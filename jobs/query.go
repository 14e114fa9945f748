package jobs

import (
	"blockd/qapi"
)

// This file is what clients see of jobs: the results of queries and the data
// of events.

// Infos is the result of query-jobs, the newest job first. Control plane.
func (s *Set) Infos() []qapi.JobInfo {
	infos := make([]qapi.JobInfo, 0, len(s.jobs))
	for _, j := range s.jobs {
		d, ok := j.driver.(Informer)
		if ok {
			d.Refresh()
		}
		current, total := j.progress.Snapshot()
		infos = append(infos, qapi.JobInfo{
			ID: j.id, Type: j.typ, Status: j.status,
			CurrentProgress: current, TotalProgress: total,
			Error:    j.errorText(),
			XOrphans: j.orphans(), XScratch: j.scratch(),
		})
		if j.request != 0 {
			infos[len(infos)-1].XRequest = &j.request
		}
		if ok {
			d.JobInfo(&infos[len(infos)-1])
		}
	}
	return infos
}

// BlockInfos is the result of query-block-jobs, the newest job first. Control
// plane.
func (s *Set) BlockInfos() []qapi.BlockJobInfo {
	infos := make([]qapi.BlockJobInfo, 0, len(s.jobs))
	for _, j := range s.jobs {
		if !j.block {
			continue
		}
		d, ok := j.driver.(Informer)
		if ok {
			d.Refresh()
		}
		current, total := j.progress.Snapshot()
		infos = append(infos, qapi.BlockJobInfo{
			Type: j.typ, Device: j.id,
			Len: total, Offset: current,
			Busy: j.isBusy(), Paused: j.pauses > 0,
			Speed: j.Speed(), IOStatus: j.ioStatus,
			Ready:  j.status == ready || j.status == standby,
			Status: j.status, AutoFinalize: j.autoFinalize, AutoDismiss: j.autoDismiss,
			Error:    j.errorText(),
			XOrphans: j.orphans(), XScratch: j.scratch(),
		})
		if ok {
			d.BlockJobInfo(&infos[len(infos)-1])
		}
	}
	return infos
}

func (j *Job) orphans() *int64 {
	if !j.late {
		return nil
	}
	n := int64(j.driver.(Orphaner).Orphans())
	return &n
}

func (j *Job) scratch() *qapi.JobScratch {
	if d, ok := j.driver.(Scratcher); ok {
		return d.Scratch()
	}
	return nil
}

func (j *Job) errorText() *string {
	if j.err == nil {
		return nil
	}
	text := j.err.Error()
	return &text
}

func (j *Job) progressEvent() qapi.BlockJobProgress {
	current, total := j.progress.Snapshot()
	return qapi.BlockJobProgress{Type: j.typ, Device: j.id, Len: total, Offset: current, Speed: j.Speed()}
}

func (j *Job) completedEvent() {
	if !j.block {
		return
	}
	current, total := j.progress.Snapshot()
	event := qapi.BlockJobCompleted{Type: j.typ, Device: j.id, Len: total, Offset: current, Speed: j.Speed(), Error: j.errorText()}
	if d, ok := j.driver.(Reporter); ok {
		d.Completed(&event)
	}
	j.set.emit("BLOCK_JOB_COMPLETED", event)
}

func (j *Job) cancelledEvent() {
	if j.block {
		j.set.emit("BLOCK_JOB_CANCELLED", j.progressEvent())
	}
}
