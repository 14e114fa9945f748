"""Stored dirty bitmaps after a daemon was killed."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

from iotests.harness import images
from iotests.harness.daemon import daemon_kind
from iotests.harness.guest import Guest
from iotests.harness.images import GiB, MiB
from iotests.harness.markers import BLOCKD, blockd_only, daemon_differs
from iotests.tests.test_bitmaps import GRANULE, BitmapCase


class SparseWriter(threading.Thread):
    """Writes small pieces to random places of an export until the connection breaks."""

    def __init__(self, socket: str, export: str, reach: int, seed: str) -> None:
        super().__init__(daemon=True)
        self._guest, self._reach, self._random = Guest(socket, export), reach, random.Random(seed)
        self._count = threading.Semaphore(0)

    def run(self) -> None:
        while True:
            offset = self._random.randrange(self._reach // 512) * 512
            try:
                self._guest.write(offset, self._random.randbytes(512 * self._random.randint(1, min(16, (self._reach - offset) // 512))))
            except Exception:  # pylint: disable=broad-except; whatever libnbd calls a server that is gone
                self._count.release(1000)
                return
            self._count.release()

    def wait(self, writes: int) -> None:
        """Wait until so many more are done."""
        for _ in range(writes):
            self._count.acquire()


def next_data(file: int, at: int, end: int) -> int:
    """Where a sparse file has data next, at or after a place."""
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError:
        return end


def changed_pieces(old: str, new: str, reach: int, size: int) -> list[int]:
    """The offsets of pieces in which two sparse files differ."""
    found = []
    with open(old, "rb") as a, open(new, "rb") as b:
        at = 0
        while at < reach:
            at = min(next_data(f.fileno(), at, reach) for f in (a, b)) // size * size
            a.seek(at)
            b.seek(at)
            if a.read(size) != b.read(size):
                found.append(at)
            at += size
    return found


class Crash(BitmapCase):
    """What is left when the daemon is killed."""

    size = 64 * GiB

    def crash(self) -> None:
        self.daemon.kill()
        images.check(self.disk, allow_leaks=True)

    @daemon_differs("the rival's bitmaps are lost, as field.md 6 #7 complains")
    def test_kill(self) -> None:
        self.add("b", persistent=True)
        self.write((0, GRANULE), (40 * GiB, 5 * GRANULE))
        self.crash()
        flags = self.per_daemon(blockd=["auto"], rival=["in-use", "auto"] if self.stored() else [])
        if daemon_kind() == BLOCKD:
            self.assertEqual(self.stored()["b"]["flags"], flags)
            # QEMU's own reading: whole regions around what was written.
            self.assertEqual(self.dirty("b"), [(0, 64 * MiB), (40 * GiB, 64 * MiB)])
        self.launch()
        self.add_node("d", self.disk)
        found = self.bitmaps()
        if daemon_kind() == BLOCKD:
            self.assertEqual((found["b"]["count"], found["b"]["recording"], found["b"].get("inconsistent")), (128 * MiB, True, None))

    @blockd_only("the rival loses bitmaps")
    def test_what_was_replied_to_survives(self) -> None:
        for name in ("keep", "gone", "off", "clear"):
            self.add(name, persistent=True)
        self.write((GRANULE, GRANULE))
        self.on("remove", "gone")
        self.on("disable", "off")
        self.on("clear", "clear")
        self.add("target", persistent=True, disabled=True, granularity=MiB)
        self.merge("target", "keep")
        self.crash()
        self.assertEqual(
            {name: bitmap["flags"] for name, bitmap in self.stored().items()},
            {"keep": ["auto"], "off": [], "clear": ["auto"], "target": []},
        )
        self.assertEqual(self.dirty("clear"), [])
        self.assertEqual(self.dirty("target"), [(0, MiB)])
        # Bits of a bitmap that is disabled stay loose until the image is closed.
        self.assertEqual(self.dirty("off"), [(0, 64 * MiB)])

    @blockd_only("the rival loses bitmaps")
    def test_no_change_is_missed_when_killed_under_load(self) -> None:
        """A guest writes all over, bitmaps come and go, and the daemon is killed, twice."""
        reach = 512 * MiB
        for turn in range(2):
            self.add(f"keep{turn}", persistent=True, granularity=4096)
            base = self.path(f"base{turn}")
            images.run_tool("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", self.disk, base)
            self.export("d")
            writer = SparseWriter(self.nbd_socket, "d", reach, f"{self.id()}{turn}")
            writer.start()
            for i in range(10):
                self.add(f"t{turn}{i}", persistent=True)
                self.on("remove", f"t{turn}{i}")
            writer.wait(20)
            self.daemon.kill()
            writer.join()
            Path(self.nbd_socket).unlink(missing_ok=True)
            images.check(self.disk, allow_leaks=True)
            # Flushed or not, what was written is in the file: only the daemon was killed.
            now = self.path("now")
            images.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.disk, now)
            changed = changed_pieces(base, now, reach, 4096)
            self.assertTrue(changed)
            dirty = self.dirty(f"keep{turn}")
            missed = [at for at in changed if not any(start <= at < start + length for start, length in dirty)]
            self.assertEqual(missed, [])
            self.launch()
            self.add_node("d", self.disk)

    @blockd_only("the rival stores bitmaps when the image is closed only")
    def test_regions_are_counted(self) -> None:
        self.add("b", persistent=True)
        self.write((0, 512), (4096, 512), (64 * MiB, 512), (128 * MiB, 512), (6 * 64 * MiB, 512), (GiB, 512))
        data = self.nodes()["d"]["image"]["format-specific"]["data"]
        # The first region, the second with four ahead, the seventh with more ahead, and a far one.
        self.assertEqual(data["x-bitmap-waits"], 4)
        self.assertGreater(data["x-bitmap-wait-ns"], 0)

    @blockd_only("an option of blockd")
    def test_the_fields_way(self) -> None:
        self.qmp.cmd("blockdev-del", node_name="d")
        self.add_node("d", self.disk, **{"x-bitmaps": "on-close"})
        self.add("b", persistent=True)
        self.write((0, GRANULE))
        self.unexport("exp-d")
        self.qmp.cmd("blockdev-del", node_name="d")
        self.assertEqual(self.stored()["b"]["flags"], ["auto"])
        self.assertEqual(self.dirty("b"), [(0, GRANULE)])
        self.add_node("d", self.disk, **{"x-bitmaps": "on-close"})
        self.assertEqual(self.stored()["b"]["flags"], ["in-use", "auto"])
        self.crash()
        self.launch()
        self.add_node("d", self.disk)
        self.inconsistent("b")

    def test_a_bitmap_in_use_can_only_be_removed(self) -> None:
        self.daemon.quit()
        images.run_tool("qemu-img", "bitmap", "--add", self.disk, "b")
        # QEMU itself, cut off.
        images.run_tool("qemu-io", "-f", "qcow2", "-c", "abort", self.disk, statuses=(-signal.SIGABRT,))
        self.assertEqual(self.stored()["b"]["flags"], ["in-use", "auto"])
        self.launch()
        self.add_node("d", self.disk)
        self.inconsistent("b")
        self.on("remove", "b")
        self.daemon.quit()
        images.check(self.disk)
        self.assertEqual(self.stored(), {})

    def inconsistent(self, name: str) -> None:
        bitmap = self.bitmaps()[name]
        self.assertEqual((bitmap["inconsistent"], bitmap["recording"], bitmap["persistent"]), (True, False, True))
        text = f"Bitmap '{name}' is inconsistent and cannot be used"
        for verb in ("clear", "enable", "disable"):
            self.assert_qmp_error(text, f"block-dirty-bitmap-{verb}", node="d", name=name)
