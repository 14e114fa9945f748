package metrics

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"blockd/blockgraph"
	"blockd/blockgraph/graphtest"
	"blockd/clock"
	"blockd/exports"
	"blockd/jobs"
	"blockd/qapi"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

// sources are a world's, with that many nodes and every second of them in use.
func sources(t testing.TB, nodes int) (*graphtest.World, Sources, []*blockgraph.Root) {
	t.Helper()
	w := graphtest.New(t)
	var roots []*blockgraph.Root
	err := w.Try(func(tx *blockgraph.Tx) error {
		for i := range nodes {
			name, size := fmt.Sprintf("n%d", i), int64(1<<20)
			n, err := tx.Open(&qapi.BlockdevOptions{Driver: "mem", NodeName: &name, Null: &qapi.BlockdevOptionsNull{Size: &size}})
			if err != nil {
				return err
			}
			tx.SetMonitorOwned(n, true)
			if i%2 == 0 {
				r, err := tx.NewRoot(n, blockgraph.RootOptions{Perm: graphtest.ReadWrite, Shared: blockgraph.PermAll})
				if err != nil {
					return err
				}
				roots = append(roots, r)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w, Sources{
		Graph: w.Graph, Jobs: jobs.New(w.Graph, clock.Real(), func(string, any) {}),
		Exports:  exports.New(exports.Options{Graph: w.Graph, Clock: clock.Real()}),
		Commands: NewCommands([]string{"query-status"}), Clock: clock.Real(), Version: "v",
	}, roots
}

// values returns all samples of a scrape, by name{label="value",...}.
func values(t testing.TB, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	found, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range found {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := f.GetName()
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			all[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

func expect(t *testing.T, got map[string]float64, want map[string]float64) {
	t.Helper()
	for k, v := range want {
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("%s is %v (there: %v), want %v", k, g, ok, v)
		}
	}
}

func TestScrapeTellsWhatWentThroughAUser(t *testing.T) {
	_, s, roots := sources(t, 2)
	ctx, v := context.Background(), blockgraph.MakeIOVec(make([]byte, 4096))
	if err := errors.Join(roots[0].WriteV(ctx, 0, v, 0), roots[0].WriteV(ctx, 4096, v, 0), roots[0].ReadV(ctx, 0, v, 0), roots[0].Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	s.Commands.Ran("query-status", time.Second, nil)
	s.Commands.Ran("query-status", time.Second, errors.New("x"))
	s.Commands.Ran("made-up", time.Second, nil)
	if got := testutil.CollectAndCount(newCollector(s), "blockd_operation_duration_seconds"); got != 0 {
		t.Errorf("%d distributions, though nobody has asked for them", got)
	}
	s.Graph.Loop().Do(s.Graph.KeepLatencies)
	if err := roots[0].Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got := testutil.CollectAndCount(newCollector(s), "blockd_operation_duration_seconds"); got != 1 {
		t.Errorf("%d distributions after a flush", got)
	}
	user := fmt.Sprintf(`user="%d"`, roots[0].ID())
	got := values(t, newRegistry(s))
	expect(t, got, map[string]float64{
		`blockd_build_info{version="v"}`:                                                        1,
		`blockd_node_info{driver="mem",node="n0",read_only="false"}`:                            1,
		`blockd_node_size_bytes{node="n1"}`:                                                     1 << 20,
		`blockd_node_highest_write_bytes{node="n0"}`:                                            8192,
		`blockd_operations_total{id="",kind="other",node="n0",op="write",` + user + `}`:         2,
		`blockd_operations_total{id="",kind="other",node="n0",op="read",` + user + `}`:          1,
		`blockd_operations_total{id="",kind="other",node="n0",op="flush",` + user + `}`:         2,
		`blockd_operation_bytes_total{id="",kind="other",node="n0",op="write",` + user + `}`:    8192,
		`blockd_operation_errors_total{id="",kind="other",node="n0",op="discard",` + user + `}`: 0,
		`blockd_requests_in_flight{id="",kind="other",node="n0",` + user + `}`:                  0,
		`blockd_graph_nodes`:       2,
		`blockd_graph_users`:       1,
		`blockd_graph_steps_total`: 1,
		`blockd_qmp_commands_total{command="query-status",outcome="ok"}`:     1,
		`blockd_qmp_commands_total{command="query-status",outcome="failed"}`: 1,
		`blockd_qmp_command_seconds_total{command="query-status"}`:           2,
		`blockd_left_out{what="nodes"}`:                                      0,
	})
	for k := range got {
		if strings.Contains(k, "made-up") {
			t.Errorf("%s: a name that is no command", k)
		}
		if strings.HasPrefix(k, "blockd_operation_bytes_total{") && strings.Contains(k, `op="flush"`) {
			t.Errorf("%s: a flush has no bytes", k)
		}
	}
}

func TestDrainsAreCounted(t *testing.T) {
	w, s, roots := sources(t, 1)
	before := values(t, newRegistry(s))["blockd_graph_drains_total"]
	if err := w.Try(func(tx *blockgraph.Tx) error { return tx.Drain(roots[0].Node()) }); err != nil {
		t.Fatal(err)
	}
	if got := values(t, newRegistry(s))["blockd_graph_drains_total"]; got != before+1 {
		t.Errorf("%v drains after %v", got, before)
	}
}

func TestOldestAreShownWhenThereAreTooMany(t *testing.T) {
	_, s, roots := sources(t, 7)
	s.Limits = Limits{Nodes: 3, Users: 1, Jobs: 1, Exports: 1}
	got := values(t, newRegistry(s))
	expect(t, got, map[string]float64{
		`blockd_graph_nodes`:              7,
		`blockd_left_out{what="nodes"}`:   4,
		`blockd_left_out{what="users"}`:   3,
		`blockd_left_out{what="jobs"}`:    0,
		`blockd_left_out{what="exports"}`: 0,
	})
	shown := map[string]int{}
	for k := range got {
		if strings.HasPrefix(k, "blockd_node_size_bytes") || strings.HasPrefix(k, "blockd_requests_in_flight") {
			shown[k] = 1
		}
	}
	want := []string{`blockd_node_size_bytes{node="n0"}`, `blockd_node_size_bytes{node="n1"}`, `blockd_node_size_bytes{node="n2"}`,
		fmt.Sprintf(`blockd_requests_in_flight{id="",kind="other",node="n0",user="%d"}`, roots[0].ID())}
	for _, k := range want {
		if shown[k] == 0 {
			t.Errorf("%s is not shown", k)
		}
	}
	if len(shown) != len(want) {
		t.Errorf("shown: %v", shown)
	}
}

func TestScrapeAfterTheEndIsEmpty(t *testing.T) {
	w, s, _ := sources(t, 1)
	r := newRegistry(s)
	w.Graph.Loop().Stop()
	for k := range values(t, r) {
		if strings.HasPrefix(k, "blockd_") {
			t.Errorf("%s is told of a daemon that has ended", k)
		}
	}
}

func TestValuesOfLabelsAreBounded(t *testing.T) {
	long := strings.Repeat("ä", 5000)
	for _, v := range []string{"", "short", strings.Repeat("x", maxValue), long, long + "x", "bad \xff", "\xff", "\xfe"} {
		got := bounded(v)
		if len(got) > maxValue || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q is %d bytes: %q", v, len(got), got)
		}
	}
	if got := bounded(strings.Repeat("x", maxValue)); got != strings.Repeat("x", maxValue) {
		t.Errorf("a value that fits became %q", got)
	}
	if bounded(long) == bounded(long+"x") || bounded("\xff") == bounded("\xfe") {
		t.Error("two values became one")
	}
}

// one sends a sample of every family.
type one struct{ *families }

func (o one) Describe(to chan<- *prometheus.Desc) { o.describe(to) }

func (o one) Collect(to chan<- prometheus.Metric) {
	s := newSamples(o.families)
	for _, f := range o.all {
		if f.histogram {
			s.distribute(f, &blockgraph.Latencies{1}, 1, pairs(f.labels, f.labels))
			continue
		}
		s.with(f, 1, f.labels...)
	}
	s.send(to)
}

func TestFamiliesAreNamedAsPrometheusWantsThem(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(one{newFamilies()})
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n, err := testutil.GatherAndCount(r); err != nil || n != len(newFamilies().all) {
		t.Errorf("%d samples of %d families: %v", n, len(newFamilies().all), err)
	}
}

func TestScrapeIsLinted(t *testing.T) {
	_, s, _ := sources(t, 4)
	problems, err := testutil.GatherAndLint(newRegistry(s))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// boundedLabels are the labels that families may have, with what bounds their
// values.
var boundedLabels = map[string]string{
	"node": "Limits", "user": "Limits", "id": "Limits", "job": "Limits", "export": "Limits",
	"command": "the commands that are registered",
	"driver":  "the drivers that there are", "type": "the schema", "status": "the schema",
	"kind": "export, job, other", "op": "the operations", "outcome": "ok, failed", "cache": "two", "result": "hit, miss",
	"place": "memory, file", "what": "four", "read_only": "true, false", "shutting_down": "true, false", "version": "one",
}

func TestLabelsAreBounded(t *testing.T) {
	for _, f := range newFamilies().all {
		for _, l := range f.labels {
			if boundedLabels[l] == "" {
				t.Errorf("%s has the label %s: what bounds its values?", f.name, l)
			}
		}
	}
}

func TestDocumentNamesEveryMetric(t *testing.T) {
	const path = "../docs/metrics.md"
	var sb strings.Builder
	sb.WriteString(documentHead)
	for _, f := range newFamilies().all {
		kind := "gauge"
		if f.counter {
			kind = "counter"
		}
		if f.histogram {
			kind = "histogram"
		}
		labels := "none"
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "`, `") + "`"
		}
		fmt.Fprintf(&sb, "| `%s` | %s | %s | %s |\n", f.name, kind, labels, f.help)
	}
	if *update {
		if err := os.WriteFile(path, []byte(sb.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != sb.String() {
		t.Errorf("%s is not what the families say: run go test ./metrics -run Document -update", path)
	}
}

var documentHead = fmt.Sprintf(`# Metrics

What [--web](blockd.md#options) serves at `+"`/metrics`"+`, in the text format of Prometheus. This file is made from the program by `+"`go test ./metrics -run Document -update`"+`.

Everything is read when it is scraped; requests and jobs do not know of it. Besides the metrics below there are those of the Go runtime (`+"`go_*`"+`) and of the process (`+"`process_*`"+`).

- Operations are counted at the *users* of the graph (an export, an end of a job), where their requests come in. `+"`user`"+` is the user's number, which no other user of this run ever has, so no counter falls; `+"`kind`"+` (`+"`export`, `job`, `other`"+`) and `+"`id`"+` say what it belongs to. `+"`node`"+` is its node at the moment: when a graph change puts it over another one, new series begin with the counts so far.
- At most %d nodes, %d users, %d jobs and %d exports have series, the oldest first; `+"`blockd_left_out`"+` tells how many have none. A value of a label has at most %d bytes; a longer one is cut, with a hash behind.
- [monitoring](monitoring) has an example dashboard for Grafana and alert rules for Prometheus.
- Two scrapes are answered at a time; a third gets status 503.
- What a job moves a second is `+"`rate(blockd_job_current_progress[1m])`"+`, and the seconds that it needs yet are `+"`(blockd_job_final_progress - blockd_job_current_progress) / rate(blockd_job_current_progress[1m])`"+`; the dashboard shows both.
- The classes of the histogram end at 0.1, 0.5, 2.5, 10, 50 and 250 milliseconds and at 2 seconds. It counts from the opening of the address on, and is there for operations that have happened. A quantile is `+"`histogram_quantile(0.99, sum by (id, op, le) (rate(blockd_operation_duration_seconds_bucket[5m])))`"+`.

| Metric | Type | Labels | Meaning |
|---|---|---|---|
`, DefaultLimits.Nodes, DefaultLimits.Users, DefaultLimits.Jobs, DefaultLimits.Exports, maxValue)

// TestHandlerGivesWhatARegistryWould compares the text with a registry's, which
// checks all samples; numbers that change by themselves left out.
func TestHandlerGivesWhatARegistryWould(t *testing.T) {
	_, s, roots := sources(t, 6)
	if err := roots[0].WriteV(context.Background(), 0, blockgraph.MakeIOVec(make([]byte, 4096)), 0); err != nil {
		t.Fatal(err)
	}
	text := func(h http.Handler) (lines []string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != http.StatusOK {
			t.Fatal(w.Body)
		}
		for line := range strings.Lines(w.Body.String()) {
			if strings.Contains(line, "blockd_") && !strings.HasPrefix(line, "blockd_loop_latency_seconds ") && !strings.HasPrefix(line, "blockd_file_") {
				lines = append(lines, line)
			}
		}
		slices.Sort(lines)
		return lines
	}
	want := text(promhttp.HandlerFor(newRegistry(s), promhttp.HandlerOpts{}))
	got := text(Handler(s))
	if len(want) < 100 || !slices.Equal(got, want) {
		t.Errorf("%d lines, want %d", len(got), len(want))
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("%swant\n%s", got[i], want[i])
			}
		}
	}
}

// TestScrapeAllocatesLittleForANode holds what another 100 nodes with 50 users
// cost a scrape: it is in proportion, and of the order of what there is to show,
// not a multiple of the samples (1,350).
func TestScrapeAllocatesLittleForANode(t *testing.T) {
	cost := func(nodes int) float64 {
		_, s, _ := sources(t, nodes)
		c := newCollector(s)
		return testing.AllocsPerRun(5, func() { c.samples().gathered() })
	}
	few, more, many := cost(100), cost(200), cost(400)
	t.Logf("%v allocations for 100 nodes, %v for 200, %v for 400", few, more, many)
	if more-few > 1200 {
		t.Errorf("100 nodes cost %v allocations", more-few)
	}
	if many-more > 2.5*(more-few) {
		t.Errorf("200 nodes cost %v allocations, 100 nodes %v", many-more, more-few)
	}
}

// distributed makes every user of the sources have latencies of reads, writes and
// flushes.
func distributed(t testing.TB, s Sources, roots []*blockgraph.Root) {
	t.Helper()
	s.Graph.Loop().Do(s.Graph.KeepLatencies)
	ctx, v := context.Background(), blockgraph.MakeIOVec(make([]byte, 512))
	for _, r := range roots {
		if err := errors.Join(r.WriteV(ctx, 0, v, 0), r.ReadV(ctx, 0, v, 0), r.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestScrapeAllocatesLittleForADistribution holds what the distributions of
// another 50 users cost a scrape: for each of its three one piece of memory, and
// nothing for each class of latencies.
func TestScrapeAllocatesLittleForADistribution(t *testing.T) {
	cost := func(keep bool) float64 {
		_, s, roots := sources(t, 100)
		if keep {
			distributed(t, s, roots)
		}
		c := newCollector(s)
		return testing.AllocsPerRun(5, func() { c.samples().gathered() })
	}
	without, with := cost(false), cost(true)
	t.Logf("%v allocations without distributions, %v with 150", without, with)
	if with-without < 150 || with-without > 2*150 {
		t.Errorf("150 distributions cost %v allocations", with-without)
	}
}

// BenchmarkScrape answers a scrape of a graph of 1,000 nodes. cpu-ms/op is the
// time of all processors, which other processes do not make longer.
func BenchmarkScrape(b *testing.B) {
	for _, of := range []struct {
		name  string
		nodes int // of which every second one has a user
		limit int
		keep  bool
	}{{"500 users", 1000, 1000, false}, {"500 users with distributions", 1000, 1000, true}, {"1000 users with distributions", 2000, 1000, true}} {
		b.Run(of.name, func(b *testing.B) {
			_, s, roots := sources(b, of.nodes)
			if of.keep {
				distributed(b, s, roots)
			}
			s.Limits = DefaultLimits
			s.Limits.Nodes = of.limit
			h := Handler(s)
			bytes := 0
			var before, after syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				if w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
				bytes = w.Body.Len()
			}
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/1e6/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(bytes), "bytes")
		})
	}
}

// stuckWriter is a client that does not read until it is let go, and is gone
// then.
type stuckWriter struct {
	*httptest.ResponseRecorder
	entered chan struct{}
	leave   <-chan struct{}
	once    sync.Once
}

func (w *stuckWriter) Write([]byte) (int, error) {
	w.once.Do(func() { close(w.entered) })
	<-w.leave
	return 0, io.ErrClosedPipe
}

// TestScrapersThatDoNotReadAreFew holds how many there may be at a time, and that
// the log has nothing of those that leave.
func TestScrapersThatDoNotReadAreFew(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	var logged bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
	_, s, _ := sources(t, 1)
	h := Handler(s)
	leave := make(chan struct{})
	var wait sync.WaitGroup
	for range maxScrapes {
		w := &stuckWriter{ResponseRecorder: httptest.NewRecorder(), entered: make(chan struct{}), leave: leave}
		wait.Go(func() { h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil)) })
		<-w.entered
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("status %d", w.Code)
	}
	close(leave)
	wait.Wait()
	if logged.Len() > 0 {
		t.Errorf("logged: %s", logged.String())
	}
}
