package docs_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"blockd/cli"
	"blockd/img"
	"blockd/serve"
)

var update = flag.Bool("update", false, "write the documents that are made from the program")

// TestSubcommandsAreDocumented holds subcommands.md to what the program says
// about itself.
func TestSubcommandsAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Subcommands of blockd\n\n" +
		"Made from the program itself (`go test ./docs -run Subcommands -update`); `blockd help SUBCOMMAND` prints the same. " +
		"Without a subcommand blockd is the daemon: [blockd.md](blockd.md).\n\n" +
		"`serve` is the daemon itself, `img` works by itself. The others work with any server of QMP, `qemu-storage-daemon` too, but for what only blockd has (`graph --watch`, `events --graph`). " +
		"A monitor serves one client at a time: give the daemon one more for people.\n\n" +
		"Exit codes: 0; 1 for an error; 2 when a job that was waited for failed, 3 when it was cancelled; 130 after an interrupt.\n")
	for _, c := range cli.Commands(&cli.Environment{}) {
		describe(&b, "", c)
	}
	describe(&b, "", serve.Command(&cli.Environment{}, nil))
	images := img.Command(&cli.Environment{}, nil)
	fmt.Fprintf(&b, "\n## blockd img\n\n%s\n\n%s\n", images.Short+".", images.Long)
	for _, c := range images.Commands() {
		describe(&b, "img ", c)
	}
	const path = "subcommands.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != b.String() {
		t.Errorf("%s is not what the program says: go test ./docs -run Subcommands -update", path)
	}
}

func describe(b *strings.Builder, parent string, c *cobra.Command) {
	fmt.Fprintf(b, "\n## blockd %s%s\n\n%s.\n\n    blockd %s%s\n", parent, c.Name(), c.Short, parent, c.Use)
	if c.Long != "" {
		fmt.Fprintf(b, "\n%s\n", indentCode(c.Long))
	}
	rows := ""
	c.Flags().VisitAll(func(f *pflag.Flag) {
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		value := f.DefValue
		if value == "[]" {
			value = ""
		}
		if value != "" {
			value = "`" + value + "`"
		}
		rows += fmt.Sprintf("| %s | %s | %s |\n", name, f.Usage, value)
	})
	if rows != "" {
		b.WriteString("\n| Option | | Default |\n|---|---|---|\n" + rows)
	}
}

// indentCode makes examples, which are indented by two, code.
func indentCode(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "  ") {
			lines[i] = "  " + line
		}
	}
	return strings.Join(lines, "\n")
}
