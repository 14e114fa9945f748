package metrics

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// This file holds the examples in docs/monitoring to the metrics that there are:
// each name exists, and each label that is selected, grouped by or shown.

// fixedLabels are those that Prometheus adds.
var fixedLabels = []string{"instance"}

// labelsOf are the labels of all metrics, of a registry with a sample of each
// family and of the Go runtime's and the process's.
func labelsOf(t *testing.T) map[string][]string {
	t.Helper()
	r := newRuntimeRegistry()
	r.MustRegister(one{newFamilies()})
	found, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string][]string{"up": {"job", "instance"}}
	for _, f := range found {
		names := slices.Clone(fixedLabels)
		for _, l := range f.Metric[0].Label {
			names = append(names, l.GetName())
		}
		labels[f.GetName()] = names
		if f.GetType() == dto.MetricType_HISTOGRAM {
			labels[f.GetName()+"_bucket"] = append(slices.Clone(names), "le")
		}
	}
	return labels
}

var (
	metricName = regexp.MustCompile(`\b((?:blockd|go|process)_[a-z_]+|up)\b`)
	selected   = regexp.MustCompile(`\b([a-z_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`)
	grouped    = regexp.MustCompile(`\b(?:by|on)\s*\(([^)]*)\)`)
	shown      = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}`)
)

// checkQuery checks a query, and the texts that show its labels. It returns the
// names of its metrics.
func checkQuery(t *testing.T, where, query string, texts []string, labels map[string][]string) []string {
	t.Helper()
	var names, all []string
	for _, m := range metricName.FindAllStringSubmatch(query, -1) {
		if labels[m[1]] == nil {
			t.Errorf("%s: there is no metric %s", where, m[1])
		}
		names = append(names, m[1])
		all = append(all, labels[m[1]]...)
	}
	if len(names) == 0 {
		t.Errorf("%s: no metric in %q", where, query)
	}
	for _, m := range selected.FindAllStringSubmatch(query, -1) {
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(labels[m[1]], l[1]) {
				t.Errorf("%s: %s has no label %s", where, m[1], l[1])
			}
			if valid := labelValues[l[1]]; valid != nil && !slices.Contains(valid, l[2]) {
				t.Errorf("%s: no %s is %q", where, l[1], l[2])
			}
		}
	}
	kept := all // by the query's outermost operation, if it groups
	for _, m := range grouped.FindAllStringSubmatch(query, -1) {
		list := strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' })
		for _, l := range list {
			if !slices.Contains(all, l) {
				t.Errorf("%s: grouped by %s, which no metric there has", where, l)
			}
		}
		if strings.HasPrefix(query, "sum by") {
			kept = list
		}
	}
	for _, text := range texts {
		for _, m := range shown.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(kept, m[1]) {
				t.Errorf("%s: shows %s, which the result has not", where, m[1])
			}
		}
	}
	if strings.Count(query, "(") != strings.Count(query, ")") || strings.Count(query, "{") != strings.Count(query, "}") {
		t.Errorf("%s: brackets of %q", where, query)
	}
	for _, name := range names {
		counter := strings.HasSuffix(name, "_total") || strings.HasSuffix(name, "_bucket")
		rated := regexp.MustCompile(`rate\(` + name + `\b`).MatchString(query)
		if counter && !rated {
			t.Errorf("%s: the counter %s without a rate", where, name)
		}
	}
	return names
}

// labelValues are all values of some labels.
var labelValues = map[string][]string{
	"kind": {"export", "job", "other"}, "op": {"read", "write", "flush", "discard", "write-zeroes", "other"},
	"outcome": {"ok", "failed"}, "result": {"hit", "miss"}, "place": {"memory", "file"},
	"status": {"undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting", "concluded", "null"},
}

func TestDashboardShowsWhatThereIs(t *testing.T) {
	text, err := os.ReadFile("../docs/monitoring/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID      int    `json:"id"`
			Type    string `json:"type"`
			Title   string `json:"title"`
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string } `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	labels, used, ids := labelsOf(t), map[string]bool{}, map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			for _, name := range checkQuery(t, p.Title, q.Expr, []string{q.LegendFormat}, labels) {
				used[name] = true
			}
		}
	}
	if len(used) < 20 {
		t.Errorf("only %d metrics are shown", len(used))
	}
}

func TestAlertsAreOfWhatThereIs(t *testing.T) {
	text, err := os.ReadFile("../docs/monitoring/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	labels, alerts := labelsOf(t), map[string]bool{}
	// The file is plain: a rule begins with its alert, and each value is a line.
	for rule := range strings.SplitSeq(string(text), "- alert: ") {
		name, rest, _ := strings.Cut(rule, "\n")
		field := func(key string) string {
			_, after, _ := strings.Cut(rest, " "+key+": ")
			value, _, _ := strings.Cut(after, "\n")
			return value
		}
		if strings.Contains(name, "#") {
			continue // before the first
		}
		if alerts[name] || !strings.HasPrefix(name, "Blockd") {
			t.Errorf("the alert %q", name)
		}
		alerts[name] = true
		summary := field("summary")
		if summary == "" || !strings.Contains(rest, "severity: ") {
			t.Errorf("%s has no summary or no severity", name)
		}
		checkQuery(t, name, field("expr"), []string{strings.ReplaceAll(summary, "{{ $value }}", "")}, labels)
	}
	if len(alerts) < 10 {
		t.Errorf("%d alerts", len(alerts))
	}
}
