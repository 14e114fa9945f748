package quorum

import (
	"context"
	"sync"

	"blockd/blockgraph"
	"blockd/ioengine"
	"blockd/qapi"
)

// each does a request on all children at once and returns their errors.
func (q *Quorum) each(children []*blockgraph.Edge, do func(i int, e *blockgraph.Edge) error) []error {
	errs := make([]error, len(children))
	var wg sync.WaitGroup
	for i, e := range children[1:] {
		wg.Go(func() { errs[i+1] = do(i+1, e) })
	}
	errs[0] = do(0, children[0])
	wg.Wait()
	return errs
}

// extent is the range of a request for an event: sectors of 512 bytes.
func extent(off, n int64) (sector, count int64) {
	sector = off / 512
	return sector, (off+n+511)/512 - sector
}

// reportBad tells of a child whose request failed, or whose content differs
// when err is nil.
func (q *Quorum) reportBad(kind qapi.QuorumOpType, e *blockgraph.Edge, off, n int64, err error) {
	data := &qapi.QuorumReportBad{Type: kind, NodeName: e.Child().Name()}
	data.SectorNum, data.SectorsCount = extent(off, n)
	if err != nil {
		text := blockgraph.Strerror(err)
		data.Error = &text
	}
	q.emit("QUORUM_REPORT_BAD", data)
}

func (q *Quorum) reportFailure(off, n int64) {
	data := &qapi.QuorumFailure{Reference: q.node.Name()}
	data.SectorNum, data.SectorsCount = extent(off, n)
	q.emit("QUORUM_FAILURE", data)
}

// judge reports the children that failed. The error is that of most of them if
// fewer than the threshold did it.
func (q *Quorum) judge(kind qapi.QuorumOpType, children []*blockgraph.Edge, errs []error, off, n int64) error {
	good := 0
	for i, err := range errs {
		if err == nil {
			good++
		} else {
			q.reportBad(kind, children[i], off, n, err)
		}
	}
	if good >= q.threshold {
		return nil
	}
	var failed []int
	for i, err := range errs {
		if err != nil {
			failed = append(failed, i)
		}
	}
	versions := count(failed, func(a, b int) bool { return blockgraph.Errno(errs[a]) == blockgraph.Errno(errs[b]) })
	return errs[winner(versions)[0]]
}

// count groups the voters that agree. The group that was found last comes
// first, as in the field, whose order decides between equals.
func count(voters []int, agree func(a, b int) bool) (versions [][]int) {
next:
	for _, v := range voters {
		for i := range versions {
			if agree(versions[i][0], v) {
				versions[i] = append(versions[i], v)
				continue next
			}
		}
		versions = append([][]int{{v}}, versions...)
	}
	return versions
}

// winner returns the first of the largest groups.
func winner(versions [][]int) []int {
	best := versions[0]
	for _, v := range versions[1:] {
		if len(v) > len(best) {
			best = v
		}
	}
	return best
}

// write does a write on all children.
func (q *Quorum) write(ctx context.Context, off, n int64, do func(e *blockgraph.Edge) error) error {
	if q.rewrite {
		h, err := q.writing.Lock(ctx, off, n, false)
		if err != nil {
			return err
		}
		defer q.writing.Unlock(h)
	}
	children := q.children()
	errs := q.each(children, func(_ int, e *blockgraph.Edge) error { return do(e) })
	err := q.judge(qapi.QuorumOpTypeWrite, children, errs, off, n)
	if err != nil {
		q.reportFailure(off, n)
	}
	return err
}

// WriteV implements blockgraph.Driver.
func (q *Quorum) WriteV(ctx context.Context, off int64, v *blockgraph.IOVec, flags blockgraph.Flags) error {
	return q.write(ctx, off, v.Len(), func(e *blockgraph.Edge) error { return e.WriteV(ctx, off, v, flags) })
}

