"""Commands with several mistakes: which is told, and that nothing has begun by then."""

from __future__ import annotations

from typing import Any, Mapping

from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB

SIZE = MiB


class RefusedCase(QMPTestCase):
    """Two disks, d0 and t0."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()
        for name in ("d0", "t0"):
            self.add_node(name, self.create_image(name, SIZE))

    def test_read_only_comes_before_a_driver_that_cannot_resize(self) -> None:
        self.qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "null", "size": SIZE, "read-only": True})
        self.assert_qmp_error("Image is read-only", "block_resize", {"node-name": "null", "size": 2 * SIZE})

    def test_a_bad_name_comes_before_a_missing_target(self) -> None:
        options = {"driver": "copy-before-write", "node-name": "a" * 32, "file": "d0", "target": "nope"}
        self.assert_qmp_error("Node name too long", "blockdev-add", options)

    def test_a_missing_file_comes_before_a_bad_name(self) -> None:
        options = {"driver": "copy-before-write", "node-name": "a" * 32, "file": "nope", "target": "t0"}
        self.assert_qmp_error("Cannot find device='nope' nor node-name='nope'", "blockdev-add", options)

    def test_backup_whose_filter_cannot_stand_makes_no_job(self) -> None:
        self.qmp.execute("blockdev-add", {"driver": "quorum", "node-name": "q0", "children": ["d0"], "vote-threshold": 1})
        self.start_nbd()
        self.export("d0", writable=False)  # with a reader above it the filter lets nobody write past it
        self.refuse_backups("Could not replace node: Permission conflict on node 'd0': ", {"device": "d0", "target": "q0"})

    def refuse_backups(self, beginning: str, backup: dict[str, str], *before: Mapping[str, Any]) -> None:
        """A transaction that ends with a backup fails with a text that begins like that, and no job is ever told of."""
        action = {"type": "blockdev-backup", "data": {"job-id": "job", "sync": "full", **backup}}
        reply = self.qmp.reply(self.qmp.send("transaction", {"actions": [*before, action]}))
        self.assertEqual(reply["error"]["desc"][: len(beginning)], beginning)
        self.assertEqual([event for event in self.qmp.take_events() if event["data"].get("id") == "job"], [])

    def test_what_an_action_does_is_in_the_way_of_the_next(self) -> None:
        self.add_node("t1", self.create_image("t1", SIZE))
        self.qmp.execute("blockdev-backup", {"job-id": "none", "device": "d0", "target": "t1", "sync": "none"})
        data = {"node-name": "d0", "snapshot-file": self.path("s0"), "snapshot-node-name": "s0"}
        snapshot = {"type": "blockdev-snapshot-sync", "data": data}
        self.refuse_backups("Could not create node: Permission conflict on node 'd0': ", {"device": "t0", "target": "d0"}, snapshot)
