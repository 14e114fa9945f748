// Package clean does what it may.
//
//blockd:io
package clean

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"planted/plane"
)

type state struct {
	loop *plane.Loop
	g    *plane.Graph
	mu   sync.Mutex //blockd:short
	n    int
	stop context.CancelFunc
	last []step
	undo []back
}

// Two queues of functions: their types tell them apart.
type (
	step func()
	back func()
)

//blockd:blocking
func (s *state) change(ctx context.Context, c chan int) error {
	s.undo = append(s.undo, func() { <-c })
	return s.g.Update(func(tx *plane.Tx) error {
		tx.Open("x")
		s.g.Names()
		s.loop.Do(func() { s.commit() })
		for _, f := range slices.Backward(s.undo) {
			f()
		}
		return nil
	})
}

//blockd:global loop
func (s *state) commit() {
	s.last = append(s.last, func() { s.g.Names() })
	for _, f := range s.last {
		f()
	}
	s.stop()
	if err := s.check(); err != nil {
		_ = fmt.Sprintf("%s: %v", err, strings.ToUpper("x"))
	}
	go s.work()
}

//blockd:global loop
func (s *state) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return errors.New("x")
}

func (s *state) work() {
	s.loop.Post(s.commit)
}
