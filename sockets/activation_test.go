package sockets

import "testing"

func TestSocketsOfAServiceManagerAreTakenByNameOnce(t *testing.T) {
	a := &Activated{names: []string{"nbd", "qmp", "nbd", ""}, taken: make([]bool, 4)}
	for _, c := range []struct {
		name string
		fd   int
		ok   bool
	}{{"nbd", 3, true}, {"nbd", 5, true}, {"nbd", -1, false}, {"qmp", 4, true}, {"other", -1, false}} {
		if fd, ok := a.Take(c.name); fd != c.fd || ok != c.ok {
			t.Errorf("%s: %d %v", c.name, fd, ok)
		}
	}
	if _, ok := (*Activated)(nil).Take("nbd"); ok {
		t.Error("nothing has a socket")
	}
}

func TestSocketsOfAnotherProcessAreNotTaken(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{"LISTEN_PID": "7", "LISTEN_FDS": "1"},
		{"LISTEN_PID": "x", "LISTEN_FDS": "1"},
		{"LISTEN_PID": "42", "LISTEN_FDS": "0"},
		{"LISTEN_PID": "42", "LISTEN_FDS": "-1"},
		{"LISTEN_PID": "42", "LISTEN_FDS": "99999999999999999999"},
		{"LISTEN_PID": "42", "LISTEN_FDS": "100000"},
	} {
		if a, err := FromServiceManager(func(k string) string { return env[k] }, 42, 43); a != nil || err != nil {
			t.Errorf("%v: %v %v", env, a, err)
		}
	}
}
