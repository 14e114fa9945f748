package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/objects/throttlegroup"
	"blockd/qapi"
)

// This file runs commands of qemu-io on a root, which print what happened to
// standard output, and not into the monitor.

// ioSession is one command on a backend, or on a root of its own over a node.
type ioSession struct {
	m    *machine
	x    *backend
	root *blockgraph.Root // of its own, or nil
}

// openNode opens a root over a node.
func (s *ioSession) openNode(ctx context.Context, name string) error {
	return s.m.update(ctx, "qemu-io", func(tx *blockgraph.Tx) error {
		none := ""
		n, err := tx.LookUp(&none, &name)
		if err != nil {
			return err
		}
		s.root, err = tx.NewRoot(n, blockgraph.RootOptions{Shared: blockgraph.PermAll})
		return err
	})
}

// close gives up the session's own root, when its requests have ended.
func (s *ioSession) close(ctx context.Context) {
	if s.root == nil {
		return
	}
	_ = s.m.update(ctx, "qemu-io", func(tx *blockgraph.Tx) error { return tx.CloseRoot(s.root) })
}

func (s *ioSession) current() *blockgraph.Root {
	if s.root != nil {
		return s.root
	}
	return s.m.backends.present(s.x)
}

// ioCommand is one of qemu-io's commands.
type ioCommand struct {
	letters string // of its options; those with a value have a colon after them
	min     int    // of arguments
	max     int    // -1: any number
	perm    blockgraph.Perm
	run     func(s *ioSession, ctx context.Context, o *ioOptions) error
}

var ioCommands map[string]ioCommand

func init() {
	ioCommands = map[string]ioCommand{
		"read":         {"abCl:pP:qs:v", 2, 2, 0, (*ioSession).read},
		"write":        {"bcCfnpP:qs:uz", 2, 2, blockgraph.PermWrite, (*ioSession).write},
		"aio_read":     {"CP:iqv", 2, -1, 0, (*ioSession).aioRead},
		"aio_write":    {"CfiqP:uz", 2, -1, blockgraph.PermWrite, (*ioSession).aioWrite},
		"aio_flush":    {"", 0, 0, 0, (*ioSession).drain},
		"flush":        {"", 0, 0, 0, (*ioSession).flush},
		"discard":      {"Cq", 2, 2, blockgraph.PermWrite, (*ioSession).discard},
		"map":          {"", 0, 1, 0, (*ioSession).allocation},
		"break":        {"", 2, 2, 0, (*ioSession).setBreak},
		"remove_break": {"", 1, 1, 0, (*ioSession).removeBreak},
		"reopen":       {"c:o:", 0, 0, 0, (*ioSession).reopen},
		"resume":       {"", 1, 1, 0, (*ioSession).resume},
		"wait_break":   {"", 1, 1, 0, (*ioSession).awaitBreak},
	}
}

// ioOptions are what stands after a command's name.
type ioOptions struct {
	set  map[byte]bool
	val  map[byte]string
	args []string
}

func (o *ioOptions) pattern(ifNone byte) byte {
	v, ok := o.val['P']
	if !ok {
		return ifNone
	}
	n, _ := strconv.ParseUint(v, 0, 8)
	return byte(n)
}

// parseIO reads options as getopt does: letters may be written together, and a
// value with its letter.
func parseIO(words []string, letters string) (*ioOptions, bool) {
	o := &ioOptions{set: map[byte]bool{}, val: map[byte]string{}}
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		if len(w) < 2 || w[0] != '-' {
			o.args = append(o.args, w)
			continue
		}
		for i := 1; i < len(w); i++ {
			at := strings.IndexByte(letters, w[i])
			if at < 0 || w[i] == ':' {
				return nil, false
			}
			o.set[w[i]] = true
			if at+1 < len(letters) && letters[at+1] == ':' {
				v := w[i+1:]
				if v == "" {
					if len(words) == 0 {
						return nil, false
					}
					v, words = words[0], words[1:]
				}
				o.val[w[i]] = v
				break
			}
		}
	}
	return o, true
}

// run does one command. Its error is for the monitor; what happens to a request
// is printed.
func (s *ioSession) run(ctx context.Context, line string) error {
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil
	}
	c, ok := ioCommands[words[0]]
	if !ok {
		s.m.printf("command \"%s\" not found\n", words[0])
		return nil
	}
	o, ok := parseIO(words[1:], c.letters)
	if !ok || len(o.args) < c.min || c.max >= 0 && len(o.args) > c.max {
		s.m.printf("bad argument count %d to %s\n", len(words)-1, words[0])
		return nil
	}
	r := s.current()
	if r == nil {
		s.m.printf("no file open, try 'help open'\n")
		return nil
	}
	if c.perm != 0 {
		if err := s.require(ctx, r, c.perm); err != nil {
			return err
		}
	}
	return c.run(s, ctx, o)
}

