package jobs_test

import (
	"strings"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/commit"
	"blockd/qapi"
)

// commit starts an intermediate commit, job c unless a says otherwise.
func (w *world) commit(a qapi.BlockCommitArg) error {
	return w.try(func(tx *blockgraph.Tx) error {
		if a.JobID == nil {
			a.JobID = ptr("c")
		}
		r, err := commit.Find(tx, tx.Find(a.Device), &a)
		if err != nil {
			return err
		}
		_, err = commit.Prepare(tx, w.jobs, r, &a)
		return err
	})
}

func (w *world) startCommit(a qapi.BlockCommitArg) {
	w.t.Helper()
	if err := w.commit(a); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) node(name string) (n *blockgraph.Node) {
	w.t.Helper()
	w.update(func(tx *blockgraph.Tx) error { n = tx.Find(name); return nil })
	if n == nil {
		w.t.Fatalf("no node %s", name)
	}
	return n
}

// fourImages makes base "aaaa", low ".bb.", mid "..c." and top "...d".
func fourImages(w *world) (base, low, mid, top *disk) {
	base, low = newDisk("base", 4).fill(0, 4, 'a'), newDisk("low", 4).fill(1, 3, 'b')
	mid, top = newDisk("mid", 4).fill(2, 3, 'c'), newDisk("top", 4).fill(3, 4, 'd')
	w.add(base, "")
	w.add(low, "base")
	w.add(mid, "low")
	w.add(top, "mid")
	return base, low, mid, top
}

const committed = "c created, c running, c waiting, c pending, c COMPLETED commit 4/4, c concluded, c null"

func TestCommitOfTheMiddle(t *testing.T) {
	for name, c := range map[string]struct {
		a                    qapi.BlockCommitArg
		base, header, result string
	}{
		"two images":          {qapi.BlockCommitArg{TopNode: ptr("mid"), BaseNode: ptr("base")}, "base", "/base:qcow2", "abca"},
		"default base":        {qapi.BlockCommitArg{TopNode: ptr("mid")}, "base", "/base:qcow2", "abca"},
		"one image":           {qapi.BlockCommitArg{TopNode: ptr("mid"), BaseNode: ptr("low")}, "low", "/low:qcow2", ".bc."},
		"by file name":        {qapi.BlockCommitArg{Top: ptr("/mid"), Base: ptr("/low")}, "low", "/low:qcow2", ".bc."},
		"backing-file":        {qapi.BlockCommitArg{TopNode: ptr("mid"), BackingFile: ptr("other")}, "base", "other:qcow2", "abca"},
		"a further image up":  {qapi.BlockCommitArg{TopNode: ptr("low"), BaseNode: ptr("base")}, "base", "/mid:qcow2", "abba"},
		"mask of a format":    {qapi.BlockCommitArg{TopNode: ptr("mid"), BackingMaskProtocol: ptr(true)}, "base", "/base:qcow2", "abca"},
		"with a speed, named": {qapi.BlockCommitArg{TopNode: ptr("mid"), Speed: ptr(int64(1 << 40)), FilterNodeName: ptr("f")}, "base", "/base:qcow2", "abca"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, _, mid, top := fourImages(w)
			g := w.guest(w.node("top"))
			c.a.Device = "top"
			w.startCommit(c.a)
			w.expectEvents("c null", committed)
			if got := w.disks["/"+c.base].clusters(); got != c.result {
				t.Errorf("%s is %s, want %s", c.base, got, c.result)
			}
			overlay := "top"
			if c.a.TopNode != nil && *c.a.TopNode == "low" {
				overlay = "mid"
				if mid.header() != "/base:qcow2" {
					t.Errorf("mid's header %s", mid.header())
				}
			}
			if top.header() != c.header || w.backingOf(overlay) != c.base || w.filters() != 0 || g.sees() != "abcd" {
				t.Errorf("top's header %s, backing of %s is %s, %d filters, guest sees %s", top.header(), overlay, w.backingOf(overlay), w.filters(), g.sees())
			}
			if !w.disks["/"+c.base].Synced() {
				t.Error("the header names data that is not safe")
			}
		})
	}
}

