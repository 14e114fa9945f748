package graphtest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Recorder is a file in memory that logs what reaches it, for states after a
// crash (CrashWalk), and the driver of the nodes that have it open.
type Recorder struct {
	// Hook, if not nil, is called before each request, from many goroutines.
	// It is set before the file is opened.
	Hook func()

	mu     sync.RWMutex //blockd:short
	data   []byte
	base   []byte
	log    []CrashOp
	seq    *atomic.Int64 // nil: nothing is logged
	passed []string      // fault points since the last entry of the log
}

// NewRecorder returns a file with that content, which logs nothing yet.
func NewRecorder(content []byte) *Recorder { return &Recorder{data: bytes.Clone(content)} }

// Record has the file log from now on; what it holds is durable. Files that one
// crash cuts share the number of the next entry.
func (r *Recorder) Record(seq *atomic.Int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base, r.log, r.seq = bytes.Clone(r.data), nil, seq
}

// Log returns what the file held when it began to log, and what it has logged.
func (r *Recorder) Log() (base []byte, log []CrashOp) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.base, slices.Clone(r.log)
}

// Bytes returns a copy of the content.
func (r *Recorder) Bytes() []byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return bytes.Clone(r.data)
}

// RecorderType is the driver `file` for the files that find knows.
func RecorderType(find func(filename string) *Recorder) *blockgraph.DriverType {
	return &blockgraph.DriverType{
		Name: "file", Protocol: true,
		Open: func(_ context.Context, r *blockgraph.OpenRequest) (blockgraph.Driver, error) {
			return find(r.Options.File.Filename), nil
		},
		PlainFilename: func(o *qapi.BlockdevOptions) (string, bool) { return o.File.Filename, true },
		StrongOptions: func(o *qapi.BlockdevOptions) *qapi.Object {
			return qapi.NewObject("filename", o.File.Filename)
		},
	}
}

func (r *Recorder) arrive() {
	if r.Hook != nil {
		r.Hook()
	}
}

// note adds an entry to the log. mu is held.
func (r *Recorder) note(op CrashOp) {
	if r.seq == nil {
		return
	}
	op.Seq = r.seq.Add(1) - 1
	op.Points, r.passed = r.passed, nil
	r.log = append(r.log, op)
}

// change does op and logs it.
func (r *Recorder) change(op CrashOp) error {
	r.arrive()
	r.mu.Lock()
	defer r.mu.Unlock()
	op.Cut = op.Cut && op.Size < int64(len(r.data))
	r.data = op.Apply(r.data, func(int64) bool { return true })
	r.note(op)
	return nil
}

// ReadV implements blockgraph.Driver, as do the others.
func (r *Recorder) ReadV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	r.arrive()
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := min(max(int64(len(r.data))-off, 0), v.Len())
	if n > 0 {
		v.CopyIn(0, r.data[off:off+n])
	}
	v.Zero(n, v.Len()-n)
	return nil
}

func (r *Recorder) WriteV(_ context.Context, off int64, v *blockgraph.IOVec, _ blockgraph.Flags) error {
	p := make([]byte, v.Len())
	v.CopyOut(0, p)
	return r.change(CrashOp{Off: off, Data: p})
}

func (r *Recorder) WriteZeroes(_ context.Context, off, n int64, _ blockgraph.Flags) error {
	return r.change(CrashOp{Off: off, Data: make([]byte, n)})
}

// Discard leaves something else than what was there.
func (r *Recorder) Discard(_ context.Context, off, n int64) error {
	return r.change(CrashOp{Off: off, Data: bytes.Repeat([]byte{0xdd}, int(n)), Discard: true})
}

func (r *Recorder) Flush(context.Context) error { return r.change(CrashOp{Flush: true}) }

func (r *Recorder) Truncate(_ context.Context, size int64, _ bool, _ qapi.PreallocMode, _ bool) error {
	return r.change(CrashOp{Size: size, Cut: true})
}

// DebugEvent implements blockgraph.DebugEventer.
func (r *Recorder) DebugEvent(event string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seq != nil {
		r.passed = append(r.passed, event)
	}
}

func (r *Recorder) BlockStatus(_ context.Context, _, n int64, _ blockgraph.StatusMode) (blockgraph.Status, error) {
	return blockgraph.Status{Flags: blockgraph.StatusData, N: n}, nil
}

func (r *Recorder) Size(context.Context) (int64, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return int64(len(r.data)), nil
}

func (r *Recorder) Close(context.Context) error { return nil }

func (r *Recorder) Limits() blockgraph.Limits { return blockgraph.Limits{} }

func (r *Recorder) Caps() blockgraph.Caps {
	return blockgraph.Caps{WriteZeroes: blockgraph.CapNative, MayUnmap: blockgraph.CapNative, Discard: blockgraph.CapNative, Grow: true, FreshZero: true}
}

// PrepareReopen has nothing to do.
func (r *Recorder) PrepareReopen(context.Context, *blockgraph.ReopenRequest) (*blockgraph.Reopening, error) {
	return &blockgraph.Reopening{}, nil
}
