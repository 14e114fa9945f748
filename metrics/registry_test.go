package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// This file puts a daemon's samples into a registry of the library, which checks
// every one of them: names, labels, and that none is there twice.

// newRegistry returns a registry of all that Handler answers.
func newRegistry(s Sources) *prometheus.Registry {
	r := newRuntimeRegistry()
	r.MustRegister(newCollector(s))
	return r
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(to chan<- *prometheus.Desc) { c.families.describe(to) }

// Collect is prometheus.Collector's.
func (c *collector) Collect(to chan<- prometheus.Metric) { c.samples().send(to) }

func (f *families) describe(to chan<- *prometheus.Desc) {
	for _, f := range f.all {
		to <- f.desc()
	}
}

func (f *family) desc() *prometheus.Desc { return prometheus.NewDesc(f.name, f.help, f.labels, nil) }

// metric is a sample as prometheus.Metric.
type metric struct {
	f *family
	m *dto.Metric
}

// Desc is prometheus.Metric's.
func (m metric) Desc() *prometheus.Desc { return m.f.desc() }

// Write is prometheus.Metric's.
func (m metric) Write(to *dto.Metric) error {
	to.Label, to.Counter, to.Gauge, to.Histogram = m.m.Label, m.m.Counter, m.m.Gauge, m.m.Histogram
	return nil
}

func (s *samples) send(to chan<- prometheus.Metric) {
	byName := make(map[string]*family, len(s.all))
	for _, f := range s.all {
		byName[f.name] = f
	}
	for _, family := range s.gathered() {
		for _, m := range family.Metric {
			to <- metric{byName[*family.Name], m}
		}
	}
}
