"""Dirty bitmaps: commands and transactions, what is stored in images, NBD contexts."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import GiB, KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPError

SIZE = 4 * MiB
GRANULE = 64 * KiB


class BitmapCase(QMPTestCase):
    """One image, opened as node d."""

    size = SIZE

    def setUp(self) -> None:
        super().setUp()
        self.disk = self.make_disk()
        self.launch()
        self.add_node("d", self.disk)

    def make_disk(self) -> str:
        return self.create_image("disk.qcow2", self.size)

    def add(self, name: str, node: str = "d", **options: Any) -> None:
        self.qmp.cmd("block-dirty-bitmap-add", node=node, name=name, **options)

    def merge(self, target: str, *sources: Any, node: str = "d") -> None:
        self.qmp.cmd("block-dirty-bitmap-merge", node=node, target=target, bitmaps=list(sources))

    def on(self, verb: str, name: str, node: str = "d") -> None:
        self.qmp.cmd(f"block-dirty-bitmap-{verb}", node=node, name=name)

    def bitmaps(self, node: str = "d") -> dict[str, dict[str, Any]]:
        """The node's bitmaps by name; the rival also shows those of jobs, which have none."""
        found = self.nodes()[node].get("dirty-bitmaps", [])
        return {bitmap["name"]: bitmap for bitmap in found if "name" in bitmap}

    def count(self, name: str, node: str = "d") -> int:
        return int(self.bitmaps(node)[name]["count"])

    def sha256(self, name: str, node: str = "d") -> str:
        return str(self.qmp.cmd("x-debug-block-dirty-bitmap-sha256", node=node, name=name)["sha256"])

    def write(self, *ranges: tuple[int, int], node: str = "d") -> None:
        """A guest's writes."""
        if not any(e["id"] == f"exp-{node}" for e in self.qmp.cmd("query-block-exports")):
            self.export(node)
        for offset, length in ranges:
            images.qemu_io(self.nbd_uri(node), f"write -q -P 77 {offset} {length}", driver="raw")

    def unexport(self, identity: str, mode: str = "hard") -> None:
        # A client that has gone may not be known to be.
        super().unexport(identity, mode)

    def stored(self, path: str = "") -> dict[str, Any]:
        """The bitmaps that the image on disk has, by name, as qemu-img tells."""
        data = images.info_shared(path or self.disk)["format-specific"]["data"]
        return {bitmap["name"]: bitmap for bitmap in data.get("bitmaps", [])}

    def dirty(self, name: str, path: str = "") -> list[tuple[int, int]]:
        """
        The dirty extents of a stored bitmap, as qemu-img reads them: of a copy of the image, through
        QEMU's own NBD server.
        """
        self.looks = getattr(self, "looks", 0) + 1
        copy, socket = self.path(f"copy{self.looks}"), self.path(f"look{self.looks}")
        shutil.copy(path or self.disk, copy)
        # It ends with its one client.
        images.run_tool("qemu-nbd", "-r", "-f", "qcow2", "-B", name, "-k", socket, "--fork", copy)
        text = images.run_tool(
            "qemu-img", "map", "--output=json", "--image-opts",
            f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        )
        return [(e["start"], e["length"]) for e in json.loads(text) if not e["data"]]