// TestCommitWritesTheHeaderOfEveryOverlay: also of one that came to the filter
// while the job ran, and of read-only ones.
func TestCommitWritesTheHeaderOfEveryOverlay(t *testing.T) {
	w := newWorld(t)
	_, _, _, top := fourImages(w)
	second := newDisk("second", 4)
	w.add(second, "mid")
	w.update(func(tx *blockgraph.Tx) error { return tx.SetReadOnly(tx.Find("second"), true) })
	w.startCommit(qapi.BlockCommitArg{Device: "top", TopNode: ptr("mid"), FilterNodeName: ptr("f"), AutoFinalize: ptr(false)})
	w.await("c PENDING")
	late := newDisk("late", 4)
	w.add(late, "f")
	w.verb("c", (*jobs.Job).Finalize)
	w.await("c null")
	for _, d := range []*disk{top, second, late} {
		if d.header() != "/base:qcow2" || w.backingOf(d.name) != "base" {
			t.Errorf("%s: header %s, backing %s", d.name, d.header(), w.backingOf(d.name))
		}
	}
	if !w.node("second").ReadOnly() || w.node("top").ReadOnly() {
		t.Error("the overlays' read-only state has changed")
	}
}

func TestCommitMakesAReadOnlyBaseWritableMeanwhile(t *testing.T) {
	for name, end := range map[string]func(*jobs.Job) error{
		"success": (*jobs.Job).Finalize,
		"cancel":  func(j *jobs.Job) error { return j.Cancel(true) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fourImages(w)
			base := w.node("base")
			w.update(func(tx *blockgraph.Tx) error { return tx.SetReadOnly(base, true) })
			w.startCommit(qapi.BlockCommitArg{Device: "top", TopNode: ptr("mid"), AutoFinalize: ptr(false)})
			w.await("c PENDING")
			if base.ReadOnly() {
				t.Error("the base is read-only")
			}
			w.verb("c", end)
			w.await("c null")
			if !base.ReadOnly() {
				t.Error("the base is writable")
			}
		})
	}
}

// TestCommitThatEndsBadlyLeavesTheChain: cancelled, failed, or refused by a
// header.
func TestCommitThatEndsBadlyLeavesTheChain(t *testing.T) {
	for name, c := range map[string]struct {
		setUp  func(w *world, base, top *disk)
		events string
	}{
		"cancel": {nil, "c created, c running, c waiting, c pending, c PENDING, c aborting, c CANCELLED 4/4, c concluded, c null"},
		"write error": {
			func(_ *world, base, _ *disk) { base.onWrite = failing(1, syscall.EIO) },
			"c created, c running, c ERROR write report, c aborting, c COMPLETED commit /4: Input/output error, c concluded, c null",
		},
		"header": {
			func(_ *world, _, top *disk) { top.Image().RefuseHeader(syscall.EIO) },
			"c created, c running, c waiting, c pending, c PENDING, c aborting, c COMPLETED commit 4/4: Input/output error, c concluded, c null",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			base, _, _, top := fourImages(w)
			before := blockgraphDump(w)
			if c.setUp != nil {
				c.setUp(w, base, top)
			}
			w.startCommit(qapi.BlockCommitArg{Device: "top", TopNode: ptr("mid"), AutoFinalize: ptr(false)})
			got := ""
			if name != "write error" {
				got = w.await("c PENDING") + ", "
				verb := (*jobs.Job).Finalize
				if name == "cancel" {
					verb = func(j *jobs.Job) error { return j.Cancel(true) }
				}
				w.verb("c", verb)
			}
			got += w.await("c null")
			if i := strings.Index(got, "commit "); i >= 0 && name == "write error" {
				got = got[:i+7] + got[strings.Index(got, "/4"):]
			}
			if got != c.events {
				t.Errorf("events\n got %s\nwant %s", got, c.events)
			}
			if after := blockgraphDump(w); after != before || top.header() != "/mid:qcow2" {
				t.Errorf("header %s, graph\n%s\nwas\n%s", top.header(), after, before)
			}
		})
	}
}

// TestCommitErrorPolicies: a failed piece is tried again, by itself or when
// the user says so; both sides have the same policy.
func TestCommitErrorPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		policy qapi.BlockdevOnError
		err    error
		write  bool
		events string
	}{
		"ignore": {qapi.BlockdevOnErrorIgnore, syscall.EIO, false, "c created, c running, c ERROR read ignore, c waiting, c pending, c COMPLETED commit 4/4, c concluded, c null"},
		"stop":   {qapi.BlockdevOnErrorStop, syscall.EIO, true, "c created, c running, c ERROR write stop, c paused, c running, c waiting, c pending, c COMPLETED commit 4/4, c concluded, c null"},
		"enospc": {qapi.BlockdevOnErrorEnospc, syscall.ENOSPC, true, "c created, c running, c ERROR write stop, c paused, c running, c waiting, c pending, c COMPLETED commit 4/4, c concluded, c null"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			base, _, mid, _ := fourImages(w)
			if c.write {
				base.onWrite = failing(1, c.err)
			} else {
				mid.onRead = failing(1, c.err)
			}
			w.startCommit(qapi.BlockCommitArg{Device: "top", TopNode: ptr("mid"), OnError: &c.policy})
			got := ""
			if c.policy != qapi.BlockdevOnErrorIgnore {
				got = w.await("c paused") + ", "
				want := qapi.BlockDeviceIoStatusFailed
				if c.err == syscall.ENOSPC {
					want = qapi.BlockDeviceIoStatusNospace
				}
				if i := w.info("c"); i.IOStatus != want || i.Busy {
					t.Errorf("%+v", i)
				}
				w.verb("c", (*jobs.Job).Resume)
			}
			if got += w.await("c null"); got != c.events {
				t.Errorf("events\n got %s\nwant %s", got, c.events)
			}
			if base.clusters() != "abca" || w.backingOf("top") != "base" {
				t.Errorf("base %s, backing of top %s", base.clusters(), w.backingOf("top"))
			}
		})
	}
}

