package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"blockd/qapi"
	"blockd/qmpclient"
)

// jobFlags are those of all commands that run a job.
type jobFlags struct {
	id    string
	speed int64
	quiet bool
}

func (f *jobFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.id, "job-id", "", "the job's id (default: a new one)")
	cmd.Flags().Int64Var(&f.speed, "speed", 0, "bytes per second, 0 for no limit")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
}

const jobHelp = `
Waits for the job with a progress bar. The exit code is 0 when it succeeded, 2
when it failed, and 3 when it was cancelled. An interrupt cancels it.`

func backupCommand(env *Environment) *cobra.Command {
	var f jobFlags
	var sync, bitmap, format string
	var compress bool
	cmd := command(env, "backup SOCKET NODE TARGET", "Back up a node, and wait", `
Copies the node as it is at this moment to a new image file, which the daemon
creates, while guests go on writing; or to the node TARGET, if there is one of
that name.`+"\n"+jobHelp,
		cobra.ExactArgs(3), func(ctx context.Context, c *qmpclient.Client, args []string) error {
			o := qapi.NewObject("device", args[0], "sync", sync)
			if bitmap != "" {
				o.Set("bitmap", bitmap)
				if sync == "bitmap" {
					o.Set("bitmap-mode", "on-success")
				}
			}
			if compress {
				o.Set("compress", true)
			}
			name, err := intoNodeOrFile(ctx, c, o, "blockdev-backup", "drive-backup", args[1], format)
			if err != nil {
				return err
			}
			return env.runJob(ctx, c, name, o, &f)
		})
	f.register(cmd)
	cmd.Flags().StringVar(&sync, "sync", "full", "what to copy: full, top, none, incremental, bitmap")
	cmd.Flags().StringVar(&bitmap, "bitmap", "", "the dirty bitmap that says what to copy")
	cmd.Flags().StringVar(&format, "format", "", "format of a new image (default: the node's)")
	cmd.Flags().BoolVarP(&compress, "compress", "c", false, "compress, where the target's format can")
	return cmd
}

func mirrorCommand(env *Environment) *cobra.Command {
	var f jobFlags
	var sync, format string
	cmd := command(env, "mirror SOCKET NODE TARGET", "Move a node to another image, and wait", `
Copies the node to a new image file, or to the node TARGET, while guests go on
writing, and puts it in the node's place when it is the same.`+"\n"+jobHelp,
		cobra.ExactArgs(3), func(ctx context.Context, c *qmpclient.Client, args []string) error {
			o := qapi.NewObject("device", args[0], "sync", sync)
			name, err := intoNodeOrFile(ctx, c, o, "blockdev-mirror", "drive-mirror", args[1], format)
			if err != nil {
				return err
			}
			return env.runJob(ctx, c, name, o, &f)
		})
	f.register(cmd)
	cmd.Flags().StringVar(&sync, "sync", "full", "what to copy: full, top")
	cmd.Flags().StringVar(&format, "format", "", "format of a new image (default: the node's)")
	return cmd
}

func streamCommand(env *Environment) *cobra.Command {
	var f jobFlags
	var base string
	cmd := command(env, "stream SOCKET NODE", "Take the backing chain into a node, and wait", `
Copies what the node reads from its backing files into the node, and then does
without them, or with BASE as its backing file.`+"\n"+jobHelp,
		cobra.ExactArgs(2), func(ctx context.Context, c *qmpclient.Client, args []string) error {
			o := qapi.NewObject("device", args[0])
			if base != "" {
				o.Set("base-node", base)
			}
			return env.runJob(ctx, c, "block-stream", o, &f)
		})
	f.register(cmd)
	cmd.Flags().StringVar(&base, "base", "", "the node of the chain that stays")
	return cmd
}

func commitCommand(env *Environment) *cobra.Command {
	var f jobFlags
	var top, base string
	cmd := command(env, "commit SOCKET NODE", "Write images of a chain into one below, and wait", `
Writes what lies in the images from TOP down to BASE into BASE, and takes them
out of the chain.`+"\n"+jobHelp,
		cobra.ExactArgs(2), func(ctx context.Context, c *qmpclient.Client, args []string) error {
			o := qapi.NewObject("device", args[0])
			if top != "" {
				o.Set("top-node", top)
			}
			if base != "" {
				o.Set("base-node", base)
			}
			return env.runJob(ctx, c, "block-commit", o, &f)
		})
	f.register(cmd)
	cmd.Flags().StringVar(&top, "top", "", "the uppermost node to write (default: NODE itself)")
	cmd.Flags().StringVar(&base, "base", "", "the node to write into (default: the last of the chain)")
	return cmd
}

