// Command planecheck holds the border between the planes (docs/design.md): it
// walks the call graph of the whole program and reports, as one line, every
// chain of calls that leads to where it must not lead.
//
//	restore() is io, but calls blocking code: restore() -> reload() -> Graph.Update()
//
// # Four places where code runs
//
//   - the loop: the control plane's one goroutine. It never waits.
//   - a worker with the token: the goroutine that makes a graph change. It has
//     a *blockgraph.Tx and may wait.
//   - a worker without it: a monitor's dispatcher, the end of a job before it
//     has got the token. It may wait.
//   - the data plane: exports, bodies of jobs, drivers. It may wait for I/O,
//     and it never waits for the control plane's changes: a change waits for
//     the data plane's requests, so that would be a deadlock.
//
// # Four classes of functions
//
// A class is the set of places where a function may run; a call is allowed
// when the callee may run wherever its caller may.
//
//	any       everywhere: calls only any, and never waits
//	global    on the loop, or with the token: the control plane's state; never
//	          waits. `global loop` is on the loop only.
//	io        data plane and workers: may wait, knows no control plane state
//	blocking  workers: changes the graph or waits for the loop. Not on the
//	          loop, and not on the data plane.
//
// A worker holds the token when it has a Tx: a blocking function with a Tx as
// receiver or parameter runs with the token, any other one without it, and
// then cannot call global code. So a worker gets at the loop's state through
// Loop.Do only.
//
// # How a function gets its class
//
// The nearest of these, so that new code is mostly classed without a word:
//
//  1. `//blockd:CLASS` at the end of its doc comment. For a function literal:
//     on the line above it.
//  2. For Error, String, Unwrap and the like, which fmt and errors call on
//     values of any type: any. Another class for them is a finding.
//  3. The class of the interface method that it implements, when that one or
//     its interface has a directive. Of several, what allows all of them.
//  4. A function with a Tx as receiver or parameter is blocking.
//  5. A function that only looks and computes is any: it changes nothing but
//     its own variables, waits for nothing, uses no state of the control plane,
//     and nor does what it calls.
//  6. The directive of its receiver's type, at that type's doc comment.
//  7. The directive of its package, in the package comment; without one: io.
//
// A function literal without a directive has no class. It runs where it is
// called, whoever made it: each chain goes through it to the next function
// that has one. So do wrappers, method values and thunks of the compiler.
// Methods of interfaces are functions, too: who calls through one is checked
// against its class, and so is what the interface may hold.
//
// Other directives:
//
//   - `//blockd:handoff CLASS` at a function: what it is given as function
//     arguments runs later as CLASS (Loop.Post, Clock.AfterFunc). A `go`
//     statement, sync.WaitGroup.Go and their kin hand over to a goroutine that
//     is neither the loop nor has the token: to one of the data plane from
//     there, else to a worker. A function that has a directive of its own as
//     blocking is a worker from wherever it is started.
//   - `//blockd:loop` at the function that is the loop: what it calls runs there;
//     where it waits itself, it waits for work. There is only one.
//   - `//blockd:token` at a type: whoever has a value of it holds the token.
//   - `//blockd:global` or `//blockd:global loop` at a struct field: only where
//     such code runs is it read or written, except in the object that the
//     function itself has just made.
//   - `//blockd:short` at a mutex: it is held for short only. Nothing that may
//     wait is reached while it is held, so the loop may take it. A function that
//     may run on the loop takes no other mutex.
//
// # What counts as waiting
//
// Sends and receives, a select without default, ranging over a channel, taking
// a mutex that is not short, and the functions of other modules that the table
// in external.go says may wait. This is looked for in every function that may
// run on the loop: that it does not wait is checked, not believed.
//
// # Which function a call reaches
//
// The call graph is VTA's (golang.org/x/tools/go/callgraph/vta) over the whole
// program with the standard library. It tells functions apart by where they
// are kept: by variable, by field, and for elements of slices, maps and
// channels by their type. So a queue of functions has an element type of its
// own; `[]func()` would be one queue with all others of that type.
//
// Where VTA alone would mix up what common functions are called with:
//
//   - A function that calls its own parameter (a sort with its comparison, a
//     walk with its visitor) has that call counted where it is called itself,
//     with what it is given there. The same holds for methods of a parameter
//     that is an interface of another module (io.Writer).
//   - What the standard library is given, it calls: right there, or on a
//     goroutine of its own, as the table says.
//   - Other calls through interfaces of other modules have the class of the
//     interface in that table (error and fmt.Stringer: any; io.Writer: io).
//
// # any
//
// The number of functions that are any, outside packages of plain values (whose
// package default is any), is kept in any.txt and may only fall: each is a
// function of which nobody can say where it runs.
package main
