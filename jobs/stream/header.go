package stream

import (
	"context"
	"log/slog"

	"blockd/blockgraph"
	"blockd/jobs/transfer"
)

var notSupported = transfer.Error(blockgraph.ErrNotSupported)

func hasBacking(tx *blockgraph.Tx, n *blockgraph.Node) bool {
	for _, e := range tx.State(n).Edges {
		if e.Role()&blockgraph.RoleCOW != 0 {
			return true
		}
	}
	return false
}

// writeHeader has an image's header name another backing file, durably, within
// a change: if the change is undone the old name is written again. Nobody
// writes to the image meanwhile.
func writeHeader(tx *blockgraph.Tx, n *blockgraph.Node, name, format string) error {
	img, ok := n.Driver().(blockgraph.BackingImage)
	if !ok {
		return notSupported
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	oldName, oldFormat := img.BackingFile()
	ctx := context.WithoutCancel(tx.Context())
	tx.OnAbort(func() {
		if now, f := img.BackingFile(); now == oldName && f == oldFormat {
			return
		}
		if err := img.ChangeBackingFile(ctx, oldName, oldFormat); err != nil {
			slog.Error("restoring a header failed", "node", n.Name(), "error", err)
		}
	})
	if err := img.ChangeBackingFile(ctx, name, format); err != nil {
		return transfer.Error(err)
	}
	st := tx.Stage(n)
	st.BackingName, st.BackingFormat, st.AutoBacking = name, format, name
	return nil
}
