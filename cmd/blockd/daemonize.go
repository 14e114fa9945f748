package main

import (
	"os"
	"strconv"
	"syscall"
)

// A Go process cannot fork, so --daemonize starts the program again in a
// session of its own, with every inherited descriptor at its number, and waits
// until the child says that it is ready. A child that fails has printed its
// error on the inherited stderr by then; the parent exits with its code.

// readyEnv names, in the child, the descriptor on which it says that it is
// ready.
const readyEnv = "BLOCKD_READY_FD"

// daemonizeParent starts the child and returns the exit code.
func daemonizeParent() int {
	exe, err := os.Executable()
	if err != nil {
		complain(err.Error())
		return 1
	}
	r, w, err := os.Pipe()
	if err != nil {
		complain(err.Error())
		return 1
	}
	files, number := inherited(w)
	env := append(os.Environ(), readyEnv+"="+strconv.Itoa(number))
	proc, err := os.StartProcess(exe, os.Args, &os.ProcAttr{Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
	w.Close()
	if err != nil {
		complain(err.Error())
		return 1
	}
	var ok [1]byte
	if n, _ := r.Read(ok[:]); n == 1 {
		return 0
	}
	state, err := proc.Wait()
	if err != nil {
		complain(err.Error())
		return 1
	}
	return max(1, state.ExitCode())
}

// inherited lists the descriptors that this process was started with, each at
// its number, and then ready's.
func inherited(ready *os.File) (files []*os.File, readyNumber int) {
	const maxInherited = 1024
	files = []*os.File{os.Stdin, os.Stdout, os.Stderr}
	for fd := 3; fd < maxInherited; fd++ {
		flags, _, e := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if e == 0 && flags&syscall.FD_CLOEXEC == 0 {
			for len(files) < fd {
				files = append(files, nil)
			}
			files = append(files, os.NewFile(uintptr(fd), "inherited"))
		}
	}
	return append(files, ready), len(files)
}

// daemonChild is the child's side; nil in any other process.
type daemonChild struct{ ready *os.File }

func daemonized() *daemonChild {
	n, err := strconv.Atoi(os.Getenv(readyEnv))
	if err != nil {
		return nil
	}
	os.Unsetenv(readyEnv)
	syscall.CloseOnExec(n)
	return &daemonChild{os.NewFile(uintptr(n), "ready")}
}

// tellReady lets the parent exit with success, and cuts the ties to its
// terminal and, with leave, to its directory. Safe on nil.
func (d *daemonChild) tellReady(leave bool) error {
	if d == nil {
		return nil
	}
	if leave {
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := syscall.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	_, err = d.ready.Write([]byte{0})
	d.ready.Close()
	return err
}
