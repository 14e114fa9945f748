package monitor

import (
	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmp"
)

func (m *Monitor) registerExports(r *qmp.Registry) {
	qmp.Register(r, "block-export-add", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockExportOptions) (struct{}, error) {
		return struct{}{}, m.exports.Add(c, a)
	})
	qmp.Register(r, "block-export-del", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.BlockExportDelArg) (struct{}, error) {
		return struct{}{}, m.exports.Del(c, a.ID, a.Mode)
	})
	qmp.Register(r, "query-block-exports", qmp.CommandOptions{ReadOnly: true}, func(*qmp.Context, *struct{}) ([]qapi.BlockExportInfo, error) {
		return m.exports.Query(), nil
	})
	qmp.Register(r, "nbd-server-start", qmp.CommandOptions{}, func(c *qmp.Context, a *qapi.NbdServerStartArg) (struct{}, error) {
		return struct{}{}, m.exports.StartNBDLegacy(c, a)
	})
	qmp.Register(r, "nbd-server-stop", qmp.CommandOptions{}, func(c *qmp.Context, _ *struct{}) (struct{}, error) {
		return struct{}{}, m.exports.StopNBD(c)
	})
	qmp.Register(r, "nbd-server-add", qmp.CommandOptions{Deprecated: true}, func(c *qmp.Context, a *qapi.NbdServerAddArg) (struct{}, error) {
		return struct{}{}, m.exports.AddNBD(c, a)
	})
	qmp.Register(r, "nbd-server-remove", qmp.CommandOptions{Deprecated: true}, func(c *qmp.Context, a *qapi.NbdServerRemoveArg) (struct{}, error) {
		return struct{}{}, m.exports.RemoveNBD(c, a.Name, a.Mode)
	})
}

// exportAdd makes an export.
type exportAdd struct {
	m *Monitor
	a *qapi.BlockExportOptions
}

func (e *exportAdd) kind() string { return string(qapi.TransactionActionKindXBlockExportAdd) }

func (e *exportAdd) source(*blockgraph.Tx) *blockgraph.Node { return nil }

func (e *exportAdd) prepare(tx *blockgraph.Tx) error { return e.m.exports.AddIn(tx, e.a) }
