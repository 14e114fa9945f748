package jobs_test

import (
	"strings"
	"syscall"
	"testing"

	"blockd/blockgraph"
	"blockd/jobs"
	"blockd/jobs/stream"
	"blockd/qapi"
)

func (w *world) stream(a qapi.BlockStreamArg) error {
	return w.try(func(tx *blockgraph.Tx) error {
		if a.JobID == nil {
			a.JobID = ptr("s")
		}
		_, err := stream.Prepare(tx, w.jobs, tx.Find(a.Device), &a)
		return err
	})
}

func (w *world) startStream(a qapi.BlockStreamArg) {
	w.t.Helper()
	if err := w.stream(a); err != nil {
		w.t.Fatal(err)
	}
}

// chain makes base, mid and top: "aaaa", ".bb.", "...c".
func chain(w *world) (base, mid, top *disk) {
	base, mid, top = newDisk("base", 4).fill(0, 4, 'a'), newDisk("mid", 4).fill(1, 3, 'b'), newDisk("top", 4).fill(3, 4, 'c')
	w.add(base, "")
	w.add(mid, "base")
	w.add(top, "mid")
	return base, mid, top
}

func (w *world) backingOf(name string) (backing string) {
	for _, n := range w.nodes() {
		if n.Name() == name {
			if e := n.Backing(); e != nil {
				return e.Child().Name()
			}
		}
	}
	return ""
}

const streamed = "s created, s running, s waiting, s pending, s COMPLETED stream 4/4, s concluded, s null"

