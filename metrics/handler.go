package metrics

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
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

func newRuntimeRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// gatherer gathers what a registry would that has the daemon's samples, too,
// without its checks and its sorting of each of them: tests hold that both give
// the same (registry_test.go).
type gatherer struct {
	runtime *prometheus.Registry
	daemon  *collector
}

// Gather is prometheus.Gatherer's.
func (g *gatherer) Gather() ([]*dto.MetricFamily, error) {
	others, err := g.runtime.Gather()
	return append(g.daemon.samples().gathered(), others...), err
}
