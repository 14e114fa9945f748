package metrics

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// maxScrapes is how many scrapes there may be at a time; others are told to come
// later.
const maxScrapes = 2

// Handler answers scrapes. What goes wrong is logged at level debug: it is that
// the client has left, or else the client is told.
func Handler(s Sources) http.Handler {
	return promhttp.HandlerFor(&gatherer{newRuntimeRegistry(), newCollector(s)}, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		ErrorHandling: promhttp.HTTPErrorOnError, MaxRequestsInFlight: maxScrapes,
		// The reader is on this machine.
		DisableCompression: true,
	})
}

// gatherer gathers what a registry with the collector would, without its checks
// and its sorting of every sample: tests hold that both give the same.
type gatherer struct {
	runtime *prometheus.Registry
	daemon  *Collector
}

// Gather is prometheus.Gatherer's.
func (g *gatherer) Gather() ([]*dto.MetricFamily, error) {
	others, err := g.runtime.Gather()
	return append(g.daemon.samples().gathered(), others...), err
}
