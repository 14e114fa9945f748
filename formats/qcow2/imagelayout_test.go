package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"blockd/blockgraph/graphtest"
)

// layout says what each cluster of an image is for, by a reading of the
// structures that is independent of the driver's.
type layout struct {
	cs   int64
	h    *header
	role map[int64]string // by cluster
	keys int64            // where the LUKS header is
}

// layoutOf reads an image; one that has no header yet has no roles.
func layoutOf(t testing.TB, b []byte) *layout {
	t.Helper()
	l := &layout{role: map[int64]string{}}
	if len(b) < sector || binary.BigEndian.Uint32(b) != magic {
		return l
	}
	h, ext, _, err := readHeader(ctxb, &memFile{b: b})
	if err != nil {
		t.Fatal(err)
	}
	l.h, l.cs = h, h.clusterSize
	l.name(0, l.cs, "header")
	l.name(int64(h.l1Offset), int64(h.l1Size)*8, "L1 table")
	l.name(int64(h.refTableOffset), int64(h.refTableClusters)*l.cs, "refcount table")
	words := func(off, n int64) (list []int64) {
		for i := range n {
			v := int64(0)
			if at := off + i*8; at+8 <= int64(len(b)) {
				v = int64(binary.BigEndian.Uint64(b[at:]))
			}
			list = append(list, v)
		}
		return list
	}
	for i, e := range words(int64(h.refTableOffset), int64(h.refTableClusters)*l.cs/8) {
		if e != 0 {
			l.name(e, l.cs, fmt.Sprint("refcount block ", i))
		}
	}
	for i, e := range words(int64(h.l1Offset), int64(h.l1Size)) {
		table := e & l1OffsetMask
		if table == 0 {
			continue
		}
		l.name(table, l.cs, fmt.Sprint("L2 table ", i))
		for k, e := range words(table, l.cs/8) {
			guest := int64(i)*l.cs/8 + int64(k)
			switch e := uint64(e); {
			case e&flagCompressed != 0:
				off, n := h.compressedExtent(e)
				l.name(off, n, fmt.Sprint("compressed guest cluster ", guest))
			case e&l2OffsetMask != 0:
				l.name(int64(e&l2OffsetMask), l.cs, fmt.Sprint("guest cluster ", guest))
			}
		}
	}
	if x := ext.bitmaps; x.present {
		l.name(int64(x.offset), int64(x.size), "bitmap directory")
		for p := b[x.offset : x.offset+x.size]; len(p) > 0; {
			be := binary.BigEndian
			table, n, nameLen := int64(be.Uint64(p)), int64(be.Uint32(p[8:])), int(be.Uint16(p[18:]))
			name := string(p[24 : 24+nameLen])
			l.name(table, n*8, "table of bitmap "+name)
			for _, e := range words(table, n) {
				if off := e & l2OffsetMask; off != 0 {
					l.name(off, l.cs, "data of bitmap "+name)
				}
			}
			p = p[(24+nameLen+7)&^7:]
		}
	}
	l.nameKeys(b, ext.crypto)
	return l
}

func (l *layout) name(off, n int64, role string) {
	for c := off / l.cs; c*l.cs < off+n; c++ {
		if l.role[c] != "" && l.role[c] != role {
			if !strings.Contains(l.role[c], role) {
				l.role[c] += " and " + role
			}
			continue
		}
		l.role[c] = role
	}
}

// roles are those of the first n clusters.
func (l *layout) roles(n int64) (list []string) {
	for c := range n {
		list = append(list, l.role[c])
	}
	return list
}

// writeNames describes writes.
type writeNames struct {
	before, after *layout
	b             []byte // the file as it is so far
}

