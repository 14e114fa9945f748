package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"blockd/qapi"
	"blockd/qmpclient"
)

// prompt is what a line begins with.
const prompt = "qmp> "

func shellCommand(env *Environment) *cobra.Command {
	return command(env, "shell SOCKET", "Talk QMP with completion and history", `
Reads commands, sends them, and prints what comes back. A line is a command
with KEY=VALUE words, as of "blockd qmp", or a whole JSON object. Tab completes
commands, keys and values from the server's schema. "help" lists the commands,
"help COMMAND" what one takes. Events are printed as they come. "quit" ends the
daemon, as over QMP; "exit" and the end of the input end only the shell. From a pipe it
reads lines, and ends at the first that fails.`,
		cobra.ExactArgs(1), func(ctx context.Context, c *qmpclient.Client, _ []string) error {
			s, err := fetchSchema(ctx, c)
			if err != nil {
				return err
			}
			sh := &shell{env: env, c: c, schema: s, out: env.Out}
			in, ok := env.In.(*os.File)
			if ok && env.Terminal && term.IsTerminal(int(in.Fd())) {
				return sh.interact(ctx, in)
			}
			return sh.script(ctx)
		})
}

// shell is a conversation with a monitor.
type shell struct {
	env    *Environment
	c      *qmpclient.Client
	schema *schema
	out    io.Writer
}

// script reads lines until the input ends or a line fails.
func (sh *shell) script(ctx context.Context) error {
	lines := bufio.NewScanner(sh.env.In)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if err := sh.do(ctx, lines.Text()); err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), said(err))
		}
	}
	return lines.Err()
}

// interact reads lines from a terminal.
func (sh *shell) interact(ctx context.Context, in *os.File) error {
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return err
	}
	defer term.Restore(int(in.Fd()), old)
	screen := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{in, sh.env.Out}, prompt)
	if width := sh.env.Width(); width > 0 {
		// Its error only says that the size makes no sense.
		_ = screen.SetSize(width, 24)
	}
	screen.AutoCompleteCallback = func(line string, pos int, key rune) (string, int, bool) {
		if key != '\t' {
			return "", 0, false
		}
		return sh.tab(screen, line, pos)
	}
	sh.out = screen
	past := openHistory(sh.env.State)
	defer past.close()
	screen.History = past

	ctx, cancel := context.WithCancel(ctx)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		sh.showEvents(ctx, screen)
	}()
	defer func() {
		cancel()
		<-shown
	}()
	for {
		line, err := screen.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil && !errors.Is(err, term.ErrPasteIndicator) {
			return err
		}
		if strings.TrimSpace(line) == "exit" {
			return nil
		}
		err = sh.do(ctx, line)
		if errors.Is(err, qmpclient.ErrClosed) {
			return err
		} else if err != nil {
			fmt.Fprintln(screen, sh.env.paint(red, printable(said(err).Error())))
		}
	}
}

// showEvents prints events as they come.
func (sh *shell) showEvents(ctx context.Context, screen io.Writer) {
	env := *sh.env
	env.Out = screen
	for {
		e, err := sh.c.Next(ctx)
		if err != nil || env.printEvent(e, false) != nil {
			return
		}
	}
}

// tab completes the word before the cursor as far as there is only one way,
// and shows the ways when there are more.
func (sh *shell) tab(screen io.Writer, line string, pos int) (string, int, bool) {
	ways := sh.schema.complete(line[:pos])
	if len(ways) == 0 {
		return line, pos, true
	}
	start := strings.LastIndexByte(line[:pos], ' ') + 1
	word := common(ways)
	if len(ways) == 1 && !strings.HasSuffix(word, "=") && !strings.HasSuffix(word, ".") {
		word += " "
	}
	if len(ways) > 1 && word == line[start:pos] {
		fmt.Fprintln(screen, strings.Join(ways, "  "))
	}
	return line[:start] + word + line[pos:], start + len(word), true
}

// common is the longest start that all words share.
func common(words []string) string {
	first := words[0]
	for _, w := range words[1:] {
		for !strings.HasPrefix(w, first) {
			first = first[:len(first)-1]
		}
	}
	return first
}

// do executes one line.
func (sh *shell) do(ctx context.Context, line string) error {
	line = strings.TrimSpace(line)
	switch {
	case line == "", strings.HasPrefix(line, "#"):
		return nil
	case strings.HasPrefix(line, "{"):
		return sh.doJSON(ctx, line)
	}
	words, err := splitLine(line)
	if err != nil {
		return err
	}
	if words[0] == "help" {
		return sh.help(words[1:])
	}
	var arguments any
	switch {
	case len(words) == 2 && strings.HasPrefix(words[1], "{"):
		arguments, err = parseObject(words[1])
	case len(words) > 1:
		arguments, err = sh.schema.arguments(words[0], words[1:])
	}
	if err != nil {
		return err
	}
	return sh.send(ctx, words[0], arguments)
}

func (sh *shell) doJSON(ctx context.Context, line string) error {
	o, err := parseObject(line)
	if err != nil {
		return err
	}
	name := qmpclient.String(o, "execute")
	if name == "" {
		return errors.New("the object has no \"execute\"")
	}
	arguments, _ := o.Get("arguments")
	return sh.send(ctx, name, arguments)
}

func (sh *shell) send(ctx context.Context, name string, arguments any) error {
	answer, err := sh.c.Execute(ctx, name, arguments)
	if err != nil {
		return err
	}
	env := *sh.env
	env.Out = sh.out
	return env.printJSON(answer)
}

// help lists the commands, or what one takes.
func (sh *shell) help(words []string) error {
	if len(words) == 0 {
		_, err := fmt.Fprintln(sh.out, strings.Join(sh.schema.commandNames(), "\n"))
		return err
	}
	if sh.schema.commands[words[0]] == nil {
		return fmt.Errorf("there is no command %s", words[0])
	}
	given := qapi.NewObject()
	if o, err := sh.schema.arguments(words[0], words[1:]); err == nil {
		given, _ = o.(*qapi.Object)
	}
	for _, m := range sh.schema.members(sh.schema.argument(words[0]), given) {
		text := m.name + sh.schema.tail(m.typ)
		if values := sh.schema.values(m.typ); len(values) > 0 {
			text += strings.Join(values, "|")
		} else if kind := qmpclient.String(m.typ, "json-type"); kind != "" {
			text += "<" + kind + ">"
		}
		if m.optional {
			text = "[" + text + "]"
		}
		if _, err := fmt.Fprintln(sh.out, "  "+text); err != nil {
			return err
		}
	}
	return nil
}

// splitLine splits a line into words at spaces outside of quotes and of JSON's
// braces and brackets, within which quotes stay.
func splitLine(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	depth, quote, begun, escaped := 0, rune(0), false, false
	for _, r := range line {
		switch {
		case escaped:
			escaped = false
			word.WriteRune(r)
		case quote != 0:
			switch {
			case r == '\\' && depth > 0:
				escaped = true
				word.WriteRune(r)
			case r == quote:
				quote = 0
				if depth > 0 {
					word.WriteRune(r)
				}
			default:
				word.WriteRune(r)
			}
		case r == '"' || r == '\'':
			quote, begun = r, true
			if depth > 0 {
				word.WriteRune(r)
			}
		case r == ' ' && depth == 0:
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			switch r {
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			word.WriteRune(r)
			begun = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}
