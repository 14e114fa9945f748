package cli

import (
	"fmt"
	"strings"
	"time"

	"blockd/qapi"
	"blockd/qmpclient"
)

// jobView is a job as query-jobs shows it, with the rate at which it goes.
type jobView struct {
	id, typ, status, problem string
	done, total              int64
	rate                     float64 // per second; 0: not known
}

func viewJob(o *qapi.Object) jobView {
	return jobView{
		id: qmpclient.String(o, "id"), typ: qmpclient.String(o, "type"), status: qmpclient.String(o, "status"),
		problem: qmpclient.String(o, "error"),
		done:    qmpclient.Int(o, "current-progress"), total: qmpclient.Int(o, "total-progress"),
	}
}

// pace finds the rates of jobs from one look to the next.
type pace struct {
	seen map[string]mark
}

type mark struct {
	at   time.Time
	done int64
	rate float64
}

// smoothing is how much of a rate is the newest measurement's.
const smoothing = 0.3

// measure sets the rates of jobs that were seen before.
func (p *pace) measure(now time.Time, list []jobView) {
	seen := map[string]mark{}
	for i := range list {
		j := &list[i]
		m, known := p.seen[j.id]
		seconds := now.Sub(m.at).Seconds()
		switch {
		case !known || j.done < m.done: // or another job of that name
			m = mark{at: now, done: j.done}
		case seconds > 0:
			rate := float64(j.done-m.done) / seconds
			if m.rate != 0 {
				rate = smoothing*rate + (1-smoothing)*m.rate
			}
			m = mark{at: now, done: j.done, rate: rate}
		}
		j.rate = m.rate
		seen[j.id] = m
	}
	p.seen = seen
}

// left is how long the job will take at its rate.
func (j *jobView) left() (time.Duration, bool) {
	if j.rate < 1 || j.total <= j.done {
		return 0, false
	}
	return time.Duration(float64(j.total-j.done) / j.rate * float64(time.Second)).Round(time.Second), true
}

func (j *jobView) fraction() float64 {
	if j.total <= 0 {
		return 0
	}
	return min(1, float64(j.done)/float64(j.total))
}

// bar draws a fraction over a number of columns.
func bar(fraction float64, columns int) string {
	full := min(columns, int(fraction*float64(columns)+0.5))
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", columns-full) + "]"
}

// Bar draws how far something is, from 0 to 1, over the terminal's width.
func (env *Environment) Bar(fraction float64) string {
	return fmt.Sprintf("%s %5.1f %%", bar(fraction, min(60, max(8, env.Width()-10))), 100*fraction)
}

// bytesText is a count of bytes with three digits that matter.
func bytesText(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for n >= 1024 && i < len(units)-1 {
		n /= 1024
		i++
	}
	if i == 0 || n >= 100 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.3g %s", n, units[i])
}

// line is the job in one line, at most so many columns wide.
func (env *Environment) line(j jobView, columns int) string {
	text := fmt.Sprintf("%3.0f %%  %s of %s", 100*j.fraction(), bytesText(float64(j.done)), bytesText(float64(j.total)))
	if j.rate >= 1 {
		text += fmt.Sprintf("  %s/s", bytesText(j.rate))
	}
	if left, ok := j.left(); ok {
		text += fmt.Sprintf("  %s left", left)
	}
	head := fmt.Sprintf("%s %s %s", printable(j.id), printable(j.typ), printable(j.status))
	room := columns - len([]rune(head)) - len(text) - 5
	if room >= 8 {
		text = bar(j.fraction(), min(room, 40)) + " " + text
	}
	if j.problem != "" {
		text += "  " + printable(j.problem)
	}
	return cut(head+"  "+text, columns)
}

// cut shortens a line to a number of columns, 0 for no limit.
func cut(line string, columns int) string {
	r := []rune(line)
	if columns <= 0 || len(r) <= columns {
		return line
	}
	return string(r[:columns])
}

// canvas draws lines over those that it drew before.
type canvas struct {
	env   *Environment
	lines int
}

// draw replaces what was drawn.
func (c *canvas) draw(lines []string) error {
	var b strings.Builder
	if c.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", c.lines)
	}
	b.WriteString("\r\x1b[J")
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	c.lines = len(lines)
	_, err := c.env.Out.Write([]byte(b.String()))
	return err
}
