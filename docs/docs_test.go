// Package docs_test holds the documents to the program: every command, event
// and option has its place, with every argument named, and nothing is described
// that is not there.
package docs_test

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"blockd/qapi"
)

// section is a heading of a Markdown file with what stands below it, up to the
// next heading.
type section struct {
	title string
	rows  []row
	links []string // anchors in the same file
}

// row is a row of a table: the names in its first cell, and the cells, by the
// table's own headings.
type row struct {
	names []string
	cells map[string]string
}

var (
	inCode  = regexp.MustCompile("`([^`]+)`")
	toLocal = regexp.MustCompile(`\]\(#([^)]+)\)`)
)

// readSections returns the sections of a Markdown file by their anchors.
func readSections(t *testing.T, path string) map[string]*section {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]*section{}
	s := &section{}
	var heading []string // of the table that the lines belong to
	code := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		switch {
		case code:
		case strings.HasPrefix(line, "#"):
			s = &section{title: strings.TrimLeft(line, "# ")}
			anchor := strings.ReplaceAll(strings.ToLower(s.title), " ", "-")
			if sections[anchor] != nil {
				t.Errorf("%s: two headings with the anchor %q", path, anchor)
			}
			sections[anchor] = s
			heading = nil
		case strings.HasPrefix(line, "|"):
			cells := splitRow(line)
			switch {
			case heading == nil:
				heading = cells
			case strings.Trim(cells[0], "-: ") == "" && cells[0] != "":
			case len(cells) != len(heading):
				t.Errorf("%s: %q has %d cells, its table %d", path, line, len(cells), len(heading))
			default:
				r := row{cells: map[string]string{}}
				for _, m := range inCode.FindAllStringSubmatch(cells[0], -1) {
					r.names = append(r.names, m[1])
				}
				for i, h := range heading {
					r.cells[h] = cells[i]
				}
				s.rows = append(s.rows, r)
			}
		default:
			heading = nil
		}
		for _, m := range toLocal.FindAllStringSubmatch(line, -1) {
			s.links = append(s.links, m[1])
		}
	}
	return sections
}

func splitRow(line string) []string {
	cells := strings.Split(strings.Trim(line, "|"), "|")
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	return cells
}

// reach returns a section and those that it sends the reader to.
func reach(all map[string]*section, anchor string) []*section {
	var found []*section
	todo := []string{anchor}
	for len(todo) > 0 {
		s := all[todo[0]]
		todo = todo[1:]
		if s == nil || slices.Contains(found, s) {
			continue
		}
		found = append(found, s)
		todo = append(todo, s.links...)
	}
	return found
}

