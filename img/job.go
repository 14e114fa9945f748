package img

import (
	"context"
	"errors"
	"fmt"
	"time"

	"blockd/qapi"
	"blockd/qmpclient"
)

// lookEvery is how often a job's progress is shown.
const lookEvery = 100 * time.Millisecond

// progress draws how far something is, if it is wanted.
type progress struct {
	s      *session
	wanted bool
	shown  int // of 10,000, -1 before the first
}

// newProgress begins, if it is wanted, with nothing done.
func (s *session) newProgress(wanted bool) *progress {
	p := &progress{s: s, wanted: wanted, shown: -1}
	p.set(0, 1)
	return p
}

// set shows a state.
func (p *progress) set(done, total int64) {
	if !p.wanted || p.s.quiet {
		return
	}
	part := 10000
	if total > 0 {
		part = int(float64(done) / float64(total) * 10000)
	}
	if p.shown == part {
		return
	}
	p.shown = part
	if p.s.env.Terminal {
		fmt.Fprint(p.s.env.Out, "\r"+p.s.env.Bar(float64(part)/10000))
	} else {
		fmt.Fprintf(p.s.env.Out, "    (%.2f/100%%)\r", float64(part)/100)
	}
}

// end shows that all is done, or leaves the line where an error has come.
func (p *progress) end(err error) {
	if !p.wanted || p.s.quiet {
		return
	}
	if err == nil {
		p.set(1, 1)
	}
	fmt.Fprintln(p.s.env.Out)
}

// job runs a job to its end. Its error is the job's own.
func (s *session) job(command string, arguments *qapi.Object, show bool) (err error) {
	_, err = s.jobResult(command, arguments, show)
	return err
}

// jobResult runs a job, and returns it as query-jobs shows it at its end.
func (s *session) jobResult(command string, arguments *qapi.Object, show bool) (*qapi.Object, error) {
	const id = "img"
	arguments.Set("job-id", id)
	if command != "blockdev-create" && command != "x-blockdev-amend" { // theirs stay anyhow
		arguments.Set("auto-dismiss", false)
	}
	if _, err := s.execute(command, arguments); err != nil {
		return nil, err
	}
	p := s.newProgress(show)
	result, err := s.follow(id, p)
	p.end(err)
	// The daemon goes on although the user has interrupted it.
	if _, dismissal := s.c.Execute(context.WithoutCancel(s.ctx), "job-dismiss", qapi.NewObject("id", id)); err == nil {
		err = dismissal
	}
	return result, err
}

// follow waits for the end of a job, which an interrupt cancels.
func (s *session) follow(id string, p *progress) (*qapi.Object, error) {
	life := context.WithoutCancel(s.ctx)
	for completed := false; ; {
		answer, err := s.c.Execute(life, "query-jobs", nil)
		if err != nil {
			return nil, err
		}
		list := qmpclient.ObjectsOf(answer)
		if len(list) != 1 {
			return nil, errors.New("the job is lost")
		}
		j := list[0]
		p.set(qmpclient.Int(j, "current-progress"), qmpclient.Int(j, "total-progress"))
		switch qmpclient.String(j, "status") {
		case "concluded":
			if text := qmpclient.String(j, "error"); text != "" {
				if s.ctx.Err() != nil {
					return nil, s.ctx.Err()
				}
				return nil, errors.New(text)
			}
			return j, nil
		case "ready":
			if !completed {
				completed = true
				if _, err := s.c.Execute(life, "job-complete", qapi.NewObject("id", id)); err != nil {
					return nil, err
				}
			}
		}
		if s.wait() != nil {
			// It may have ended meanwhile.
			if _, err := s.c.Execute(life, "job-cancel", qapi.NewObject("id", id)); err != nil && !refused(err) {
				return nil, err
			}
			if err := s.env.Clock.Sleep(life, lookEvery); err != nil {
				return nil, err
			}
		}
	}
}

// wait waits for news of jobs, or until it is time to look again.
func (s *session) wait() error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	timer := s.env.Clock.AfterFunc(lookEvery, cancel)
	defer timer.Stop()
	if _, err := s.c.Next(ctx); err != nil && s.ctx.Err() == nil && ctx.Err() == nil {
		return err
	}
	return s.ctx.Err()
}

// refused tells that the daemon has said no, and the connection goes on.
func refused(err error) bool {
	var e *qapi.Error
	return errors.As(err, &e)
}
