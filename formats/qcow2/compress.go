package qcow2

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// Compression of single clusters (specification: "Compressed Clusters"). The
// stored length is known in sectors only, so what follows the stream's end is
// ignored.

var (
	inflaters = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}
	unzstds   = sync.Pool{New: func() any {
		// One goroutine, and no more memory than a cluster may need.
		r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			panic(err)
		}
		return r
	}}
	deflaters = sync.Pool{New: func() any {
		w, err := flate.NewWriterWindow(io.Discard, 4096)
		if err != nil {
			panic(err)
		}
		return w
	}}
	// One encoder for all: it has as many workers as run at a time, and keeps
	// their tables, of some MiB each, which a pool would lose to the collector.
	zstds = sync.OnceValue(func() *zstd.Encoder {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithEncoderCRC(false))
		if err != nil {
			panic(err)
		}
		return w
	})
)

// decompress fills out with the first len(out) bytes of the stream in b.
func decompress(method uint8, out, b []byte) error {
	if method == compressionZstd {
		r := unzstds.Get().(*zstd.Decoder)
		defer func() {
			_ = r.Reset(nil)
			unzstds.Put(r)
		}()
		if err := r.Reset(bytes.NewReader(b)); err != nil {
			return err
		}
		_, err := io.ReadFull(r, out)
		return err
	}
	r := inflaters.Get().(io.ReadCloser)
	defer inflaters.Put(r)
	if err := r.(flate.Resetter).Reset(bytes.NewReader(b), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(r, out)
	return err
}

// errIncompressible tells that compressing gains nothing.
var errIncompressible = errors.New("qcow2: data does not shrink")

// limited fails when more than its capacity is written.
type limited struct{ b []byte }

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > cap(l.b)-len(l.b) {
		return 0, errIncompressible
	}
	l.b = append(l.b, p...)
	return len(p), nil
}

// compress stores in in out, which has twice its length, and returns the length
// that it takes, which is less than len(in); errIncompressible when it would not
// be. Twice: an encoder that runs out of room allocates.
func compress(method uint8, out, in []byte) (int, error) {
	if method == compressionZstd {
		b := zstds().EncodeAll(in, out[:0])
		if len(b) >= len(in) {
			return 0, errIncompressible
		}
		return copy(out, b), nil
	}
	l := &limited{out[: 0 : len(in)-1]}
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(l)
	if _, err := w.Write(in); err != nil {
		return 0, err
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	return len(l.b), nil
}
