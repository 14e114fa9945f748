package metrics

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// sample is one value of a family. A user's samples share their labels, which
// prometheus.MustNewConstMetric would check, sort and copy for each.
type sample struct {
	f      *family
	value  float64
	labels []*dto.LabelPair // by name
}

// Desc is prometheus.Metric's.
func (s *sample) Desc() *prometheus.Desc { return s.f.desc }

// Write is prometheus.Metric's.
func (s *sample) Write(m *dto.Metric) error {
	m.Label = s.labels
	if s.f.counter {
		m.Counter = &dto.Counter{Value: &s.value}
	} else {
		m.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}

// samples sends samples to the registry.
type samples struct {
	*families
	to chan<- prometheus.Metric
}

// add sends a sample with those labels, which are pairs' result for the
// family's names.
func (s *samples) add(f *family, value float64, labels []*dto.LabelPair) {
	s.to <- &sample{f, value, labels}
}

// with sends a sample with these values of the family's labels.
func (s *samples) with(f *family, value float64, values ...string) {
	s.add(f, value, pairs(f.labels, values))
}

// pairs makes labels, sorted by name. The values are bounded.
func pairs(names, values []string) []*dto.LabelPair {
	if len(names) != len(values) {
		panic("metrics: labels without values")
	}
	list := make([]*dto.LabelPair, len(names))
	for i := range names {
		value := bounded(values[i])
		list[i] = &dto.LabelPair{Name: &names[i], Value: &value}
	}
	slices.SortFunc(list, func(a, b *dto.LabelPair) int { return strings.Compare(*a.Name, *b.Name) })
	return list
}

// maxValue is the longest value of a label, in bytes.
const maxValue = 128

// bounded returns a value that is short and valid UTF-8; others are cut, with a
// hash of the whole behind.
func bounded(value string) string {
	if len(value) <= maxValue && utf8.ValidString(value) {
		return value
	}
	sum := sha256.Sum256([]byte(value))
	tail := "~" + hex.EncodeToString(sum[:8])
	head := value[:min(len(value), maxValue-len(tail))]
	for head != "" && !utf8.ValidString(head) {
		head = head[:len(head)-1] // at worst to what is good before the first bad byte
	}
	return head + tail
}