// intoNodeOrFile sets the target of a command, and returns which of the two
// commands takes it: that for nodes, or that for files.
func intoNodeOrFile(ctx context.Context, c *qmpclient.Client, o *qapi.Object, forNode, forFile, target, format string) (string, error) {
	answer, err := c.Execute(ctx, "query-named-block-nodes", qapi.NewObject("flat", true))
	if err != nil {
		return "", err
	}
	for _, n := range qmpclient.ObjectsOf(answer) {
		if qmpclient.String(n, "node-name") == target {
			o.Set("target", target)
			return forNode, nil
		}
	}
	// The daemon may be in another folder than the user.
	path, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("%s exists already", target)
	}
	o.Set("target", path)
	if format != "" {
		o.Set("format", format)
	}
	return forFile, nil
}

// runJob starts a job and sees it through.
func (env *Environment) runJob(ctx context.Context, c *qmpclient.Client, name string, o *qapi.Object, f *jobFlags) error {
	id := f.id
	if id == "" {
		id = "blockd-" + uuid.NewString()[:8]
	}
	o.Set("job-id", id)
	if f.speed != 0 {
		o.Set("speed", f.speed)
	}
	// It stays until its result was read.
	o.Set("auto-dismiss", false)
	// An interrupt now must not leave behind a job that nobody waits for.
	if _, err := c.Execute(context.WithoutCancel(ctx), name, o); err != nil {
		return err
	}
	w := waiter{env: env, c: c, id: id, screen: canvas{env: env}, quiet: f.quiet || !env.Terminal}
	return w.wait(ctx)
}

// waiter waits for one job.
type waiter struct {
	env       *Environment
	c         *qmpclient.Client
	id        string
	quiet     bool
	screen    canvas
	rates     pace
	completed bool // it was asked to
	cancelled bool // by the user
}

// wait returns the job's result as an error, and dismisses it. When ctx ends
// the job is cancelled first.
func (w *waiter) wait(ctx context.Context) error {
	life := context.WithoutCancel(ctx)
	for {
		j, err := w.look(life)
		if err != nil {
			return err
		}
		switch j.status {
		case "concluded":
			return w.result(life, j)
		case "ready":
			if !w.completed && !w.cancelled {
				w.completed = true
				// It may have been cancelled by somebody else since.
				if _, err := w.c.Execute(life, "job-complete", qapi.NewObject("id", w.id)); err != nil && !refused(err) {
					return err
				}
			}
		}
		if ctx.Err() == nil {
			if w.env.Clock.Sleep(ctx, lookEvery/5) == nil {
				continue
			}
		}
		if !w.cancelled {
			w.cancelled = true
			if _, err := w.c.Execute(life, "job-cancel", qapi.NewObject("id", w.id)); err != nil && !refused(err) {
				return err
			}
		}
		if err := w.env.Clock.Sleep(life, lookEvery/5); err != nil {
			return err
		}
	}
}

// cancelledText is the error of a job that was cancelled.
const cancelledText = "Operation canceled"

// refused tells that the server has said no, and the connection goes on.
func refused(err error) bool {
	var e *qapi.Error
	return errors.As(err, &e)
}

// look asks for the job and shows it.
func (w *waiter) look(ctx context.Context) (jobView, error) {
	answer, err := w.c.Execute(ctx, "query-jobs", nil)
	if err != nil {
		return jobView{}, err
	}
	for _, j := range viewJobs(answer) {
		if j.id != w.id {
			continue
		}
		if w.quiet {
			return j, nil
		}
		one := []jobView{j}
		w.rates.measure(w.env.Clock.Now(), one)
		return j, w.screen.draw([]string{w.env.line(one[0], w.env.Width())})
	}
	return jobView{}, fmt.Errorf("job %s was dismissed by somebody else, its result is not known", w.id)
}

// result dismisses the job.
func (w *waiter) result(ctx context.Context, j jobView) error {
	if _, err := w.c.Execute(ctx, "job-dismiss", qapi.NewObject("id", w.id)); err != nil && !refused(err) {
		return err
	}
	switch {
	case j.problem == "":
		return nil // also if a cancel came too late
	case w.cancelled, j.problem == cancelledText:
		return &Exit{Code: ExitJobCancelled, Err: fmt.Errorf("job %s was cancelled", w.id)}
	}
	return &Exit{Code: ExitJobFailed, Err: fmt.Errorf("job %s failed: %s", w.id, j.problem)}
}
