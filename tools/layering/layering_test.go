// Package layering holds the rules about which packages of this module may
// import which. They keep the planes apart and let a layer be read, tested and
// replaced without those above it.
package layering

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "blockd"

// rule limits what packages import, directly or through others.
type rule struct {
	of    string   // a package, or with /... all at and below it; without the module's name
	only  []string // nothing else of this module, unless nil
	never []string // neither these nor what is below them
	why   string
}

var rules = []rule{
	{of: "qapi", only: []string{}, why: "everything else is described in its types"},
	{of: "clock", only: []string{}, why: "everything else takes its time from it"},
	{of: "ioengine", only: []string{}, why: "it knows buffers and system calls, no blocks"},
	{of: "bitmaps", only: []string{"qapi"}, why: "nodes, jobs and formats share it"},
	{of: "nbdproto", only: []string{}, why: "server and client share it"},
	{of: "sockets", only: []string{"clock", "qapi"}, why: "devices, server and client share it"},
	{of: "servicemanager", only: []string{"clock"}, why: "it knows nothing of what lives"},
	{of: "tlscreds", only: []string{"qapi"}, why: "server and client share it"},
	{of: "chardev", only: []string{"clock", "qapi", "sockets"}, why: "a byte stream knows nothing of blocks"},
	{of: "qmp", only: []string{"chardev", "clock", "qapi", "sockets"}, why: "commands are registered from above"},
	{of: "blockgraph", only: []string{"bitmaps", "clock", "ioengine", "qapi"}, why: "drivers and users of the graph lie above it"},
	{of: "blockgraph/graphtest", only: []string{"bitmaps", "blockgraph", "clock", "ioengine", "qapi"}, why: "drivers and users of the graph are tested with it"},
	{of: "/...", never: []string{"blockgraph/graphtest"}, why: "it is for tests"},
	{of: "formats/...", never: []string{"jobs", "qmp", "exports", "monitor", "chardev", "protocols", "filters"}, why: "a format sees its file through an edge, whoever uses it"},
	{of: "protocols/...", never: []string{"jobs", "qmp", "exports", "monitor", "formats", "filters"}, why: "a protocol is the lowest node"},
	{of: "filters/...", never: []string{"exports", "monitor", "formats", "protocols"}, why: "a filter sees its child through an edge"},
	{of: "jobs/copy", never: []string{"filters", "jobs/backup", "jobs/stream"}, why: "four jobs and a filter share it"},
	{of: "jobs/scratch", only: []string{"ioengine"}, why: "it keeps bytes, whoever they belong to"},
	{of: "jobs/...", never: []string{"exports", "qmp", "monitor", "formats", "protocols", "chardev"}, why: "a job is one user of the graph beside others"},
	{of: "exports/...", never: []string{"jobs", "qmp", "monitor", "formats", "protocols", "chardev"}, why: "an export is one user of the graph beside others"},
	{of: "exports/nbd", never: []string{"exports/..."}, why: "the server is below the registry of exports"},
	{of: "qmpclient", only: []string{"qapi"}, why: "it speaks to any server"},
	{of: "logs", only: []string{"qapi"}, why: "it takes what slog gives it"},
	{of: "/...", never: []string{"logs"}, why: "who logs knows slog only"},
	{of: "metrics", never: []string{"qmp", "monitor", "formats", "protocols", "filters", "chardev"}, why: "it reads what others count"},
	{of: "/...", never: []string{"metrics"}, why: "nothing knows that it is watched"},
	{of: "web", only: []string{"chardev", "clock", "qapi", "sockets", "tlscreds"}, why: "what is served is handed in"},
	{of: "web/console", only: []string{"docs"}, why: "the page is a client like any other"},
	{of: "docs", only: []string{}, why: "it is text"},
	{of: "/...", never: []string{"web"}, why: "only the daemon ties it to the rest"},
	{of: "cli", only: []string{"cli/picture", "clock", "qapi", "qmpclient", "tlscreds"}, why: "a subcommand is a client like any other"},
	{of: "cli/picture", only: []string{}, why: "a drawing knows no blocks"},
	{of: "/...", never: []string{"monitor"}, why: "only the daemon ties the commands to the rest"},
	{of: "/...", never: []string{"daemon"}, why: "a program puts itself together with it"},
	{of: "/...", never: []string{"cmd"}, why: "the program is the top"},
}

// above are those that a rule for all packages does not concern.
var above = map[string][]string{"logs": {"monitor", "daemon", "cmd", "img", "serve", "iotests/adapter"}, "monitor": {"daemon", "cmd", "img", "serve", "iotests/adapter"}, "metrics": {"daemon", "cmd", "img", "serve", "iotests/adapter"}, "web": {"daemon", "cmd", "img", "serve", "iotests/adapter"}, "daemon": {"cmd", "img", "serve", "iotests/adapter"}, "cmd": {"cmd"}}

