package graphtest

import (
	"bytes"
	"testing"
)

func TestSubsetsOfAWindowAreComplete(t *testing.T) {
	// Two writes, a flush, three writes.
	var log []CrashOp
	for i, p := range []int64{0, 1, -1, 0, 2, 3} {
		op := CrashOp{Seq: int64(i), Flush: p < 0}
		if p >= 0 {
			op.Off, op.Data = p*CrashSector, bytes.Repeat([]byte{byte(i + 1)}, CrashSector)
		}
		log = append(log, op)
	}
	got := map[string]int{}
	w := NewCrashWalk([][]byte{make([]byte, 4*CrashSector)}, [][]CrashOp{log})
	for w.More() {
		w.Next()
		if n := w.Window(); n > 0 {
			for bits := range uint64(1) << (n - 1) {
				b := w.Subset(bits).Files[0]
				got[string([]byte{b[0] + '0', b[CrashSector] + '0', b[2*CrashSector] + '0', b[3*CrashSector] + '0'})]++
			}
		}
	}
	// Before the flush 1, 2 or both, after it both and any of the others.
	want := []string{"1000", "0200", "1200", "4200", "1250", "4250", "1206", "4206", "1256", "4256"}
	for _, s := range want {
		if got[s] == 0 {
			t.Errorf("no state %s", s)
		}
		delete(got, s)
	}
	if len(got) > 0 {
		t.Errorf("states that cannot be: %v", got)
	}
}
