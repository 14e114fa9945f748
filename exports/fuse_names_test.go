package exports

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"blockd/blockgraph"
	"blockd/qapi"
)

// over is the options of an export over that file.
func over(id, name string) *qapi.BlockExportOptions {
	return &qapi.BlockExportOptions{Type: qapi.BlockExportTypeFuse, ID: id, NodeName: "n", Fuse: &qapi.BlockExportOptionsFuse{Mountpoint: name}}
}

// TestFileByAnotherOfItsNames is the same file, in the same change, too, where
// nobody answers for it yet.
func TestFileByAnotherOfItsNames(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	name, ok := w.mounted("e", qapi.BlockExportOptions{})
	if !ok {
		return
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	refusal := "There already is a FUSE export on '" + link + "'"
	w.refused(refusal, w.Add(t.Context(), over("f", link)))
	if err := w.Del(t.Context(), "e", nil); err != nil {
		t.Fatal(err)
	}
	err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		if err := w.AddIn(tx, over("e", name)); err != nil {
			return err
		}
		return w.AddIn(tx, over("f", link))
	})
	w.refused(refusal, err)
	checkBelow(t, name)
	w.mustAdd(over("f", link))
}

// TestOpeningAFileWithinTheChangeThatShowsIt fails, since the change would wait
// for itself.
func TestOpeningAFileWithinTheChangeThatShowsIt(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	name, ok := w.mountpoint()
	if !ok {
		return
	}
	err := w.Graph.Update(t.Context(), blockgraph.Cause{}, func(tx *blockgraph.Tx) error {
		if err := w.AddIn(tx, over("e", name)); err != nil {
			return err
		}
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	})
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("opened: %v", err)
	}
	checkBelow(t, name)
}

// TestEndOfAFileInAFolderThatWasRenamed shows what is below under the new name.
func TestEndOfAFileInAFolderThatWasRenamed(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	name, ok := w.mounted("e", qapi.BlockExportOptions{})
	if !ok {
		return
	}
	folder := filepath.Dir(name)
	renamed := filepath.Join(filepath.Dir(folder), `an other\one`)
	if err := os.Rename(folder, renamed); err != nil {
		t.Fatal(err)
	}
	if err := w.Del(t.Context(), "e", nil); err != nil {
		t.Fatal(err)
	}
	checkBelow(t, filepath.Join(renamed, filepath.Base(name)))
}

// TestEndOfAFileThatIsCovered leaves what covers it, and the file without a disk.
func TestEndOfAFileThatIsCovered(t *testing.T) {
	silent(t)
	w := newWorld(t)
	w.node("n", false)
	name, ok := w.mounted("e", qapi.BlockExportOptions{})
	if !ok {
		return
	}
	cover := filepath.Join(t.TempDir(), "cover")
	if err := os.WriteFile(cover, []byte("cover"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(cover, name, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := w.Del(t.Context(), "e", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "cover" {
		t.Errorf("the file has %.20q, %v", got, err)
	}
	if got := w.ids(); len(got) != 0 {
		t.Errorf("left %q", got)
	}
	if err := unix.Unmount(name, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	fd := open(t, name)
	if _, err := unix.Pread(fd, make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
	_ = unix.Close(fd)
	if err := unix.Unmount(name, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	checkBelow(t, name)
}

func TestFileOfAnInactiveNode(t *testing.T) {
	w := newWorld(t)
	w.node("n", false)
	o := over("e", filepath.Join(t.TempDir(), "none"))
	o.AllowInactive = ptr(true)
	w.refused("Export type does not support inactive exports", w.Add(t.Context(), o))
}
