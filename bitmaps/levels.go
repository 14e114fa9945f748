package bitmaps

import (
	"math/bits"
	"sync/atomic"
)

// This file is the tree of words: level 0 in chunks, the summaries above it
// flat. All its methods count in bits or words of level 0.

// chunkWords is the size of a chunk, in words: 4 KiB.
const chunkWords = 512

type chunk [chunkWords]atomic.Uint64

// levels never change their capacity.
type levels struct {
	chunks []atomic.Pointer[chunk]
	// up[0] has a bit for every word of level 0, up[i] one for every word of
	// up[i-1]; the last is one word.
	up    [][]atomic.Uint64
	count atomic.Int64 // bits that are set
}

func newLevels(n int64) *levels {
	words := max(1, (n+63)/64)
	l := &levels{chunks: make([]atomic.Pointer[chunk], (words+chunkWords-1)/chunkWords)}
	for {
		words = (words + 63) / 64
		l.up = append(l.up, make([]atomic.Uint64, words))
		if words == 1 {
			return l
		}
	}
}

// capacity returns how many bits there is room for.
func (l *levels) capacity() int64 {
	// The summaries cover whole words of the level below.
	return min(int64(len(l.chunks))*chunkWords, int64(len(l.up[0]))*64) * 64
}

func (l *levels) word(w int64) uint64 {
	c := l.chunks[w/chunkWords].Load()
	if c == nil {
		return 0
	}
	return c[w%chunkWords].Load()
}

// chunkOf returns the chunk of word w, making it if need be.
func (l *levels) chunkOf(w int64) *chunk {
	p := &l.chunks[w/chunkWords]
	c := p.Load()
	if c == nil {
		if c = new(chunk); !p.CompareAndSwap(nil, c) {
			c = p.Load()
		}
	}
	return c
}

// or sets the bits of mask in word w.
func (l *levels) or(w int64, mask uint64) {
	word := &l.chunkOf(w)[w%chunkWords]
	if word.Load()&mask != mask {
		if added := mask &^ word.Or(mask); added != 0 {
			l.count.Add(int64(bits.OnesCount64(added)))
		}
	}
	l.summarise(0, w)
}

// summarise sets the bits that stand for bit at of up[i] (0: for word at) and
// above. Whoever set a bit in a word looks at every level: another may have set
// that level's bit and not yet got further up.
func (l *levels) summarise(i int, at int64) {
	for ; i < len(l.up); i++ {
		word, bit := &l.up[i][at/64], uint64(1)<<(at%64)
		if word.Load()&bit == 0 {
			word.Or(bit)
		}
		at /= 64
	}
}

// span calls f for every word with bits in [first, last].
func span(first, last int64, f func(w int64, mask uint64)) {
	for w := first / 64; w <= last/64; w++ {
		mask := ^uint64(0)
		if w == first/64 {
			mask <<= first % 64
		}
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		f(w, mask)
	}
}

func (l *levels) set(first, last int64) {
	if first/64 == last/64 {
		l.or(first/64, ^uint64(0)<<(first%64)&(^uint64(0)>>(63-last%64)))
		return
	}
	span(first, last, l.or)
}

// clear takes the bits [first, last] away. The caller keeps readers out.
func (l *levels) clear(first, last int64) {
	for bit := l.nextSet(first, last+1); bit <= last; bit = l.nextSet(bit, last+1) {
		w := bit / 64
		mask := ^uint64(0) << (bit % 64)
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		old := l.chunks[w/chunkWords].Load()[w%chunkWords].And(^mask)
		if gone := old & mask; gone != 0 {
			l.count.Add(-int64(bits.OnesCount64(gone)))
		}
		if old&^mask == 0 {
			l.prune(w)
		}
		bit = (w + 1) * 64
	}
}

// prune takes the summaries of word w away as far as nothing is below them.
func (l *levels) prune(w int64) {
	for i, at := 0, w; i < len(l.up); i++ {
		bit := uint64(1) << (at % 64)
		rest := l.up[i][at/64].And(^bit) &^ bit
		below := uint64(0)
		if i == 0 {
			below = l.word(w)
		} else {
			below = l.up[i-1][at].Load()
		}
		if below != 0 { // set meanwhile
			l.summarise(i, at)
			return
		}
		if rest != 0 {
			return
		}
		at /= 64
	}
}

// nextSet returns the first set bit of [from, end), or end.
func (l *levels) nextSet(from, end int64) int64 {
	if from >= end {
		return end
	}
	w := from / 64
	if v := l.word(w) & (^uint64(0) << (from % 64)); v != 0 {
		return min(end, w*64+int64(bits.TrailingZeros64(v)))
	}
	lastWord := (end - 1) / 64
	for w++; w <= lastWord; w++ {
		if w = l.nextWord(w); w < 0 || w > lastWord {
			return end
		}
		if v := l.word(w); v != 0 {
			return min(end, w*64+int64(bits.TrailingZeros64(v)))
		}
	}
	return end
}

// nextWord returns the first word from w on whose summary is set, or -1. A
// setter that was overtaken by a clearer leaves a summary's bit with nothing
// below it; the search then goes on behind it.
func (l *levels) nextWord(w int64) int64 {
	i, at := 0, w // at counts bits of up[i]
	for at/64 < int64(len(l.up[i])) {
		v := l.up[i][at/64].Load() & (^uint64(0) << (at % 64))
		switch {
		case v != 0 && i == 0:
			return at&^63 + int64(bits.TrailingZeros64(v))
		case v != 0:
			at = (at&^63 + int64(bits.TrailingZeros64(v))) * 64
			i--
		case i == len(l.up)-1:
			return -1
		default:
			at = at/64 + 1
			i++
		}
	}
	return -1
}

// nextClear returns the first clear bit of [from, end), or end.
func (l *levels) nextClear(from, end int64) int64 {
	for bit := from; bit < end; {
		w := bit / 64
		c := l.chunks[w/chunkWords].Load()
		if c == nil {
			return bit
		}
		if v := ^c[w%chunkWords].Load() & (^uint64(0) << (bit % 64)); v != 0 {
			return min(end, w*64+int64(bits.TrailingZeros64(v)))
		}
		bit = (w + 1) * 64
	}
	return end
}
