"""Inactive nodes: an image goes from one program to another and back, without being closed."""

from __future__ import annotations

from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.guest import Guest
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPClient, QMPError


@blockd_only("the rival is older than inactive nodes")
class Activity(QMPTestCase):
    """blockdev-set-active, active and allow-inactive, as QEMU 10.2 has them."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = self.create_image("disk.qcow2", 10 * MiB)
        self.launch()
        self.start_nbd()

    def add(self, node: str, path: str, *, active: bool = True, **more: object) -> None:
        """A qcow2 node over NAME-file, which is active."""
        self.qmp.cmd("blockdev-add", driver="file", node_name=f"{node}-file", filename=path)
        self.qmp.cmd("blockdev-add", driver="qcow2", node_name=node, file=f"{node}-file", active=active, **more)

    def set_active(self, active: bool, node: str | None = None) -> None:
        """blockdev-set-active."""
        self.qmp.cmd("blockdev-set-active", active=active, **({} if node is None else {"node_name": node}))

    def active(self) -> set[str]:
        """The nodes that are active."""
        return {name for name, node in self.nodes().items() if node["active"]}

    def test_export_activates(self) -> None:
        self.add("fmt", self.disk, active=False)
        self.assertEqual(self.active(), {"fmt-file"})
        modes: list[dict[str, Any]] = [{}, {"allow_inactive": False}]
        for more in modes:
            identity = self.export("fmt", **more)
            self.assertEqual(self.active(), {"fmt", "fmt-file"})
            self.assert_qmp_error(
                "Failed to inactivate node: Operation not permitted", "blockdev-set-active",
                node_name="fmt", active=False,
            )
            self.assert_qmp_error(
                "Failed to inactivate all nodes: Operation not permitted", "blockdev-set-active", active=False
            )
            self.assertEqual(self.active(), {"fmt", "fmt-file"})
            self.unexport(identity)
            self.set_active(False, "fmt")
            self.assertEqual(self.active(), set())
            self.set_active(True, "fmt-file")

    def test_export_that_stays_inactive(self) -> None:
        self.add("fmt", self.disk, active=False)
        identity = self.export("fmt", allow_inactive=True)
        self.assertEqual(self.active(), {"fmt-file"})
        guest = self.guest("fmt")
        self.assertEqual(guest.read(0, 65536), bytes(65536))
        for request in (
            lambda: guest.write(0, b"x" * 512), lambda: guest.handle.zero(512, 0), lambda: guest.handle.trim(512, 0),
            guest.handle.flush, lambda: guest.extents(0, 512),
        ):
            with self.assertRaisesRegex(Exception, "Operation not permitted"):
                request()
        self.set_active(True, "fmt")
        guest.write(0, b"x" * 512)
        self.set_active(False, "fmt")
        with self.assertRaisesRegex(Exception, "Operation not permitted"):
            guest.write(0, b"y" * 512)
        self.assertEqual(guest.read(0, 512), b"x" * 512)
        guest.close()
        self.unexport(identity, mode="hard")

    def test_parents_and_children(self) -> None:
        self.add("fmt", self.disk)
        self.assert_qmp_error(
            "Node has active parent node", "blockdev-set-active", node_name="fmt-file", active=False
        )
        self.set_active(False, "fmt")
        self.set_active(False, "fmt-file")
        self.assertEqual(self.active(), set())
        raw = {"driver": "raw", "node-name": "raw", "file": "fmt"}
        modes: list[dict[str, Any]] = [{}, {"active": True}]
        for more in modes:
            self.assert_qmp_error(
                "Inactive 'fmt' can't be a file child of active 'raw'", "blockdev-add", {**raw, **more}
            )
        self.qmp.execute("blockdev-add", {**raw, "active": False})
        self.set_active(True, "raw")
        self.assertEqual(self.active(), {"raw", "fmt", "fmt-file"})
        self.assert_qmp_error(
            "Failed to find node with node-name='zz'", "blockdev-set-active", node_name="zz", active=True
        )

    def test_children_defined_within_an_inactive_node_are_inactive(self) -> None:
        self.add_node("fmt", self.disk, active=False)
        self.assertEqual(self.active(), set())

    def test_resize(self) -> None:
        self.add("fmt", self.disk, active=False)
        self.assert_qmp_error(
            "Permission 'resize' unavailable on inactive node", "block_resize", node_name="fmt", size=16 * MiB
        )

    def test_snapshot(self) -> None:
        over = self.create_image("over.qcow2", 10 * MiB)
        self.add("fmt", self.disk, active=False)
        self.add("over", over, backing=None)
        self.qmp.cmd("blockdev-snapshot", node="fmt", overlay="over")
        self.assertEqual(self.active(), {"fmt-file"})
        self.assert_chain("over", "fmt")

    def test_jobs(self) -> None:
        self.add("base", self.disk, active=False)
        over = self.create_image("over.qcow2", 10 * MiB, backing=self.disk)
        self.add("over", over, active=False, backing="base")
        self.add("target", self.create_image("target.qcow2", 10 * MiB))
        with self.assertRaisesRegex(
            QMPError, "Could not create node: Inactive 'over' can't be a file child of active '#block"
        ):
            self.qmp.cmd("block-stream", job_id="j", device="over")
        with self.assertRaisesRegex(
            QMPError, "Could not create node: Inactive 'over' can't be a file child of active '#block"
        ):
            self.qmp.cmd("blockdev-backup", job_id="j", device="over", target="target", sync="full")
        self.set_active(True, "over")
        self.set_active(False, "target")
        with self.assertRaisesRegex(
            QMPError, "Could not create node: Inactive 'target' can't be a target child of active '#block"
        ):
            self.qmp.cmd("blockdev-backup", job_id="j", device="over", target="target", sync="full")
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_another_program_has_the_image_meanwhile(self) -> None:
        """Its locks are free, and what it wrote, mapping included, is what guests read afterwards."""
        self.add("fmt", self.disk)
        self.export("fmt", allow_inactive=True)
        guest = self.guest("fmt")
        guest.write(0, b"1" * 65536)
        self.set_active(False)
        self.assertEqual(self.active(), set())
        images.check(self.disk)
        images.qemu_io(self.disk, "write -q -P 0x32 1M 1M", "discard -q 0 64k", driver="qcow2")
        self.set_active(True)
        self.assertEqual(self.active(), {"fmt", "fmt-file"})
        self.assertEqual(guest.read(0, 3 * MiB), bytes(MiB) + b"2" * MiB + bytes(MiB))
        guest.write(2 * MiB, b"3" * MiB)
        guest.close()
        self.unexport("exp-fmt", mode="hard")
        self.qmp.cmd("blockdev-del", node_name="fmt")
        self.qmp.cmd("blockdev-del", node_name="fmt-file")
        self.assert_content(self.disk, bytes(MiB) + b"2" * MiB + b"3" * MiB + bytes(7 * MiB))

    def test_activation_fails_while_another_has_the_image(self) -> None:
        self.add("fmt", self.disk, active=False)
        self.set_active(False, "fmt-file")
        other = self.launch("--blockdev", f"driver=qcow2,node-name=o,file.driver=file,file.filename={self.disk}", name="o")
        before = self.nodes()
        with self.assertRaisesRegex(QMPError, 'Failed to get (shared )?"write" lock'):
            self.set_active(True, "fmt")
        self.assertEqual(self.nodes(), before)
        other.qmp.cmd("blockdev-set-active", active=False)
        self.set_active(True, "fmt")
        self.assertEqual(self.active(), {"fmt", "fmt-file"})
        with self.assertRaisesRegex(QMPError, 'Failed to get (shared )?"write" lock'):
            other.qmp.cmd("blockdev-set-active", active=True)
        self.set_active(False)
        other.qmp.cmd("blockdev-set-active", active=True)

    def test_hand_over_of_a_chain_and_back(self) -> None:
        """Two daemons with the same chain; a guest writes here, then there, then here."""
        self.need_libnbd()
        over = self.create_image("over.qcow2", 10 * MiB, backing=self.disk)
        options = f"driver=qcow2,node-name=fmt,file.driver=file,file.filename={over},active=off"
        socket = self.path("nbd2")
        there = self.launch("--blockdev", options, "--nbd-server", f"addr.type=unix,addr.path={socket}", name="t")
        there.qmp.cmd(
            "block-export-add", type="nbd", id="e", node_name="fmt", writable=True, allow_inactive=True
        )
        self.add_node("fmt", over)
        self.export("fmt", allow_inactive=True)
        here_guest, there_guest = self.guest("fmt"), Guest(socket, "fmt")
        model = bytearray(10 * MiB)
        for turn in range(6):
            giver, taker = (self.qmp, there.qmp) if turn % 2 else (there.qmp, self.qmp)
            guest = here_guest if taker is self.qmp else there_guest
            giver.cmd("blockdev-set-active", active=False)
            taker.cmd("blockdev-set-active", active=True)
            self.assertEqual(guest.read(0, 10 * MiB), bytes(model))
            data = self.random_bytes(MiB, turn)
            guest.write(turn * MiB + 4096, data)
            model[turn * MiB + 4096 : (turn + 1) * MiB + 4096] = data
        here_guest.close()
        there_guest.close()
        self.set_active(False)
        there.qmp.cmd("blockdev-set-active", active=False)
        self.assert_content(over, bytes(model))

    def test_bitmaps_go_with_the_image(self) -> None:
        """What is dirty is the union of what guests of both daemons wrote."""
        self.need_libnbd()
        socket = self.path("nbd2")
        options = f"driver=qcow2,node-name=fmt,file.driver=file,file.filename={self.disk},active=off"
        there = self.launch("--blockdev", options, "--nbd-server", f"addr.type=unix,addr.path={socket}", name="t")
        there.qmp.cmd("block-export-add", type="nbd", id="e", node_name="fmt", writable=True, allow_inactive=True)
        self.add_node("fmt", self.disk)
        self.qmp.cmd("block-dirty-bitmap-add", node="fmt", name="b", persistent=True, granularity=65536)
        self.qmp.cmd("block-dirty-bitmap-add", node="fmt", name="passing", granularity=65536)
        self.export("fmt", allow_inactive=True)
        here_guest, there_guest = self.guest("fmt"), Guest(socket, "fmt")

        def dirty(client: QMPClient) -> dict[str, int]:
            (node,) = [n for n in client.cmd("query-named-block-nodes", flat=True) if n["node-name"] == "fmt"]
            return {bitmap["name"]: bitmap["count"] for bitmap in node.get("dirty-bitmaps", [])}

        here_guest.write(0, b"x" * 65536)
        self.assertEqual((dirty(self.qmp), dirty(there.qmp)), ({"b": 65536, "passing": 65536}, {}))
        self.set_active(False)
        self.assertEqual(dirty(self.qmp), {"passing": 65536})
        self.assert_qmp_error(
            "Can't store persistent bitmaps to fmt: Operation not permitted", "block-dirty-bitmap-add",
            node="fmt", name="c", persistent=True,
        )
        there.qmp.cmd("blockdev-set-active", active=True)
        self.assertEqual(dirty(there.qmp), {"b": 65536})
        there_guest.write(MiB, b"y" * 65536)
        with self.assertRaises(QMPError):
            self.set_active(True)
        self.assertEqual(dirty(self.qmp), {"passing": 65536})
        there.qmp.cmd("blockdev-set-active", active=False)
        self.set_active(True)
        self.assertEqual(dirty(self.qmp), {"b": 2 * 65536, "passing": 65536})
        here_guest.write(2 * MiB, b"z" * 65536)
        here_guest.close()
        there_guest.close()
        self.set_active(False)
        images.check(self.disk)
        bitmaps = images.info(self.disk)["format-specific"]["data"]["bitmaps"]
        self.assertEqual([(b["name"], b["flags"]) for b in bitmaps], [("b", ["auto"])])

    def test_bitmaps_stay_when_an_activation_is_undone(self) -> None:
        self.add_node("fmt", self.disk)
        self.qmp.cmd("block-dirty-bitmap-add", node="fmt", name="b", persistent=True, granularity=65536)
        self.set_active(False)
        export = {"type": "nbd", "id": "e", "node-name": "fmt", "writable": True}
        self.assert_qmp_error(
            "Transaction aborted using Abort action",
            "transaction",
            actions=[{"type": "x-block-export-add", "data": export}, {"type": "abort", "data": {}}],
        )
        self.assertEqual(self.active(), set())
        images.check(self.disk)
        bitmaps = images.info(self.disk)["format-specific"]["data"]["bitmaps"]
        self.assertEqual([(b["name"], b["flags"]) for b in bitmaps], [("b", ["auto"])])
        self.set_active(True)
        self.assertEqual([b["name"] for b in self.nodes()["fmt"]["dirty-bitmaps"]], ["b"])
