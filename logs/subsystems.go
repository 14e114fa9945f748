package logs

import (
	"runtime"
	"strings"

	"blockd/qapi"
)

// packages maps packages of this module, and those of others that log in its
// name, to subsystems. A row holds for the packages below it, too, unless they
// have a row; what has none is the daemon's.
var packages = map[string]qapi.LogSubsystem{
	"blockgraph":    qapi.LogSubsystemGraph,
	"chardev":       qapi.LogSubsystemQMP,
	"exports":       qapi.LogSubsystemExports,
	"filters":       qapi.LogSubsystemFilters,
	"formats":       qapi.LogSubsystemFormats,
	"formats/qcow2": qapi.LogSubsystemQcow2,
	"ioengine":      qapi.LogSubsystemProtocols,
	"jobs":          qapi.LogSubsystemJobs,
	"metrics":       qapi.LogSubsystemWeb,
	"monitor":       qapi.LogSubsystemQMP,
	"net/http":      qapi.LogSubsystemWeb,
	"objects":       qapi.LogSubsystemObjects,
	"protocols":     qapi.LogSubsystemProtocols,
	"qmp":           qapi.LogSubsystemQMP,
	"tlscreds":      qapi.LogSubsystemObjects,
	"web":           qapi.LogSubsystemWeb,
}

// module is what the names of this module's packages begin with.
const module = "blockd/"

// subsystemOf returns the subsystem of the code at pc, which a record has.
func subsystemOf(pc uintptr) qapi.LogSubsystem {
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	return subsystemOfFunction(frame.Function)
}

// subsystemOfFunction takes a name as the runtime gives it: the package's path, a
// dot, and the rest, which may hold slashes in what a generic type is made of.
func subsystemOfFunction(name string) qapi.LogSubsystem {
	name, _, _ = strings.Cut(name, "[")
	slash := strings.LastIndexByte(name, '/') + 1
	dot := strings.IndexByte(name[slash:], '.')
	if dot < 0 {
		return qapi.LogSubsystemDaemon
	}
	pkg := strings.TrimPrefix(name[:slash+dot], module)
	for {
		if s, ok := packages[pkg]; ok {
			return s
		}
		i := strings.LastIndexByte(pkg, '/')
		if i < 0 {
			return qapi.LogSubsystemDaemon
		}
		pkg = pkg[:i]
	}
}
