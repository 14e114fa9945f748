package qapi

import (
	"errors"
	"fmt"
)

// Class is the machine readable part of a QMP error.
type Class string

// The error classes of the field; all but GenericError are promised to clients
// in a few places only.
const (
	GenericError    Class = "GenericError"
	CommandNotFound Class = "CommandNotFound"
	DeviceNotActive Class = "DeviceNotActive"
	DeviceNotFound  Class = "DeviceNotFound"
)

// Error is an error as a QMP client sees it. Desc is the text without a prefix
// of our own: clients and test suites compare it.
type Error struct {
	Class Class
	Desc  string

	unexpected string
	missing    string
}

// Missing returns the path of the member that is not there, as decoding spells it, if that
// is the error, or "".
func (e *Error) Missing() string { return e.missing }

// Unexpected returns the path of the member that nobody knows, as decoding spells it,
// if that is the error, or "".
func (e *Error) Unexpected() string { return e.unexpected }

func (e *Error) Error() string { return e.Desc }

// Errorf makes an error of class GenericError.
func Errorf(format string, args ...any) *Error {
	return &Error{Class: GenericError, Desc: fmt.Sprintf(format, args...)}
}

// ClassErrorf makes an error of the given class.
func ClassErrorf(class Class, format string, args ...any) *Error {
	return &Error{Class: class, Desc: fmt.Sprintf(format, args...)}
}

// AsError gives the QMP form of err: the *Error in its chain with that class,
// or a GenericError with the text of err. nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if qe, ok := errors.AsType[*Error](err); ok {
		return qe
	}
	return &Error{Class: GenericError, Desc: err.Error()}
}
