package main

import (
	"go/types"
	"strings"

	"golang.org/x/tools/go/ssa"
)

// This file is the table of what functions of other modules do: whether they
// may wait, and on what goroutine they call what they are given.

// external is one row.
type external struct {
	waits bool // may wait, for a device, a peer, another goroutine or a timer
	spawn bool // calls its function arguments on a goroutine of its own
	lock  bool // takes the mutex that is its receiver
	// keep: what it is given is called later, by functions of its package that may
	// wait.
	keep bool
	// calls is where functions run that are put into fields of the package's
	// types: io when its functions wait, else any.
	calls *class
}

var (
	quick = external{}
	waits = external{waits: true}
)

// packageRows are the rows of packages: the functions that have none of their
// own. A package without a row is a finding, so that nobody forgets it.
var packageRows = map[string]external{}

func init() {
	for _, p := range strings.Fields(`
		bytes cmp container/heap container/list container/ring context crypto crypto/aes crypto/cipher crypto/des crypto/ecdsa
		crypto/elliptic crypto/hmac crypto/md5 crypto/pbkdf2 crypto/rand crypto/sha1 crypto/sha256 crypto/sha512
		crypto/subtle crypto/x509 crypto/x509/pkix embed encoding/asn1 encoding/base64
		encoding/binary encoding/hex encoding/json encoding/pem encoding/xml errors fmt hash hash/adler32 hash/crc32 hash/fnv hash/maphash
		html html/template io iter maps math math/big math/bits math/rand math/rand/v2 mime net/netip net/url path
		path/filepath reflect regexp runtime runtime/debug slices sort strconv strings sync sync/atomic text/tabwriter
		text/template time unicode unicode/utf16 unicode/utf8 unique unsafe weak
		github.com/google/uuid github.com/tidwall/btree golang.org/x/crypto/xts golang.org/x/crypto/cast5
		golang.org/x/crypto/ripemd160 golang.org/x/crypto/twofish golang.org/x/sys/cpu`) {
		packageRows[p] = quick
	}
	for _, p := range strings.Fields(`
		bufio compress/flate compress/gzip compress/zlib crypto/tls database/sql io/fs log log/slog mime/multipart net net/http
		net/http/pprof net/textproto os os/exec os/signal os/user runtime/pprof runtime/trace syscall testing
		github.com/gorilla/websocket go.yaml.in/yaml/v3 github.com/hanwen/go-fuse/v2/fuse github.com/prometheus/client_golang/prometheus
		github.com/prometheus/client_golang/prometheus/promhttp github.com/prometheus/client_golang/prometheus/collectors
		github.com/prometheus/client_model/go github.com/coreos/go-systemd/v22/daemon github.com/klauspost/compress/flate
		github.com/klauspost/compress/zstd golang.org/x/sys/unix`) {
		packageRows[p] = waits
	}
	// A command line is run by main, a terminal by who sits at it.
	for _, p := range []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "golang.org/x/term"} {
		packageRows[p] = external{waits: true, calls: &classBlock}
	}
}

// Trace events (slog.Debug) are logged on the loop, too: they are off unless
// somebody asks for them, and then go to package logs, whose handler puts a line
// into a ring and never waits, which its tests hold.

// functionRows are functions that differ from their package, by the name that
// the compiler's tools give them. A row that ends in * is for all that begin so.
var functionRows = map[string]external{}

