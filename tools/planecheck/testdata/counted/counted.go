// Package counted has three functions that are any.
//
//blockd:io
package counted

import "sync/atomic"

// Set is one.
//
//blockd:any
func Set() { n.Store(1) }

// Counter has two.
//
//blockd:any
type Counter struct{ n int }

// Add is one.
func (c *Counter) Add() { c.n++ }

// Sub is one.
func (c *Counter) Sub() { c.n-- }

// Get is a reader.
func (c *Counter) Get() int { return c.n }

// String is called on values of any type.
func (c *Counter) String() string { n.Store(2); return "" }

var n atomic.Int32
