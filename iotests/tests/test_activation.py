"""Sockets that a service manager has opened (sd_listen_fds(3)), by number and by name."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Sequence

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import environment, program
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only

# The shell becomes the daemon, so that the daemon's process is the one that LISTEN_PID names.
START = 'LISTEN_PID=$$ LISTEN_FDS="$1" LISTEN_FDNAMES="$2"; export LISTEN_PID LISTEN_FDS LISTEN_FDNAMES; shift 2; exec "$@"'


class Activation(QMPTestCase):
    """A daemon that is started as a service manager would."""

    def listener(self, name: str) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(listening.close)
        listening.bind(self.path(name))
        listening.listen(5)
        return listening

    def start(self, listeners: Sequence[socket.socket], names: str, *arguments: str, count: int | None = None) -> int:
        """Descriptors from 3 on are the listeners; returns the process."""
        number = str(len(listeners) if count is None else count)
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 2, self.path("stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        ]
        # First out of the way of the numbers that are wanted.
        high = [os.dup2(listening.fileno(), 50 + i) for i, listening in enumerate(listeners)]
        actions += [(os.POSIX_SPAWN_DUP2, descriptor, 3 + i) for i, descriptor in enumerate(high)]
        actions += [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in high]
        if not listeners:  # whatever this process has there
            actions += [(os.POSIX_SPAWN_OPEN, 3, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_CLOSE, 3)]
        try:
            process = os.posix_spawn(
                "/bin/sh", ["sh", "-c", START, "sh", number, names, program(), *arguments], environment(), file_actions=actions
            )
        finally:
            for descriptor in high:
                os.close(descriptor)
        return process

    def complaint(self, process: int) -> tuple[int, str]:
        """The exit status and what was said on standard error."""
        impatience = threading.Timer(60, os.kill, (process, signal.SIGKILL))
        impatience.start()
        _, status = os.waitpid(process, 0)
        impatience.cancel()
        with open(self.path("stderr"), encoding="utf-8") as said:
            return os.waitstatus_to_exitcode(status), said.read()

    def end(self, process: int) -> None:
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)

    def greeting(self, name: str) -> str:
        """The first line that the monitor at a socket says."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(60)
            client.connect(self.path(name))
            return client.makefile("r").readline()

    def serve(self, names: str, qmp: str, nbd: str) -> None:
        disk = self.create_image("disk.raw", MiB, images.RAW)
        self.fill(disk, b"q" * 512, "raw")
        process = self.start(
            [self.listener("qmp"), self.listener("nbd")],
            names,
            "--chardev",
            f"socket,id=m,fd={qmp},server=on,wait=off",
            "--monitor",
            "chardev=m",
            "--blockdev",
            f"driver=raw,node-name=d,file.driver=file,file.filename={disk}",
            "--nbd-server",
            f"addr.type=fd,addr.str={nbd}",
            "--export",
            "type=nbd,id=e,node-name=d,name=d,writable=on",
        )
        self.addCleanup(self.end, process)
        self.assertIn("QMP", self.greeting("qmp"))
        uri = f"nbd+unix:///d?socket={self.path('nbd')}"
        images.qemu_io(uri, "read -q -P 0x71 0 512", driver="raw")
        images.qemu_io(uri, "read -q -P 0x71 0 512", driver="raw")

    def test_by_number(self) -> None:
        self.serve("", "3", "4")

    @blockd_only("the field's daemon takes numbers only")
    def test_by_name(self) -> None:
        self.serve("monitor:disks", "monitor", "disks")

    @blockd_only("the field's daemon does not look at the environment")
    def test_descriptor_that_is_not_there(self) -> None:
        process = self.start([], "disks", "--nbd-server", "addr.type=fd,addr.str=disks", count=1)
        status, said = self.complaint(process)
        # The daemon may have a file of its own there by the time it looks.
        self.assertRegex(said, "invalid file descriptor fd = 3: Bad file descriptor|File descriptor 'disks' is not a socket")
        self.assertEqual(status, 1)

    @blockd_only("the field's daemon takes numbers only")
    def test_name_that_nobody_gave(self) -> None:
        process = self.start([self.listener("qmp")], "monitor", "--nbd-server", "addr.type=fd,addr.str=disks")
        status, said = self.complaint(process)
        self.assertIn("Unable to parse FD number disks", said)
        self.assertEqual(status, 1)
