package cli

import (
	"testing"
	"time"
)

func TestRatesComeFromOneLookToTheNext(t *testing.T) {
	var p pace
	now := time.Unix(1000, 0)
	look := func(done int64) jobView {
		list := []jobView{{id: "j", done: done, total: 1000}}
		p.measure(now, list)
		now = now.Add(time.Second)
		return list[0]
	}
	if j := look(100); j.rate != 0 {
		t.Errorf("a rate of %v at the first look", j.rate)
	}
	if j := look(200); j.rate != 100 {
		t.Errorf("a rate of %v, want 100", j.rate)
	} else if left, ok := j.left(); !ok || left != 8*time.Second {
		t.Errorf("%v left, %v, want 8 s", left, ok)
	}
	if j := look(400); j.rate <= 100 || j.rate >= 200 {
		t.Errorf("a rate of %v, want it smoothed between 100 and 200", j.rate)
	}
	// Another job of the same name.
	if j := look(0); j.rate != 0 {
		t.Errorf("a rate of %v for a job that has just begun", j.rate)
	}
}

func TestProgressFitsItsLine(t *testing.T) {
	env := &Environment{}
	j := jobView{id: "backup0", typ: "backup", status: "running", done: 512 << 20, total: 1 << 30, rate: 64 << 20}
	for _, columns := range []int{10, 40, 80, 200} {
		if line := env.line(j, columns); len([]rune(line)) > columns {
			t.Errorf("%d columns: %q", columns, line)
		}
	}
	want := "backup0 backup running  [####################....................]  50 %  512 MiB of 1 GiB  64 MiB/s  8s left"
	if line := env.line(j, 200); line != want {
		t.Errorf("got %q, want %q", line, want)
	}
	j.id = "\x1b[2Jx"
	if line := env.line(j, 80); line[:5] != "?[2Jx" {
		t.Errorf("an escape came through: %q", line)
	}
}
