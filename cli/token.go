package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"blockd/qmpclient"
	"blockd/tlscreds"
)

// maxToken is the longest file with a token, in bytes.
const maxToken = 4096

// webFlags are those of addresses that begin with ws.
type webFlags struct{ tokenFile, tlsDir string }

func (f *webFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.tokenFile, "token-file", "", "for ws: show the token in this file, which nobody else may read")
	flags.StringVar(&f.tlsDir, "tls-dir", "", "for wss: trust the authority in this directory, and show the client's certificate there")
}

// options reads what the flags name.
func (env *Environment) options(f *webFlags) (qmpclient.Options, error) {
	var o qmpclient.Options
	var err error
	if f.tokenFile != "" {
		if o.Token, err = readToken(f.tokenFile); err != nil {
			return o, fmt.Errorf("--token-file %s: %w", f.tokenFile, err)
		}
	}
	if f.tlsDir != "" {
		loaded, err := tlscreds.Load(tlscreds.Options{Dir: f.tlsDir, VerifyPeer: true, SanityCheck: true, Now: env.Clock.Now})
		if err != nil {
			return o, fmt.Errorf("--tls-dir %s: %w", f.tlsDir, err)
		}
		o.TLS = func(host string) (*tls.Config, error) { return loaded.ClientConfig(host) }
	}
	return o, nil
}

// readToken reads a file that holds a token and nothing else.
func readToken(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", plainPath(err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return "", plainPath(err)
	case !st.Mode().IsRegular():
		return "", errors.New("it is no regular file")
	case st.Mode().Perm()&0o007 != 0:
		return "", errors.New("others than its owner and group may use it: chmod o= it")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", plainPath(err)
	}
	token := strings.TrimSpace(string(text))
	if len(text) > maxToken || token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("one token, and nothing else, is expected")
	}
	return token, nil
}

// plainPath takes the path, which the caller names, out of an error.
func plainPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
