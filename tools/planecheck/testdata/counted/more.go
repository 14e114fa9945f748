//go:build more

package counted

// More is a fourth one, and waits.
//
//blockd:any
func More(c chan int) { <-c }
