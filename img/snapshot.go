package img

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/qapi"
	"blockd/qmpclient"
)

func snapshotCommand(t *tool) *cobra.Command {
	var o source
	var list bool
	var create, apply, remove string
	var cmd *cobra.Command
	cmd = t.command("snapshot FILE", "List, make, delete and go back to snapshots within an image", oneImage, func(s *session, args []string) error {
		given := 0
		for _, name := range []string{"list", "create", "apply", "delete"} {
			if cmd.Flags().Changed(name) {
				given++
			}
		}
		if given > 1 {
			return errors.New("Cannot mix '-l', '-a', '-c', '-d'")
		}
		o.name = args[0]
		change := create != "" || apply != "" || remove != ""
		n, err := s.openImage(o, mode{writable: change, noBacking: true})
		if err != nil {
			return err
		}
		switch {
		case create != "":
			return named(s.createSnapshot(n, create), "Could not create snapshot '%s': %w", create)
		case apply != "":
			id, err := s.findSnapshot(n, apply, "id", "name")
			if _, ok := n.Driver().(blockgraph.InternalSnapshotter); !ok && id == "" && err == nil {
				err = errors.New("Block driver does not support snapshots")
			}
			if id == "" && err == nil {
				err = errors.New("Failed to load snapshot: No such file or directory")
			}
			if err == nil {
				_, err = s.execute("x-blockdev-snapshot-revert", qapi.NewObject("device", n.Name(), "id", id))
			}
			return named(err, "Could not apply snapshot '%s': %w", apply)
		case remove != "":
			// Unlike to go back to one, its name has to be given.
			id, err := s.findSnapshot(n, remove, "name")
			if id == "" && err == nil {
				err = errors.New("snapshot not found")
			}
			if err == nil {
				_, err = s.execute("blockdev-snapshot-delete-internal-sync", qapi.NewObject("device", n.Name(), "id", id))
			}
			return named(err, "Could not delete snapshot '%s': %w", remove)
		}
		info, err := s.infoOf(n)
		if err != nil {
			return err
		}
		if found := qmpclient.Objects(info, "snapshots"); len(found) > 0 {
			_, err = fmt.Fprint(s.env.Out, "Snapshot list:\n"+snapshotTable(found))
		}
		return err
	})
	o.register(cmd)
	o.registerShare(cmd)
	f := cmd.Flags()
	f.BoolVarP(&list, "list", "l", false, "list them (the default)")
	f.StringVarP(&create, "create", "c", "", "make one of that name")
	f.StringVarP(&apply, "apply", "a", "", "go back to that one")
	f.StringVarP(&remove, "delete", "d", "", "delete that one")
	return cmd
}

// named puts an error into a sentence with a name, nil stays nil.
func named(err error, format, name string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format, name, err)
}

// snapshotName says which snapshot is meant. exact: it was said which of the two
// words are given.
type snapshotName struct {
	id, name *string
	exact    bool
}

// parseSnapshot reads an id or name, or options that begin with `snapshot.`.
func parseSnapshot(text string) (snapshotName, error) {
	if !strings.HasPrefix(text, "snapshot.") {
		return snapshotName{id: &text, name: &text}, nil
	}
	ask := snapshotName{exact: true}
	o, err := qapi.ParseKeyval(text, "")
	if err != nil {
		return ask, fmt.Errorf("Failed in parsing snapshot param '%s'", text)
	}
	for key, v := range o.Flatten().All() {
		word, _ := v.(string)
		switch key {
		case "snapshot.id":
			ask.id = &word
		case "snapshot.name":
			ask.name = &word
		default:
			return ask, errors.Join(fmt.Errorf("Invalid parameter '%s'", key), fmt.Errorf("Failed in parsing snapshot param '%s'", text))
		}
	}
	return ask, nil
}

// loadSnapshot has a node, which was opened read-only, show what an internal
// snapshot holds.
func (s *session) loadSnapshot(n *blockgraph.Node, ask snapshotName) error {
	shower, ok := n.Driver().(blockgraph.SnapshotShower)
	if !ok {
		return fmt.Errorf("Block format '%s' used by device '' does not support temporarily loading internal snapshots", n.Type().Name)
	}
	return s.d.Graph.Update(s.ctx, cause, func(tx *blockgraph.Tx) error {
		if err := tx.Drain(n); err != nil {
			return err
		}
		if ask.exact {
			return shower.ShowSnapshot(s.ctx, ask.id, ask.name)
		}
		err := shower.ShowSnapshot(s.ctx, ask.id, nil)
		if errors.Is(err, syscall.ENOENT) {
			err = shower.ShowSnapshot(s.ctx, nil, ask.name)
		}
		return err
	})
}

// findSnapshot returns the id of the snapshot that a word means, which is looked for
// among all ids or names first that are listed first. It is "" if there is none.
func (s *session) findSnapshot(n *blockgraph.Node, word string, members ...string) (string, error) {
	info, err := s.infoOf(n)
	if err != nil {
		return "", err
	}
	for _, key := range members {
		for _, snapshot := range qmpclient.Objects(info, "snapshots") {
			if qmpclient.String(snapshot, key) == word {
				return qmpclient.String(snapshot, "id"), nil
			}
		}
	}
	return "", nil
}

// createSnapshot makes an internal snapshot. Its error is qemu-img's where that tells
// only the errno.
func (s *session) createSnapshot(n *blockgraph.Node, name string) error {
	return s.d.Graph.Update(s.ctx, cause, func(tx *blockgraph.Tx) error {
		below, list := tx.SnapshotNode(n)
		var err error
		switch {
		case below == nil:
			err = syscall.ENOTSUP
		case name == "":
			return errors.New("Name is empty")
		case slices.ContainsFunc(list.InternalSnapshots(), func(i qapi.SnapshotInfo) bool { return i.Name == name }):
			return fmt.Errorf("Snapshot with name '%s' already exists", name)
		default:
			err = tx.CreateSnapshot(below, name, s.env.Clock.Now())
		}
		if err != nil {
			return fmt.Errorf("%d (%s)", -int(blockgraph.Errno(err)), blockgraph.Strerror(err))
		}
		return nil
	})
}
