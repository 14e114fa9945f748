package nbd

import (
	"context"
	"crypto/tls"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/clock"
	"blockd/qapi"
	"blockd/tlscreds"
	"blockd/tlscreds/tlstest"
)

func TestTheRivalsServerOverTLS(t *testing.T) {
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		t.Skip("needs qemu-nbd")
	}
	a := tlstest.NewAuthority(t, nil)
	dir := t.TempDir()
	path, disk, pidFile := filepath.Join(dir, "s"), filepath.Join(dir, "disk"), filepath.Join(dir, "pid")
	image := make([]byte, 1<<20)
	for i := range image {
		image[i] = pattern(uint64(i))
	}
	if err := os.WriteFile(disk, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-nbd", "--fork", "--pid-file", pidFile, "-t", "-e", "4", "-k", path, "-f", "raw", "--tls-creds", "t",
		"--object", "tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir="+a.Dir("host", nil), disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		b, err := os.ReadFile(pidFile)
		if err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	attempt := func(dir, host string) (*Driver, error) {
		creds, err := tlscreds.Load(tlscreds.Options{Dir: dir, VerifyPeer: true, SanityCheck: true, Now: clock.Real().Now})
		if err != nil {
			t.Fatal(err)
		}
		o := unixOptions(path)
		o.TLSCreds, o.TLSHostname = ptr("t"), &host
		d, err := open(t.Context(), &blockgraph.OpenRequest{Options: &qapi.BlockdevOptions{NBD: o}},
			&Config{Clock: clock.Real(), Credentials: func(_, host string) (*tls.Config, error) { return creds.ClientConfig(host) }})
		if err != nil {
			return nil, err
		}
		return d.(*Driver), nil
	}
	d, err := attempt(a.Dir("me", nil), "host")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(context.Background()) })
	b, err := read(t.Context(), d, 4096, 500_000)
	if err != nil {
		t.Fatal(err)
	}
	checkPattern(t, b, 4096)
	if _, err := attempt(a.Dir("me", nil), "elsewhere"); err == nil || !strings.Contains(err.Error(), "Certificate does not match the hostname elsewhere") {
		t.Error(err)
	}
	if _, err := attempt(tlstest.NewAuthority(t, nil).Dir("me", nil), "host"); err == nil || !strings.Contains(err.Error(), "The certificate hasn't got a known issuer") {
		t.Error(err)
	}
	plain := unixOptions(path)
	if _, err := openAt(t.Context(), clock.Real(), plain); err == nil || !strings.Contains(err.Error(), "TLS negotiation required before option 7 (go)") {
		t.Error(err)
	}
}
