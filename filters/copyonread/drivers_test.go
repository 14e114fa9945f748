package copyonread_test

import (
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"blockd/blockgraph/graphtest"
	"blockd/filters/copyonread"
	"blockd/qapi"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

type world struct{ *graphtest.World }

func newWorld(t *testing.T, native bool) *world {
	return &world{graphtest.New(t, graphtest.ImageType(native), copyonread.Type())}
}

func corOptions(name, file, bottom string) *qapi.BlockdevOptions {
	c := &qapi.BlockdevOptionsCor{File: qapi.BlockdevRef{Reference: &file}}
	if bottom != "" {
		c.Bottom = &bottom
	}
	d := qapi.BlockdevDiscardOptionsUnmap
	return &qapi.BlockdevOptions{Driver: "copy-on-read", NodeName: &name, CopyOnRead: c, Discard: &d}
}