// described returns the rows that describe a name in tables whose first column
// has this heading.
func described(sections []*section, column, name string) []row {
	var rows []row
	for _, s := range sections {
		for _, r := range s.rows {
			if _, ok := r.cells[column]; ok && slices.Contains(r.names, name) {
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// member is a member of an object somewhere below a type of the schema.
type member struct {
	name     string
	optional bool
}

// schemaTypes are the types of a schema by name.
type schemaTypes map[string]*qapi.SchemaInfo

// members collects every member that a value of the type can have, at any
// depth.
func (s schemaTypes) members(name string) []member {
	var list []member
	seen := map[string]bool{}
	var walk func(name string)
	walk = func(name string) {
		info := s[name]
		if info == nil || seen[name] {
			return
		}
		seen[name] = true
		switch {
		case info.Array != nil:
			walk(info.Array.ElementType)
		case info.Alternate != nil:
			for _, m := range info.Alternate.Members {
				walk(m.Type)
			}
		case info.Object != nil:
			for _, m := range info.Object.Members {
				one := member{m.Name, m.Default != nil}
				if !slices.Contains(list, one) {
					list = append(list, one)
				}
				walk(m.Type)
			}
			for _, v := range info.Object.Variants {
				walk(v.Type)
			}
		}
	}
	walk(name)
	return list
}

// checkMembers requires a row for every member.
func checkMembers(t *testing.T, where []*section, column string, members []member) {
	t.Helper()
	for _, m := range members {
		rows := described(where, column, m.name)
		if len(rows) == 0 {
			t.Errorf("%s: no row for %q in a table of %ss", where[0].title, m.name, column)
			continue
		}
		if column != argumentColumn {
			continue
		}
		right := func(r row) bool { return (r.cells["Default"] != "`required`") == m.optional }
		if !slices.ContainsFunc(rows, right) {
			t.Errorf("%s: %q is optional: %v, the table says otherwise", where[0].title, m.name, m.optional)
		}
	}
}

// The first headings of tables.
const (
	argumentColumn = "Argument"
	resultColumn   = "Result"
	dataColumn     = "Data"
)

// TestCommandsAreDocumented requires a section in commands.md for every command
// and event, with a row for every argument, result and member of data, at any
// depth, there or in a section that it links to.
func TestCommandsAreDocumented(t *testing.T) {
	sections := readSections(t, "commands.md")
	infos := registered(t)
	types := schemaTypes{}
	for i := range infos {
		types[infos[i].Name] = &infos[i]
	}
	named := map[string]map[string]bool{argumentColumn: {}, resultColumn: {}, dataColumn: {}}
	note := func(column string, members []member) {
		for _, m := range members {
			named[column][m.name] = true
		}
	}
	entities := map[string]bool{}
	for _, info := range infos {
		if info.Command == nil && info.Event == nil {
			continue
		}
		entities[info.Name] = true
		where := reach(sections, strings.ToLower(info.Name))
		if len(where) == 0 || where[0].title != info.Name {
			t.Errorf("commands.md has no section %q", info.Name)
			continue
		}
		if info.Event != nil {
			data := types.members(info.Event.ArgType)
			note(dataColumn, data)
			checkMembers(t, where[:1], dataColumn, data)
			continue
		}
		args, results := types.members(info.Command.ArgType), types.members(info.Command.RetType)
		note(argumentColumn, args)
		note(resultColumn, results)
		checkMembers(t, where, argumentColumn, args)
		if info.Name != "query-qmp-schema" { // its cells name members of several kinds
			checkResults(t, where, results)
		}
	}
	checkNothingInvented(t, sections, entities, named)
}

// checkResults is checkMembers for results, whose rows may name the members of
// what they describe in the text.
func checkResults(t *testing.T, where []*section, members []member) {
	t.Helper()
	for _, m := range members {
		found := false
		for _, s := range where {
			for _, r := range s.rows {
				if _, ok := r.cells[resultColumn]; ok && (slices.Contains(r.names, m.name) || strings.Contains(r.cells["Meaning"], "`"+m.name+"`")) {
					found = true
				}
			}
		}
		if !found {
			t.Errorf("%s: result %q is not named", where[0].title, m.name)
		}
	}
}

// checkNothingInvented requires that every row and section is about something
// that there is.
func checkNothingInvented(t *testing.T, sections map[string]*section, entities map[string]bool, named map[string]map[string]bool) {
	t.Helper()
	for _, s := range sections {
		isEntity := entities[s.title]
		for _, r := range s.rows {
			for column, names := range named {
				if _, ok := r.cells[column]; !ok {
					continue
				}
				for _, n := range r.names {
					if !names[n] {
						t.Errorf("%s: there is no %s %q", s.title, strings.ToLower(column), n)
					}
				}
			}
		}
		looksLikeEntity := !strings.Contains(s.title, " ") && strings.ContainsAny(s.title, "-_") && s.title != "image"
		if looksLikeEntity && !isEntity {
			t.Errorf("commands.md has a section %q, but there is no such command or event", s.title)
		}
	}
}

// TestLinksWithinCommandsLeadSomewhere checks the anchors of commands.md.
func TestLinksWithinCommandsLeadSomewhere(t *testing.T) {
	sections := readSections(t, "commands.md")
	for _, s := range sections {
		for _, l := range s.links {
			if sections[l] == nil {
				t.Errorf("%s: link to #%s leads nowhere", s.title, l)
			}
		}
	}
}

// optionSpec finds an option in the table of cmd/blockd/options.go.
var optionSpec = regexp.MustCompile(`\{name: "([a-z-]+)"(?:, short: '(.)')?(?:, value: (true))?\}`)

// TestOptionsAreDocumented requires, for every option of the command line, a
// paragraph in blockd.md and a mention in the help text.
func TestOptionsAreDocumented(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	source, help, manual := read("../cmd/blockd/options.go"), read("../cmd/blockd/help.go"), read("blockd.md")
	specs := optionSpec.FindAllStringSubmatch(source, -1)
	if n := strings.Count(source, "{name: \""); n == 0 || n != len(specs) {
		t.Fatalf("options.go has %d options, the test can read %d of them", n, len(specs))
	}
	known := map[string]bool{}
	for _, m := range specs {
		name, short, value := m[1], m[2], m[3] != ""
		known[name] = true
		if !regexp.MustCompile(`(?m)^ +(-. ?, )?--` + name + `\b`).MatchString(help) {
			t.Errorf("the help text has no line for --%s", name)
		}
		head := "(?m)^" + regexp.QuoteMeta(fmt.Sprintf("**`--%s`**", name)) + "(.*)\n: \\S"
		if short != "" {
			head = "(?m)^" + regexp.QuoteMeta(fmt.Sprintf("**`-%s`**, **`--%s`**", short, name)) + "(.*)\n: \\S"
		}
		entry := regexp.MustCompile(head).FindStringSubmatch(manual)
		if entry == nil {
			t.Errorf("blockd.md has no paragraph for --%s", name)
		} else if value != (strings.TrimSpace(entry[1]) != "") {
			t.Errorf("blockd.md: --%s takes a value: %v, its heading says otherwise", name, value)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\*\\*`.*`--([a-z-]+)`|^\\*\\*`--([a-z-]+)`").FindAllStringSubmatch(manual, -1) {
		if name := m[1] + m[2]; !known[name] {
			t.Errorf("blockd.md describes --%s, which options.go does not have", name)
		}
	}
}

// absentRows returns the code words in the second column of the table of what
// is absent.
func absentRows(t *testing.T) map[string]bool {
	t.Helper()
	s := readSections(t, "compatibility.md")["what-is-absent"]
	if s == nil {
		t.Fatal("compatibility.md has no table of what is absent")
	}
	words := map[string]bool{}
	for _, r := range s.rows {
		for _, m := range inCode.FindAllStringSubmatch(r.cells["Absent"], -1) {
			words[m[1]] = true
		}
	}
	return words
}

// TestAbsentIsListed requires a word in the table of what is absent for
// everything that the types of blockd lack beside QEMU's.
func TestAbsentIsListed(t *testing.T) {
	words := absentRows(t)
	for _, d := range qapi.TypeDifferences() {
		path := strings.Split(d, "/")
		name := strings.TrimPrefix(path[len(path)-1], "^")
		if strings.HasPrefix(d, "absent ") && !words[name] {
			t.Errorf("compatibility.md does not list %q as absent (%s)", name, d)
		}
	}
}

// TestNoCommandIsCalledAbsent requires that no registered command or event is
// in the table of what is absent.
func TestNoCommandIsCalledAbsent(t *testing.T) {
	words := absentRows(t)
	for _, info := range registered(t) {
		if (info.Command != nil || info.Event != nil) && words[info.Name] {
			t.Errorf("compatibility.md calls %q absent, but it is there", info.Name)
		}
	}
}

// TestNoValueIsCalledAbsent requires the same of drivers, objects and other
// values: what the table of absent things names is no value that they accept.
func TestNoValueIsCalledAbsent(t *testing.T) {
	words := absentRows(t)
	for what, values := range map[string][]string{
		"driver":           qapi.BlockdevDriver("").QAPIEnum(),
		"object":           qapi.ObjectType("").QAPIEnum(),
		"job type":         qapi.JobType("").QAPIEnum(),
		"character device": qapi.ChardevBackendKind("").QAPIEnum(),
	} {
		for _, v := range values {
			if words[v] {
				t.Errorf("compatibility.md calls the %s %q absent, but it is there", what, v)
			}
		}
	}
}

// TestRivalsCommandsAreThereOrListed asks the installed storage daemon for its
// commands and events: blockd has each, or says that it has not.
func TestRivalsCommandsAreThereOrListed(t *testing.T) {
	const rival = "qemu-storage-daemon"
	if _, err := exec.LookPath(rival); err != nil {
		t.Skip("needs " + rival)
	}
	theirs, err := introspect(rival)
	if err != nil {
		t.Fatal(err)
	}
	there := absentRows(t)
	for _, info := range registered(t) {
		there[info.Name] = true
	}
	n := 0
	for _, info := range theirs {
		if info.Command == nil && info.Event == nil {
			continue
		}
		n++
		if !there[info.Name] {
			t.Errorf("compatibility.md does not list %q as absent", info.Name)
		}
	}
	if n == 0 {
		t.Error("the rival has no commands")
	}
}