class Commands(BitmapCase):
    """The commands one by one."""

    def test_what_is_written_is_dirty(self) -> None:
        self.add("b")
        self.write((0, 512), (3 * GRANULE - 1, 2), (SIZE - 512, 512))
        self.assertEqual(self.count("b"), 4 * GRANULE)
        self.assertEqual(
            self.bitmaps()["b"],
            {"name": "b", "count": 4 * GRANULE, "granularity": GRANULE, "recording": True, "busy": False, "persistent": False},
        )

    def test_granularity_is_that_of_the_clusters_or_chosen(self) -> None:
        self.add_node("small", self.create_image("small.qcow2", SIZE, images.QCOW2_512), "qcow2")
        self.add_node("raw", self.create_image("raw.img", SIZE, images.RAW), "raw")
        for node in ("d", "small", "raw"):
            self.add("b", node)
        self.add("c", granularity=512)
        got = [self.bitmaps(node)["b"]["granularity"] for node in ("d", "small", "raw")]
        self.assertEqual(got + [self.bitmaps()["c"]["granularity"]], [64 * KiB, 4 * KiB, 64 * KiB, 512])

    def test_sha256(self) -> None:
        self.add("b", granularity=512)
        self.write((512, 512), (65 * 512, 1024), (SIZE - 512, 1))
        # What the rival answers, too.
        self.assertEqual(self.sha256("b"), "d6a4bd4e04cd5bd6d0714c8754693de39e9720d8992d8c288fa5f6722e89230a")

    def test_sha256_of_an_empty_disk(self) -> None:
        self.qmp.cmd("block_resize", node_name="d", size=0)
        self.add("b")
        self.assertEqual(self.sha256("b"), hashlib.sha256(bytes(8)).hexdigest())

    def test_clear_disable_enable(self) -> None:
        self.add("b")
        self.write((0, GRANULE))
        self.on("clear", "b")
        self.assertEqual(self.count("b"), 0)
        self.on("disable", "b")
        self.write((GRANULE, GRANULE))
        self.assertEqual((self.count("b"), self.bitmaps()["b"]["recording"]), (0, False))
        self.qmp.cmd("block-dirty-bitmap-enable", node="d", name="b")
        self.write((2 * GRANULE, GRANULE))
        self.assertEqual((self.count("b"), self.bitmaps()["b"]["recording"]), (GRANULE, True))

    def test_merge(self) -> None:
        self.add_node("o", self.create_image("o.qcow2", SIZE), "qcow2")
        self.add("fine", granularity=512)
        self.add("target", disabled=True)
        self.add("other", "o")
        self.write((GRANULE, 512))
        self.write((3 * GRANULE, 512), node="o")
        self.merge("target", "fine", {"node": "o", "name": "other"})
        self.assertEqual(self.count("target"), 2 * GRANULE)
        self.merge("fine", "target")
        self.assertEqual(self.count("fine"), 2 * GRANULE)
        self.merge("fine", "fine")
        self.assertEqual(self.count("fine"), 2 * GRANULE)

    def test_merge_that_fails_has_merged_nothing(self) -> None:
        self.add("a")
        self.add("b", disabled=True)
        self.write((0, 512))
        self.assert_qmp_error(
            "Dirty bitmap 'zz' not found", "block-dirty-bitmap-merge", node="d", target="b", bitmaps=["a", "zz"]
        )
        self.assertEqual(self.count("b"), 0)

    @blockd_only("the rival ends")
    def test_merge_of_nothing(self) -> None:
        self.add("b")
        self.merge("b")

    def test_the_newest_comes_first(self) -> None:
        for name in ("x", "a", "m"):
            self.add(name)
        self.assertEqual(list(self.bitmaps()), ["m", "a", "x"])
        self.on("remove", "a")
        self.assertEqual(list(self.bitmaps()), ["m", "x"])

    def test_refusals(self) -> None:
        self.add_node("raw", self.create_image("raw.img", MiB, images.RAW), "raw")
        self.add_node("v2", self.create_image("v2.qcow2", MiB, images.QCOW2_V2), "qcow2")
        self.add("b")
        self.add("b", "raw")
        power = "Granularity must be power of 2 and at least 512"
        long = "x" * 1024
        prefix = "Can't make bitmap '{}' persistent in '{}': "
        refused: list[tuple[str, dict[str, Any]]] = [
            ("Cannot find device='zz' nor node-name='zz'", {"node": "zz", "name": "b"}),
            ("Bitmap name cannot be empty", {"node": "d", "name": ""}),
            ("Bitmap already exists: b", {"node": "d", "name": "b"}),
            ("Bitmap already exists: b", {"node": "d", "name": "b", "persistent": True}),
            (power, {"node": "d", "name": "c", "granularity": 256}),
            (power, {"node": "d", "name": "c", "granularity": 65537}),
            ("Can't store persistent bitmaps to raw: Operation not supported", {"node": "raw", "name": "c", "persistent": True}),
            (prefix.format("c", "v2") + "Cannot store dirty bitmaps in qcow2 v2 files", {"node": "v2", "name": "c", "persistent": True}),
            (f"Bitmap name too long: {long}", {"node": "d", "name": long}),
            (prefix.format(long, "d") + "Name length exceeds maximum (1023 characters)", {"node": "d", "name": long, "persistent": True}),
        ]
        for desc, arguments in refused:
            self.assert_qmp_error(desc, "block-dirty-bitmap-add", arguments)
        for verb in ("remove", "clear", "enable", "disable"):
            command = f"block-dirty-bitmap-{verb}"
            self.assert_qmp_error("Node 'zz' not found", command, node="zz", name="b")
            self.assert_qmp_error("Dirty bitmap 'zz' not found", command, node="d", name="zz")
        merge = "block-dirty-bitmap-merge"
        self.assert_qmp_error("Dirty bitmap 'zz' not found", merge, node="d", target="zz", bitmaps=["b"])
        self.assert_qmp_error("Node 'zz' not found", merge, node="d", target="b", bitmaps=[{"node": "zz", "name": "b"}])
        self.assert_qmp_error(
            f"Bitmaps are of different sizes (destination size is {SIZE}, source size is {MiB}) and can't be merged",
            merge, node="d", target="b", bitmaps=[{"node": "raw", "name": "b"}],
        )

    def test_resize(self) -> None:
        self.add("b")
        self.write((SIZE - GRANULE, GRANULE))
        self.unexport("exp-d")
        self.qmp.cmd("block_resize", node_name="d", size=2 * SIZE)
        self.write((2 * SIZE - 512, 512))
        self.assertEqual(self.count("b"), 2 * GRANULE)
        self.unexport("exp-d")
        self.qmp.cmd("block_resize", node_name="d", size=SIZE)
        self.assertEqual(self.count("b"), GRANULE)