func TestStreamOfTheWholeChain(t *testing.T) {
	w := newWorld(t)
	_, _, top := chain(w)
	w.startStream(qapi.BlockStreamArg{Device: "top"})
	w.expectEvents("s null", streamed)
	if top.clusters() != "abbc" || top.header() != ":" || w.backingOf("top") != "" || w.filters() != 0 {
		t.Errorf("top %s, header %s, backing %s, %d filters", top.clusters(), top.header(), w.backingOf("top"), w.filters())
	}
	w.update(func(tx *blockgraph.Tx) error {
		for _, n := range w.nodes() {
			if err := tx.CheckBlocked(n, blockgraph.OpStream); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
}

func TestStreamDownToABase(t *testing.T) {
	for name, c := range map[string]struct {
		a      qapi.BlockStreamArg
		header string
	}{
		"base":         {qapi.BlockStreamArg{Base: ptr("/base")}, "/base:qcow2"},
		"base-node":    {qapi.BlockStreamArg{BaseNode: ptr("base")}, "/base:qcow2"},
		"bottom":       {qapi.BlockStreamArg{Bottom: ptr("mid")}, "/base:qcow2"},
		"backing-file": {qapi.BlockStreamArg{BaseNode: ptr("base"), BackingFile: ptr("other.qcow2")}, "other.qcow2:qcow2"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, _, top := chain(w)
			c.a.Device = "top"
			w.startStream(c.a)
			w.expectEvents("s null", streamed)
			if top.clusters() != ".bbc" || top.header() != c.header || w.backingOf("top") != "base" {
				t.Errorf("top %s, header %s, backing %s", top.clusters(), top.header(), w.backingOf("top"))
			}
		})
	}
}

func TestStreamIntoAnIntermediateImage(t *testing.T) {
	w := newWorld(t)
	_, mid, top := chain(w)
	g := w.guest(w.nodes()[0]) // the newest: top's
	w.startStream(qapi.BlockStreamArg{Device: "mid"})
	w.expectEvents("s null", streamed)
	if mid.clusters() != "abba" || mid.header() != ":" || w.backingOf("top") != "mid" || top.clusters() != "...c" {
		t.Errorf("mid %s, header %s, top's backing %s", mid.clusters(), mid.header(), w.backingOf("top"))
	}
	if g.sees() != "abbc" {
		t.Errorf("guest sees %s", g.sees())
	}
}

func TestStreamOfNothingEndsAtOnce(t *testing.T) {
	for name, a := range map[string]qapi.BlockStreamArg{
		"no backing":      {Device: "base"},
		"base is backing": {Device: "top", BaseNode: ptr("mid")},
		"bottom is top":   {Device: "top", Bottom: ptr("top")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			chain(w)
			w.startStream(a)
			w.expectEvents("s null", "s created, s running, s waiting, s pending, s COMPLETED stream 0/0, s concluded, s null")
			if w.backingOf("top") != "mid" || w.filters() != 0 {
				t.Errorf("top's backing %s, %d filters", w.backingOf("top"), w.filters())
			}
		})
	}
}

// TestStreamWhoseBaseIsReplacedWhileItCopies: the base is not the job's, and
// another change may put a new one in its place meanwhile (seed: "Drain
// subtree around graph change"). Whichever of the two ends first, the header
// names the node that is there.
func TestStreamWhoseBaseIsReplacedWhileItCopies(t *testing.T) {
	w := newWorld(t)
	_, mid, top := chain(w)
	w.add(newDisk("deep", 4).fill(0, 4, 'a'), "")
	slow := newHold()
	mid.onRead = slow.wait
	w.startStream(qapi.BlockStreamArg{Device: "top", BaseNode: ptr("base")})
	<-slow.entered
	swapped := make(chan error, 1)
	go func() { swapped <- w.try(w.replaceBase) }()
	close(slow.released)
	if err := <-swapped; err != nil {
		t.Fatal(err)
	}
	w.await("s null")
	if backing := w.backingOf("top"); top.header() != "/"+backing+":qcow2" || backing != "deep" && backing != "base" {
		t.Errorf("top's backing %s, header %s", backing, top.header())
	}
}

// replaceBase puts deep below mid, and gives base up.
func (w *world) replaceBase(tx *blockgraph.Tx) error {
	tx.SetMonitorOwned(tx.Find("base"), false)
	return tx.SetChild(tx.Find("mid"), "backing", blockgraph.RoleCOW, tx.Find("deep"))
}

// TestStreamTakesTheBaseThatReplacedItsOwn: the same without a race, since the
// job waits for its finalize.
func TestStreamTakesTheBaseThatReplacedItsOwn(t *testing.T) {
	w := newWorld(t)
	_, _, top := chain(w)
	w.add(newDisk("deep", 4).fill(0, 4, 'a'), "")
	w.startStream(qapi.BlockStreamArg{Device: "top", BaseNode: ptr("base"), AutoFinalize: ptr(false)})
	w.await("s PENDING")
	w.update(w.replaceBase)
	if w.names() != "deep mid top" {
		t.Fatalf("nodes %s", w.names())
	}
	w.verb("s", (*jobs.Job).Finalize)
	w.await("s null")
	if w.backingOf("top") != "deep" || top.header() != "/deep:qcow2" {
		t.Errorf("top's backing %s, header %s", w.backingOf("top"), top.header())
	}
}

func TestStreamMakesAReadOnlyImageWritableMeanwhile(t *testing.T) {
	w := newWorld(t)
	_, mid, _ := chain(w)
	var node *blockgraph.Node
	w.update(func(tx *blockgraph.Tx) error {
		node = tx.Find("mid")
		return tx.SetReadOnly(node, true)
	})
	w.startStream(qapi.BlockStreamArg{Device: "mid", AutoFinalize: ptr(false)})
	w.await("s PENDING")
	if node.ReadOnly() || mid.clusters() != "abba" {
		t.Errorf("read-only %v, mid %s", node.ReadOnly(), mid.clusters())
	}
	w.verb("s", (*jobs.Job).Finalize)
	w.await("s null")
	if !node.ReadOnly() || mid.header() != ":" {
		t.Errorf("read-only %v, header %s", node.ReadOnly(), mid.header())
	}
}

// TestStreamFreezesItsChain: what the job relies on cannot be taken apart.
func TestStreamFreezesItsChain(t *testing.T) {
	w := newWorld(t)
	chain(w)
	w.startStream(qapi.BlockStreamArg{Device: "top", BaseNode: ptr("base"), AutoFinalize: ptr(false)})
	w.await("s PENDING")
	cut := func() error {
		return w.try(func(tx *blockgraph.Tx) error {
			return tx.SetChild(tx.Find("top"), "backing", blockgraph.RoleCOW, nil)
		})
	}
	if err := cut(); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("the chain was cut: %v", err)
	}
	w.verb("s", func(j *jobs.Job) error { return j.Cancel(true) })
	w.await("s null")
	if w.backingOf("top") != "mid" || w.filters() != 0 {
		t.Errorf("after the cancel: backing %s, %d filters", w.backingOf("top"), w.filters())
	}
	if err := cut(); err != nil {
		t.Error(err)
	}
}

