package logs

// Follower reads the lines as they come, on a goroutine of its own.
type Follower struct {
	log   *Log
	asked chan func()
	stop  chan struct{}
	ended chan struct{}
	seen  uint64 // of the goroutine
}

// Follow has each line of the memory told, from now on, in order, until Stop. tell may
// wait; lines that the ring forgets meanwhile are left out, which the numbers
// show.
func (l *Log) Follow(tell func(*Line)) *Follower {
	f := &Follower{log: l, asked: make(chan func()), stop: make(chan struct{}), ended: make(chan struct{})}
	l.mu.Lock()
	f.seen = l.last
	l.mu.Unlock()
	go func() {
		defer close(f.ended)
		for {
			lines, news := l.wait(f.seen)
			for _, line := range lines {
				if line.memory {
					tell(line)
				}
				f.seen = line.Number
			}
			select {
			case ask := <-f.asked:
				ask()
			case <-f.stop:
				return
			case <-news:
			}
		}
	}()
	return f
}

// Between has do run between two lines, and returns the number of the one before.
// After Stop do does not run, and the result is 0.
func (f *Follower) Between(do func()) uint64 {
	var seen uint64
	done := make(chan struct{})
	select {
	case f.asked <- func() { do(); seen = f.seen; close(done) }:
		<-done
		return seen
	case <-f.ended:
		return 0
	}
}

// Stop ends it and waits for tell to return. Once.
func (f *Follower) Stop() {
	close(f.stop)
	<-f.ended
}

// wait returns the lines after the given number, and what is closed when there
// are more.
func (l *Log) wait(number uint64) ([]*Line, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.after(number), l.news
}
