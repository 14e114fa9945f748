package img

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"blockd/blockgraph"
	"blockd/cli"
	"blockd/qapi"
	"blockd/qmpclient"
)

// Exit codes of check.
const (
	exitIncomplete  = 1
	exitCorrupt     = 2
	exitLeaks       = 3
	exitUnsupported = 63
)

func checkCommand(t *tool) *cobra.Command {
	var o source
	var out output
	var repair string
	cmd := t.command("check FILE", "Look for damage in an image, and repair it", oneImage, func(s *session, args []string) error {
		json, err := out.json()
		if err != nil {
			return err
		}
		fix := repair
		switch repair {
		case "":
			fix = "none"
		case "leaks", "all":
		default:
			return fmt.Errorf("Unknown option value for -r (expecting 'leaks' or 'all'): %s", repair)
		}
		o.name = args[0]
		n, err := s.openImage(o, mode{writable: fix != "none", noBacking: true, repair: fix != "none"})
		if err != nil {
			return err
		}
		result, err := s.check(n, fix)
		if err != nil {
			return err
		}
		result.Set("filename", o.name)
		messages, _ := result.Get("x-messages")
		result.Delete("x-messages")
		list, _ := messages.([]any)
		for _, m := range list {
			fmt.Fprintln(s.env.Err, m)
		}
		if !json {
			err = s.sayCheck(result)
		} else if !s.quiet {
			err = s.printJSON(result)
		}
		if err != nil {
			return err
		}
		return checkExit(result)
	})
	o.register(cmd)
	o.registerShare(cmd)
	out.register(cmd)
	cmd.Flags().StringVarP(&repair, "repair", "r", "", "what to repair: leaks, all")
	cmd.Flags().StringVarP(&o.readCache, "cache", "T", "", "cache mode")
	return cmd
}

// notCheckable is how the daemon refuses formats that have nothing to check.
const notCheckable = "This image format does not support checks"

// check runs the job, and a second one over what the first has repaired.
func (s *session) check(n *blockgraph.Node, fix string) (*qapi.Object, error) {
	run := func(fix string) (*qapi.Object, error) {
		job, err := s.jobResult("x-blockdev-check", qapi.NewObject("node-name", n.Name(), "fix", fix), false)
		if err != nil && err.Error() == notCheckable {
			return nil, &cli.Exit{Code: exitUnsupported, Err: err}
		}
		return qmpclient.Member(job, "x-check"), err
	}
	result, err := run(fix)
	if err != nil || qmpclient.Int(result, "leaks-fixed")+qmpclient.Int(result, "corruptions-fixed") == 0 {
		return result, err
	}
	again, err := run("none")
	if err != nil {
		return nil, err
	}
	for _, fixed := range []string{"leaks-fixed", "corruptions-fixed"} {
		if v, ok := result.Get(fixed); ok {
			again.Set(fixed, v)
		}
	}
	found, _ := result.Get("x-messages")
	again.Set("x-messages", found)
	return again, nil
}

// sayCheck tells a person the result.
func (s *session) sayCheck(r *qapi.Object) error {
	var b strings.Builder
	leaksFixed, corruptionsFixed := qmpclient.Int(r, "leaks-fixed"), qmpclient.Int(r, "corruptions-fixed")
	if leaksFixed+corruptionsFixed > 0 {
		fmt.Fprintf(&b, "The following inconsistencies were found and repaired:\n\n    %d leaked clusters\n    %d corruptions\n\nDouble checking the fixed image now...\n", leaksFixed, corruptionsFixed)
	}
	corruptions, leaks, failed := qmpclient.Int(r, "corruptions"), qmpclient.Int(r, "leaks"), qmpclient.Int(r, "check-errors")
	if corruptions+leaks+failed == 0 {
		b.WriteString("No errors were found on the image.\n")
	}
	if corruptions > 0 {
		fmt.Fprintf(&b, "\n%d errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n", corruptions)
	}
	if leaks > 0 {
		fmt.Fprintf(&b, "\n%d leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n", leaks)
	}
	if failed > 0 {
		fmt.Fprintf(&b, "\n%d internal errors have occurred during the check.\n", failed)
	}
	total, allocated := qmpclient.Int(r, "total-clusters"), qmpclient.Int(r, "allocated-clusters")
	if total > 0 && allocated > 0 {
		fmt.Fprintf(&b, "%d/%d = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n", allocated, total,
			100*float64(allocated)/float64(total), 100*float64(qmpclient.Int(r, "fragmented-clusters"))/float64(allocated),
			100*float64(qmpclient.Int(r, "compressed-clusters"))/float64(allocated))
	}
	if end := qmpclient.Int(r, "image-end-offset"); end > 0 {
		fmt.Fprintf(&b, "Image end offset: %d\n", end)
	}
	return s.say("%s", strings.TrimSuffix(b.String(), "\n"))
}

// checkExit is the exit code for what is still wrong.
func checkExit(r *qapi.Object) error {
	switch {
	case qmpclient.Int(r, "corruptions") > 0:
		return &cli.Exit{Code: exitCorrupt}
	case qmpclient.Int(r, "leaks") > 0:
		return &cli.Exit{Code: exitLeaks}
	case qmpclient.Int(r, "check-errors") > 0:
		return &cli.Exit{Code: exitIncomplete}
	}
	return nil
}
