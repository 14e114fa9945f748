"""Backups with dirty bitmaps: what is copied, what the bitmap has afterwards, chains, groups, pull mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import SUCCESS
from iotests.harness.guest import Guest
from iotests.harness.images import KiB, MiB
from iotests.tests.test_bitmaps import GRANULE, SIZE, BitmapCase

# The granules that the bitmap has when a job starts, and those that are written while it runs.
BEFORE = (1, 2, 5, 6)
DURING = (2, 20)


class BackupCase(BitmapCase):
    """A disk with data, a guest at it, and bitmap b."""

    def setUp(self) -> None:
        super().setUp()
        self.writes = 0

    def make_disk(self) -> str:
        self.data = bytearray(self.random_bytes(SIZE))
        return self.filled_image("disk.qcow2", bytes(self.data))

    def connect(self) -> Guest:
        self.export("d")
        guest = self.guest("d")
        self.addCleanup(guest.vanish)
        return guest

    def write_granules(self, guest: Guest, *granules: int) -> None:
        """New data, in the model, too."""
        for granule in granules:
            self.writes += 1
            piece = self.random_bytes(GRANULE, 100 + self.writes)
            guest.write(granule * GRANULE, piece)
            self.data[granule * GRANULE : (granule + 1) * GRANULE] = piece

    def target(self, name: str, node: str = "t", backing: str = "", **options: Any) -> str:
        path = self.create_image(name, SIZE, images.QCOW2, backing=backing)
        if backing:
            options["backing"] = None
        self.add_node(node, path, "qcow2", **options)
        return path

    def dirty_granules(self, name: str, node: str = "d") -> tuple[int, ...]:
        """The dirty granules, as an NBD client of another export sees them."""
        if not Path(self.nbd_socket).exists():
            self.start_nbd()
        recording = self.bitmaps(node)[name]["recording"]
        if recording:
            self.on("disable", name, node)
        self.qmp.cmd("block-export-add", type="nbd", id="look", node_name=node, name="look", bitmaps=[name])
        text = images.run_tool("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", self.nbd_uri("look"))
        self.unexport("look")
        if recording:
            self.on("enable", name, node)
        return tuple(
            granule
            for extent in json.loads(text)
            if extent["type"]
            for granule in range(extent["offset"] // GRANULE, (extent["offset"] + extent["length"]) // GRANULE)
        )

    def assert_increment(self, path: str, base: bytes, expected: bytes) -> None:
        """An image without its backing file holds the clusters in which `expected` differs from `base`."""
        got = self.path("got.raw")
        images.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", path)
        images.check(path)
        images.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, got)
        content = Path(got).read_bytes()
        for offset in range(0, SIZE, GRANULE):
            piece, old, new = (b[offset : offset + GRANULE] for b in (content, base, expected))
            self.assertEqual(piece, new if old != new else bytes(GRANULE), f"at {offset}")


class Modes(BackupCase):
    """What the bitmap has after each mode and outcome."""

    def start(self, guest: Guest, **options: Any) -> bytes:
        """A backup of what bitmap b marks, at its point in time; the disk's content then is given back."""
        self.add("b", persistent=True)
        self.write_granules(guest, *BEFORE)
        then = bytes(self.data)
        arguments = {"sync": "bitmap", "bitmap": "b", "auto_finalize": False, **options}
        self.qmp.cmd("blockdev-backup", job_id="j", device="d", target="t", **arguments)
        return then

    def during(self, guest: Guest) -> None:
        """The bitmap is in use, and records."""
        bitmap = self.bitmaps()["b"]
        self.assertEqual((bitmap["busy"], bitmap["recording"], bitmap["count"]), (True, True, len(BEFORE) * GRANULE))
        busy = "Bitmap 'b' is currently in use by another operation and cannot be used"
        for verb in ("clear", "disable", "remove"):
            self.assert_qmp_error(busy, f"block-dirty-bitmap-{verb}", node="d", name="b")
        self.write_granules(guest, *DURING)

    def succeed(self, expected: set[int], **options: Any) -> None:
        base = bytes(self.data)
        target = self.target("t.qcow2")
        guest = self.connect()
        then = self.start(guest, **options)
        self.wait_status("j", "pending")
        self.during(guest)
        self.qmp.cmd("job-finalize", id="j")
        self.wait_status("j", "null")
        self.assert_job_sequence("j", (*SUCCESS[:4], "BLOCK_JOB_PENDING", *SUCCESS[4:]))
        self.assertFalse(self.bitmaps()["b"]["busy"])
        self.assertEqual(set(self.dirty_granules("b")), expected)
        if options.get("sync", "bitmap") in ("bitmap", "incremental"):
            self.assertEqual(self.completed_event("j")["len"], len(BEFORE) * GRANULE)
        self.daemon.quit()
        if options.get("sync") == "full":
            self.assert_content(target, then)
        else:
            self.assert_increment(target, base, then)
        self.assertEqual(self.stored()["b"]["flags"], ["auto"])
        self.assertEqual({start // GRANULE + i for start, length in self.dirty("b") for i in range(length // GRANULE)}, expected)

    def test_on_success(self) -> None:
        self.succeed(set(DURING), bitmap_mode="on-success")

    def test_always(self) -> None:
        self.succeed(set(DURING), bitmap_mode="always")

    def test_never(self) -> None:
        self.succeed({*BEFORE, *DURING}, bitmap_mode="never")

    def test_incremental(self) -> None:
        self.succeed(set(DURING), sync="incremental")

    def test_full_with_a_bitmap(self) -> None:
        self.succeed(set(DURING), sync="full", bitmap_mode="on-success")

    def cancel(self, expected: set[int], **options: Any) -> None:
        """Everything is copied, but the job is cancelled before its end."""
        self.target("t.qcow2")
        guest = self.connect()
        self.start(guest, **options)
        self.wait_status("j", "pending")
        self.during(guest)
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertEqual(set(self.dirty_granules("b")), expected)

    def test_cancelled_on_success(self) -> None:
        self.cancel({*BEFORE, *DURING}, bitmap_mode="on-success")

    def test_cancelled_always_has_what_was_not_copied(self) -> None:
        self.cancel(set(DURING), bitmap_mode="always")

    def test_cancelled_never(self) -> None:
        self.cancel({*BEFORE, *DURING}, bitmap_mode="never")

    def stop(self, expected: set[int], **options: Any) -> None:
        """The target fails when half of it is copied."""
        path = self.create_image("t.img", SIZE, images.RAW)
        rule = {"event": "none", "iotype": "write", "sector": 5 * GRANULE // 512, "errno": 5}
        self.qmp.cmd(
            "blockdev-add", driver="raw", node_name="t",
            file={"driver": "blkdebug", "image": {"driver": "file", "filename": path}, "inject-error": [rule]},
        )
        guest = self.connect()
        self.start(guest, on_target_error="stop", x_perf={"max-workers": 1, "max-chunk": GRANULE}, **options)
        self.qmp.wait_event("BLOCK_JOB_ERROR", {"device": "j", "action": "stop", "operation": "write"})
        self.during(guest)
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertEqual(set(self.dirty_granules("b")), expected)
        content = Path(path).read_bytes()
        copied = {i for i in range(SIZE // GRANULE) if any(content[i * GRANULE : (i + 1) * GRANULE])}
        self.assertEqual(copied, {1, 2})

    def test_failed_on_success(self) -> None:
        self.stop({*BEFORE, *DURING}, bitmap_mode="on-success")

    def test_failed_always_has_what_was_not_copied(self) -> None:
        self.stop({5, 6, *DURING}, bitmap_mode="always")

    def test_failed_never(self) -> None:
        self.stop({*BEFORE, *DURING}, bitmap_mode="never")

    def test_disabled_bitmap_records_nothing(self) -> None:
        self.target("t.qcow2")
        guest = self.connect()
        self.add("b")
        self.write_granules(guest, *BEFORE)
        self.on("disable", "b")
        self.qmp.cmd(
            "blockdev-backup", job_id="j", device="d", target="t", sync="bitmap", bitmap="b", bitmap_mode="on-success",
            auto_finalize=False,
        )
        self.wait_status("j", "pending")
        self.assertFalse(self.bitmaps()["b"]["recording"])
        self.write_granules(guest, *DURING)
        self.qmp.cmd("job-finalize", id="j")
        self.wait_status("j", "null")
        self.assertEqual((self.count("b"), self.bitmaps()["b"]["recording"]), (0, False))

    def test_refusals(self) -> None:
        self.target("t.qcow2")
        self.add("b")
        common = {"job-id": "j", "device": "d", "target": "t"}
        for desc, options in (
            ("Bitmap 'zz' could not be found", {"sync": "incremental", "bitmap": "zz"}),
            ("must provide a valid bitmap name for 'bitmap' sync mode", {"sync": "bitmap"}),
            ("Bitmap sync mode must be given when providing a bitmap", {"sync": "bitmap", "bitmap": "b"}),
            (
                "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
                {"sync": "incremental", "bitmap": "b", "bitmap-mode": "never"},
            ),
            (
                "sync mode 'none' does not produce meaningful bitmap outputs",
                {"sync": "none", "bitmap": "b", "bitmap-mode": "always"},
            ),
            (
                "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
                {"sync": "full", "bitmap": "b", "bitmap-mode": "never"},
            ),
        ):
            self.assert_qmp_error(desc, "blockdev-backup", {**common, **options})
            self.assertFalse(self.bitmaps()["b"]["busy"])
        self.start_nbd()
        self.on("disable", "b")
        self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="d", bitmaps=["b"])
        self.assert_qmp_error(
            "Bitmap 'b' is currently in use by another operation and cannot be used",
            "blockdev-backup", {**common, "sync": "incremental", "bitmap": "b"},
        )

    def test_a_failed_command_leaves_the_bitmap(self) -> None:
        self.add("b")
        self.add_node("small", self.create_image("small.img", MiB, images.RAW), "raw")
        self.assert_qmp_error(
            "Source and target image have different sizes",
            "blockdev-backup", job_id="j", device="d", target="small", sync="incremental", bitmap="b",
        )
        self.assertEqual(
            self.bitmaps()["b"],
            {"name": "b", "count": 0, "granularity": GRANULE, "recording": True, "busy": False, "persistent": False},
        )


class Chain(BackupCase):
    """Increments, rebuilt by their chain."""

    def test_ten_increments(self) -> None:
        guest = self.connect()
        models = [bytes(self.data)]
        paths = [self.target("inc0.qcow2", "t0")]
        self.qmp.cmd(
            "transaction",
            actions=[
                {"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "b", "persistent": True}},
                {"type": "blockdev-backup", "data": {"device": "d", "target": "t0", "job-id": "j0", "sync": "full"}},
            ],
        )
        self.wait_status("j0", "null")
        for i in range(1, 11):
            self.write_granules(guest, i, 3 * i, 60 - i)
            models.append(bytes(self.data))
            paths.append(self.target(f"inc{i}.qcow2", f"t{i}", backing=paths[-1]))
            self.qmp.cmd(
                "blockdev-backup", job_id=f"j{i}", device="d", target=f"t{i}", sync="incremental", bitmap="b",
                auto_finalize=False,
            )
            self.wait_status(f"j{i}", "pending")
            self.write_granules(guest, 2 * i)  # for the next one
            self.qmp.cmd("job-finalize", id=f"j{i}")
            self.wait_status(f"j{i}", "null")
        self.daemon.quit()
        for path, model in zip(paths, models):
            self.assert_content(path, model, "qcow2")

    def test_differential(self) -> None:
        """Two increments over one base, from a bitmap that is never reset."""
        guest = self.connect()
        base = self.target("base.qcow2", "t0")
        self.add("b")
        self.run_job("blockdev-backup", job_id="j0", device="d", target="t0", sync="full")
        images_made = []
        for i in (1, 2):
            self.write_granules(guest, 4 * i, 4 * i + 1)
            path = self.target(f"diff{i}.qcow2", f"t{i}", backing=base)
            self.run_job("blockdev-backup", job_id=f"j{i}", device="d", target=f"t{i}", sync="bitmap", bitmap="b", bitmap_mode="never")
            images_made.append((path, bytes(self.data)))
        self.daemon.quit()
        for path, model in images_made:
            self.assert_content(path, model, "qcow2")

    def test_target_with_larger_clusters(self) -> None:
        base = bytes(self.data)
        path = self.create_image("t.qcow2", SIZE, images.QCOW2_2M)
        self.add_node("t", path, "qcow2")
        guest = self.connect()
        self.add("b", granularity=4096)
        self.write_granules(guest, 40)
        self.run_job("blockdev-backup", job_id="j", device="d", target="t", sync="incremental", bitmap="b")
        self.assertEqual(self.completed_event("j")["len"], 2 * MiB)
        self.daemon.quit()
        got = self.path("got.raw")
        images.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, got)
        content = Path(got).read_bytes()
        self.assertEqual((content[: 2 * MiB], content[2 * MiB :]), (bytes(2 * MiB), bytes(self.data[2 * MiB :])))
        self.assertNotEqual(base, bytes(self.data))


class Group(BackupCase):
    """Several disks at one point in time."""

    def start_two(self, **second: Any) -> tuple[Guest, Guest]:
        self.add_node("o", self.create_image("o.qcow2", SIZE), "qcow2")
        self.target("t.qcow2")
        self.target("u.qcow2", "u")
        first = self.connect()
        self.export("o")
        other = self.guest("o")
        self.addCleanup(other.vanish)
        for node in ("d", "o"):
            self.add("b", node)
        self.write_granules(first, *BEFORE)
        other.write(0, bytes(512))
        disks: list[tuple[str, str, str, dict[str, Any]]] = [("j1", "d", "t", {}), ("j2", "o", "u", second)]
        self.qmp.cmd(
            "transaction",
            actions=[
                {
                    "type": "blockdev-backup",
                    "data": {"job-id": job, "device": node, "target": target, "sync": "incremental", "bitmap": "b", **options},
                }
                for job, node, target, options in disks
            ],
            properties={"completion-mode": "grouped"},
        )
        return first, other

    def test_all_succeed(self) -> None:
        self.start_two()
        self.wait_status("j1", "null")
        self.wait_status("j2", "null")
        self.assertEqual((self.count("b"), self.count("b", "o")), (0, 0))

    def test_one_is_cancelled(self) -> None:
        first, _ = self.start_two(speed=1)
        self.wait_status("j1", "waiting")
        self.write_granules(first, *DURING)
        self.qmp.cmd("job-cancel", id="j2")
        self.wait_status("j1", "null")
        self.wait_status("j2", "null")
        self.assertEqual(set(self.dirty_granules("b")), {*BEFORE, *DURING})
        self.assertEqual(self.count("b", "o"), GRANULE)


class EightDisks(BackupCase):
    """A guest's disks, backed up at one point in time, with the bitmaps of the next time."""

    def test_increments_of_one_point_in_time(self) -> None:
        names = [f"disk{i}" for i in range(8)]
        for name in names:
            self.add_node(name, self.create_image(f"{name}.qcow2", SIZE), "qcow2")
            self.add("old", name, persistent=True)
            self.target(f"{name}-t.qcow2", f"{name}-t")
            self.export(name)
        guests = {name: self.guest(name) for name in names}
        for guest in guests.values():
            self.addCleanup(guest.vanish)
        models = {name: bytearray(SIZE) for name in names}

        def write(salt: int) -> None:
            for i, name in enumerate(names):
                piece = self.random_bytes(GRANULE, salt + i)
                at = (salt + i) * GRANULE
                guests[name].write(at, piece)
                models[name][at : at + GRANULE] = piece

        write(3)
        then = {name: bytes(model) for name, model in models.items()}
        actions: list[dict[str, Any]] = []
        for name in names:
            actions += [
                {"type": "block-dirty-bitmap-add", "data": {"node": name, "name": "new", "persistent": True}},
                {"type": "block-dirty-bitmap-disable", "data": {"node": name, "name": "old"}},
            ]
        for name in names:
            job = {"job-id": f"j-{name}", "device": name, "target": f"{name}-t", "auto-dismiss": True}
            actions.append({"type": "blockdev-backup", "data": {**job, "sync": "bitmap", "bitmap": "old", "bitmap-mode": "never"}})
        self.qmp.cmd("transaction", actions=actions)
        write(20)
        for name in names:
            self.wait_status(f"j-{name}", "null")
            self.assertNotIn("error", self.completed_event(f"j-{name}"))
        for i, name in enumerate(names):
            self.assertEqual(self.dirty_granules("new", name), (20 + i,))
            self.assertEqual(self.dirty_granules("old", name), (3 + i,))
        self.daemon.quit()
        for name in names:
            # Nothing but the increment was written, and the disks were empty before.
            self.assert_content(self.path(f"{name}-t.qcow2"), then[name], "qcow2")


class Pull(BackupCase):
    """A client reads the point in time while the guest writes, and is told what has changed."""

    def read_changed(self, export: str, bitmap: str, base: bytes) -> bytes:
        """What a backup tool makes of its last backup and the dirty extents of an export."""
        context = f"qemu:dirty-bitmap:{bitmap}"

        def choose(handle: Any) -> None:
            # Not base:allocation: outside of the bitmap nobody may look.
            handle.clear_meta_contexts()
            handle.add_meta_context(context)

        reader = self.guest(export, prepare=choose)
        found: list[tuple[int, int]] = []

        def collect(name: str, offset: int, entries: list[int], _error: Any) -> int:
            if name == context:
                for length, flags in zip(entries[::2], entries[1::2]):
                    if flags & 1:
                        found.append((offset, length))
                    offset += length
            return 0

        reader.handle.block_status(SIZE, 0, collect)
        content = bytearray(base)
        for offset, length in found:
            content[offset : offset + length] = reader.read(offset, length)
        reader.close()
        return bytes(content)

    def prepare(self) -> tuple[Guest, bytes, bytes]:
        guest = self.connect()
        self.add("c1")
        base = bytes(self.data)
        self.write_granules(guest, *BEFORE)
        return guest, base, bytes(self.data)

    def test_scratch_image(self) -> None:
        """As libvirt does it: sync=none into an overlay of the live disk, which is exported with the bitmap."""
        guest, base, then = self.prepare()
        scratch = self.create_image("scratch.qcow2", SIZE, images.QCOW2, backing=self.disk)
        self.add_node("s", scratch, "qcow2", backing="d")
        bm = {"node": "s", "name": "bm"}
        self.qmp.cmd(
            "transaction",
            actions=[
                {"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "c2"}},
                {"type": "block-dirty-bitmap-add", "data": {**bm, "disabled": True, "granularity": GRANULE}},
                {
                    "type": "block-dirty-bitmap-merge",
                    "data": {"node": "s", "target": "bm", "bitmaps": [{"node": "d", "name": "c1"}]},
                },
                {"type": "blockdev-backup", "data": {"job-id": "j", "device": "d", "target": "s", "sync": "none"}},
            ],
        )
        self.qmp.cmd("block-export-add", type="nbd", id="p", node_name="s", name="pull", bitmaps=["bm"])
        self.write_granules(guest, *DURING)
        self.assertEqual(self.read_changed("pull", "bm", base), then)
        self.write_granules(guest, *BEFORE)
        self.assertEqual(self.read_changed("pull", "bm", base), then)
        self.assertEqual(set(self.dirty_granules("c2")), {*BEFORE, *DURING})
        self.qmp.cmd("block-job-cancel", device="j", force=True)
        self.wait_status("j", "null")

    def test_snapshot_access(self) -> None:
        """The newer way: a copy-before-write filter that the user puts in, limited to what is dirty."""
        guest, base, then = self.prepare()
        guest.close()
        self.unexport("exp-d")
        self.on("disable", "c1")
        self.add_node("t", self.create_image("temp.qcow2", SIZE, images.QCOW2), "qcow2")
        self.qmp.cmd(
            "blockdev-add", driver="copy-before-write", node_name="cbw", file="d", target="t",
            bitmap={"node": "d", "name": "c1"},
        )
        self.qmp.cmd("blockdev-add", driver="snapshot-access", node_name="access", file="cbw")
        self.export("cbw")
        writer = self.guest("cbw")
        self.addCleanup(writer.vanish)
        common = {"type": "nbd", "id": "p", "node-name": "access", "name": "pull"}
        self.assert_qmp_error("Bitmap 'c1' is not found", "block-export-add", {**common, "bitmaps": ["c1"]})
        self.qmp.execute("block-export-add", {**common, "bitmaps": [{"node": "d", "name": "c1"}]})
        self.write_granules(writer, *DURING)
        self.assertEqual(self.read_changed("pull", "c1", base), then)
        reader = self.guest("pull")
        with self.assertRaisesRegex(Exception, "EINVAL"):
            reader.read(30 * GRANULE, KiB)
        reader.vanish()
