package sockets

import (
	"errors"
	"io/fs"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// Reason is the text of the system's error inside err, as the C library words
// it: the same as Go's, but for the capital that begins it.
// Any goroutine.
func Reason(err error) string {
	text := err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		text = errno.Error()
	} else if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		text = pe.Err.Error()
	}
	r, n := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(r)) + text[n:]
}