func init() {
	rows := func(row external, names string) {
		for _, n := range strings.Fields(names) {
			functionRows[n] = row
		}
	}
	rows(waits, `time.Sleep (*sync.WaitGroup).Wait (*sync.Cond).Wait
		fmt.Print fmt.Printf fmt.Println fmt.Scan fmt.Scanf fmt.Scanln
		path/filepath.EvalSymlinks path/filepath.Glob path/filepath.Walk path/filepath.WalkDir path/filepath.Abs
		(*encoding/json.Decoder).Decode (*encoding/json.Decoder).Token (*encoding/json.Decoder).More
		(*io.PipeReader).* (*io.PipeWriter).* (*io.SectionReader).* (*io.LimitedReader).* (*io.OffsetWriter).*
		runtime.GC runtime/debug.FreeOSMemory runtime/debug.WriteHeapDump (reflect.Value).Send (reflect.Value).Recv`)
	rows(external{spawn: true}, `(*sync.WaitGroup).Go time.AfterFunc context.AfterFunc runtime.AddCleanup runtime.SetFinalizer`)
	rows(external{keep: true}, `bufio.NewReader bufio.NewWriter bufio.NewReaderSize bufio.NewWriterSize bufio.NewScanner
		github.com/klauspost/compress/flate.New* github.com/klauspost/compress/zstd.New* github.com/klauspost/compress/zstd.With*
		compress/flate.New* compress/gzip.New* compress/zlib.New* encoding/json.NewDecoder encoding/json.NewEncoder
		io.LimitReader io.NewSectionReader io.MultiReader io.MultiWriter io.TeeReader io.NewOffsetWriter`)
	rows(external{lock: true}, `(*sync.Mutex).Lock (*sync.RWMutex).Lock (*sync.RWMutex).RLock`)
	rows(quick, `os.Getenv os.LookupEnv os.Getpid os.Getuid os.Getppid os.IsNotExist os.IsExist os.IsPermission os.NewFile
		os.IsTimeout os.IsPathSeparator os.Environ os.TempDir (*os.File).Fd (*os.File).Name os.Getpagesize os.Exit
		(*os.PathError).* (*os.SyscallError).* os.NewSyscallError (os.FileMode).* (*io/fs.PathError).* (io/fs.FileMode).*
		net.JoinHostPort net.SplitHostPort net.ParseIP net.ParseCIDR (net.IP).* (*net.TCPAddr).* (*net.UnixAddr).* (*net.OpError).*
		(*net.DNSError).* (net.IPMask).* net.ParseMAC (net.UnknownNetworkError).* (*net.AddrError).*
		(syscall.Errno).* (syscall.Signal).* syscall.Getpid syscall.Getpagesize (*syscall.RawSockaddr*
		golang.org/x/sys/unix.ByteSliceToString golang.org/x/sys/unix.BytePtrToString golang.org/x/sys/unix.BytePtrFromString
		golang.org/x/sys/unix.ByteSliceFromString golang.org/x/sys/unix.Major golang.org/x/sys/unix.Minor
		golang.org/x/sys/unix.Mkdev golang.org/x/sys/unix.ErrnoName (*golang.org/x/sys/unix.*
		golang.org/x/sys/unix.ParseSocketControlMessage golang.org/x/sys/unix.ParseUnixRights golang.org/x/sys/unix.UnixRights
		golang.org/x/sys/unix.CmsgSpace golang.org/x/sys/unix.CmsgLen golang.org/x/sys/unix.Getpid golang.org/x/sys/unix.Gettid
		golang.org/x/sys/unix.Getpagesize golang.org/x/sys/unix.Getuid golang.org/x/sys/unix.Geteuid
		(*bufio.Reader).Buffered
		(*bufio.Reader).Size (*bufio.Writer).Available (*bufio.Writer).Buffered
		log/slog.Debug log/slog.DebugContext
		log/slog.String log/slog.Int log/slog.Int64 log/slog.Any log/slog.Bool log/slog.Duration log/slog.Uint64 (log/slog.Value).*
		crypto/tls.CipherSuiteName crypto/tls.VersionName os/signal.NotifyContext os/signal.Notify os/signal.Stop os/signal.Ignore
		os/signal.Reset (github.com/prometheus/client_golang/prometheus.Counter).* io/fs.ValidPath`)
}

// row returns the row of a function, false when there is none.
func row(pkg, name string) (external, bool) {
	if r, ok := functionRows[name]; ok {
		return r, true
	}
	// A method belongs to its type, a closure to the function around it.
	for i := len(name) - 1; i > 0; i-- {
		if name[i] == '.' || name[i] == '$' {
			if r, ok := functionRows[name[:i+1]+"*"]; ok {
				return r, true
			}
		}
	}
	for prefix, r := range functionRows {
		if p, ok := strings.CutSuffix(prefix, "*"); ok && strings.HasPrefix(name, p) {
			return r, true
		}
	}
	if r, ok := packageRows[pkg]; ok {
		return r, true
	}
	// What a public package keeps to itself counts as part of it.
	if strings.HasPrefix(pkg, "internal/") || strings.Contains(pkg, "/internal/") || strings.HasPrefix(pkg, "vendor/") {
		return quick, true
	}
	return external{}, false
}

