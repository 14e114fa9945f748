package chain

import (
	"context"
	"log/slog"

	"blockd/blockgraph"
	"blockd/jobs/transfer"
)

var notSupported = transfer.Error(blockgraph.ErrNotSupported)

// MakeReadOnly makes a node read-only that was made writable for a job, unless somebody has come to write to
// the node meanwhile.
func MakeReadOnly(tx *blockgraph.Tx, n *blockgraph.Node) error {
	const writes = blockgraph.PermWrite | blockgraph.PermWriteUnchanged | blockgraph.PermResize
	if tx.Used(n)&writes != 0 {
		return nil
	}
	return tx.SetReadOnly(n, true)
}

// HeaderFor returns what a header is to say about a new backing file, nil for
// none: the name that the user gave, or the file name of the image, no filter,
// that it is. mask names a protocol's format "raw".
func HeaderFor(tx *blockgraph.Tx, base *blockgraph.Node, given *string, mask bool) (name, format string) {
	base = SkipFilters(tx, base)
	if base == nil {
		return "", ""
	}
	name, format = tx.Filename(base), base.Type().Name
	if given != nil {
		name = *given
	}
	if mask && base.Type().Protocol {
		format = "raw"
	}
	return name, format
}

// WriteHeader has an image's header name another backing file, durably, within
// a change: if the change is undone the old name is written again. A read-only
// image is writable for as long as that takes. Nobody writes to the image
// meanwhile.
func WriteHeader(tx *blockgraph.Tx, n *blockgraph.Node, name, format string) error {
	img, ok := n.Driver().(blockgraph.BackingImage)
	if !ok {
		return notSupported
	}
	if err := tx.Drain(n); err != nil {
		return err
	}
	readOnly := tx.State(n).ReadOnly
	if readOnly {
		if err := tx.SetReadOnly(n, false); err != nil {
			return err
		}
	}
	oldName, oldFormat := img.BackingFile()
	ctx := context.WithoutCancel(tx.Context())
	tx.OnAbort(func() {
		if now, f := img.BackingFile(); now == oldName && f == oldFormat {
			return
		}
		if err := img.ChangeBackingFile(ctx, oldName, oldFormat); err != nil {
			slog.ErrorContext(ctx, "restoring a header failed", "node", n.Name(), "error", err)
		}
	})
	if err := img.ChangeBackingFile(ctx, name, format); err != nil {
		return transfer.Error(err)
	}
	st := tx.Stage(n)
	st.BackingName, st.BackingFormat, st.AutoBacking = name, format, name
	if readOnly {
		return tx.SetReadOnly(n, true)
	}
	return nil
}
