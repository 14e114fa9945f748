package qmp

import (
	"os"

	"blockd/qapi"
)

// request is one message of a client, checked at its top level.
type request struct {
	command string
	oob     bool // by exec-oob
	args    *qapi.Object
	id      any
	hasID   bool
	err     *qapi.Error // answer to give in its turn; nothing is to be run
	files   []*os.File  // descriptors that arrived since the request before
}

// parseRequest checks the members of a message, in the order in which the field
// meets them, which decides which of several mistakes is reported. oob tells
// whether the client has enabled out-of-band execution.
func parseRequest(v any, oob bool) *request {
	o, ok := v.(*qapi.Object)
	if !ok {
		return &request{err: qapi.Errorf("QMP input must be a JSON object")}
	}
	q := &request{}
	q.id, q.hasID = o.Get("id")
	clean := true
	for key, value := range o.All() {
		if q.member(key, value, oob) != nil {
			clean = false
			break
		}
	}
	if !clean {
		// Only now the order of the members matters.
		*q = request{id: q.id, hasID: q.hasID}
		for _, key := range fieldOrder(o) {
			value, _ := o.Get(key)
			if q.err = q.member(key, value, oob); q.err != nil {
				return q
			}
		}
	}
	if q.command == "" && !o.Has("execute") && !(oob && o.Has("exec-oob")) {
		q.err = qapi.Errorf("QMP input lacks member 'execute'")
	}
	return q
}

// isOOB tells whether a message asks to run at once.
func isOOB(v any) bool {
	o, ok := v.(*qapi.Object)
	return ok && o.Has("exec-oob") && !o.Has("execute")
}

func (q *request) member(key string, value any, oob bool) *qapi.Error {
	switch {
	case key == "execute" || key == "exec-oob" && oob:
		name, ok := value.(string)
		if !ok {
			return qapi.Errorf("QMP input member '%s' must be a string", key)
		}
		if q.oob != (key == "exec-oob") && q.command != "" || q.oob && key == "execute" {
			return qapi.Errorf("QMP input member '%s' clashes with '%s'", key, otherKey(key))
		}
		q.command, q.oob = name, key == "exec-oob"
	case key == "arguments":
		args, ok := value.(*qapi.Object)
		if !ok {
			return qapi.Errorf("QMP input member 'arguments' must be an object")
		}
		q.args = args
	case key == "id":
	default:
		return qapi.Errorf("QMP input member '%s' is unexpected", key)
	}
	return nil
}

func otherKey(key string) string {
	if key == "execute" {
		return "exec-oob"
	}
	return "execute"
}

// fieldOrder lists the keys of o in the order of the field's hash table, which
// is the order in which package qapi prints them.
func fieldOrder(o *qapi.Object) []string {
	keys := &qapi.Object{}
	for key := range o.All() {
		keys.Set(key, nil)
	}
	v, err := qapi.ParseJSON(qapi.AppendJSON(nil, keys))
	if err != nil {
		return o.Keys() // keys that do not print and parse: any order will do
	}
	ordered := v.(*qapi.Object).Keys()
	for _, key := range ordered {
		if !o.Has(key) {
			return o.Keys()
		}
	}
	return ordered
}

// The messages that go out. Members that are of type any hold qapi values or
// structs with qapi tags.
type (
	returnMessage struct {
		Return any `qapi:"return"`
	}
	returnIDMessage struct {
		Return any `qapi:"return"`
		ID     any `qapi:"id"`
	}
	errorMessage struct {
		Error any `qapi:"error"`
	}
	errorIDMessage struct {
		Error any `qapi:"error"`
		ID    any `qapi:"id"`
	}
	eventTimestamp struct {
		Seconds      int64 `qapi:"seconds"`
		Microseconds int64 `qapi:"microseconds"`
	}
	eventMessage struct {
		Event     string         `qapi:"event"`
		Timestamp eventTimestamp `qapi:"timestamp"`
	}
	eventDataMessage struct {
		Event     string         `qapi:"event"`
		Data      any            `qapi:"data"`
		Timestamp eventTimestamp `qapi:"timestamp"`
	}
	greeting struct {
		Version      qapi.VersionInfo     `qapi:"version"`
		Capabilities []qapi.QMPCapability `qapi:"capabilities"`
	}
	greetingMessage struct {
		QMP greeting `qapi:"QMP"`
	}
)

// appendMessage appends one message and its line end. In pretty mode each line
// ends in CR LF, as a monitor of the field prints it.
func appendMessage(dst []byte, pretty bool, m any) []byte {
	if !pretty {
		return append(qapi.AppendJSON(dst, m), '\r', '\n')
	}
	start := len(dst)
	dst = qapi.AppendPretty(dst, m)
	text := string(dst[start:])
	dst = dst[:start]
	for i := range len(text) {
		if text[i] == '\n' {
			dst = append(dst, '\r')
		}
		dst = append(dst, text[i])
	}
	return append(dst, '\r', '\n')
}

func (q *request) answer(ret any, err error) any {
	if err != nil {
		qe := qapi.AsError(err)
		if q.hasID {
			return &errorIDMessage{Error: qe, ID: q.id}
		}
		return &errorMessage{Error: qe}
	}
	if q.hasID {
		return &returnIDMessage{Return: ret, ID: q.id}
	}
	return &returnMessage{Return: ret}
}
