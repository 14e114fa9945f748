// Package calls has one forbidden chain of each kind.
//
//blockd:io
package calls

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"

	"planted/plane"
)

// restore calls plainly, through a function with the package's class.
//
//blockd:io
func restore(g *plane.Graph) { reload(g) }

func reload(g *plane.Graph) {
	_ = g.Update(nil) // want "restore() is io, but calls blocking code: restore() -> reload() -> Graph.Update()"
}

type counter interface{ count() int }

// global is a counter that only the control plane may ask.
type global struct{ g *plane.Graph }

//blockd:global
func (c global) count() int { return c.g.Names() } // want "throughInterface() is io, but calls global code: throughInterface() -> counter.count() -> global.count()"

//blockd:io
func throughInterface(c counter) int { return c.count() }

var _ = throughInterface(global{})

//blockd:io
func throughGo(g *plane.Graph) {
	go names(g) // want "throughGo() is io, but calls global code: throughGo() -> go names()"
}

//blockd:global
func names(g *plane.Graph) { g.Names() }

//blockd:blocking
func workerWithoutToken(g *plane.Graph) {
	names(g) // want "workerWithoutToken() is blocking, but calls global code: workerWithoutToken() -> names()"
	_ = g.Update(func(*plane.Tx) error { names(g); return nil })
}

//blockd:io
func throughGroup(g *plane.Graph) {
	var wg sync.WaitGroup
	wg.Go(func() {
		names(g) // want "throughGroup() is io, but calls global code: throughGroup() -> go throughGroup$1() -> names()"
	})
}

//blockd:io
func throughTimer(g *plane.Graph) {
	time.AfterFunc(time.Second, func() {
		names(g) // want "throughTimer() is io, but calls global code: throughTimer() -> go throughTimer$1() -> names()"
	})
}

//blockd:io
func throughDefer(g *plane.Graph) {
	defer names(g) // want "throughDefer() is io, but calls global code: throughDefer() -> names()"
}

//blockd:io
func throughMethodValue(g *plane.Graph) int {
	f := g.Names
	return f() // want "throughMethodValue() is io, but calls global code: throughMethodValue() -> Graph.Names()"
}

//blockd:io
func throughMethodExpression(g *plane.Graph) int {
	f := (*plane.Graph).Names
	return f(g) // want "throughMethodExpression() is io, but calls global code: throughMethodExpression() -> Graph.Names()"
}

type task func()

var tasks = make(chan task, 10)

//blockd:global
func sends(g *plane.Graph) {
	select {
	case tasks <- func() { names(g) }: // want "receives() is io, but calls global code: receives() -> sends$1() -> names()"
	default:
	}
}

//blockd:io
func receives() { (<-tasks)() }

type kept struct{ f func() }

//blockd:global
func keeps(k *kept, g *plane.Graph) { k.f = func() { names(g) } } // want "callsField() is io, but calls global code: callsField() -> keeps$1() -> names()"

//blockd:io
func callsField(k *kept) { k.f() }

type number interface{ ~int | ~int64 }

//blockd:global
func sum[T number](g *plane.Graph, x T) T { return x + T(g.Names()) }

//blockd:io
func throughGeneric(g *plane.Graph) int64 {
	return sum(g, int64(1)) // want "throughGeneric() is io, but calls global code: throughGeneric() -> sum()"
}

type runner interface{ run() }

type globalRunner struct{ g *plane.Graph }

//blockd:global
func (r globalRunner) run() { r.g.Names() }

type ioRunner struct{}

func (ioRunner) run() {}

// each is called with both kinds: which one a call reaches is known by its
// type argument.
func each[T runner](list []T) {
	for _, x := range list {
		x.run() // want "throughConstraint() is io, but calls global code: throughConstraint() -> each() -> globalRunner.run()"
	}
}

//blockd:io
func throughConstraint(g *plane.Graph) {
	each([]globalRunner{{g}})
	each([]ioRunner{{}})
}

