"""Two daemons, as on two hosts: a disk moves from one to the other, and a chain reaches across."""

from __future__ import annotations

from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import Daemon
from iotests.harness.images import KiB, MiB

SIZE = 16 * MiB


class TwoDaemons(QMPTestCase):
    """self.daemon has the guest, self.other the storage."""

    other: Daemon

    def setUp(self) -> None:
        super().setUp()
        self.launch()
        self.other = self.launch(name="o")
        self.other_socket = self.path("other")
        self.other.qmp.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": self.other_socket}})

    def serve(self, path: str, driver: str, *, writable: bool) -> None:
        """Open an image in the other daemon and export it as node r."""
        file = {"driver": "file", "filename": path}
        self.other.qmp.execute("blockdev-add", {"driver": driver, "node-name": "r", "file": file, "read-only": not writable})
        self.other.qmp.cmd("block-export-add", type="nbd", id="r", node_name="r", writable=writable)

    def remote(self, **options: Any) -> None:
        """Open the other daemon's export as node n."""
        server = {"type": "unix", "path": self.other_socket}
        self.qmp.execute("blockdev-add", {"driver": "nbd", "node-name": "n", "server": server, "export": "r", **options})

    def test_a_mirror_moves_a_disk_while_the_guest_writes(self) -> None:
        data = self.random_bytes(SIZE)
        source = self.filled_image("source.qcow2", data)
        target = self.create_image("target.qcow2", SIZE)
        self.serve(target, "qcow2", writable=True)
        self.remote()
        self.add_node("s", source)
        self.export("s")
        writer = self.guest_writer("s", data)
        writer.wait_writes(5)
        self.qmp.cmd("blockdev-mirror", job_id="m", device="s", target="n", sync="full", speed=4 * MiB)
        writer.wait_writes(20)
        self.unthrottle("m")
        self.qmp.wait_event("BLOCK_JOB_READY", {"device": "m"})
        writer.wait_writes(20)
        self.qmp.cmd("job-complete", id="m")
        self.wait_status("m", "null")
        self.assertNotIn("error", self.completed_event("m"))
        # The guest is on the other host's disk by now.
        writer.wait_writes(20)
        model = writer.stop()
        self.assertEqual([export["node-name"] for export in self.qmp.cmd("query-block-exports")], ["n"])
        self.daemon.quit()
        self.other.quit()
        self.assert_content(target, model)

    def test_the_base_of_a_chain_is_on_another_server(self) -> None:
        data = self.random_bytes(SIZE)
        base = self.filled_image("base.qcow2", data)
        top = self.create_image("top.qcow2", SIZE)
        self.serve(base, "qcow2", writable=False)
        self.remote(**{"read-only": True})
        self.add_node("top", top, backing="n")
        self.export("top")
        writer = self.guest_writer("top", data)
        writer.wait_writes(30)
        # What the base holds comes here, with the guest still writing; then the other host may go.
        self.run_job("block-stream", job_id="j", device="top")
        self.assertNotIn("error", self.completed_event("j"))
        self.qmp.cmd("blockdev-del", node_name="n")
        self.other.quit()
        writer.wait_writes(10)
        model = writer.stop()
        self.daemon.quit()
        self.assert_content(top, model)
        self.assert_content(base, data)

    def test_increments_go_to_another_host(self) -> None:
        source = self.create_image("source.qcow2", SIZE)
        target = self.create_image("target.raw", SIZE, images.RAW)
        self.serve(target, "raw", writable=True)
        self.remote()
        self.add_node("s", source)
        self.qmp.cmd("block-dirty-bitmap-add", node="s", name="b", granularity=64 * KiB)
        self.export("s")
        model = bytearray(SIZE)
        guest = self.guest("s")
        self.addCleanup(guest.vanish)
        for turn in range(3):
            fresh = self.random_bytes(100 * KiB, turn)
            guest.write(turn * MiB + 512, fresh)
            model[turn * MiB + 512 : turn * MiB + 512 + len(fresh)] = fresh
            sync: dict[str, Any] = {"sync": "incremental", "bitmap": "b"}
            self.run_job("blockdev-backup", job_id=f"j{turn}", device="s", target="n", **sync)
            self.assertNotIn("error", self.completed_event(f"j{turn}"))
        self.daemon.quit()
        self.other.quit()
        self.assert_content(target, bytes(model), "raw")
