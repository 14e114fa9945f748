package chardev

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"blockd/clock"
)

// rivalOptions are refused by both, each at once.
var rivalOptions = []string{
	"socket", "socket,id=c", "id=c", "foo,id=c", "socket,id=1c,path=x", "",
	"socket,id=c,path=x,host=h", "socket,id=c,path=x,fd=3", "socket,id=c,host=h", "socket,id=c,port=1",
	"socket,id=c,path=/nosuch/x", "socket,id=c,path=/nosuch/x,server=on,wait=off",
	"socket,id=c,path=x,server=maybe", "socket,id=c,path=x,bogus=1", "socket,id=c,path=x,bogus", "socket,id=c,path=x,nobogus",
	"socket,id=c,path=x,wait=off", "socket,id=c,path=x,server=on,reconnect=1", "socket,id=c,path=x,reconnect=abc",
	"socket,id=c,fd=77", "socket,id=c,fd=0", "socket,id=c,fd=abc", "socket,id=c,fd=-1", "socket,id=c,fd=77,reconnect=1",
	"socket,id=c,path=x,websocket=on", "socket,id=c,path=x,tls-creds=t", "socket,id=c,path=x,tls-authz=t",
	"socket,id=c,host=127.0.0.1,port=1", "socket,id=c,host=127.0.0.1,port=1,nodelay", "socket,id=c,host=127.0.0.1,port=notaport",
	"socket,id=c,host=127.0.0.1,port=1,ipv4=off,ipv6=off", "socket,id=c,host=::1,port=0,ipv4=on,server=on,wait=off",
	"socket,id=c,host=127.0.0.1,port=0,ipv6=on,server=on,wait=off", "socket,id=c,host=1.2.3.4,port=0,server=on,wait=off",
	"socket,id=c,host=,port=1",
	"null,id=c,foo=x", "null", "file,id=c", "file,id=c,path=/nosuch/p", "file,id=c,path=/nosuch/a,,b",
	"socket,id=c,path=/nosuch/x,logfile=/nosuch/y", "socket,id=c,path=/,server=on,wait=off", "socket,id=c,path=/nosuch/x,server,nowait",
	"socket,id=c,path=/etc/passwd",
}

func TestOptionErrorsAgreeWithRival(t *testing.T) {
	rival, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		t.Skip("needs qemu-storage-daemon")
	}
	t.Chdir(t.TempDir())
	for _, option := range rivalOptions {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		cmd := exec.CommandContext(ctx, rival, "--chardev", option)
		cmd.Stdin = bytes.NewReader(nil)
		out, err := cmd.CombinedOutput()
		if ctx.Err() != nil {
			t.Errorf("%q: the rival does not end", option)
		}
		cancel()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
			t.Errorf("%q: the rival accepts it: %v %s", option, err, out)
		}
		want := strings.ReplaceAll(string(out), "qemu-storage-daemon: --chardev "+option+": ", "")

		var got strings.Builder
		o, perr := ParseOption(option)
		for _, w := range o.Warnings {
			got.WriteString(w + "\n")
		}
		if perr == nil {
			r := NewRegistry(Config{Clock: clock.Real()})
			perr = r.Add(t.Context(), o)
			r.Close()
		}
		if perr == nil {
			t.Errorf("%q accepted", option)
			continue
		}
		got.WriteString(perr.Error() + "\n")
		if got.String() != want {
			t.Errorf("%q:\n got %q\nwant %q", option, got.String(), want)
		}
	}
}
