package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"blockd/qapi"
	"blockd/qmp"
)

// This file is the human monitor: commands as lines, answers as text.

// hmp talks to a person, or to a test that pretends to be one.
type hmp struct {
	m   *machine
	in  io.Reader
	out io.Writer
	mu  sync.Mutex
}

func newHMP(m *machine, in io.Reader, out io.Writer) *hmp { return &hmp{m: m, in: in, out: out} }

const banner = "QEMU %d.%d.%d monitor - type 'help' for more information\r\n"

// serve reads commands until the input ends, which does not end the machine.
func (h *hmp) serve() {
	v := release.QEMU
	h.print(fmt.Sprintf(banner, v.Major, v.Minor, v.Micro))
	h.print("(qemu) ")
	go func() {
		lines := bufio.NewScanner(h.in)
		for lines.Scan() {
			line := strings.TrimSpace(lines.Text())
			h.print(line + "\r\n")
			if line == "quit" || line == "q" {
				h.m.daemon.End()
				return
			}
			h.print(h.m.hmpCommand(h.m.life, line))
			h.print("(qemu) ")
		}
	}()
}

func (h *hmp) print(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, _ = io.WriteString(h.out, text)
}

type hmpArg struct {
	CommandLine string `qapi:"command-line"`
	CPUIndex    *int64 `qapi:"cpu-index"`
}

func registerHMP(r *qmp.Registry, m *machine) {
	qmp.Register(r, "human-monitor-command", qmp.CommandOptions{}, func(c *qmp.Context, a *hmpArg) (text, error) {
		return text(m.hmpCommand(c, a.CommandLine)), nil
	})
}

// text is a result that is a string.
type text string

// hmpCommand runs a command and returns its answer, an error's text included.
func (m *machine) hmpCommand(ctx context.Context, line string) string {
	name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if name == "" {
		return ""
	}
	args := hmpWords(rest)
	f := hmpCommands[name]
	if f == nil {
		return "unknown command: '" + name + "'\r\n"
	}
	answer, err := f(m, ctx, args)
	if err != nil {
		answer += "Error: " + err.Error() + "\n"
	}
	return strings.ReplaceAll(answer, "\n", "\r\n")
}

// hmpWords splits at spaces; quotes keep words together.
func hmpWords(s string) []string {
	var words []string
	var w strings.Builder
	inWord, quoted := false, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quoted && c == '\\' && i+1 < len(s):
			i++
			w.WriteByte(s[i])
		case c == '"':
			quoted, inWord = !quoted, true
		case !quoted && c == ' ':
			if inWord {
				words = append(words, w.String())
				w.Reset()
			}
			inWord = false
		default:
			inWord = true
			w.WriteByte(c)
		}
	}
	if inWord {
		words = append(words, w.String())
	}
	return words
}

var hmpCommands map[string]func(m *machine, ctx context.Context, args []string) (string, error)

func init() {
	hmpCommands = map[string]func(m *machine, ctx context.Context, args []string) (string, error){
		"qemu-io":      (*machine).hmpQemuIO,
		"block_resize": (*machine).hmpResize,
		"drive_add":    (*machine).hmpDriveAdd,
		"drive_del":    (*machine).hmpDriveDel,

		"info":             (*machine).hmpInfo,
		"commit":           (*machine).hmpCommit,
		"drive_backup":     (*machine).hmpBackup,
		"snapshot_blkdev":  (*machine).hmpSnapshot,
		"nbd_server_start": (*machine).hmpServerStart,
		"nbd_server_add":   (*machine).hmpServerAdd,
	}
}

var errUsage = qapi.Errorf("invalid parameters")

// hmpQemuIO runs a command of qemu-io on a drive, a node or, with -d, a device.
func (m *machine) hmpQemuIO(ctx context.Context, args []string) (string, error) {
	qdev := len(args) > 0 && args[0] == "-d"
	if qdev {
		args = args[1:]
	}
	if len(args) != 2 {
		return "", errUsage
	}
	var x *backend
	if qdev {
		var err error
		if x, err = m.backends.byDevice(args[0]); err != nil {
			return "", err
		}
	} else {
		x = m.backends.byName(args[0])
	}
	io := &ioSession{m: m, x: x}
	defer io.close(ctx)
	if x == nil {
		if err := io.openNode(ctx, args[0]); err != nil {
			return "", err
		}
	}
	if err := io.run(ctx, args[1]); err != nil {
		return err.Error() + "\n", nil
	}
	return "", nil
}

func (m *machine) hmpDriveAdd(_ context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", errUsage
	}
	if err := m.backends.addDrive("drive", args[1]); err != nil {
		return "", err
	}
	return "OK\n", nil
}

func (m *machine) hmpDriveDel(ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", errUsage
	}
	return "", m.backends.deleteDrive(ctx, args[0])
}

func (m *machine) hmpResize(ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", errUsage
	}
	size, err := qapi.ParseSize(args[1])
	if err != nil {
		return "", err
	}
	_, err = qmp.Call[qapi.BlockResizeArg, struct{}](ctx, m.daemon.Registry, "block_resize", &qapi.BlockResizeArg{Device: &args[0], Size: int64(size)})
	return "", err
}
