package quorum

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"syscall"

	"blockd/blockgraph"
	"blockd/qapi"
)

// vote fills v with what the children agree upon. See readAll.
func (q *Quorum) vote(ctx context.Context, b *ballot, off int64, v *blockgraph.IOVec, alone bool) (differ bool, err error) {
	n := v.Len()
	versions := b.versions()
	if q.rewrite && !alone && len(versions) > 1 {
		return true, nil // not said yet: a write may be on its way
	}
	if err := q.judge(qapi.QuorumOpTypeRead, b.children, b.errs, off, n); err != nil {
		q.reportFailure(off, n)
		return false, err
	}
	best := winner(versions)
	switch {
	case len(versions) == 1:
	case q.blkverify:
		return false, q.mismatch(b, off)
	case len(best) < q.threshold:
		q.reportFailure(off, n)
		return false, syscall.EIO
	}
	v.CopyIn(0, b.bufs[best[0]].Bytes())
	var bad []int
	for _, version := range versions {
		if version[0] == best[0] {
			continue
		}
		for i := len(version) - 1; i >= 0; i-- { // in the field's order
			bad = append(bad, version[i])
			q.reportBad(qapi.QuorumOpTypeRead, b.children[version[i]], off, n, nil)
		}
	}
	if q.rewrite {
		q.mend(ctx, b, off, best[0], bad)
	}
	return false, nil
}

// versions groups the children that answered by their answers.
func (b *ballot) versions() [][]int {
	var voters []int
	for i, err := range b.errs {
		if err == nil {
			voters = append(voters, i)
		}
	}
	return count(voters, func(x, y int) bool { return bytes.Equal(b.bufs[x].Bytes(), b.bufs[y].Bytes()) })
}

// mend writes what was agreed upon to those that differ. That they may fail is
// no worse than before.
func (q *Quorum) mend(ctx context.Context, b *ballot, off int64, from int, bad []int) {
	var wg sync.WaitGroup
	for _, i := range bad {
		wg.Go(func() {
			if err := b.children[i].WriteV(ctx, off, blockgraph.MakeIOVec(b.bufs[from].Bytes()), 0); err != nil {
				slog.Warn("quorum: a child that differs could not be written", "node", b.children[i].Child().Name(), "error", err)
			}
		})
	}
	wg.Wait()
}

// mismatch is the error of blkverify: the field ends the program there.
func (q *Quorum) mismatch(b *ballot, off int64) error {
	x, y := b.bufs[0].Bytes(), b.bufs[1].Bytes()
	at := 0
	for at < len(x) && x[at] == y[at] {
		at++
	}
	slog.Error("quorum: contents mismatch", "node", q.node.Name(), "offset", off, "bytes", len(x), "at", off+int64(at))
	return blockgraph.Errorf(syscall.EIO, "quorum: offset=%d bytes=%d contents mismatch at offset %d", off, len(x), off+int64(at))
}
