//go:build ignore

// A client of github.com/digitalocean/go-qemu/qmp, for iotests/tests/test_real_clients.py: it makes a
// backup by way of that library, and prints what the library makes of the answers, a JSON value a line. It
// is built in GOPATH mode against the distribution's copy of the library, so that go.mod knows nothing of it.
//
// usage: goqemu SOCKET DISK TARGET
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func run(socket, disk, target string) error {
	out := json.NewEncoder(os.Stdout)
	mon, err := qmp.NewSocketMonitor("unix", socket, 10*time.Second)
	if err != nil {
		return err
	}
	if err := mon.Connect(); err != nil {
		return err
	}
	out.Encode(map[string]any{"version": mon.Version.String(), "capabilities": mon.Capabilities})
	// The library reads no reply while it has an event that nobody takes.
	events, err := mon.Events(context.Background())
	if err != nil {
		return err
	}
	gone, finished := make(chan struct{}), map[string]any{}
	go func() {
		defer close(gone)
		for e := range events {
			if e.Event == "BLOCK_JOB_COMPLETED" {
				finished = map[string]any{"event": e.Event, "device": e.Data["device"], "stamped": e.Timestamp.Seconds > 0}
			}
			if e.Event == "JOB_STATUS_CHANGE" && e.Data["status"] == "null" {
				return
			}
		}
	}()

	commands, err := raw.NewMonitor(mon).QueryCommands()
	if err != nil {
		return err
	}
	out.Encode(map[string]any{"commands": len(commands)})

	for name, file := range map[string]string{"disk": disk, "target": target} {
		file := map[string]any{"driver": "file", "filename": file}
		if _, err := send(mon, "blockdev-add", map[string]any{"driver": "qcow2", "node-name": name, "file": file}); err != nil {
			return err
		}
	}
	_, err = send(mon, "blockdev-del", map[string]any{"node-name": "nosuch"})
	out.Encode(map[string]any{"error": fmt.Sprint(err)})

	backup := map[string]any{"job-id": "j", "device": "disk", "target": "target", "sync": "full"}
	if _, err := send(mon, "blockdev-backup", backup); err != nil {
		return err
	}
	<-gone
	out.Encode(finished)
	jobs, err := raw.NewMonitor(mon).QueryBlockJobs()
	if err != nil {
		return err
	}
	out.Encode(map[string]any{"jobs": len(jobs)})
	return mon.Disconnect()
}

func send(mon *qmp.SocketMonitor, command string, arguments any) ([]byte, error) {
	b, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return nil, err
	}
	return mon.Run(b)
}
