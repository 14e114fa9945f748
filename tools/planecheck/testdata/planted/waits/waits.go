// Package waits has functions that wait where they must not.
//
//blockd:global loop
package waits

import (
	"bytes"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"planted/plane"
)

func receives(c chan int) {
	<-c // want "receives() is global, but receives from a channel: receives()"
}

func sends(c chan int) {
	c <- 1 // want "sends() is global, but sends to a channel: sends()"
}

func ranges(c chan int) {
	for range c { // want "ranges() is global, but receives from a channel: ranges()"
	}
}

func selects(c, d chan int) {
	select { // want "selects() is global, but selects without default: selects()"
	case <-c:
	case d <- 1:
	}
}

func polls(c chan int) {
	select {
	case <-c:
	default:
	}
}

func sleeps() {
	time.Sleep(1) // want "sleeps() is global, but may wait in time.Sleep: sleeps()"
}

func waitsForOthers(wg *sync.WaitGroup) {
	wg.Wait() // want "waitsForOthers() is global, but may wait in (*sync.WaitGroup).Wait: waitsForOthers()"
}

func waitsLater(wg *sync.WaitGroup) {
	defer wg.Wait() // want "waitsLater() is global, but may wait in (*sync.WaitGroup).Wait: waitsLater()"
}

func reads(name string) {
	_, _ = os.ReadFile(name) // want "reads() is global, but may wait in os.ReadFile: reads()"
}

func prints() {
	fmt.Println() // want "prints() is global, but may wait in fmt.Println: prints()"
}

func printsTo(w io.Writer) {
	fmt.Fprintln(w)
}

func formats() {
	var b bytes.Buffer
	fmt.Fprintln(&b)
	printsTo(&b)
	printsTo(os.Stderr) // want "formats() is global, but may wait in (*os.File).Write: formats()"
}

func hashes(h hash.Hash) { h.Write(nil) }

type sink struct{ w io.Writer }

func (s *sink) put() {
	_, _ = s.w.Write(nil) // want "sink.put() is global, but may wait in (io.Writer).Write: sink.put()"
}

func inLiteral(c chan int) {
	f := func() { <-c } // want "inLiteral() is global, but receives from a channel: inLiteral() -> inLiteral$1()"
	f()
}

func throughBlocking(l *plane.Loop) {
	l.Do(func() {}) // want "throughBlocking() is global, but calls io code: throughBlocking() -> Loop.Do()"
}

//blockd:blocking
func hands(l *plane.Loop, c chan int) {
	l.Do(func() { <-c }) // want "hands() is blocking, but receives from a channel: hands() -> posts hands$1()"
}

//blockd:io
func lies(f func()) { f() }

// handsToWorker starts a worker, which may wait.
func handsToWorker(c chan int, g *plane.Graph) {
	go func() {
		<-c
		_ = g.Update(func(tx *plane.Tx) error { tx.Open(""); return nil })
	}()
}

// runs says that what it is given runs on the loop, but runs it itself.
//
//blockd:any
//blockd:handoff global loop
func runs(f func()) {
	f() // want "runs() hands over as global loop, but calls the function itself, as any"
}