// walk calls what it is given.
//
//blockd:any
func walk(n int, visit func(int)) {
	for i := range n {
		visit(i)
	}
}

//blockd:io
func throughVisitor(g *plane.Graph) {
	walk(3, func(int) { names(g) }) // want "throughVisitor() is io, but calls global code: throughVisitor() -> throughVisitor$1() -> names()"
}

//blockd:global
func visits(g *plane.Graph) {
	walk(3, func(int) { names(g) })
}

//blockd:io
func throughSort(g *plane.Graph, list []int) {
	slices.SortFunc(list, func(a, b int) int { return g.Names() })       // want "throughSort() is io, but calls global code: throughSort() -> throughSort$1() -> Graph.Names()"
	sort.Slice(list, func(a, b int) bool { return g.Names() > list[a] }) // want "throughSort() is io, but calls global code: throughSort() -> throughSort$2() -> Graph.Names()"
}

//blockd:io
func throughRange(g *plane.Graph) {
	for range backward(func() { names(g) }) { // want "throughRange() is io, but calls global code: throughRange() -> backward$1() -> throughRange$1() -> names()"
	}
}

func backward(f func()) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		f()
		yield(1)
	}
}

// globalWriter is called by fmt.
type globalWriter struct{ g *plane.Graph }

//blockd:global
func (w globalWriter) Write(p []byte) (int, error) { return w.g.Names(), nil }

//blockd:io
func throughWriter(g *plane.Graph) {
	fmt.Fprint(globalWriter{g}, 1) // want "throughWriter() is io, but calls global code: throughWriter() -> globalWriter.Write()"
	writes(globalWriter{g})        // want "throughWriter() is io, but calls global code: throughWriter() -> globalWriter.Write()"
}

func writes(w io.Writer) { _, _ = w.Write(nil) }

//blockd:io
func throughInterfaceMethodValue(c counter) int {
	f := c.count
	return f()
}

// pool keeps a function that sync calls, wherever Get is called.
var pool = sync.Pool{New: func() any {
	names(nil) // want "init() is blocking, but calls global code: init() -> posts init$1() -> names()"
	return nil
}}

// options keeps functions where nobody sees them called.
func options(g *plane.Graph) any {
	return func() { names(g) } // want "options$1() is any, but calls global code: options$1() -> names()"
}

func throughRawConn(c syscall.RawConn, g *plane.Graph) {
	_ = c.Control(func(uintptr) { names(g) }) // want "throughRawConn() is io, but calls global code: throughRawConn() -> throughRawConn$1() -> names()"
}

// stream has methods of another module's interface.
type stream interface {
	io.Reader
	Name() string
}

//blockd:any
func readsStream(s stream) {
	_, _ = s.Read(nil) // want "readsStream() is any, but calls io code: readsStream() -> stream.Read()"
}

type clock interface {
	//blockd:any
	//blockd:handoff io
	AfterFunc(f func())
}

func throughClock(c clock, g *plane.Graph) {
	c.AfterFunc(func() { names(g) }) // want "throughClock() is io, but calls global code: throughClock() -> posts throughClock$1() -> names()"
}

type embeds struct{ *plane.Graph }

type namer interface {
	//blockd:io
	Names() int // want "namer.Names() is io, but calls global code: namer.Names() -> Graph.Names()"
}

//blockd:io
func throughEmbedding(g *plane.Graph) int {
	var n namer = embeds{g}
	return n.Names()
}

//blockd:global
func onTheLoopOnly(l *plane.Loop) {
	_ = l
	loopOnly() // want "onTheLoopOnly() is global, but calls global loop code: onTheLoopOnly() -> loopOnly()"
}

//blockd:global loop
func loopOnly() { counted++ }

var counted int

//blockd:any
func anyCallsIO(c chan int) {
	plane.Read(c) // want "anyCallsIO() is any, but calls io code: anyCallsIO() -> Read()"
}

//blockd:io
func token(tx *plane.Tx) {
	tx.Open("") // want "token() is io, but calls blocking code: token() -> Tx.Open()"
}