// TestCommitOfImagesOfDifferentLength: what an overlay has read as zeroes,
// because the image below it is short, it reads as zeroes afterwards.
func TestCommitOfImagesOfDifferentLength(t *testing.T) {
	for name, c := range map[string]struct {
		base, low, mid int // lengths in clusters
		result         string
	}{
		"short middle":         {4, 1, 4, "b000"},
		"short top of commit":  {4, 4, 2, "bb00"},
		"all short, long base": {4, 1, 2, "b000"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			base := newDisk("base", c.base).fill(0, c.base, 'a')
			low, mid := newDisk("low", c.low).fill(0, c.low, 'b'), newDisk("mid", c.mid)
			w.add(base, "")
			w.add(low, "base")
			w.add(mid, "low")
			w.add(newDisk("top", 4), "mid")
			g := w.guest(w.node("top"))
			before := g.sees()
			w.startCommit(qapi.BlockCommitArg{Device: "top", TopNode: ptr("mid")})
			w.await("c null")
			if g.sees() != before || g.sees() != c.result || w.backingOf("top") != "base" {
				t.Errorf("guest saw %s, sees %s, want %s; backing %s", before, g.sees(), c.result, w.backingOf("top"))
			}
		})
	}
}

func TestCommitRefusals(t *testing.T) {
	w := newWorld(t)
	fourImages(w)
	w.add(newDisk("other", 4), "")
	before := blockgraphDump(w)
	at := func(top, base string) qapi.BlockCommitArg {
		a := qapi.BlockCommitArg{}
		if top != "" {
			a.TopNode = &top
		}
		if base != "" {
			a.BaseNode = &base
		}
		return a
	}
	with := func(a qapi.BlockCommitArg, f func(a *qapi.BlockCommitArg)) qapi.BlockCommitArg {
		f(&a)
		return a
	}
	for _, c := range []struct {
		a      qapi.BlockCommitArg
		want   string
		events string
	}{
		{qapi.BlockCommitArg{Top: ptr("x"), TopNode: ptr("mid")}, "'top-node' and 'top' are mutually exclusive", ""},
		{qapi.BlockCommitArg{Base: ptr("x"), BaseNode: ptr("low")}, "'base-node' and 'base' are mutually exclusive", ""},
		{at("zz", ""), "Cannot find device='' nor node-name='zz'", ""},
		{at("mid", "zz"), "Cannot find device='' nor node-name='zz'", ""},
		{at("other", ""), "'other' is not in this backing file chain", ""},
		{at("mid", "other"), "'other' is not in this backing file chain", ""},
		{at("low", "mid"), "'mid' is not in this backing file chain", ""},
		{qapi.BlockCommitArg{Top: ptr("/zz")}, "Top image file /zz not found", ""},
		{qapi.BlockCommitArg{TopNode: ptr("mid"), Base: ptr("/zz")}, "Can't find '/zz' in the backing chain", ""},
		{qapi.BlockCommitArg{TopNode: ptr("low"), Base: ptr("/mid")}, "Can't find '/mid' in the backing chain", ""},
		{at("mid", "mid"), "cannot commit an image into itself", ""},
		{at("base", ""), "cannot commit an image into itself", ""},
		{with(at("", ""), func(a *qapi.BlockCommitArg) { a.BackingFile = ptr("x") }), "'backing-file' specified, but 'top' is the active layer", ""},
		{with(at("mid", ""), func(a *qapi.BlockCommitArg) { a.JobID = ptr("1 bad") }), "Invalid job ID '1 bad'", ""},
		{with(at("mid", ""), func(a *qapi.BlockCommitArg) { a.JobID = ptr("") }), "Invalid job ID ''", ""},
		{with(at("mid", ""), func(a *qapi.BlockCommitArg) { a.Speed = ptr(int64(-1)) }), "Parameter 'speed' expects a non-negative value", "c created, c null"},
		{with(at("mid", ""), func(a *qapi.BlockCommitArg) { a.FilterNodeName = ptr("1x") }), "Invalid node-name: '1x'", "c created, c null"},
		{with(at("mid", ""), func(a *qapi.BlockCommitArg) { a.FilterNodeName = ptr("low") }), "Duplicate nodes with node-name='low'", "c created, c null"},
	} {
		c.a.Device = "top"
		if err := w.commit(c.a); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if got := strings.Join(w.events, ", "); got != c.events {
			t.Errorf("%s: events %s", c.want, got)
		}
		w.events = nil
		if after := blockgraphDump(w); after != before {
			t.Fatalf("%s: the graph has changed\n%s\nwas\n%s", c.want, after, before)
		}
	}
}

