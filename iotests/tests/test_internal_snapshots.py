"""Snapshots within an image: taking, removing, listing them, going back to one."""

from __future__ import annotations

from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only

TAKE = "blockdev-snapshot-internal-sync"
REMOVE = "blockdev-snapshot-delete-internal-sync"
REVERT = "x-blockdev-snapshot-revert"


class InternalSnapshots(QMPTestCase):
    """blockdev-snapshot-internal-sync, -delete-internal-sync and x-blockdev-snapshot-revert."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.two = self.random_bytes(4 * MiB, 1), self.random_bytes(4 * MiB, 2)
        self.image = self.filled_image("a", self.one)
        self.launch()
        self.add_node("a", self.image)

    def names(self, node: str = "a") -> list[tuple[str, str]]:
        """Id and name of each snapshot."""
        return [(one["id"], one["name"]) for one in self.nodes()[node]["image"].get("snapshots", [])]

    def overwrite(self) -> None:
        """Give the disk its other content."""
        self.start_nbd()
        export = self.export("a")
        guest = self.guest("a")
        guest.write(0, self.two)
        guest.close()
        self.unexport(export, "hard")

    def snapshot_content(self, path: str, name: str) -> bytes:
        """What a snapshot of a closed image holds."""
        raw = self.path("raw")
        images.run_tool("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", path, raw)
        with open(raw, "rb") as file:
            return file.read()

    def finish(self, content: bytes) -> None:
        """End the daemon and judge the image."""
        self.qmp.cmd("blockdev-del", node_name="a")
        images.check(self.image)
        self.assert_content(self.image, content)

    def test_take_list_remove(self) -> None:
        self.qmp.cmd(TAKE, device="a", name="s1")
        self.overwrite()
        self.qmp.cmd(TAKE, device="a", name="s2")
        self.assertEqual(self.names(), [("1", "s1"), ("2", "s2")])
        listed = self.nodes()["a"]["image"]["snapshots"][0]
        removed: dict[str, Any] = self.qmp.cmd(REMOVE, device="a", id="1", name="s1")
        self.assertEqual(removed, listed)
        self.assertEqual(removed["vm-state-size"], 0)
        self.assertEqual(self.names(), [("2", "s2")])
        self.qmp.cmd(TAKE, device="a", name="s3")
        self.assertEqual(self.names(), [("2", "s2"), ("3", "s3")])
        self.finish(self.two)
        self.assertEqual(self.snapshot_content(self.image, "s2"), self.two)

    def test_keeps_what_the_disk_held(self) -> None:
        self.qmp.cmd(TAKE, device="a", name="s1")
        self.overwrite()
        self.finish(self.two)
        self.assertEqual(self.snapshot_content(self.image, "s1"), self.one)

    def test_errors(self) -> None:
        self.qmp.cmd(TAKE, device="a", name="s1")
        raw = self.path("r")
        images.run_tool("qemu-img", "create", "-q", "-f", "raw", raw, "1M")
        self.add_node("r", raw, "raw")
        other = self.create_image("b", MiB)
        images.run_tool("qemu-img", "snapshot", "-c", "s0", other)
        self.add_node("b", other, read_only=True)
        refused: list[tuple[str, str, dict[str, Any], str]] = [
            (TAKE, "a", {"name": "s1"}, "Snapshot with name 's1' already exists on device 'a'"),
            (TAKE, "a", {"name": ""}, "Name is empty"),
            (TAKE, "zz", {"name": "s"}, "Cannot find device='zz' nor node-name='zz'"),
            (TAKE, "r", {"name": "s"}, "Block format 'raw' used by device 'r' does not support internal snapshots"),
            (TAKE, "b", {"name": "s"}, "Device 'b' is read only"),
            (REMOVE, "a", {}, "Name or id must be provided"),
            (REMOVE, "a", {"name": "zz"}, "Snapshot with id 'null' and name 'zz' does not exist on device 'a'"),
            (REMOVE, "a", {"id": "7"}, "Snapshot with id '7' and name 'null' does not exist on device 'a'"),
            (REMOVE, "a", {"id": "1", "name": "x"}, "Snapshot with id '1' and name 'x' does not exist on device 'a'"),
            (REMOVE, "r", {"name": "s1"}, "Failed to get a snapshot list: Operation not supported"),
            (REMOVE, "b", {"name": "s0"}, "Failed to remove snapshot from snapshot list: Operation not permitted"),
        ]
        for command, device, arguments, text in refused:
            self.assert_qmp_error(text, command, device=device, **arguments)
        self.assertEqual(self.names(), [("1", "s1")])
        self.finish(self.one)

    def test_not_of_what_a_job_works_on(self) -> None:
        self.add_node("target", self.create_image("target", 4 * MiB))
        self.qmp.cmd("blockdev-backup", job_id="j", device="a", target="target", sync="none")
        for command in (TAKE, REMOVE):
            self.assert_qmp_error("Need a root block node", command, device="target", name="s")

    def test_transaction_takes_all_or_none(self) -> None:
        other = self.create_image("b", MiB)
        self.add_node("b", other)

        def action(device: str, name: str) -> dict[str, Any]:
            return {"type": TAKE, "data": {"device": device, "name": name}}

        self.qmp.cmd("transaction", actions=[action("a", "t"), action("b", "t")])
        self.assertEqual((self.names("a"), self.names("b")), ([("1", "t")], [("1", "t")]))
        self.assert_qmp_error(
            "Snapshot with name 't' already exists on device 'b'", "transaction", actions=[action("a", "u"), action("b", "t")]
        )
        self.assert_qmp_error(
            "Transaction aborted using Abort action", "transaction", actions=[action("a", "u"), {"type": "abort", "data": {}}]
        )
        self.assertEqual((self.names("a"), self.names("b")), ([("1", "t")], [("1", "t")]))
        self.finish(self.one)
        self.qmp.cmd("blockdev-del", node_name="b")
        images.check(other)

    @blockd_only("going back to a snapshot is blockd's own")
    def test_revert(self) -> None:
        self.qmp.cmd(TAKE, device="a", name="s1")
        self.qmp.cmd("block-dirty-bitmap-add", node="a", name="b", persistent=True)
        self.overwrite()
        self.qmp.cmd(TAKE, device="a", name="s2")
        self.qmp.cmd("block-dirty-bitmap-clear", node="a", name="b")
        self.qmp.cmd(REVERT, device="a", name="s1")
        bitmap = self.nodes()["a"]["dirty-bitmaps"][0]
        self.assertEqual((bitmap["count"], bitmap["recording"]), (4 * MiB, True))
        self.finish(self.one)
        self.assertEqual(self.snapshot_content(self.image, "s2"), self.two)

    @blockd_only("going back to a snapshot is blockd's own")
    def test_revert_to_another_length(self) -> None:
        self.qmp.cmd(TAKE, device="a", name="s1")
        self.qmp.cmd("block_resize", node_name="a", size=8 * MiB)
        self.assertEqual(self.nodes()["a"]["image"]["virtual-size"], 8 * MiB)
        self.qmp.cmd(REVERT, device="a", id="1")
        self.assertEqual(self.nodes()["a"]["image"]["virtual-size"], 4 * MiB)
        self.finish(self.one)

    @blockd_only("going back to a snapshot is blockd's own")
    def test_revert_that_is_undone(self) -> None:
        self.qmp.cmd(TAKE, device="a", name="s1")
        self.qmp.cmd("block-dirty-bitmap-add", node="a", name="b", persistent=True)
        self.overwrite()
        self.qmp.cmd("block_resize", node_name="a", size=8 * MiB)
        self.qmp.cmd("block-dirty-bitmap-clear", node="a", name="b")
        self.assert_qmp_error(
            "Transaction aborted using Abort action",
            "transaction",
            actions=[{"type": REVERT, "data": {"device": "a", "name": "s1"}}, {"type": "abort", "data": {}}],
        )
        node = self.nodes()["a"]
        self.assertEqual((node["image"]["virtual-size"], node["dirty-bitmaps"][0]["count"]), (8 * MiB, 0))
        self.finish(self.two + bytes(4 * MiB))

    @blockd_only("going back to a snapshot is blockd's own")
    def test_revert_is_refused_while_a_job_uses_the_node(self) -> None:
        self.qmp.cmd(TAKE, device="a", name="s1")
        self.add_node("t", self.create_image("t", 4 * MiB))
        self.qmp.cmd("blockdev-backup", job_id="j", device="a", target="t", sync="full", speed=1)
        self.assert_qmp_error("Need a root block node", REVERT, device="a", name="s1")
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.qmp.cmd(REVERT, device="a", name="s1")
        self.finish(self.one)
