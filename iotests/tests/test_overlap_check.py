"""overlap-check: a wrong table entry never lets a guest write over metadata that is to be protected."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB

CLUSTER = 64 * KiB
OFFSET = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
CORRUPT = 2

# What each flag protects, as the field calls it.
KINDS = {
    "main-header": "qcow2_header",
    "active-l1": "active L1 table",
    "active-l2": "active L2 table",
    "refcount-table": "refcount table",
    "refcount-block": "refcount block",
    "snapshot-table": "snapshot table",
    "inactive-l1": "inactive L1 table",
    "inactive-l2": "inactive L2 table",
    "bitmap-directory": "bitmap directory",
}
CONSTANT = {"main-header", "active-l1", "refcount-table", "snapshot-table", "bitmap-directory"}
TEMPLATES = {
    "constant": CONSTANT,
    "cached": CONSTANT | {"active-l2", "refcount-block", "inactive-l1"},
    "all": set(KINDS),
}


def word(image: bytes, offset: int) -> int:
    """A big-endian word of eight bytes."""
    return int(struct.unpack_from(">Q", image, offset)[0])


class OverlapCheck(QMPTestCase):
    """Images of which guest cluster 8 is where some metadata lies."""

    def setUp(self) -> None:
        super().setUp()
        self.base = self.filled_image("base.qcow2", self.random_bytes(2 * MiB))
        images.run_tool("qemu-img", "snapshot", "-c", "s", self.base)
        images.run_tool("qemu-img", "bitmap", "--add", self.base, "b")
        # The active table is another one than the snapshot's now.
        images.qemu_io(self.base, "write -q 0 64k", "discard -q 1M 64k", driver="qcow2")
        image = Path(self.base).read_bytes()
        l1, table, snapshots = word(image, 40), word(image, 48), word(image, 64)
        inactive = word(image, snapshots)
        self.active = word(image, l1) & OFFSET
        self.refblock = word(image, table)
        self.places = {
            "main-header": 0,
            "active-l1": l1,
            "active-l2": self.active,
            "refcount-table": table,
            "refcount-block": self.refblock,
            "snapshot-table": snapshots,
            "inactive-l1": inactive,
            "inactive-l2": word(image, inactive) & OFFSET,
            "bitmap-directory": self.bitmap_directory(image),
        }
        self.assertEqual(len(set(self.places.values())), len(KINDS))
        self.launch()

    @staticmethod
    def bitmap_directory(image: bytes) -> int:
        """Where the header extension says that the directory of bitmaps lies."""
        at = struct.unpack_from(">I", image, 100)[0]
        while True:
            magic, length = struct.unpack_from(">II", image, at)
            if magic == 0x23852875:
                return word(image, at + 8 + 16)
            at += 8 + (length + 7) // 8 * 8

    def attempt(self, kind: str, check: Any) -> tuple[bool, Any]:
        """
        Have a guest write where metadata of a kind lies; whether it was told of an error, and the event.

        The header cannot be where an entry points to: it is what the search for free space finds.
        """
        path, place = self.path("a.qcow2"), self.places[kind]
        shutil.copy(self.base, path)
        with open(path, "r+b") as file:
            if place == 0:
                file.seek(self.refblock)
                file.write(bytes(2))
            else:
                file.seek(self.active + 8 * 8)
                file.write(struct.pack(">Q", COPIED | place))
        self.add_node("n", path, **({} if check is None else {"overlap-check": check}))
        self.export("n")
        guest = self.guest("n")
        before = Path(path).read_bytes()[place : place + CLUSTER]
        failed = False
        try:
            if place == 0:
                guest.write(MiB, b"x" * CLUSTER)
            else:
                guest.write(8 * CLUSTER + 8 * KiB, b"x" * 4096)
        except Exception as error:  # pylint: disable=broad-except; libnbd's own type
            self.assertIn("Input/output error", str(error))
            failed = True
        guest.vanish()
        self.unexport("exp-n")
        self.qmp.cmd("blockdev-del", node_name="n")
        event = self.qmp.wait_event("BLOCK_IMAGE_CORRUPTED")["data"] if failed else None
        if failed:
            after = Path(path).read_bytes()
            self.assertEqual(bool(word(after, 72) & CORRUPT), True)
            if place:
                self.assertEqual(after[place : place + CLUSTER], before)
            self.assert_qmp_error(
                "qcow2: Image is corrupt; cannot be opened read/write",
                "blockdev-add", driver="qcow2", node_name="n", file={"driver": "file", "filename": path},
            )
            self.add_node("n", path, read_only=True)
            self.qmp.cmd("blockdev-del", node_name="n")
        return failed, event

    def found(self, kind: str) -> Any:
        """The event that tells of a write over metadata of that kind."""
        place = self.places[kind]
        return {
            "device": "",
            "node-name": "n",
            "msg": f"Preventing invalid write on metadata (overlaps with {KINDS[kind]})",
            "offset": place + 8 * KiB if place else 0,
            "size": 4096 if place else CLUSTER,
            "fatal": True,
        }

    def test_each_flag_protects_its_own(self) -> None:
        for kind in KINDS:
            with self.subTest(kind=kind):
                self.assertEqual(self.attempt(kind, {"template": "none", kind: True}), (True, self.found(kind)))

    def test_without_its_flag_nothing_is_protected(self) -> None:
        for kind in KINDS:
            if kind == "main-header":
                continue  # which is never free space
            with self.subTest(kind=kind):
                self.assertEqual(self.attempt(kind, {"template": "all", kind: False}), (False, None))

    def test_templates(self) -> None:
        for template, kinds in TEMPLATES.items():
            for kind in KINDS:
                with self.subTest(template=template, kind=kind):
                    want = (True, self.found(kind)) if kind in kinds else (False, None)
                    self.assertEqual(self.attempt(kind, template), want)

    def test_the_default_is_cached(self) -> None:
        for check in (None, {"inactive-l1": True}):
            for kind in ("inactive-l1", "inactive-l2"):
                want = (True, self.found(kind)) if kind == "inactive-l1" else (False, None)
                self.assertEqual(self.attempt(kind, check), want)

    def test_none_protects_nothing(self) -> None:
        for kind in ("active-l1", "refcount-block", "inactive-l2"):
            self.assertEqual(self.attempt(kind, "none"), (False, None))
