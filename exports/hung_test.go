package exports

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"testing"
	"time"

	"blockd/blockgraph/graphtest"
	"blockd/clock"
)

// hang has a client's read of export e hang in its image.
func (w *world) hang(path string, m *graphtest.Memory) *graphtest.Hold {
	w.t.Helper()
	hold := graphtest.NewHold(graphtest.Read)
	w.t.Cleanup(hold.Release)
	m.SetHook(hold.Wait)
	read := binary.BigEndian.AppendUint32(nil, 0x25609513)
	read = append(read, make([]byte, 20)...)
	read = binary.BigEndian.AppendUint32(read, 512)
	if _, err := w.guest(path, "n").Write(read); err != nil {
		w.t.Fatal(err)
	}
	<-hold.Entered
	return hold
}

func silent(t *testing.T) {
	was := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	t.Cleanup(func() { slog.SetDefault(was) })
}

func (w *world) ids() (ids []string) {
	for _, e := range w.Query() {
		if !e.ShuttingDown {
			w.t.Errorf("export %s does not shut down", e.ID)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

// TestEndOfTheServerDoesNotWaitForAHungRequest for ever: the export without one
// is gone, the other one is when its request has returned.
func TestEndOfTheServerDoesNotWaitForAHungRequest(t *testing.T) {
	silent(t)
	w := newWorld(t)
	c := clock.NewVirtual()
	w.Clock = c
	hung := w.node("n", false)
	w.node("free", false)
	path := w.start()
	w.mustAdd(options("e", "n"))
	w.mustAdd(options("f", "free"))
	hold := w.hang(path, hung)
	stopped := make(chan error)
	go func() { stopped <- w.StopNBD(context.Background()) }()
	var err error
	for waiting := true; waiting; {
		select {
		case err = <-stopped:
			waiting = false
		default:
			c.Step(time.Second)
			runtime.Gosched()
		}
	}
	if err != nil {
		t.Error(err)
	}
	for len(w.events()) == 0 { // it goes by itself
		runtime.Gosched()
	}
	if got := w.ids(); !slices.Equal(got, []string{"e"}) || !slices.Equal(w.events(), []string{"f"}) {
		t.Errorf("left %q, deleted %q", got, w.events())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.refused("exports did not end in time: e", w.Close(ctx))
	hold.Release()
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got := w.ids(); len(got) != 0 || !slices.Equal(w.events(), []string{"f", "e"}) {
		t.Errorf("left %q, deleted %q", got, w.events())
	}
}
