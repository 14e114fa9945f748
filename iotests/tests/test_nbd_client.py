"""Nodes whose content an NBD server of somebody else holds."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only, daemon_differs, needs_tool

RAW = images.RAW
SIZE = 4 * MiB


class Client(QMPTestCase):
    """The driver nbd, against qemu-nbd."""

    image_options = RAW

    def setUp(self) -> None:
        super().setUp()
        self.remote = self.path("r")
        self.data = self.random_bytes(SIZE)
        self.disk = self.filled_image("disk", self.data, RAW)

    def serve(self, path: str, *options: str) -> int:
        """Start a server of `path` on self.remote; it listens, and its process id is given back."""
        pid_file = Path(tempfile.mktemp(dir=self.directory))
        command = ["qemu-nbd", "-k", self.remote, "-t", "-e", "4", "-x", "disk", "--fork", "--pid-file", str(pid_file)]
        images.run_tool(*command, "-f", "raw", *options, path)
        server = int(pid_file.read_text(encoding="ascii"))
        self.addCleanup(self.end, server)
        return server

    @staticmethod
    def end(server: int) -> None:
        """Kill a server, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)

    def options(self, **more: Any) -> dict[str, Any]:
        """The arguments of blockdev-add."""
        return {
            "driver": "nbd",
            "node-name": "n",
            "server": {"type": "unix", "path": self.remote},
            "export": "disk",
            **more,
        }

    @needs_tool("qemu-nbd")
    def test_guest_reads_and_writes_through(self) -> None:
        self.serve(self.disk)
        self.launch()
        self.qmp.execute("blockdev-add", self.options())
        self.export("n")
        guest = self.guest("n")
        self.assertEqual(guest.read(0, SIZE), self.data)
        fresh = self.random_bytes(100 * KiB, 1)
        guest.write(513, fresh)
        self.assertEqual(guest.read(0, MiB), (self.data[:513] + fresh + self.data[513 + len(fresh) :])[:MiB])
        guest.close()
        self.daemon.quit()
        self.assert_content(self.disk, self.data[:513] + fresh + self.data[513 + len(fresh) :], "raw")

    @needs_tool("qemu-nbd")
    def test_holes_are_seen(self) -> None:
        sparse = self.create_image("sparse", SIZE, RAW)
        images.qemu_io(sparse, "write -q -P 1 1M 64k", driver="raw")
        self.serve(sparse)
        self.launch()
        self.qmp.execute("blockdev-add", self.options())
        self.export("n")
        extents = self.guest("n").extents()
        # The file's first block may be there from its creation.
        self.assertEqual(extents[-2:], [(64 * KiB, 0), (SIZE - MiB - 64 * KiB, 3)])
        self.assertEqual(extents[-3][1], 3)

    @needs_tool("qemu-nbd")
    def test_backup_to_another_host(self) -> None:
        target = self.create_image("target", SIZE, RAW)
        self.serve(target, "--cache=writeback")
        self.launch()
        self.qmp.execute("blockdev-add", self.options())
        self.add_node("src", self.disk, "raw")
        self.run_job("blockdev-backup", job_id="j", device="src", target="n", sync="full")
        self.assertNotIn("error", self.completed_event("j"))
        self.assert_content(target, self.data, "raw")

    @needs_tool("qemu-nbd")
    def test_backing_file_by_its_uri(self) -> None:
        self.serve(self.disk, "--read-only")
        uri = f"nbd+unix:///disk?socket={self.remote}"
        top = self.path("top")
        images.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", uri, "-F", "raw", top)
        self.launch()
        self.add_node("top", top, "qcow2")
        self.assertEqual(self.nodes()["top"]["backing_file"], uri)
        self.export("top")
        guest = self.guest("top")
        self.assertEqual(guest.read(MiB, MiB), self.data[MiB : 2 * MiB])
        guest.write(MiB, b"x" * 512)
        self.assertEqual(guest.read(MiB, 1024), b"x" * 512 + self.data[MiB + 512 : MiB + 1024])

    @needs_tool("qemu-nbd")
    @blockd_only("the rival, once reconnected, does not answer quit for over 20 seconds")
    def test_requests_wait_for_a_server_that_comes_back(self) -> None:
        server = self.serve(self.disk)
        self.launch()
        self.qmp.execute("blockdev-add", self.options(**{"reconnect-delay": 60}))
        self.export("n")
        guest = self.guest("n")
        self.assertEqual(guest.read(0, 512), self.data[:512])
        self.end(server)
        Path(self.remote).unlink(missing_ok=True)
        self.serve(self.disk)
        self.assertEqual(guest.read(512, 512), self.data[512:1024])

    @needs_tool("qemu-nbd")
    def test_requests_fail_without_their_server(self) -> None:
        server = self.serve(self.disk)
        self.launch()
        self.qmp.execute("blockdev-add", self.options())
        self.export("n")
        guest = self.guest("n")
        guest.read(0, 512)
        self.end(server)
        with self.assertRaises(Exception):
            guest.read(512, 512)
        self.unexport("exp-n", mode="hard")
        self.qmp.cmd("blockdev-del", node_name="n")

    @needs_tool("qemu-nbd")
    def test_open_timeout_waits_for_the_server(self) -> None:
        self.launch()
        pending = self.qmp.send("blockdev-add", self.options(**{"open-timeout": 60}))
        self.serve(self.disk)
        self.assertEqual(self.qmp.reply(pending)["return"], {})

    @needs_tool("qemu-nbd")
    @daemon_differs("the rival keeps the reason to itself")
    def test_read_only_export(self) -> None:
        self.serve(self.disk, "--read-only")
        self.launch()
        self.assert_qmp_error(
            self.per_daemon(blockd="NBD export is read-only", rival="Could not open image: Permission denied"),
            "blockdev-add",
            self.options(),
        )
        self.qmp.execute("blockdev-add", self.options(**{"auto-read-only": True}))
        self.assertTrue(self.nodes()["n"]["ro"])
        self.qmp.cmd("blockdev-del", node_name="n")
        self.qmp.execute("blockdev-add", self.options(**{"read-only": True}))

    @needs_tool("qemu-nbd")
    def test_refusals(self) -> None:
        self.serve(self.disk)
        self.launch()
        self.assert_qmp_error(
            "Requested export not available", "blockdev-add", self.options(export="other")
        )
        nowhere = {"type": "unix", "path": self.path("nowhere")}
        self.assert_qmp_error(
            f"Failed to connect to '{self.path('nowhere')}': No such file or directory",
            "blockdev-add",
            self.options(server=nowhere),
        )
        self.assert_qmp_error(
            "export name too long to send to server", "blockdev-add", self.options(export="x" * 4097)
        )
        self.assert_qmp_error(
            "No TLS credentials with id 'tls0'", "blockdev-add", self.options(**{"tls-creds": "tls0"})
        )
        self.assert_nothing_left()

    @needs_tool("qemu-nbd")
    @daemon_differs("the rival keeps the reason to itself")
    def test_context_that_is_not_there(self) -> None:
        self.serve(self.disk)
        self.launch()
        self.assert_qmp_error(
            self.per_daemon(
                blockd="requested x-dirty-bitmap none not found", rival="Could not open image: Invalid argument"
            ),
            "blockdev-add",
            self.options(**{"x-dirty-bitmap": "none"}),
        )

    @needs_tool("qemu-nbd")
    def test_resize_is_refused(self) -> None:
        self.serve(self.disk)
        self.launch()
        self.qmp.execute("blockdev-add", self.options())
        self.assert_qmp_error("Cannot grow NBD nodes", "block_resize", node_name="n", size=2 * SIZE)


class OlderCommands(QMPTestCase):
    """nbd-server-add and nbd-server-remove."""

    def test_add_and_remove(self) -> None:
        self.launch("--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on")
        self.assert_qmp_error("NBD server not running", "nbd-server-add", device="n")
        self.start_nbd()
        self.qmp.cmd("nbd-server-add", device="n", writable=True)
        self.assertEqual(self.guest("n").read(0, 512), bytes(512))
        self.assert_qmp_error("Cannot find device='zz' nor node-name='zz'", "nbd-server-add", device="zz")
        self.qmp.cmd("nbd-server-add", device="n", name="again")
        self.qmp.cmd("nbd-server-remove", name="again")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", {"id": "again"})
        self.assert_qmp_error("Export 'again' is not found", "nbd-server-remove", name="again")