// TestStreamFreezesWhatIsAboveItsBase: filters between the lowest streamed image
// and the base stay, too, but the link from the last one to the base is free.
func TestStreamFreezesWhatIsAboveItsBase(t *testing.T) {
	w := newWorld(t)
	w.add(newDisk("base", 4).fill(0, 4, 'a'), "")
	w.add(newDisk("other", 4), "")
	w.update(func(tx *blockgraph.Tx) error {
		n, err := tx.Open(&qapi.BlockdevOptions{
			Driver: "pass", NodeName: ptr("pass"), Raw: &qapi.BlockdevOptionsRaw{File: qapi.BlockdevRef{Reference: ptr("base")}},
		})
		if err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	w.add(newDisk("mid", 4).fill(1, 3, 'b'), "pass")
	w.add(newDisk("top", 4).fill(3, 4, 'c'), "mid")
	w.startStream(qapi.BlockStreamArg{Device: "top", BaseNode: ptr("base"), AutoFinalize: ptr(false)})
	w.await("s PENDING")
	replace := func(parent, link string, role blockgraph.Role) error {
		return w.try(func(tx *blockgraph.Tx) error {
			return tx.SetChild(tx.Find(parent), link, role, tx.Find("other"))
		})
	}
	want := "Cannot change frozen 'backing' link from 'mid' to 'pass'"
	if err := replace("mid", "backing", blockgraph.RoleCOW); err == nil || err.Error() != want {
		t.Errorf("the filter above the base was taken out: %v", err)
	}
	if err := replace("pass", "file", blockgraph.RoleFiltered|blockgraph.RolePrimary); err != nil {
		t.Errorf("the base is not free: %v", err)
	}
	w.verb("s", (*jobs.Job).Finalize)
	w.await("s null")
	if w.backingOf("top") != "other" {
		t.Errorf("top's backing %s", w.backingOf("top"))
	}
}

func TestStreamNeverOverwritesAGuest(t *testing.T) {
	w := newWorld(t)
	_, mid, top := chain(w)
	g := w.guest(w.nodes()[0])
	slow := newHold()
	mid.onRead = slow.wait
	w.startStream(qapi.BlockStreamArg{Device: "top"})
	<-slow.entered // reads cluster 1 or 2 of mid, to populate top with it
	for c := range 4 {
		if err := g.write(c, 'g'); err != nil {
			t.Fatal(err)
		}
	}
	close(slow.released)
	w.await("s null")
	if g.sees() != "gggg" || top.clusters() != "gggg" {
		t.Errorf("guest sees %s, top is %s", g.sees(), top.clusters())
	}
}

func TestStreamWhoseHeaderCannotBeWrittenChangesNothing(t *testing.T) {
	w := newWorld(t)
	_, _, top := chain(w)
	top.Image().RefuseHeader(syscall.EIO)
	w.startStream(qapi.BlockStreamArg{Device: "top", BaseNode: ptr("base")})
	w.expectEvents("s null", "s created, s running, s waiting, s pending, s aborting, s COMPLETED stream 4/4: Input/output error, s concluded, s null")
	if w.backingOf("top") != "mid" || top.header() != "/mid:qcow2" || w.filters() != 0 {
		t.Errorf("backing %s, header %s, %d filters", w.backingOf("top"), top.header(), w.filters())
	}
}

func TestStreamErrorPolicies(t *testing.T) {
	for policy, c := range map[qapi.BlockdevOnError]struct{ events, backing string }{
		"report": {"s created, s running, s ERROR read report, s aborting, s COMPLETED stream 0/4: Input/output error, s concluded, s null", "mid"},
		"ignore": {"s created, s running, s ERROR read ignore, s aborting, s COMPLETED stream 4/4: Input/output error, s concluded, s null", "mid"},
	} {
		t.Run(string(policy), func(t *testing.T) {
			w := newWorld(t)
			base, _, _ := chain(w)
			base.onRead = failing(1, syscall.EIO)
			w.startStream(qapi.BlockStreamArg{Device: "top", OnError: &policy})
			if got := w.await("s null"); !sameButProgress(got, c.events) {
				t.Errorf("events\n got %s\nwant %s", got, c.events)
			}
			if w.backingOf("top") != c.backing || w.filters() != 0 {
				t.Errorf("backing %s, %d filters", w.backingOf("top"), w.filters())
			}
		})
	}
	t.Run("stop", func(t *testing.T) {
		w := newWorld(t)
		base, _, top := chain(w)
		base.onRead = failing(1, syscall.EIO)
		w.startStream(qapi.BlockStreamArg{Device: "top", OnError: ptr(qapi.BlockdevOnErrorStop)})
		w.expectEvents("s paused", "s created, s running, s ERROR read stop, s paused")
		if i := w.info("s"); i.IOStatus != qapi.BlockDeviceIoStatusFailed || i.Busy {
			t.Errorf("%+v", i)
		}
		w.verb("s", (*jobs.Job).Resume)
		w.expectEvents("s null", "s running, s waiting, s pending, s COMPLETED stream 4/4, s concluded, s null")
		if top.clusters() != "abbc" {
			t.Errorf("top %s", top.clusters())
		}
	})
}

// sameButProgress compares events up to how far the job had come.
func sameButProgress(a, b string) bool {
	strip := func(s string) string {
		i, j := strings.Index(s, "stream "), strings.Index(s, "/4")
		if i < 0 || j < i {
			return s
		}
		return s[:i] + s[j:]
	}
	return strip(a) == strip(b)
}

func TestStreamRefusals(t *testing.T) {
	w := newWorld(t)
	chain(w)
	w.add(newDisk("tgt", 4), "")
	before := len(w.nodes())
	for _, c := range []struct {
		a      qapi.BlockStreamArg
		want   string
		events string
	}{
		{qapi.BlockStreamArg{Base: ptr("x"), BaseNode: ptr("base")}, "'base' and 'base-node' cannot be specified at the same time", ""},
		{qapi.BlockStreamArg{Base: ptr("x"), Bottom: ptr("base")}, "'base' and 'bottom' cannot be specified at the same time", ""},
		{qapi.BlockStreamArg{BaseNode: ptr("x"), Bottom: ptr("base")}, "'bottom' and 'base-node' cannot be specified at the same time", ""},
		{qapi.BlockStreamArg{BaseNode: ptr("tgt")}, "Node 'tgt' is not a backing image of 'top'", ""},
		{qapi.BlockStreamArg{BaseNode: ptr("top")}, "Node 'top' is not a backing image of 'top'", ""},
		{qapi.BlockStreamArg{BaseNode: ptr("zz")}, "Cannot find device='' nor node-name='zz'", ""},
		{qapi.BlockStreamArg{Base: ptr("zz")}, "Can't find 'zz' in the backing chain", ""},
		{qapi.BlockStreamArg{Bottom: ptr("tgt")}, "Node 'tgt' is not in a chain starting from 'top'", ""},
		{qapi.BlockStreamArg{BackingFile: ptr("t")}, "backing file specified, but streaming the entire chain", ""},
		{qapi.BlockStreamArg{Bottom: ptr("mid"), BackingFile: ptr("t")}, "backing file specified, but streaming the entire chain", ""},
		{qapi.BlockStreamArg{Speed: ptr(int64(-1))}, "Parameter 'speed' expects a non-negative value", "s created, s null"},
		{qapi.BlockStreamArg{JobID: ptr("1 bad")}, "Invalid job ID '1 bad'", ""},
		{qapi.BlockStreamArg{FilterNodeName: ptr("1x")}, "Could not create node: Invalid node-name: '1x'", ""},
		{qapi.BlockStreamArg{FilterNodeName: ptr("mid")}, "Could not create node: Duplicate nodes with node-name='mid'", ""},
	} {
		c.a.Device = "top"
		if err := w.stream(c.a); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if got := strings.Join(w.events, ", "); got != c.events {
			t.Errorf("%s: events %s", c.want, got)
		}
		w.events = nil
		if len(w.nodes()) != before {
			t.Fatalf("%s: nodes %s", c.want, w.names())
		}
	}
	w.startStream(qapi.BlockStreamArg{Device: "top", BaseNode: ptr("base"), AutoFinalize: ptr(false)})
	for _, c := range []struct{ device, want string }{
		{"top", "Node 'top' is busy: block device is in use by block job: stream"},
		{"mid", "Node 'mid' is busy: block device is in use by block job: stream"},
	} {
		if err := w.stream(qapi.BlockStreamArg{Device: c.device, JobID: ptr("s2")}); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	w.add(newDisk("bt", 4), "")
	err := w.try(func(tx *blockgraph.Tx) error {
		return w.backup(tx, nil, "top", "bt", qapi.BackupCommon{JobID: ptr("b")})
	})
	if err == nil || err.Error() != "Node 'top' is busy: block device is in use by block job: stream" {
		t.Errorf("backup of a streamed node: %v", err)
	}
}

// TestStreamOfAFilterDownToItsImage is refused: there is nothing to copy into.
func TestStreamOfAFilterDownToItsImage(t *testing.T) {
	w := newWorld(t)
	chain(w)
	w.update(func(tx *blockgraph.Tx) error {
		n, err := tx.Open(&qapi.BlockdevOptions{Driver: "copy-on-read", NodeName: ptr("cor"), CopyOnRead: &qapi.BlockdevOptionsCor{File: qapi.BlockdevRef{Reference: ptr("top")}}})
		if err == nil {
			tx.SetMonitorOwned(n, true)
		}
		return err
	})
	err := w.stream(qapi.BlockStreamArg{Device: "cor", BaseNode: ptr("top")})
	if err == nil || err.Error() != "'top' is not in the backing chain of 'cor'" {
		t.Errorf("%v", err)
	}
}