// imports are the direct imports within the module, by package; both without
// the module's name.
type imports map[string][]string

// chains returns, for every package that pkg reaches, one shortest way.
func (g imports) chains(pkg string) map[string][]string {
	ways := map[string][]string{}
	todo := [][]string{{pkg}}
	for len(todo) > 0 {
		way := todo[0]
		todo = todo[1:]
		for _, next := range g[way[len(way)-1]] {
			if next == pkg || ways[next] != nil {
				continue
			}
			ways[next] = append(slices.Clone(way), next)
			todo = append(todo, ways[next])
		}
	}
	return ways
}

func isBelow(pkg, root string) bool {
	return pkg == root || strings.HasPrefix(pkg, root+"/")
}

func (r *rule) concerns(pkg string) bool {
	root, all := strings.CutSuffix(r.of, "/...")
	switch {
	case root == "":
		return !isBelow(pkg, r.never[0]) && !slices.ContainsFunc(above[r.never[0]], func(a string) bool { return isBelow(pkg, a) })
	case all:
		return isBelow(pkg, root)
	}
	return pkg == root
}

func (r *rule) allows(pkg string) bool {
	if r.only != nil && !slices.Contains(r.only, pkg) {
		return false
	}
	return !slices.ContainsFunc(r.never, func(n string) bool {
		if root, ok := strings.CutSuffix(n, "/..."); ok {
			return pkg == root
		}
		return isBelow(pkg, n)
	})
}

// violations are the ways that break a rule, sorted.
func (g imports) violations(rules []rule) []string {
	var list []string
	for _, pkg := range slices.Sorted(maps.Keys(g)) {
		ways := g.chains(pkg)
		for _, to := range slices.Sorted(maps.Keys(ways)) {
			for _, r := range rules {
				if r.concerns(pkg) && !r.allows(to) {
					list = append(list, fmt.Sprintf("%s must not import %s (%s): %s", pkg, to, r.why, strings.Join(ways[to], " -> ")))
				}
			}
		}
	}
	return list
}

// readImports reads the imports of all files that are no tests, whatever build
// constraints they have.
func readImports(t *testing.T, root string) imports {
	t.Helper()
	g := imports{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name := d.Name(); path != root && (name[0] == '.' || name[0] == '_' || name == "testdata") {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		g[pkg] = append(g[pkg], []string{}...)
		for _, imp := range f.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if to, ok := strings.CutPrefix(name, module+"/"); ok && !slices.Contains(g[pkg], to) {
				g[pkg] = append(g[pkg], to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestPackagesImportOnlyWhatTheirLayerMay(t *testing.T) {
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil || !strings.HasPrefix(string(text), "module "+module+"\n") {
		t.Fatalf("%s is not the root of module %s: %v", root, module, err)
	}
	g := readImports(t, root)
	for _, must := range []string{"qapi", "blockgraph", "formats/qcow2", "jobs", "daemon", "cmd/blockd"} {
		if _, ok := g[must]; !ok {
			t.Errorf("package %s was not found", must)
		}
	}
	for _, v := range g.violations(rules) {
		t.Error(v)
	}
}

func TestViolationsAreFound(t *testing.T) {
	for _, c := range []struct {
		name string
		g    imports
		want string // "": none
	}{
		{"leaf", imports{"qapi": {"clock"}}, "qapi must not import clock"},
		{"direct", imports{"formats/qcow2": {"jobs"}}, "formats/qcow2 must not import jobs ("},
		{"below", imports{"formats/qcow2": {"jobs/copy"}}, "formats/qcow2 must not import jobs/copy"},
		{"through another", imports{"jobs": {"a"}, "a": {"exports"}}, "jobs -> a -> exports"},
		{"only the program has the monitor", imports{"exports": {"monitor"}}, "exports must not import monitor"},
		{"the monitor has all", imports{"monitor": {"jobs", "exports", "qmp"}}, ""},
		{"the program has all", imports{"cmd/blockd": {"monitor", "qmp"}, "monitor": {"exports"}}, ""},
		{"the daemon has the monitor", imports{"daemon": {"monitor"}}, ""},
		{"nothing below has the daemon", imports{"monitor": {"daemon"}}, "monitor must not import daemon"},
		{"nobody has the program", imports{"monitor": {"cmd/blockd"}}, "monitor must not import cmd/blockd"},
		{"the server has not its registry", imports{"exports/nbd": {"exports"}}, "exports/nbd must not import exports ("},
		{"the registry has its server", imports{"exports": {"exports/nbd"}}, ""},
		{"a name that begins alike", imports{"formats/qcow2": {"jobsite"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(c.g.violations(rules), "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