class Transactions(BitmapCase):
    """The same as actions: all or nothing."""

    def run_actions(self, *actions: tuple[str, dict[str, Any]]) -> None:
        self.qmp.cmd("transaction", actions=self.actions(*actions))

    @staticmethod
    def actions(*actions: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"type": verb if verb == "abort" else f"block-dirty-bitmap-{verb}", "data": data} for verb, data in actions
        ]

    def test_later_actions_see_earlier_ones(self) -> None:
        self.add("old")
        self.write((0, GRANULE))
        at = {"node": "d", "name": "new"}
        self.run_actions(
            ("add", at),
            ("merge", {"node": "d", "target": "new", "bitmaps": ["old"]}),
            ("disable", at),
            ("clear", {"node": "d", "name": "old"}),
        )
        self.assertEqual((self.count("new"), self.count("old"), self.bitmaps()["new"]["recording"]), (GRANULE, 0, False))

    def test_abort_undoes_everything(self) -> None:
        for name in ("a", "b", "c"):
            self.add(name, persistent=name != "c")
        self.write((0, GRANULE))
        self.on("disable", "c")
        before = self.nodes()["d"]["dirty-bitmaps"]
        at = {"node": "d"}
        self.assert_qmp_error(
            "Transaction aborted using Abort action",
            "transaction",
            actions=self.actions(
                ("add", {**at, "name": "n", "persistent": True}),
                ("clear", {**at, "name": "a"}),
                ("merge", {**at, "target": "c", "bitmaps": ["b"]}),
                ("enable", {**at, "name": "c"}),
                ("disable", {**at, "name": "b"}),
                ("remove", {**at, "name": "b"}),
                ("abort", {}),
            ),
        )
        self.assertEqual(self.nodes()["d"]["dirty-bitmaps"], before)

    def test_a_removed_bitmap_keeps_its_name_until_the_end(self) -> None:
        self.add("b")
        at = {"node": "d", "name": "b"}
        busy = "Bitmap 'b' is currently in use by another operation and cannot be used"
        for verb in ("remove", "clear", "enable"):
            self.assert_qmp_error(busy, "transaction", actions=self.actions(("remove", at), (verb, at)))
        self.assert_qmp_error("Bitmap already exists: b", "transaction", actions=self.actions(("remove", at), ("add", at)))
        self.assertFalse(self.bitmaps()["b"]["busy"])
        self.run_actions(("remove", at))
        self.assertEqual(self.bitmaps(), {})

    def test_bitmap_actions_cannot_be_grouped(self) -> None:
        self.assert_qmp_error(
            "Action 'block-dirty-bitmap-add' does not support Transaction property completion-mode = grouped",
            "transaction",
            actions=self.actions(("add", {"node": "d", "name": "b"})),
            properties={"completion-mode": "grouped"},
        )


