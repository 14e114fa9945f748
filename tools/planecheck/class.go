package main

import (
	"fmt"
	"strings"
)

// places is a set of places where code runs.
type places uint8

const (
	onLoop    places = 1 << iota
	withToken        // on a worker that makes a graph change
	onWorker         // on another worker
	onData           // on the data plane

	nowhere    places = 0
	everywhere        = onLoop | withToken | onWorker | onData
)

// class is a set of places with a name.
type class struct {
	name string
	in   places
}

var (
	classAny    = class{"any", everywhere}
	classGlobal = class{"global", onLoop | withToken}
	classLoop   = class{"global loop", onLoop}
	classIO     = class{"io", withToken | onWorker | onData}
	classBlock  = class{"blocking", withToken | onWorker}
	// classToken is a blocking function with the token.
	classToken = class{"blocking", withToken}
)

var classes = []class{classAny, classGlobal, classLoop, classIO, classBlock}

func parseClass(s string) (class, error) {
	s = strings.Join(strings.Fields(s), " ")
	for _, c := range classes {
		if c.name == s {
			return c, nil
		}
	}
	return class{}, fmt.Errorf("no class %q", s)
}

// smallest returns the narrowest class that holds all places of p.
func smallest(p places) class {
	best := classAny
	for _, c := range classes {
		if p&^c.in == 0 && c.in&^best.in == 0 {
			best = c
		}
	}
	return best
}

// plane is how findings name a class: the loop's functions are global ones.
func (c class) plane() string { return strings.TrimSuffix(c.name, " loop") }

// started is where a goroutine runs that code in p starts.
func (p places) started() places {
	var s places
	if p&onData != 0 {
		s |= onData
	}
	if p&^onData != 0 {
		s |= onWorker
	}
	return s
}

// taken is where a function runs that is called from p and gets a token value.
func (p places) taken() places {
	if p&onWorker != 0 {
		p = p&^onWorker | withToken
	}
	return p
}