// WriteZeroes implements blockgraph.Driver.
func (q *Quorum) WriteZeroes(ctx context.Context, off, n int64, flags blockgraph.Flags) error {
	return q.write(ctx, off, n, func(e *blockgraph.Edge) error { return e.WriteZeroes(ctx, off, n, flags) })
}

// Discard is ignored.
func (q *Quorum) Discard(context.Context, int64, int64) error { return blockgraph.ErrNotSupported }

// Flush succeeds when as many children as the threshold did it.
func (q *Quorum) Flush(ctx context.Context) error {
	children := q.children()
	errs := q.each(children, func(_ int, e *blockgraph.Edge) error { return e.Flush(ctx) })
	return q.judge(qapi.QuorumOpTypeFlush, children, errs, 0, 0)
}

// BlockStatus is zero where all children say so, else data.
func (q *Quorum) BlockStatus(ctx context.Context, off, n int64, mode blockgraph.StatusMode) (blockgraph.Status, error) {
	zero, data := n, int64(0)
	for _, e := range q.children() {
		st, _, err := e.Child().StatusAbove(ctx, nil, off, n, mode)
		if err != nil {
			q.reportBad(qapi.QuorumOpTypeRead, e, off, n, err)
			data = n
			break
		}
		if st.Flags&blockgraph.StatusZero != 0 {
			zero = min(zero, st.N)
		} else {
			data = max(data, st.N)
		}
	}
	if data > 0 {
		return blockgraph.Status{Flags: blockgraph.StatusData, N: data}, nil
	}
	return blockgraph.Status{Flags: blockgraph.StatusZero, N: zero}, nil
}

// ReadV implements blockgraph.Driver.
func (q *Quorum) ReadV(ctx context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	if q.fifo {
		return q.readFirst(ctx, off, v)
	}
	differ, err := q.readAll(ctx, off, v, false)
	if !differ {
		return err
	}
	h, err := q.writing.Lock(ctx, off, v.Len(), true)
	if err != nil {
		return err
	}
	defer q.writing.Unlock(h)
	_, err = q.readAll(ctx, off, v, true)
	return err
}

// readFirst reads from the first child that can be read.
func (q *Quorum) readFirst(ctx context.Context, off int64, v *blockgraph.IOVec) (err error) {
	for _, e := range q.children() {
		if err = e.ReadV(ctx, off, v, 0); err == nil {
			return nil
		}
		q.reportBad(qapi.QuorumOpTypeRead, e, off, v.Len(), err)
	}
	return err
}

// CanReplace tells whether a node that shows what the quorum shows may take the
// place of one of its children: of one that nobody else sees, and that is its
// child once. A job's own use of it does not count.
func (q *Quorum) CanReplace(tx *blockgraph.Tx, child *blockgraph.Node) bool {
	mine := false
	for _, e := range tx.Parents(child) {
		switch r := e.Root(); {
		case e.Parent() == q.node && !mine:
			mine = true
		case r == nil || r.Job() == "":
			return false
		}
	}
	return mine
}

// ballot is what the children answered to a read.
type ballot struct {
	children []*blockgraph.Edge
	bufs     []*ioengine.Buffer
	errs     []error
}

func (q *Quorum) ask(ctx context.Context, off, n int64) *ballot {
	b := &ballot{children: q.children()}
	for range b.children {
		b.bufs = append(b.bufs, ioengine.Bounce(int(n)))
	}
	b.errs = q.each(b.children, func(i int, e *blockgraph.Edge) error {
		return e.ReadV(ctx, off, blockgraph.MakeIOVec(b.bufs[i].Bytes()), 0)
	})
	return b
}

func (b *ballot) release() {
	for _, x := range b.bufs {
		x.Release()
	}
}

// readAll asks all children and has them vote. With rewrite-corrupted and not
// alone in the range it stops at a difference, for the caller to come back
// alone.
func (q *Quorum) readAll(ctx context.Context, off int64, v *blockgraph.IOVec, alone bool) (differ bool, err error) {
	n := v.Len()
	b := q.ask(ctx, off, n)
	defer b.release()
	return q.vote(ctx, b, off, v, alone)
}
