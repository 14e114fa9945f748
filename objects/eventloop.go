package objects

import (
	"math"

	"blockd/qapi"
)

// EventLoop are the settings of an event loop, guarded by Registry.mu. They
// are kept for who asks.
type EventLoop struct {
	aioMaxBatch   int64 // requests
	threadPoolMin int64
	threadPoolMax int64
}

// defaultThreadPoolMax is the field's number of worker threads.
const defaultThreadPoolMax = 64

// IOThread is an object of type iothread.
type IOThread struct {
	EventLoop
	pollMaxNs  int64
	pollGrow   int64
	pollShrink int64
}

// defaultPollMaxNs is the field's time of busy polling in nanoseconds.
const defaultPollMaxNs = 32768

// QOMType implements Object.
func (*IOThread) QOMType() qapi.ObjectType { return qapi.ObjectTypeIothread }

// MainLoop is the object of type main-loop.
type MainLoop struct {
	EventLoop
}

// QOMType implements Object.
func (*MainLoop) QOMType() qapi.ObjectType { return qapi.ObjectTypeMainLoop }

func newIOThread(p *qapi.IothreadProperties) (*IOThread, func() error, error) {
	t := &IOThread{EventLoop: newEventLoop(), pollMaxNs: defaultPollMaxNs}
	if p == nil {
		return t, nil, nil
	}
	err := setAll([]initial{
		{"thread-pool-min", p.ThreadPoolMin, &t.threadPoolMin},
		{"aio-max-batch", p.AIOMaxBatch, &t.aioMaxBatch},
		{"thread-pool-max", p.ThreadPoolMax, &t.threadPoolMax},
		{"poll-max-ns", p.PollMaxNs, &t.pollMaxNs},
		{"poll-grow", p.PollGrow, &t.pollGrow},
		{"poll-shrink", p.PollShrink, &t.pollShrink},
	})
	return t, t.check, err
}

func newMainLoop(p *qapi.MainLoopProperties) (*MainLoop, func() error, error) {
	m := &MainLoop{EventLoop: newEventLoop()}
	if p == nil {
		return m, nil, nil
	}
	err := setAll([]initial{
		{"thread-pool-min", p.ThreadPoolMin, &m.threadPoolMin},
		{"aio-max-batch", p.AIOMaxBatch, &m.aioMaxBatch},
		{"thread-pool-max", p.ThreadPoolMax, &m.threadPoolMax},
	})
	return m, m.check, err
}

func newEventLoop() EventLoop { return EventLoop{threadPoolMax: defaultThreadPoolMax} }

// initial is a property that object-add may give.
type initial struct {
	name  string
	given *int64
	to    *int64
}

func setAll(list []initial) error {
	for _, i := range list {
		if i.given == nil {
			continue
		}
		if err := checkNatural(i.name, *i.given); err != nil {
			return err
		}
		*i.to = *i.given
	}
	return nil
}

func checkNatural(name string, v int64) error {
	if v < 0 {
		return qapi.Errorf("%s value must be in range [0, %d]", name, int64(math.MaxInt64))
	}
	return nil
}

// check refuses thread pools that could not be.
func (l *EventLoop) check() error {
	if l.threadPoolMin > l.threadPoolMax || l.threadPoolMax == 0 || l.threadPoolMax > math.MaxInt32 {
		return qapi.Errorf("bad thread-pool-min/thread-pool-max values")
	}
	return nil
}

// naturalProperty describes a number of an event loop that is not negative.
// at returns its place in the object, and its event loop.
func naturalProperty(name string, at func(Object) (*int64, *EventLoop)) property {
	return property{
		name: name, typ: "int",
		get: func(o Object) any {
			v, _ := at(o)
			return *v
		},
		set: func(o Object, value any) error {
			n, err := integer(name, value)
			if err != nil {
				return err
			}
			if err := checkNatural(name, n); err != nil {
				return err
			}
			v, l := at(o)
			old := *v
			*v = n
			if err := l.check(); err != nil {
				*v = old
				return err
			}
			return nil
		},
	}
}

func eventLoopOf(o Object) *EventLoop {
	switch o := o.(type) {
	case *IOThread:
		return &o.EventLoop
	case *MainLoop:
		return &o.EventLoop
	}
	panic("objects: not an event loop")
}

// The order is the field's.
var eventLoopProperties = []property{
	naturalProperty("thread-pool-min", func(o Object) (*int64, *EventLoop) { l := eventLoopOf(o); return &l.threadPoolMin, l }),
	naturalProperty("aio-max-batch", func(o Object) (*int64, *EventLoop) { l := eventLoopOf(o); return &l.aioMaxBatch, l }),
	naturalProperty("thread-pool-max", func(o Object) (*int64, *EventLoop) { l := eventLoopOf(o); return &l.threadPoolMax, l }),
}

var ioThreadProperties = []property{
	naturalProperty("poll-max-ns", func(o Object) (*int64, *EventLoop) { t := o.(*IOThread); return &t.pollMaxNs, &t.EventLoop }),
	naturalProperty("poll-grow", func(o Object) (*int64, *EventLoop) { t := o.(*IOThread); return &t.pollGrow, &t.EventLoop }),
	naturalProperty("poll-shrink", func(o Object) (*int64, *EventLoop) { t := o.(*IOThread); return &t.pollShrink, &t.EventLoop }),
}
