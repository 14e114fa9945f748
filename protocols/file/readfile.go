package file

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
)

// ReadFile reads a small regular file that options name: at most limit bytes,
// else it fails with EFBIG. What holds for images holds for it, too:
// descriptor sets, the policy, no FIFO. On a worker; blocks.
func (h *Host) ReadFile(name string, limit int64, fromHeader bool) ([]byte, error) {
	p := &opener{host: h, driver: "file"}
	got, err := p.descriptor(name, unix.O_RDONLY, fromHeader)
	if err != nil {
		return nil, err
	}
	defer got.giveBack()
	f := os.NewFile(uintptr(got.fd), name)
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = blockgraph.Errorf(syscall.EFBIG, "'%s' is longer than %d bytes", name, limit)
	}
	return text, err
}
