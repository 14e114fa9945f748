package daemon

import (
	"context"

	"blockd/clock"
	"blockd/metrics"
	"blockd/qapi"
	"blockd/web"
	"blockd/web/console"
)

// openWeb is --web: it opens the address, at which clients are answered from
// Start on.
func (d *Daemon) openWeb(ctx context.Context, value string) error {
	if d.web != nil {
		return qapi.Errorf("There is a web address already")
	}
	o, err := web.ParseOption(value)
	if err != nil {
		return err
	}
	var names []string
	for _, c := range d.Registry.Commands() {
		names = append(names, c.Name)
	}
	commands := metrics.NewCommands(names)
	server, err := web.Listen(ctx, o, web.Config{
		Clock: clock.Real(),
		Metrics: metrics.Handler(metrics.Sources{
			Graph: d.Graph, Jobs: d.Jobs, Exports: d.Exports, Scratch: d.Monitor.Scratch, Commands: commands,
			Clock: clock.Real(), Version: d.version,
		}),
		QMP:    d.QMP.ServeConn,
		Access: d.access, TLS: d.Objects.TLSServer, Authorised: d.Objects.Authorised,
		Page: console.Handler(),
	})
	if err != nil {
		return err
	}
	d.web = server
	d.Loop.Do(d.Graph.KeepLatencies)
	d.QMP.Observe(commands.Ran)
	return nil
}

// Reload reads again what may change while the daemon runs: tokens and
// credentials of the web address. Any goroutine, after Start.
func (d *Daemon) Reload() {
	if d.web != nil {
		d.web.Reload()
	}
}
