package monitor

import (
	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/qapi"
	"blockd/qmp"
)

// jobID is the id of a new job over a node: the one that was given, or the name
// of the device that the node is in.
func jobID(tx *blockgraph.Tx, given *string, n *blockgraph.Node) *string {
	if given != nil {
		return given
	}
	id := tx.DeviceName(n)
	return &id
}

func (m *Monitor) registerJobs(r *qmp.Registry) {
	qmp.Register(r, "query-jobs", qmp.CommandOptions{ReadOnly: true}, func(*qmp.Context, *struct{}) (infos []qapi.JobInfo, _ error) {
		m.loop.Do(func() { infos = m.jobs.Infos() })
		return infos, nil
	})
	qmp.Register(r, "query-block-jobs", qmp.CommandOptions{ReadOnly: true}, func(*qmp.Context, *struct{}) (infos []qapi.BlockJobInfo, _ error) {
		m.loop.Do(func() { infos = m.jobs.BlockInfos() })
		return infos, nil
	})
	qmp.Register(r, "x-query-job-history", qmp.CommandOptions{Unstable: true, ReadOnly: true}, func(*qmp.Context, *struct{}) (list []qapi.JobHistory, _ error) {
		m.loop.Do(func() { list = m.jobs.History() })
		return list, nil
	})
	verb := func(name string, v jobs.Verb, f func(j *jobs.Job) error) {
		qmp.Register(r, name, qmp.CommandOptions{}, func(_ *qmp.Context, a *qapi.JobIDArg) (struct{}, error) {
			return struct{}{}, m.onJob(m.jobs.Find, a.ID, v, f)
		})
	}
	verb("job-pause", jobs.VerbPause, (*jobs.Job).Pause)
	verb("job-resume", jobs.VerbResume, (*jobs.Job).Resume)
	verb("job-cancel", jobs.VerbCancel, func(j *jobs.Job) error { return j.Cancel(true) })
	verb("job-complete", jobs.VerbComplete, (*jobs.Job).Complete)
	verb("job-finalize", jobs.VerbFinalize, (*jobs.Job).Finalize)
	verb("job-dismiss", jobs.VerbDismiss, (*jobs.Job).Dismiss)

	// The older names for block jobs, which take the id as `device` or `id`.
	deprecated := qmp.CommandOptions{Deprecated: true}
	byDevice := func(name string, v jobs.Verb, f func(j *jobs.Job) error) {
		qmp.Register(r, name, deprecated, func(_ *qmp.Context, a *qapi.BlockJobDeviceArg) (struct{}, error) {
			return struct{}{}, m.onJob(m.jobs.FindBlock, a.Device, v, f)
		})
	}
	byDevice("block-job-pause", jobs.VerbPause, (*jobs.Job).Pause)
	byDevice("block-job-resume", jobs.VerbResume, (*jobs.Job).Resume)
	byDevice("block-job-complete", jobs.VerbComplete, (*jobs.Job).Complete)
	byID := func(name string, v jobs.Verb, f func(j *jobs.Job) error) {
		qmp.Register(r, name, deprecated, func(_ *qmp.Context, a *qapi.JobIDArg) (struct{}, error) {
			return struct{}{}, m.onJob(m.jobs.FindBlock, a.ID, v, f)
		})
	}
	byID("block-job-finalize", jobs.VerbFinalize, (*jobs.Job).Finalize)
	byID("block-job-dismiss", jobs.VerbDismiss, (*jobs.Job).Dismiss)
	qmp.Register(r, "block-job-cancel", qmp.CommandOptions{}, func(_ *qmp.Context, a *qapi.BlockJobCancelArg) (struct{}, error) {
		return struct{}{}, m.onJob(m.jobs.FindBlock, a.Device, jobs.VerbCancel, func(j *jobs.Job) error { return j.BlockCancel(isTrue(a.Force)) })
	})
	qmp.Register(r, "block-job-set-speed", qmp.CommandOptions{}, func(_ *qmp.Context, a *qapi.BlockJobSetSpeedArg) (struct{}, error) {
		return struct{}{}, m.onJob(m.jobs.FindBlock, a.Device, jobs.VerbSetSpeed, func(j *jobs.Job) error { return j.SetSpeed(a.Speed) })
	})
}

// onJob applies a verb to a job on the loop. What it does at once to an idle
// job is told before the reply.
func (m *Monitor) onJob(find func(id string) (*jobs.Job, error), id string, v jobs.Verb, f func(j *jobs.Job) error) (err error) {
	var j *jobs.Job
	m.loop.Do(func() {
		if j, err = find(id); err == nil {
			err = f(j)
		}
	})
	if err == nil {
		j.Settle(v)
	}
	return err
}
