// Package classes has no class.
package classes

import "errors"

func none(c chan int) {
	<-c
	count++
}

//blockd:global loop
func callsNone() {
	none(nil) // want "callsNone() is global, but calls io code: callsNone() -> none()"
}

var count int

// want-next "no class \"fast\""
//
//blockd:fast
func wrong() {}

// Ops is implemented elsewhere.
//
//blockd:global loop
type Ops interface {
	Kick()
	Stop(now bool)
}

type impl struct{ c chan int }

// Kick has its class from the interface.
func (i *impl) Kick() {
	<-i.c // want "impl.Kick() is global, but receives from a channel: impl.Kick()"
}

func (i *impl) Stop(bool) { i.c = nil }

var _ Ops = &impl{}

type failure struct{ c chan int }

func (f failure) Error() string {
	<-f.c // want "failure.Error() is any, but receives from a channel: failure.Error()"
	return ""
}

//blockd:io
func (f failure) Unwrap() error { return errors.New("") } // want "failure.Unwrap() is called on values of any type, so it is any, not io"

//blockd:any
var notAFunction = 1 // want "a class at a variable"