// describeWrites says what a log wrote, from the image before it to the one
// after it.
func describeWrites(t testing.TB, before []byte, log []graphtest.CrashOp, after []byte) string {
	w := &writeNames{layoutOf(t, before), layoutOf(t, after), bytes.Clone(before)}
	var out, window []string
	end := func() {
		slices.Sort(window)
		out, window = append(out, window...), nil
	}
	for _, op := range log {
		line := ""
		switch {
		case op.Flush:
			end()
			out = append(out, "flush")
			continue
		case op.Data == nil:
			line = "resize the file"
		case op.Discard:
			line = "punch  " + w.roles(&op)
		default:
			line = "write  " + w.roles(&op) + w.changes(&op)
		}
		if n := len(op.Points); n > 0 && announcesWrite.MatchString(op.Points[n-1]) {
			line += " [" + op.Points[n-1] + "]"
		}
		window = append(window, line)
		w.b = op.Apply(w.b, func(int64) bool { return true })
	}
	end()
	return strings.Join(repeated(out), "\n") + "\n"
}

// repeated says once what is done several times: a write and a flush.
func repeated(lines []string) (list []string) {
	for i := 0; i < len(lines); {
		n := 1
		for lines[i] != "flush" && i+2*n+1 < len(lines) && slices.Equal(lines[i:i+2], lines[i+2*n:i+2*n+2]) {
			n++
		}
		if n == 1 {
			list = append(list, lines[i])
			i++
			continue
		}
		list = append(list, fmt.Sprintf("%s, %s: %d times", lines[i], lines[i+1], n))
		i += 2 * n
	}
	return list
}

// announcesWrite matches the fault points that a write follows.
var announcesWrite = regexp.MustCompile("write|update|hookup|switch|activate")

// roles are the roles of all that an entry touches.
func (w *writeNames) roles(op *graphtest.CrashOp) string {
	var list []string
	for c := op.Off / w.after.cs; c*w.after.cs < op.Off+int64(len(op.Data)); c++ {
		if r := w.roleOf(c); len(list) == 0 || list[len(list)-1] != r {
			list = append(list, r)
		}
	}
	return strings.Join(mergeRuns(list), ", ")
}

// roleOf is the role of a cluster after the operation, or else before it.
func (w *writeNames) roleOf(cluster int64) string {
	if r := w.after.role[cluster]; r != "" {
		return r
	}
	if r := w.before.role[cluster]; r != "" {
		return r
	}
	return "a cluster for nothing"
}

func (w *writeNames) role(off int64) string { return w.roleOf(off / w.after.cs) }

// changes says what a write of metadata changes in it.
func (w *writeNames) changes(op *graphtest.CrashOp) string {
	at := func(off int64) uint64 {
		if off+8 > int64(len(w.b)) {
			return 0
		}
		return binary.BigEndian.Uint64(w.b[off:])
	}
	role := w.role(op.Off)
	var list []string
	entries := func(name string, describe func(index int64, was, now uint64) string) {
		for p := int64(0); p+8 <= int64(len(op.Data)); p += 8 {
			was, now := at(op.Off+p), binary.BigEndian.Uint64(op.Data[p:])
			if was == now {
				continue
			}
			index := ((op.Off + p) & (w.after.cs - 1)) / 8
			if s := describe(index, was, now); s != "" {
				list = append(list, fmt.Sprintf("%s %d %s", name, index, s))
			}
		}
	}
	place := func(v uint64) string { return w.roleOf(int64(v&l2OffsetMask) / w.after.cs) }
	switch {
	case role == "header":
		return w.headerChanges(op)
	case role == "LUKS header":
		list = w.keyChanges(op)
	case strings.HasPrefix(role, "refcount block"):
		return w.countChanges(op)
	case strings.HasPrefix(role, "L2 table"):
		entries("entry", func(_ int64, was, now uint64) string { return nameOfKind(was) + " -> " + nameOfKind(now) })
	case role == "L1 table", role == "refcount table", strings.HasPrefix(role, "table of bitmap"):
		entries("entry", func(_ int64, was, now uint64) string {
			if now == 0 {
				return "-> none"
			}
			return "-> " + place(now)
		})
	default:
		return ""
	}
	if len(list) == 0 {
		return ": no change"
	}
	return ": " + strings.Join(mergeRuns(list), ", ")
}

// nameOfKind says what an L2 entry says, of images without subclusters.
func nameOfKind(e uint64) string {
	placed := e&l2OffsetMask != 0
	switch {
	case e&flagCompressed != 0:
		return "compressed"
	case e&flagZero != 0 && placed:
		return "zero with a place"
	case e&flagZero != 0:
		return "zero"
	case placed:
		return "data"
	}
	return "unallocated"
}

