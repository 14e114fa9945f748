package luks

import (
	"errors"
	"syscall"
	"testing"

	"blockd/blockgraph"
)

func TestNothingIsReadOrWrittenWithoutTheKey(t *testing.T) {
	var c Cipher
	for name, err := range map[string]error{
		"read":  c.ReadV(ctxb, nil, 0, blockgraph.MakeIOVec(make([]byte, SectorSize)), 0),
		"write": c.WriteV(ctxb, nil, 0, blockgraph.MakeIOVec(make([]byte, SectorSize)), 0, 0),
	} {
		if !errors.Is(err, syscall.EACCES) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