class Stored(BitmapCase):
    """What is in the image, as both daemons and qemu-img see it."""

    def test_stored_bitmaps_are_found_again(self) -> None:
        self.add("b", persistent=True)
        self.add("off", persistent=True, disabled=True, granularity=4096)
        self.add("gone")
        self.write((GRANULE, 2 * GRANULE), (SIZE - 1, 1))
        self.merge("off", "b")
        hashes = {name: self.sha256(name) for name in ("b", "off")}
        self.unexport("exp-d")
        self.qmp.cmd("blockdev-del", node_name="d")
        images.check(self.disk)
        self.assertEqual(
            sorted((b["name"], b["granularity"], b["flags"]) for b in self.stored().values()),
            [("b", GRANULE, ["auto"]), ("off", 4096, [])],
        )
        self.assertEqual(self.dirty("b"), [(GRANULE, 2 * GRANULE), (SIZE - GRANULE, GRANULE)])
        self.add_node("d", self.disk)
        self.assertEqual({name: self.sha256(name) for name in self.bitmaps()}, hashes)
        self.assertEqual({name: b["recording"] for name, b in self.bitmaps().items()}, {"off": False, "b": True})
        self.on("remove", "b")
        self.on("remove", "off")
        self.daemon.quit()
        images.check(self.disk)
        self.assertEqual(self.stored(), {})

    def test_bitmaps_of_qemu_img(self) -> None:
        self.qmp.cmd("blockdev-del", node_name="d")
        tool = ["qemu-img", "bitmap"]
        images.run_tool(*tool, "--add", "-g", "4096", self.disk, "a")
        images.run_tool(*tool, "--add", "--disable", self.disk, "b")
        images.qemu_io(self.disk, "write -q 0 4096", "write -q 1M 1", driver="qcow2")
        self.add_node("d", self.disk)
        self.assertEqual([(b["name"], b["count"], b["recording"]) for b in self.bitmaps().values()], [("b", 0, False), ("a", 8192, True)])
        self.write((2 * MiB, 4096))
        self.daemon.quit()
        images.check(self.disk)
        self.assertEqual(self.dirty("a"), [(0, 4096), (MiB, 4096), (2 * MiB, 4096)])
        images.run_tool(*tool, "--merge", "a", self.disk, "b")
        images.run_tool(*tool, "--clear", self.disk, "a")
        images.check(self.disk)

    def test_read_only_image(self) -> None:
        self.add("b", persistent=True)
        self.write((0, GRANULE))
        self.unexport("exp-d")
        self.qmp.cmd("blockdev-del", node_name="d")
        self.add_node("d", self.disk, read_only=True)
        self.assertEqual(self.count("b"), GRANULE)
        text = "Bitmap 'b' is readonly and cannot be modified"
        for verb in ("clear", "remove"):
            self.assert_qmp_error(text, f"block-dirty-bitmap-{verb}", node="d", name="b")
        self.add("m", disabled=True)
        self.merge("m", "b")
        self.assertEqual(self.count("m"), GRANULE)

    def test_reopened(self) -> None:
        def reopen(read_only: bool) -> None:
            self.qmp.cmd(
                "blockdev-reopen",
                options=[{"driver": "qcow2", "node-name": "d", "file": "d-file", "read-only": read_only}],
            )

        self.add("b", persistent=True)
        self.write((0, GRANULE))
        self.unexport("exp-d")
        reopen(True)
        self.assertEqual(self.stored()["b"]["flags"], ["auto"])
        self.assertEqual(self.dirty("b"), [(0, GRANULE)])
        self.assert_qmp_error("Bitmap 'b' is readonly and cannot be modified", "block-dirty-bitmap-clear", node="d", name="b")
        reopen(False)
        self.write((2 * GRANULE, GRANULE))
        self.assertEqual(self.count("b"), 2 * GRANULE)
        # It can be changed again, too.
        self.add("none")
        self.merge("b", "none")
        self.daemon.quit()
        self.assertEqual(self.dirty("b"), [(0, GRANULE), (2 * GRANULE, GRANULE)])

    def test_resized(self) -> None:
        self.add("b", persistent=True, granularity=512)
        self.write((SIZE - 512, 512))
        self.unexport("exp-d")
        for size in (8 * GiB, 2 * MiB, 6 * MiB):
            self.qmp.cmd("block_resize", node_name="d", size=size)
        self.write((6 * MiB - 512, 512), (0, 512))
        self.daemon.quit()
        images.check(self.disk)
        self.assertEqual(self.dirty("b"), [(0, 512), (6 * MiB - 512, 512)])

    @blockd_only("the rival stores what it then refuses to open, and the image with it")
    def test_an_empty_disk_has_none(self) -> None:
        refused = "A disk of size 0 cannot have persistent bitmaps"
        self.add("b", persistent=True)
        with self.assertRaisesRegex(QMPError, refused):
            self.qmp.cmd("block_resize", node_name="d", size=0)
        self.assertEqual(self.nodes()["d"]["image"]["virtual-size"], SIZE)
        self.on("remove", "b")
        self.qmp.cmd("block_resize", node_name="d", size=0)
        with self.assertRaisesRegex(QMPError, f"Can't make bitmap 'b' persistent in 'd': {refused}"):
            self.add("b", persistent=True)
        self.daemon.quit()
        images.check(self.disk)

    def test_an_outer_snapshot_leaves_the_bitmaps_below(self) -> None:
        self.add("b", persistent=True)
        self.write((0, GRANULE))
        self.qmp.cmd("blockdev-snapshot-sync", node_name="d", snapshot_file=self.path("top.qcow2"), snapshot_node_name="top")
        self.write((GRANULE, GRANULE))  # to the top, where the export is now
        self.assertEqual((self.count("b"), self.bitmaps("top")), (GRANULE, {}))
        self.daemon.quit()
        self.assertEqual(self.dirty("b"), [(0, GRANULE)])


