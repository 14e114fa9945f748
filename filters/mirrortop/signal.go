package mirrortop

// Signal wakes one goroutine that waits for something to have changed. Several
// signals before it looks count as one.
//
//blockd:any
type Signal chan struct{}

// NewSignal returns a signal that was not sent.
func NewSignal() Signal { return make(Signal, 1) }

// Send never waits.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}