// require adds permissions to those of the root, which keeps them.
func (s *ioSession) require(ctx context.Context, r *blockgraph.Root, perm blockgraph.Perm) error {
	return s.m.update(ctx, "qemu-io", func(tx *blockgraph.Tx) error {
		has, shared := tx.RootPerms(r)
		if has&perm == perm {
			return nil
		}
		return tx.SetRootPerms(r, has|perm, shared)
	})
}

// span reads an offset and a length.
func (s *ioSession) span(args []string) (off, n int64, ok bool) {
	for i, to := range []*int64{&off, &n} {
		v, err := qapi.ParseSize(args[i])
		if err != nil {
			s.m.printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n", args[i])
			return 0, 0, false
		}
		*to = int64(v)
	}
	return off, n, true
}

func now() time.Time { return clock.Real().Now() }

// report prints what a request has done, and how fast.
func (s *ioSession) report(o *ioOptions, op string, off, n int64, begun time.Time) {
	if o.set['q'] {
		return
	}
	sec := max(clock.Since(clock.Real(), begun).Seconds(), 1e-9)
	if o.set['C'] {
		s.m.printf("%d,1,%.6f,%.3f,%.3f\n", n, sec, float64(n)/sec, 1/sec)
		return
	}
	s.m.printf("%s %d/%d bytes at offset %d\n%s, 1 ops; %05.2f sec (%s/sec and %.4f ops/sec)\n",
		op, n, n, off, bytesText(float64(n)), sec, bytesText(float64(n)/sec), 1/sec)
}

// bytesText is a number of bytes for people.
func bytesText(v float64) string {
	for _, u := range []struct {
		bits int
		name string
	}{{60, " EiB"}, {50, " PiB"}, {40, " TiB"}, {30, " GiB"}, {20, " MiB"}, {10, " KiB"}} {
		if unit := float64(int64(1) << u.bits); v >= unit {
			return strings.Replace(fmt.Sprintf("%.3f", v/unit), ".000", "", 1) + u.name
		}
	}
	return strings.TrimSuffix(fmt.Sprintf("%.6f", v), ".000000") + " bytes"
}

// failed prints an error of a request.
func (s *ioSession) failed(op string, err error) {
	s.m.printf("%s failed: %s\n", op, blockgraph.Strerror(err))
}

func filled(n int64, pattern byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = pattern
	}
	return b
}

// wait lets the backend's limits delay a request.
func (s *ioSession) wait(ctx context.Context, dir throttlegroup.Direction, n int64) error {
	if s.x == nil || s.x.throttle == nil {
		return nil
	}
	return s.x.throttle.member.Wait(ctx, dir, n)
}

func (s *ioSession) doRead(ctx context.Context, o *ioOptions, name string, off, n int64) {
	begun := now()
	err := s.wait(ctx, throttlegroup.Read, n)
	b := make([]byte, n)
	if err == nil {
		err = s.current().ReadV(ctx, off, blockgraph.MakeIOVec(b), 0)
	}
	if err != nil {
		s.failed(name, err)
		return
	}
	if o.set['P'] {
		at, length := int64(0), n
		if v, err := qapi.ParseSize(o.val['s']); err == nil {
			at, length = int64(v), n-int64(v)
		}
		if v, err := qapi.ParseSize(o.val['l']); err == nil {
			length = int64(v)
		}
		for _, c := range b[at : at+length] {
			if c != o.pattern(0) {
				s.m.printf("Pattern verification failed at offset %d, %d bytes\n", off+at, length)
				break
			}
		}
	}
	s.report(o, "read", off, n, begun)
}

func (s *ioSession) read(ctx context.Context, o *ioOptions) error {
	if off, n, ok := s.span(o.args); ok {
		s.doRead(ctx, o, "read", off, n)
	}
	return nil
}

func (s *ioSession) doWrite(ctx context.Context, o *ioOptions, name string, off, n int64) {
	var flags blockgraph.Flags
	for _, f := range []struct {
		letter byte
		flag   blockgraph.Flags
	}{{'f', blockgraph.FUA}, {'u', blockgraph.MayUnmap}, {'n', blockgraph.NoFallback}, {'c', blockgraph.Compressed}} {
		if o.set[f.letter] {
			flags |= f.flag
		}
	}
	begun := now()
	err := s.wait(ctx, throttlegroup.Write, n)
	switch {
	case err != nil:
	case o.set['z']:
		err = s.current().WriteZeroes(ctx, off, n, flags)
	default:
		err = s.current().WriteV(ctx, off, blockgraph.MakeIOVec(filled(n, o.pattern(0xcd))), flags)
	}
	if err != nil {
		s.failed(name, err)
		return
	}
	s.report(o, "wrote", off, n, begun)
}

