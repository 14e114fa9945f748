package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
)

// qtest is the socket through which a test moves the virtual clock. Requests are
// lines; what passes is noted on stderr with the time since the start.
type qtest struct {
	conn    net.Conn
	clock   *clock.Virtual
	stepped func() // returns when what the step has set off is done
	begun   time.Time
	done    sync.WaitGroup
}

// connectQtest connects to `unix:path=PATH`, where the test listens.
func connectQtest(value string, clk *clock.Virtual, stepped func()) (*qtest, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(value, "unix:"), "path=")
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, qapi.Errorf("cannot connect to %s: %s", path, blockgraph.Strerror(err))
	}
	q := &qtest{conn: conn, clock: clk, stepped: stepped, begun: clock.Real().Now()}
	fmt.Fprintf(os.Stderr, "[I %d.000000] OPENED\n", 0)
	q.done.Go(q.serve)
	return q, nil
}

func (q *qtest) serve() {
	lines := bufio.NewScanner(q.conn)
	for lines.Scan() {
		q.note("R", lines.Text())
		reply := q.answer(strings.Fields(lines.Text()))
		q.note("S", reply)
		if _, err := fmt.Fprintln(q.conn, reply); err != nil {
			return
		}
	}
}

func (q *qtest) answer(words []string) string {
	if len(words) == 0 || words[0] != "clock_step" || q.clock == nil {
		name := ""
		if len(words) > 0 {
			name = words[0]
		}
		return "FAIL Unknown command '" + name + "'"
	}
	if len(words) > 1 {
		ns, err := strconv.ParseInt(words[1], 0, 64)
		if err != nil || ns < 0 {
			return "FAIL Unknown command '" + words[0] + "'"
		}
		q.clock.Step(time.Duration(ns))
	} else if d, ok := q.clock.Next(); ok {
		q.clock.Step(d)
	}
	q.stepped()
	return fmt.Sprintf("OK %d", q.clock.Elapsed().Nanoseconds())
}

func (q *qtest) note(kind, text string) {
	d := clock.Since(clock.Real(), q.begun)
	fmt.Fprintf(os.Stderr, "[%s +%d.%06d] %s\n", kind, d/time.Second, d%time.Second/time.Microsecond, text)
}

// close ends the conversation. Safe on nil.
func (q *qtest) close() {
	if q == nil {
		return
	}
	q.conn.Close()
	q.done.Wait()
	q.note("I", "CLOSED")
}