// TestCommitDecidesWhatIsActive: an image that somebody writes to is not
// committed by this job, nor is the device's own.
func TestCommitDecidesWhatIsActive(t *testing.T) {
	w := newWorld(t)
	fourImages(w)
	find := func(a qapi.BlockCommitArg) (r commit.Range, err error) {
		w.update(func(tx *blockgraph.Tx) error {
			r, err = commit.Find(tx, tx.Find("top"), &a)
			return nil
		})
		return r, err
	}
	for _, top := range []string{"top", "mid", "low"} {
		r, err := find(qapi.BlockCommitArg{TopNode: &top})
		if err != nil || r.Active != (top == "top") || r.Top.Name() != top || r.Base.Name() != "base" {
			t.Errorf("%s: %+v, %v", top, r, err)
		}
	}
	w.guest(w.node("mid"))
	if r, err := find(qapi.BlockCommitArg{TopNode: ptr("mid")}); err != nil || !r.Active {
		t.Errorf("with a writer: %+v, %v", r, err)
	}
	_, err := find(qapi.BlockCommitArg{TopNode: ptr("mid"), BackingFile: ptr("x")})
	if err == nil || err.Error() != "'backing-file' specified, but 'top' has a writer on it" {
		t.Errorf("%v", err)
	}
}

// TestCommitHasTheChainForItself: permissions and blockers in the field's
// words.
func TestCommitHasTheChainForItself(t *testing.T) {
	w := newWorld(t)
	fourImages(w)
	w.startCommit(qapi.BlockCommitArg{Device: "top", TopNode: ptr("mid"), FilterNodeName: ptr("f"), AutoFinalize: ptr(false)})
	w.await("c PENDING")
	read := func(name string) error {
		return w.try(func(tx *blockgraph.Tx) error {
			r, err := tx.NewRoot(tx.Find(name), blockgraph.RootOptions{Perm: blockgraph.PermConsistentRead, Shared: blockgraph.PermAll})
			if err != nil {
				return err
			}
			return tx.CloseRoot(r)
		})
	}
	for name, want := range map[string]string{
		"low":  "Permission conflict on node 'low': permissions 'consistent read' are both required by an unnamed block device (uses node 'low' as 'root' child) and unshared by commit job 'c' (uses node 'low' as 'intermediate node' child).",
		"mid":  "Permission conflict on node 'mid': permissions 'consistent read' are both required by an unnamed block device (uses node 'mid' as 'root' child) and unshared by commit job 'c' (uses node 'mid' as 'intermediate node' child).",
		"f":    "",
		"base": "",
		"top":  "",
	} {
		if err := read(name); (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("reading %s: %v", name, err)
		}
	}
	for _, name := range []string{"base", "low", "mid", "top"} {
		want := "Node '" + name + "' is busy: block device is in use by block job: commit"
		if err := w.stream(qapi.BlockStreamArg{Device: name}); err == nil || err.Error() != want {
			t.Errorf("stream of %s: %v", name, err)
		}
	}
	// The filter may go at any time, so nobody may rely on a link to it.
	err := w.stream(qapi.BlockStreamArg{Device: "top"})
	if err == nil {
		t.Error("a stream took the chain")
	}
	err = w.try(func(tx *blockgraph.Tx) error {
		_, err := tx.FreezeChain(tx.Find("top"), tx.Find("f"))
		return err
	})
	if err == nil || err.Error() != "Cannot freeze 'backing' link to 'f'" {
		t.Errorf("freezing a link to the filter: %v", err)
	}
	err = w.try(func(tx *blockgraph.Tx) error {
		_, err := tx.FreezeChain(tx.Find("mid"), tx.Find("base"))
		return err
	})
	if err == nil || err.Error() != "Cannot change 'backing' link from 'mid' to 'low'" {
		t.Errorf("freezing what is frozen: %v", err)
	}
	w.verb("c", (*jobs.Job).Finalize)
	w.await("c null")
}
