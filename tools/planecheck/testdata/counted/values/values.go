// Package values is any as a whole.
//
//blockd:any
package values

// V is a value.
type V struct{ n int }

// Set is not counted.
func (v *V) Set() { v.n = 1 }
