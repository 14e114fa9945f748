package metrics

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"

	"blockd/blockgraph"
)

// sample is one value of a family.
type sample struct {
	value  float64
	labels []*dto.LabelPair // by name; shared between samples
	// distribution is a histogram's, nil of others.
	distribution *dto.Histogram
}

// samples gathers what a scrape shows, by family.
type samples struct {
	*families
	of [][]sample // by family.index
}

func newSamples(f *families) *samples { return &samples{f, make([][]sample, len(f.all))} }

// room makes room for so many more samples of the families.
func (s *samples) room(n int, of ...*family) {
	for _, f := range of {
		s.of[f.index] = slices.Grow(s.of[f.index], n)
	}
}

// add adds a sample with those labels, which are pairs' result for the family's
// names.
func (s *samples) add(f *family, value float64, labels []*dto.LabelPair) {
	s.of[f.index] = append(s.of[f.index], sample{value: value, labels: labels})
}

// with adds a sample with these values of the family's labels.
func (s *samples) with(f *family, value float64, values ...string) {
	s.add(f, value, pairs(f.labels, values))
}

// bounds are the upper ends of a histogram's classes, in seconds.
var bounds = func() []float64 {
	var list []float64
	for _, b := range blockgraph.LatencyBounds {
		list = append(list, b.Seconds())
	}
	return list
}()

// distribute adds a sample of a histogram, unless nothing was counted yet.
func (s *samples) distribute(f *family, counts *blockgraph.Latencies, seconds float64, labels []*dto.LabelPair) {
	made := &struct {
		dto.Histogram
		of     [len(blockgraph.LatencyBounds)]dto.Bucket
		list   [len(blockgraph.LatencyBounds)]*dto.Bucket
		counts [len(blockgraph.LatencyBounds)]uint64
		sum    float64
		all    uint64
	}{sum: seconds}
	for i, n := range counts {
		made.all += uint64(n)
		if i < len(made.of) {
			made.counts[i] = made.all
			made.of[i].UpperBound, made.of[i].CumulativeCount = &bounds[i], &made.counts[i]
			made.list[i] = &made.of[i]
		}
	}
	if made.all == 0 {
		return
	}
	made.SampleCount, made.SampleSum, made.Bucket = &made.all, &made.sum, made.list[:]
	s.of[f.index] = append(s.of[f.index], sample{labels: labels, distribution: &made.Histogram})
}

// gathered returns the samples as a registry would, the families by name. What a
// family's samples are made of is allocated at once.
func (s *samples) gathered() []*dto.MetricFamily {
	list := make([]*dto.MetricFamily, 0, len(s.all))
	for _, f := range s.all {
		of := s.of[f.index]
		if len(of) == 0 {
			continue
		}
		metrics := make([]dto.Metric, len(of))
		family := &dto.MetricFamily{Name: &f.name, Help: &f.help, Type: dto.MetricType_GAUGE.Enum(), Metric: make([]*dto.Metric, len(of))}
		if f.histogram {
			family.Type = dto.MetricType_HISTOGRAM.Enum()
			for i := range of {
				metrics[i].Histogram = of[i].distribution
			}
		} else if f.counter {
			family.Type = dto.MetricType_COUNTER.Enum()
			counters := make([]dto.Counter, len(of))
			for i := range of {
				counters[i].Value, metrics[i].Counter = &of[i].value, &counters[i]
			}
		} else {
			gauges := make([]dto.Gauge, len(of))
			for i := range of {
				gauges[i].Value, metrics[i].Gauge = &of[i].value, &gauges[i]
			}
		}
		for i := range of {
			metrics[i].Label = of[i].labels
			family.Metric[i] = &metrics[i]
		}
		list = append(list, family)
	}
	slices.SortFunc(list, func(a, b *dto.MetricFamily) int { return strings.Compare(*a.Name, *b.Name) })
	return list
}

// pairs makes labels, sorted by name. The values are bounded.
func pairs(names, values []string) []*dto.LabelPair {
	if len(names) != len(values) {
		panic("metrics: labels without values")
	}
	made := make([]dto.LabelPair, len(names))
	kept := make([]string, len(names))
	list := make([]*dto.LabelPair, len(names))
	for i := range names {
		kept[i] = bounded(values[i])
		made[i].Name, made[i].Value = &names[i], &kept[i]
		list[i] = &made[i]
	}
	slices.SortFunc(list, byLabel)
	return list
}

func byLabel(a, b *dto.LabelPair) int { return strings.Compare(*a.Name, *b.Name) }

// withPairs returns for each of the pairs labels with it among them, in order.
func withPairs(labels []*dto.LabelPair, each []*dto.LabelPair) [][]*dto.LabelPair {
	lists := make([][]*dto.LabelPair, len(each))
	n := len(labels) + 1
	all := make([]*dto.LabelPair, 0, n*len(each))
	for i, p := range each {
		at, _ := slices.BinarySearchFunc(labels, p, byLabel)
		start := len(all)
		all = append(append(append(all, labels[:at]...), p), labels[at:]...)
		lists[i] = all[start:len(all):len(all)]
	}
	return lists
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
