"""Persistent bitmaps of raw images, in a file beside them, end to end: incremental backups after every kind of end."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.images import GiB, KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.tests.test_bitmaps import BitmapCase
from iotests.tests.test_bitmaps_crash import SparseWriter


@blockd_only("beyond the field, whose raw images have no bitmaps")
class RawBitmaps(BitmapCase):
    """One raw image, opened as node d."""

    size = GiB
    image_options = images.RAW

    def make_disk(self) -> str:
        return self.create_image("disk.raw", self.size, images.RAW)

    def add_node(self, node_name: str, path: str, driver: str | None = None, **options: Any) -> None:
        if node_name == "d":
            options["x-bitmaps"] = "sidecar-exclusive"
        super().add_node(node_name, path, driver, **options)

    def again(self) -> None:
        """Start the daemon anew."""
        Path(self.nbd_socket).unlink(missing_ok=True)
        self.launch()
        self.add_node("d", self.disk)

    def update(self, copy: str) -> None:
        """Bring a copy of the disk up to date by its bitmap, and compare."""
        self.add_node("t", copy, "raw")
        self.run_job("blockdev-backup", job_id="j", device="d", target="t", sync="incremental", bitmap="b")
        self.assertNotIn("error", self.completed_event("j"))
        self.qmp.cmd("blockdev-del", node_name="t")
        images.run_tool("qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", self.disk, copy)

    def test_incremental_after_kill_under_load(self) -> None:
        copy = self.path("copy.raw")
        self.add("b", persistent=True)
        images.run_tool("cp", "--sparse=always", self.disk, copy)
        for turn in range(2):
            self.export("d")
            writer = SparseWriter(self.nbd_socket, "d", 256 * MiB, f"{self.id()}{turn}")
            writer.start()
            writer.wait(30)
            self.daemon.kill()
            writer.join()
            self.again()
            bitmap = self.bitmaps()["b"]
            self.assertEqual((bitmap.get("inconsistent"), bitmap["recording"], bitmap["persistent"]), (None, True, True))
            self.assertGreater(bitmap["count"], 0)
            self.update(copy)
        self.daemon.quit()
        self.again()
        self.assertEqual(self.count("b"), 0)

    def test_another_writer_makes_it_inconsistent(self) -> None:
        self.add("b", persistent=True)
        self.write((0, 64 * KiB))
        self.daemon.quit()
        images.qemu_io(self.disk, "write -q -P 9 1M 64k", driver="raw")
        self.again()
        self.assertTrue(self.bitmaps()["b"]["inconsistent"])
        self.assert_qmp_error("Bitmap 'b' is inconsistent and cannot be used", "block-dirty-bitmap-clear", node="d", name="b")
        self.on("remove", "b")
        self.add("b", persistent=True)
        self.daemon.quit()
        # A copy of both files is another image.
        os.rename(self.disk, self.disk + ".old")
        shutil.copy2(self.disk + ".old", self.disk)
        self.again()
        self.assertTrue(self.bitmaps()["b"]["inconsistent"])

    def test_header_cannot_ask_for_it(self) -> None:
        top = self.path("top.qcow2")
        json = '{"driver":"raw","x-bitmaps":"sidecar","file":{"driver":"file","filename":"%s"}}' % self.disk
        images.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "json:" + json, "-F", "raw", top, "1G")
        self.qmp.cmd("blockdev-del", node_name="d")
        with self.assertRaisesRegex(Exception, "An image header may not ask for dirty bitmaps"):
            super().add_node("top", top, "qcow2")
        self.assertFalse(Path(self.disk + ".bitmaps").exists())

    def test_exported_for_a_pull_backup(self) -> None:
        self.add("b", persistent=True)
        self.write((MiB, 64 * KiB))
        self.unexport("exp-d")
        self.on("disable", "b")
        self.export("d", writable=False, bitmaps=["b"])
        found = json.loads(images.run_tool("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b", self.nbd_uri("d")))
        self.assertEqual([(e["offset"], e["length"], e["type"]) for e in found], [(0, MiB, 0), (MiB, 64 * KiB, 1), (MiB + 64 * KiB, self.size - MiB - 64 * KiB, 0)])