class Snapshot(BitmapCase):
    """Bitmaps of an image that becomes a backing file."""

    def test_a_bitmap_removed_with_the_snapshot_is_not_in_the_image(self) -> None:
        self.add("stays", persistent=True)
        self.add("goes", persistent=True)
        overlay = self.path("overlay.qcow2")
        snapshot = {"node-name": "d", "snapshot-file": overlay, "snapshot-node-name": "over"}
        actions = [
            {"type": "blockdev-snapshot-sync", "data": snapshot},
            {"type": "block-dirty-bitmap-remove", "data": {"node": "d", "name": "goes"}},
        ]
        self.qmp.cmd("transaction", actions=actions)
        self.assertEqual(list(self.bitmaps()), ["stays"])
        self.daemon.quit()
        self.assertEqual(list(self.stored()), ["stays"])
        images.check(self.disk)


@blockd_only("the rival has no blockdev-set-active")
class Inactive(BitmapCase):
    """An image handed over to another program and back."""

    def test_bitmaps_go_with_the_image(self) -> None:
        self.add("b", persistent=True)
        self.add("mine")
        self.write((0, GRANULE))
        self.unexport("exp-d")
        self.qmp.cmd("blockdev-set-active", node_name="d", active=False)
        self.assertEqual(list(self.bitmaps()), ["mine"])
        self.assertEqual(self.dirty("b"), [(0, GRANULE)])
        images.run_tool("qemu-img", "bitmap", "--clear", self.disk, "b")
        images.run_tool("qemu-img", "bitmap", "--add", self.disk, "c")
        self.qmp.cmd("blockdev-set-active", node_name="d", active=True)
        self.assertEqual({name: b["count"] for name, b in self.bitmaps().items()}, {"c": 0, "b": 0, "mine": GRANULE})
        self.write((GRANULE, GRANULE))
        self.assertEqual((self.count("b"), self.count("c")), (GRANULE, GRANULE))
        self.daemon.quit()
        images.check(self.disk)
        self.assertEqual(self.dirty("c"), [(GRANULE, GRANULE)])


