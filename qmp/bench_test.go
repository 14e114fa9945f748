package qmp

import (
	"testing"

	"blockd/qapi"
)

func BenchmarkQueryVersionRoundTrip(b *testing.B) {
	s := startServer(b, nil)
	c := negotiated(b, s.mon())
	request := []byte(`{"execute": "query-version", "id": "libvirt-1"}` + "\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.c.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := c.r.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRivalQueryVersionRoundTrip(b *testing.B) {
	c := negotiated(b, startRivalQSD(b, "mon"))
	request := []byte(`{"execute": "query-version", "id": "libvirt-1"}` + "\n")
	for b.Loop() {
		if _, err := c.c.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := c.r.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEmitToNobody(b *testing.B) {
	s := startServer(b, nil)
	data := qapi.NewObject("id", "j", "status", "running")
	b.ReportAllocs()
	for b.Loop() {
		s.Hub().Emit("JOB_STATUS_CHANGE", data)
	}
}

func FuzzRequest(f *testing.F) {
	for _, script := range scripts {
		for _, part := range script {
			f.Add([]byte(part), true)
			f.Add([]byte(part), false)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, oob bool) {
		v, err := qapi.ParseJSON(data)
		if err != nil {
			return
		}
		q := parseRequest(v, oob)
		o, isObject := v.(*qapi.Object)
		if isObject && q.hasID != o.Has("id") {
			t.Fatal("id lost")
		}
		if q.err == nil && (!isObject || !o.Has("execute") && !o.Has("exec-oob")) {
			t.Fatalf("accepted %q", data)
		}
		if q.err == nil && !oob && (q.oob || o.Has("exec-oob")) {
			t.Fatalf("out of band without leave: %q", data)
		}
		if q.err == nil && o.Has("execute") && o.Has("exec-oob") {
			t.Fatalf("both: %q", data)
		}
	})
}
