"""discard-source of backups: what is in the target is given up in the source."""

from __future__ import annotations

import os
from typing import Any

from iotests.harness.case import SUCCESS, QMPTestCase
from iotests.harness.images import KiB, MiB, QCOW2
from iotests.harness.markers import blockd_only

SIZE = 4 * MiB
NEWER = "discard-source is QEMU 9.1's, the rival's 7.2 has none"


def allocated(path: str) -> int:
    """Bytes that a file takes up."""
    return os.stat(path).st_blocks * 512


@blockd_only(NEWER)
class DiscardSource(QMPTestCase):
    """A push backup with fleecing: guests' writes go to a temporary image, the job reads the point in time."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(SIZE)
        self.image = self.filled_image("a.qcow2", self.data)
        self.temporary = self.create_image("t.qcow2", SIZE, QCOW2)
        self.target = self.create_image("target.qcow2", SIZE, QCOW2)
        self.launch()
        self.add_node("n", self.image)
        self.add_node("t", self.temporary, "qcow2", discard="unmap")
        self.add_node("target", self.target, "qcow2")

    def fleece(self, **options: Any) -> None:
        self.qmp.cmd("blockdev-add", driver="copy-before-write", node_name="cbw", file="n", target="t")
        self.qmp.cmd("blockdev-add", driver="snapshot-access", node_name="s", file="cbw", **options)
        self.export("cbw")

    def test_what_was_kept_is_given_up(self) -> None:
        self.fleece(discard="unmap")
        self.export("s")
        guest = self.guest("cbw")
        guest.write(MiB, b"g" * 2 * MiB)
        guest.handle.flush()
        before = allocated(self.temporary)
        self.assertGreater(before, 2 * MiB)
        sequence = self.run_job(
            "blockdev-backup", job_id="j", device="s", target="target", sync="full", discard_source=True
        )
        self.assertEqual(sequence[-5:], SUCCESS[-5:])
        reader = self.guest("s")
        with self.assertRaises(Exception):
            reader.read(MiB, 64 * KiB)
        self.assertEqual(guest.read(0, SIZE), self.data[:MiB] + b"g" * 2 * MiB + self.data[3 * MiB :])
        self.daemon.quit()
        self.assertLess(allocated(self.temporary), MiB)
        self.assert_content(self.target, self.data)

    def test_guests_write_meanwhile(self) -> None:
        self.fleece(discard="unmap")
        writer = self.guest_writer("cbw", self.data)
        writer.wait_writes(20)
        self.qmp.cmd(
            "blockdev-backup",
            job_id="j",
            device="s",
            target="target",
            sync="full",
            discard_source=True,
            speed=8 * MiB,
        )
        writer.wait_writes(20)
        self.unthrottle("j")
        self.wait_status("j", "null")
        model = writer.stop()
        self.daemon.quit()
        self.assert_content(self.target, self.data)
        self.assert_content(self.image, bytes(model))

    def test_a_source_that_ignores_discards_keeps_all(self) -> None:
        self.fleece()
        self.export("s")
        self.run_job("blockdev-backup", job_id="j", device="s", target="target", sync="full", discard_source=True)
        self.assertEqual(self.guest("s").read(0, SIZE), self.data)

    def test_a_source_that_cannot_be_written_is_refused(self) -> None:
        self.add_node("ro", self.filled_image("b.qcow2", self.data), discard="unmap", read_only=True)
        before = set(self.nodes())
        self.assert_qmp_error(
            "Block node is read-only",
            "blockdev-backup",
            job_id="j",
            device="ro",
            target="target",
            sync="full",
            discard_source=True,
        )
        self.assert_nothing_left(*before)