class Exported(BitmapCase):
    """qemu:dirty-bitmap contexts of NBD exports."""

    def extents(self, export: str, name: str) -> list[tuple[int, int, int]]:
        """(offset, length, flags) of a context as nbdinfo tells."""
        text = images.run_tool("nbdinfo", "--json", f"--map={name}", self.nbd_uri(export))
        return [(e["offset"], e["length"], e["type"]) for e in json.loads(text)]

    def test_extents(self) -> None:
        self.add("b")
        self.write((GRANULE, GRANULE), (3 * GRANULE, 512))
        self.on("disable", "b")
        self.unexport("exp-d")
        self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="d", name="x", bitmaps=["b"])
        context = "qemu:dirty-bitmap:b"
        self.assertEqual(
            self.extents("x", context),
            [(0, GRANULE, 0), (GRANULE, GRANULE, 1), (2 * GRANULE, GRANULE, 0), (3 * GRANULE, GRANULE, 1), (4 * GRANULE, SIZE - 4 * GRANULE, 0)],
        )
        # And as QEMU reads it.
        options = f"driver=nbd,server.type=unix,server.path={self.nbd_socket},export=x,x-dirty-bitmap={context}"
        got = json.loads(images.run_tool("qemu-img", "map", "--output=json", "--image-opts", options))
        self.assertEqual([e["start"] for e in got if not e["data"]], [GRANULE, 3 * GRANULE])

    def test_exported_bitmap_is_busy(self) -> None:
        self.add("b", disabled=True)
        self.start_nbd()
        self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="d", bitmaps=["b", "b"])
        self.assertTrue(self.bitmaps()["b"]["busy"])
        text = "Bitmap 'b' is currently in use by another operation and cannot be used"
        for verb in ("clear", "enable", "disable", "remove"):
            self.assert_qmp_error(text, f"block-dirty-bitmap-{verb}", node="d", name="b")
        self.assert_qmp_error(text, "block-export-add", type="nbd", id="f", node_name="d", name="y", bitmaps=["b"])
        self.unexport("e")
        self.assertFalse(self.bitmaps()["b"]["busy"])
        self.on("remove", "b")

    def test_enabled_bitmap_of_a_writable_export(self) -> None:
        self.add("b")
        self.start_nbd()
        self.assert_qmp_error(
            "Enabled bitmap 'b' incompatible with readonly export",
            "block-export-add", type="nbd", id="e", node_name="d", bitmaps=["b"],
        )
        self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="d", bitmaps=["b"], writable=True)
        guest = self.guest("d")
        guest.write(0, bytes(512))
        guest.close()
        self.assertEqual(self.extents("d", "qemu:dirty-bitmap:b")[0], (0, GRANULE, 1))

    def test_bitmap_of_the_chain_below_and_of_another_node(self) -> None:
        self.add("b", disabled=True)
        self.add_node("o", self.create_image("o.qcow2", SIZE), "qcow2")
        self.add("other", "o")
        self.add_node("top", self.create_image("top.qcow2", SIZE, backing=self.disk), "qcow2", backing="d")
        self.start_nbd()
        self.qmp.cmd(
            "block-export-add", type="nbd", id="e", node_name="top", bitmaps=["b", {"node": "o", "name": "other"}]
        )
        self.assertTrue(self.bitmaps("d")["b"]["busy"] and self.bitmaps("o")["other"]["busy"])
        self.assertEqual(self.extents("top", "qemu:dirty-bitmap:other"), [(0, SIZE, 0)])

    def test_unknown_bitmaps(self) -> None:
        self.start_nbd()
        common = {"type": "nbd", "id": "e", "node-name": "d"}
        self.assert_qmp_error("Bitmap 'zz' is not found", "block-export-add", {**common, "bitmaps": ["zz"]})
        self.assert_qmp_error("Node 'zz' not found", "block-export-add", {**common, "bitmaps": [{"node": "zz", "name": "b"}]})
        self.assert_qmp_error("Dirty bitmap 'zz' not found", "block-export-add", {**common, "bitmaps": [{"node": "d", "name": "zz"}]})
