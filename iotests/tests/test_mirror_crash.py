"""Mirrors and commits: what must survive of guests' writes when a mirror's target is old, or the daemon dies within a commit."""

from __future__ import annotations

from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB

SIZE = 4 * MiB


class OldTarget(QMPTestCase):
    """A target of a format version without zero clusters, whose backing file comes in the end."""

    def zeroes(self, mode: str) -> None:
        """What a guest has zeroed while the mirror was ready does not show the backing file afterwards."""
        data = bytearray(self.random_bytes(SIZE))
        base = self.filled_image("base.qcow2", bytes(data), images.QCOW2)
        source = self.create_image("source.qcow2", SIZE, images.QCOW2, backing=base)
        target = self.path("target.qcow2")
        images.run_tool(
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", base, "-F", "qcow2", target, str(SIZE)
        )
        self.launch()
        self.add_node("s", source, "qcow2")
        self.export("s")
        guest = self.guest("s")
        self.qmp.cmd(
            "drive-mirror", job_id="m", device="s", target=target, sync="top", mode="existing", copy_mode=mode,
            format="qcow2",
        )
        self.qmp.wait_event("BLOCK_JOB_READY", {"device": "m"})
        for offset, length in ((0, 256 * KiB), (1 * MiB + 512, 4 * KiB), (SIZE - 64 * KiB, 64 * KiB)):
            guest.handle.zero(length, offset)
            data[offset : offset + length] = bytes(length)
        guest.close()
        self.qmp.cmd("block-job-cancel", device="m")
        self.wait_status("m", "null")
        self.daemon.quit()
        self.assert_content(target, bytes(data), "qcow2")

    def test_zeroes_in_background(self) -> None:
        self.zeroes("background")

    def test_zeroes_written_through(self) -> None:
        self.zeroes("write-blocking")


class Killed(QMPTestCase):
    """kill -9 within a commit: the chain still reads as what was flushed."""

    def setUp(self) -> None:
        super().setUp()
        self.data = bytearray(self.random_bytes(SIZE, 1))
        self.chain = [self.filled_image("base.qcow2", bytes(self.data), images.QCOW2)]
        for i, name in enumerate(("mid.qcow2", "top.qcow2")):
            self.chain.append(self.create_image(name, SIZE, images.QCOW2, backing=self.chain[-1]))
            offset, piece = (1 + i) * 768 * KiB, self.random_bytes(1 * MiB, 2 + i)
            self.fill(self.chain[-1], piece, "qcow2", offset=offset)
            self.data[offset : offset + len(piece)] = piece
        self.launch()
        self.add_node("top", self.chain[-1], "qcow2")
        self.export("top")

    def killed_in(self, **arguments: Any) -> None:
        """Start a commit, write to the top, flush, kill, and look."""
        guest = self.guest("top")
        self.qmp.cmd("block-commit", job_id="c", device="top", speed=256 * KiB, **arguments)
        piece = self.random_bytes(192 * KiB + 512, 9)
        for offset in (0, 1 * MiB - 512, 3 * MiB + 4 * KiB):
            guest.write(offset, piece)
            self.data[offset : offset + len(piece)] = piece
        guest.handle.zero(64 * KiB, 2 * MiB)
        self.data[2 * MiB : 2 * MiB + 64 * KiB] = bytes(64 * KiB)
        guest.handle.flush()
        while self.job("c")["current-progress"] == 0:
            pass  # each query is a round trip
        self.daemon.kill()
        guest.vanish()
        for path in self.chain:
            images.check(path, allow_leaks=True)
        model = self.filled_image("model.img", bytes(self.data), images.RAW)
        images.compare(self.chain[-1], model, "qcow2", "raw")

    def test_in_a_commit_of_the_active_layer(self) -> None:
        self.killed_in()

    def test_in_a_commit_of_the_middle(self) -> None:
        self.killed_in(top=self.chain[1])
