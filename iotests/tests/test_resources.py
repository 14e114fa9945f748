"""What the daemon costs: memory at rest, time to the first reply, and nothing left of what has come and gone."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from pathlib import Path

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import ROOT, environment
from iotests.harness.deadline import Deadline
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPClient, QMPError

# What is promised of the daemon as it is shipped.
REST_KIB = 32 * KiB
FIRST_REPLY_SECONDS = 0.050

# Starts of which the fastest counts: another process may have the processor during one.
STARTS = 8

SHIPPED = ROOT / "bin/blockd"


def resident(pid: int) -> int:
    """The resident memory of a process in KiB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


@blockd_only("promises of blockd")
class Promises(QMPTestCase):
    """The program as it is shipped, without the race detector, is small and starts at once."""

    def setUp(self) -> None:
        super().setUp()
        if not SHIPPED.exists():
            self.skipTest("needs bin/blockd (make build)")

    def start(self) -> tuple[float, int]:
        """Run once: the seconds from exec to the first reply, and the resident KiB then."""
        ours, theirs = socket.socketpair()
        begun = time.monotonic()
        with theirs:
            process = subprocess.Popen(
                [
                    *(str(SHIPPED), "--blockdev", "null-co,node-name=n,size=1048576"),
                    *("--nbd-server", f"addr.type=unix,addr.path={self.nbd_socket}"),
                    *("--export", "type=nbd,id=e,node-name=n"),
                    *("--chardev", f"socket,id=m,fd={theirs.fileno()}", "--monitor", "chardev=m"),
                ],
                pass_fds=[theirs.fileno()],
                cwd=self.directory,
                env=environment(),
            )
        client = QMPClient(ours)
        with process:
            try:
                client.read_greeting()
                client.negotiate()
                seconds = time.monotonic() - begun
                client.cmd("query-named-block-nodes")
                size = resident(process.pid)
                client.cmd("quit")
            finally:
                client.close()
            self.assertEqual(process.wait(Deadline().remaining()), 0)
        return seconds, size

    def test_start_and_rest(self) -> None:
        runs = [self.start() for _ in range(STARTS)]
        self.assertLess(min(seconds for seconds, _ in runs), FIRST_REPLY_SECONDS, runs)
        self.assertLess(max(size for _, size in runs), REST_KIB, runs)


@blockd_only("the rival's memory is not ours to judge")
class Leaks(QMPTestCase):
    """A hundred times the same: descriptors, threads and memory come back to what they were."""

    TIMES = 100

    # What the runtime may keep: a thread or two that system calls needed, a descriptor of its poller, and
    # heap that is not yet collected (the race detector multiplies it).
    MORE_THREADS = 12
    MORE_KIB = 48 * KiB

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a", MiB, images.QCOW2)
        self.target = self.create_image("t", MiB, images.QCOW2)
        self.launch(monitors=2)

    def cost(self) -> tuple[list[str], int, int]:
        """What the open descriptors lead to, the number of threads, and the resident KiB."""
        proc = f"/proc/{self.daemon.process.pid}"
        leads = []
        for number in os.listdir(f"{proc}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                lead = os.readlink(f"{proc}/fd/{number}")
                leads.append("socket" if lead.startswith("socket:") else lead)
        return sorted(leads), len(os.listdir(f"{proc}/task")), resident(self.daemon.process.pid)

    def assert_no_leak(self, cycle: str) -> None:
        """Run one of the methods below, named `cycle`, several times, and compare."""
        run = getattr(self, cycle)
        run()
        leads, threads, size = self.cost()
        for _ in range(self.TIMES):
            run()
        self.qmp.take_events()
        # A connection that the client has closed is closed by the daemon a moment later.
        deadline = Deadline(doing=f"descriptors to be closed after {cycle}: {leads} before, {self.cost()[0]} now")
        while len(self.cost()[0]) > len(leads):
            self.qmp.cmd("query-jobs")
            deadline.remaining()
        _, more_threads, more_size = self.cost()
        self.assertLessEqual(more_threads - threads, self.MORE_THREADS)
        self.assertLessEqual(more_size - size, self.MORE_KIB)

    def node_cycle(self) -> None:
        """A node comes and goes, and one does not come."""
        self.add_node("n", self.image)
        self.qmp.cmd("blockdev-del", node_name="n")
        with self.assertRaises(QMPError):
            self.add_node("n", self.image, "raw", offset=5 * MiB)

    def export_cycle(self) -> None:
        """An export comes and goes under a client."""
        self.export("e")
        guest = self.guest("e")
        guest.read(0, 4096)
        self.unexport("exp-e", "hard")
        guest.vanish()

    def client_cycle(self) -> None:
        """A guest vanishes."""
        guest = self.guest("e")
        guest.read(0, 4096)
        guest.vanish()

    def monitor_cycle(self) -> None:
        """A monitor's client leaves with a command half sent."""
        client = self.daemon.connect(1)
        client.cmd("query-named-block-nodes")
        client.send_bytes(b'{"execute": "query-jobs", "argu')
        client.close()

    def server_cycle(self) -> None:
        """The NBD server starts and stops."""
        self.start_nbd()
        self.qmp.cmd("nbd-server-stop")

    def job_cycle(self) -> None:
        """A job is cancelled, and one completes."""
        arguments = {"device": "e", "target": "t", "sync": "full"}
        self.qmp.cmd("blockdev-backup", job_id="slow", speed=1, **arguments)
        self.qmp.cmd("job-cancel", id="slow")
        self.wait_status("slow", "null")
        self.qmp.cmd("blockdev-backup", job_id="fast", **arguments)
        self.wait_status("fast", "null")

    def test_nodes(self) -> None:
        self.assert_no_leak("node_cycle")

    def test_exports(self) -> None:
        self.add_node("e", self.image)
        self.assert_no_leak("export_cycle")

    def test_guests(self) -> None:
        self.add_node("e", self.image)
        self.export("e")
        self.assert_no_leak("client_cycle")

    def test_monitors(self) -> None:
        self.assert_no_leak("monitor_cycle")

    def test_servers(self) -> None:
        self.assert_no_leak("server_cycle")

    def test_jobs(self) -> None:
        self.add_node("e", self.image)
        self.add_node("t", self.target)
        self.assert_no_leak("job_cycle")
