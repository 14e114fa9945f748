package qmpclient

import "blockd/qapi"

// Answers are read member by member, not decoded into the types of this
// program: another version of the server may say more, or less.

// Member returns an object's member that is an object, an empty one if there
// is none. o may be nil.
func Member(o *qapi.Object, key string) *qapi.Object {
	if m, ok := value(o, key).(*qapi.Object); ok {
		return m
	}
	return qapi.NewObject()
}

// String returns an object's member that is a string, or "".
func String(o *qapi.Object, key string) string {
	s, _ := value(o, key).(string)
	return s
}

// Int returns an object's member that is an integer, or 0.
func Int(o *qapi.Object, key string) int64 {
	n, _ := value(o, key).(int64)
	return n
}

// Bool returns an object's member that is a boolean, or false.
func Bool(o *qapi.Object, key string) bool {
	b, _ := value(o, key).(bool)
	return b
}

// Objects returns the objects of an object's member that is a list.
func Objects(o *qapi.Object, key string) []*qapi.Object { return ObjectsOf(value(o, key)) }

// ObjectsOf returns the objects of a list.
func ObjectsOf(v any) []*qapi.Object {
	list, _ := v.([]any)
	var objects []*qapi.Object
	for _, e := range list {
		if o, ok := e.(*qapi.Object); ok {
			objects = append(objects, o)
		}
	}
	return objects
}

func value(o *qapi.Object, key string) any {
	if o == nil {
		return nil
	}
	v, _ := o.Get(key)
	return v
}