// externalFunc returns the row of a function with or without a body.
func externalFunc(fn *ssa.Function) (external, bool) {
	top := fn
	for top.Parent() != nil {
		top = top.Parent()
	}
	if o := top.Origin(); o != nil {
		top = o
	}
	pkg := packageOf(top)
	if pkg == nil {
		return quick, true
	}
	name := top.RelString(nil)
	if obj, ok := top.Object().(*types.Func); ok {
		name = obj.FullName()
	}
	return row(pkg.Path(), name)
}

// interfaceWaits tells whether a method of another module's interface may wait,
// whoever implements it. t is the interface that is called through, which may
// promise more than the one that has the method: a hash.Hash is no other
// io.Writer.
func interfaceWaits(t types.Type, m *types.Func) bool {
	pkg, name := m.Pkg(), receiverName(m)
	if n := namedOf(t); n != nil && n.Obj().Pkg() != nil {
		if _, ok := n.Underlying().(*types.Interface); ok {
			pkg, name = n.Obj().Pkg(), n.Obj().Name()
		}
	}
	if pkg == nil {
		return false // error
	}
	switch pkg.Path() {
	case "io", "os", "net", "net/http", "io/fs", "log/slog", "crypto/tls":
		switch name {
		case "Addr", "Error", "FileInfo", "DirEntry", "LogValuer", "Leveler":
			return false
		}
		return true
	case "syscall", "golang.org/x/sys/unix":
		return name != "Sockaddr"
	}
	return false
}

// calledOnAny are methods that fmt, errors and their kin look for in values of
// any type. They are any, wherever they are.
var calledOnAny = map[string]string{
	"Error": "func() string", "String": "func() string", "GoString": "func() string",
	"Format": "func(f fmt.State, verb rune)", "Unwrap": "func() error", "Is": "func(target error) bool", "As": "func(target any) bool",
	"LogValue": "func() log/slog.Value", "MarshalJSON": "func() ([]byte, error)", "UnmarshalJSON": "func([]byte) error",
	"MarshalText": "func() ([]byte, error)", "UnmarshalText": "func([]byte) error",
}

// isCalledOnAny tells whether a method is one of these: by its name and by the
// types of what goes in and comes out.
func isCalledOnAny(fn *types.Func) bool {
	want, ok := calledOnAny[fn.Name()]
	sig := fn.Signature()
	if !ok || sig.Recv() == nil {
		return false
	}
	bare := func(s string) string {
		return strings.NewReplacer("f fmt", "fmt", "verb rune", "rune", "target ", "", "interface{}", "any", "int32", "rune").Replace(s)
	}
	var params, results []*types.Var
	for v := range sig.Params().Variables() {
		params = append(params, types.NewParam(0, nil, "", v.Type()))
	}
	for v := range sig.Results().Variables() {
		results = append(results, types.NewParam(0, nil, "", v.Type()))
	}
	got := types.NewSignatureType(nil, nil, nil, types.NewTuple(params...), types.NewTuple(results...), false)
	if bare(types.TypeString(got, nil)) == bare(want) {
		return true
	}
	return fn.Name() == "Unwrap" && types.TypeString(got, nil) == "func() []error"
}

// receiverName is the name of the type that a method is declared for.
func receiverName(m *types.Func) string {
	recv := m.Signature().Recv()
	if recv == nil {
		return ""
	}
	if n := namedOf(recv.Type()); n != nil {
		return n.Obj().Name()
	}
	return ""
}

// namedOf is the named type of t or of what it points to, or nil.
func namedOf(t types.Type) *types.Named {
	t = types.Unalias(t)
	if p, ok := t.(*types.Pointer); ok {
		t = types.Unalias(p.Elem())
	}
	n, _ := t.(*types.Named)
	return n
}