func (s *ioSession) write(ctx context.Context, o *ioOptions) error {
	if off, n, ok := s.span(o.args); ok {
		s.doWrite(ctx, o, "write", off, n)
	}
	return nil
}

// aio has a request run while the monitor goes on, unless the root is the
// session's own and has to be given up.
func (s *ioSession) aio(ctx context.Context, f func(ctx context.Context)) {
	if s.root != nil {
		f(ctx)
		return
	}
	done := s.m.aio.begin()
	t := s.x.throttle
	if t != nil {
		t.aio.Add(1)
	}
	go func() {
		defer done()
		f(s.m.life)
		if t != nil {
			t.aio.Add(-1)
		}
	}()
	s.m.backends.settle(ctx)
}

func (s *ioSession) aioRead(ctx context.Context, o *ioOptions) error {
	if o.set['i'] {
		s.m.printf("injecting invalid read request\n")
		return nil
	}
	if off, n, ok := s.span(o.args); ok {
		s.aio(ctx, func(ctx context.Context) { s.doRead(ctx, o, "readv", off, n) })
	}
	return nil
}

func (s *ioSession) aioWrite(ctx context.Context, o *ioOptions) error {
	if o.set['i'] {
		s.m.printf("injecting invalid write request\n")
		return nil
	}
	if off, n, ok := s.span(o.args); ok {
		s.aio(ctx, func(ctx context.Context) { s.doWrite(ctx, o, "aio_write", off, n) })
	}
	return nil
}

// drain waits until nothing is in flight in any node, and for what has been
// begun by this monitor.
func (s *ioSession) drain(ctx context.Context, _ *ioOptions) error {
	err := s.m.update(ctx, "qemu-io", func(tx *blockgraph.Tx) error { return tx.Drain(s.m.nodes()...) })
	s.m.aio.wait()
	return err
}

func (s *ioSession) flush(ctx context.Context, _ *ioOptions) error {
	_ = s.current().Flush(ctx)
	return nil
}

func (s *ioSession) discard(ctx context.Context, o *ioOptions) error {
	off, n, ok := s.span(o.args)
	if !ok {
		return nil
	}
	begun := now()
	if err := s.current().Discard(ctx, off, n); err != nil {
		s.failed("discard", err)
		return nil
	}
	s.report(o, "discard", off, n, begun)
	return nil
}

// allocation prints which ranges the image itself has.
func (s *ioSession) allocation(ctx context.Context, _ *ioOptions) error {
	r := s.current()
	for off, size := int64(0), r.Size(); off < size; {
		st, depth, err := r.BlockStatus(ctx, off, size-off, blockgraph.StatusPrecise)
		if err != nil || st.N == 0 {
			s.m.printf("Failed to get allocation status\n")
			return nil
		}
		what := "not allocated"
		if depth == 1 && st.Flags&blockgraph.StatusAllocated != 0 {
			what = "    allocated"
		}
		s.m.printf("%s (0x%x) bytes %s at offset %s (0x%x)\n", bytesText(float64(st.N)), st.N, what, bytesText(float64(off)), off)
		off += st.N
	}
	return nil
}

func (s *ioSession) setBreak(_ context.Context, o *ioOptions) error {
	if err := s.current().Node().Breakpoint(o.args[0], o.args[1]); err != nil {
		s.m.printf("Could not set breakpoint: %s\n", blockgraph.Strerror(err))
	}
	return nil
}

func (s *ioSession) removeBreak(_ context.Context, o *ioOptions) error {
	if err := s.current().Node().RemoveBreakpoint(o.args[0]); err != nil {
		s.m.printf("Could not remove breakpoint %s: %s\n", o.args[0], blockgraph.Strerror(err))
	}
	return nil
}

func (s *ioSession) resume(_ context.Context, o *ioOptions) error {
	if err := s.current().Node().ResumeBreakpoint(o.args[0]); err != nil {
		s.m.printf("Could not resume request: %s\n", blockgraph.Strerror(err))
	}
	return nil
}

func (s *ioSession) awaitBreak(ctx context.Context, o *ioOptions) error {
	return s.current().Node().AwaitSuspended(ctx, o.args[0])
}
