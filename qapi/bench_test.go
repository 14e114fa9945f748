package qapi

import "testing"

const (
	benchRequest = `{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": "fmt0", "read-only": false, "discard": "unmap", "cache": {"direct": true, "no-flush": false}, "file": {"driver": "file", "filename": "/var/lib/images/disk-0.qcow2", "node-name": "file0"}}, "id": "libvirt-123"}`
	benchArgs    = `{"driver": "qcow2", "node-name": "fmt0", "read-only": false, "discard": "unmap", "cache": {"direct": true, "no-flush": false}, "file": {"driver": "file", "filename": "/var/lib/images/disk-0.qcow2", "node-name": "file0"}}`
)

func BenchmarkParse(b *testing.B) {
	n := 0
	emit := func(any, error) { n++ }
	p := NewParser()
	data := []byte(benchRequest)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		p.Feed(data, emit)
	}
	if n != b.N {
		b.Fatalf("%d values of %d", n, b.N)
	}
}

func BenchmarkDecode(b *testing.B) {
	v, err := ParseJSON([]byte(benchArgs))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var o BlockdevOptions
		if err := Decode(v, &o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeEvent(b *testing.B) {
	e := &JobStatusChange{ID: "job-1", Status: JobStatusRunning}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendJSON(buf[:0], e)
	}
}

func BenchmarkEncodeNodes(b *testing.B) {
	nodes := make([]BlockDeviceInfo, 100)
	size := int64(1 << 30)
	for i := range nodes {
		nodes[i] = BlockDeviceInfo{File: "/var/lib/images/disk.qcow2", NodeName: "node", Drv: "qcow2", DetectZeroes: "off",
			Children: []BlockdevChild{{"file", "f"}}, Image: ImageInfo{Filename: "/var/lib/images/disk.qcow2", Format: "qcow2", VirtualSize: size, ActualSize: &size}}
	}
	buf := AppendJSON(nil, nodes)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendJSON(buf[:0], &nodes)
	}
}

func BenchmarkEncodeObject(b *testing.B) {
	o := NewObject("timestamp", NewObject("seconds", int64(1), "microseconds", int64(2)), "event", "JOB_STATUS_CHANGE",
		"data", &JobStatusChange{ID: "job-1", Status: JobStatusRunning})
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendJSON(buf[:0], o)
	}
}

func TestEncodingDoesNotAllocate(t *testing.T) {
	e := &BlockJobProgress{Type: JobTypeBackup, Device: "job-1", Len: 1, Offset: 1}
	buf := AppendJSON(nil, e)
	if n := testing.AllocsPerRun(100, func() { buf = AppendJSON(buf[:0], e) }); n != 0 {
		t.Errorf("%v allocations for an event's data", n)
	}
}