// countChanges lists the clusters whose count changes, by their roles.
func (w *writeNames) countChanges(op *graphtest.CrashOp) string {
	h := w.after.h
	block := op.Off &^ (w.after.cs - 1)
	was := make([]byte, w.after.cs)
	if block < int64(len(w.b)) {
		copy(was, w.b[block:])
	}
	now := bytes.Clone(was)
	copy(now[op.Off-block:], op.Data)
	var index int64
	_, _ = fmt.Sscanf(w.role(op.Off), "refcount block %d", &index)
	var list []string
	for i := range int64(1) << h.refBlockBits {
		a, b := refAt(was, h.refcountOrder, i), refAt(now, h.refcountOrder, i)
		if a == b {
			continue
		}
		text := fmt.Sprintf("%s %d -> %d", w.roleOf(index<<h.refBlockBits+i), a, b)
		if n := len(list); n > 0 && list[n-1] == text {
			continue
		}
		list = append(list, text)
	}
	if len(list) == 0 {
		return ": no change"
	}
	return ": " + strings.Join(mergeRuns(list), ", ")
}

var number = regexp.MustCompile(`\d+`)

// plus returns s with n added to its first k numbers.
func plus(s string, k, n int, text func(v int) string) string {
	return number.ReplaceAllStringFunc(s, func(v string) string {
		if k--; k < 0 {
			return v
		}
		i, _ := strconv.Atoi(v)
		return text(i + n)
	})
}

// mergeRuns shortens what differs only in its first number, or its first two,
// one more each time.
func mergeRuns(list []string) []string {
	var out []string
	for i := 0; i < len(list); {
		n, k := 1, 1
		for ; k <= 2; k++ {
			for n = 1; i+n < len(list) && list[i+n] != list[i] && list[i+n] == plus(list[i], k, n, strconv.Itoa); n++ {
			}
			if n > 1 {
				break
			}
		}
		if n > 1 {
			out = append(out, plus(list[i], k, 0, func(v int) string { return fmt.Sprintf("%d to %d", v, v+n-1) }))
		} else {
			out = append(out, list[i])
		}
		i += n
	}
	return out
}

// headerChanges lists the fields that change.
func (w *writeNames) headerChanges(op *graphtest.CrashOp) string {
	fields := []struct {
		name     string
		from, to int64
	}{
		{"magic", 0, 4}, {"version", 4, 8}, {"backing file name's place", 8, 16}, {"backing file name's length", 16, 20}, {"cluster bits", 20, 24},
		{"size", 24, 32}, {"L1 size", 36, 40}, {"L1 place", 40, 48}, {"refcount table's place", 48, 56}, {"refcount table's length", 56, 60},
		{"number of snapshots", 60, 64}, {"snapshot table's place", 64, 72}, {"incompatible features", 72, 80}, {"compatible features", 80, 88},
		{"autoclear features", 88, 96}, {"refcount order", 96, 100}, {"header length", 100, 104},
	}
	get := func(b []byte, off, a, z int64) []byte {
		out := make([]byte, z-a)
		if a >= off && a-off < int64(len(b)) {
			copy(out, b[a-off:])
		}
		return out
	}
	end := op.Off + int64(len(op.Data))
	var list []string
	for _, f := range fields {
		if f.from >= op.Off && f.to <= end && !bytes.Equal(get(w.b, 0, f.from, f.to), get(op.Data, op.Off, f.from, f.to)) {
			list = append(list, f.name)
		}
	}
	if end > 104 && !bytes.Equal(get(w.b, 0, max(op.Off, 104), min(end, sector)), get(op.Data, op.Off, max(op.Off, 104), min(end, sector))) && op.Off < sector {
		list = append(list, "extensions or names")
	}
	if end > sector {
		a := max(op.Off, sector)
		if !bytes.Equal(get(w.b, 0, a, end), get(op.Data, op.Off, a, end)) {
			list = append(list, "what lies past the first sector")
		}
	}
	if len(list) == 0 {
		return ": no change"
	}
	return ": " + strings.Join(list, ", ")
}
