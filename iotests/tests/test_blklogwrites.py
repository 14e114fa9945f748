"""blklogwrites: the log, byte for byte, as dm-log-writes' tools read it; and blkverify."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.guest import nbd
from iotests.harness.images import KiB, MiB, RAW
from iotests.harness.markers import blockd_only, daemon_differs

_MAGIC = 0x6A736677736872
_FLUSH, _DISCARD = 1, 4


class Log:
    """What a log must hold: entries in order, and the count in the superblock."""

    def __init__(self, sector: int = 512) -> None:
        self.sector = sector
        self.body = b""
        self.entries = 0
        self.counted = 0

    def add(self, offset: int = 0, data: bytes = b"", flags: int = 0, length: int | None = None) -> None:
        """An entry; a flush has the superblock written."""
        length = len(data) if length is None else length
        head = struct.pack("<QQQQ", offset // self.sector, length // self.sector, flags, 0)
        self.body += head.ljust(self.sector, b"\0") + data
        self.entries += 1
        if flags & _FLUSH:
            self.counted = self.entries

    def text(self) -> bytes:
        """The whole log."""
        head = struct.pack("<QQQI", _MAGIC, 1, self.counted, self.sector) if self.counted else b""
        return head.ljust(self.sector, b"\0") + self.body


class LogWrites(QMPTestCase):
    """A raw image of 1 MiB, logged."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a.img", MiB, RAW)
        self.log_file = self.path("log")
        Path(self.log_file).write_bytes(b"")
        self.launch()
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.image, discard="unmap")
        self.qmp.cmd("blockdev-add", driver="file", node_name="l", filename=self.log_file)

    def add(self, **options: Any) -> None:
        """Add the filter, with a raw node on top that takes requests of any size."""
        self.qmp.cmd(
            "blockdev-add", driver="blklogwrites", node_name="n", file="f", log="l", discard="unmap", **options
        )
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file="n", discard="unmap")

    def remove(self) -> None:
        """Take the export and both nodes away."""
        self.qmp.cmd("nbd-server-stop")
        self.qmp.cmd("blockdev-del", node_name="r")
        self.qmp.cmd("blockdev-del", node_name="n")
        if os.path.exists(self.nbd_socket):
            os.unlink(self.nbd_socket)

    def assert_log(self, log: Log) -> None:
        """The file is this log; where it ends in zeroes it may be shorter."""
        held, wanted = Path(self.log_file).read_bytes(), log.text()
        self.assertEqual(held.ljust(len(wanted), b"\0"), wanted)

    def test_requests(self) -> None:
        self.add()
        self.export("r")
        guest = self.guest("r")
        log = Log()
        data = self.random_bytes(3 * KiB)
        guest.write(4096, data)
        log.add(4096, data)
        guest.handle.zero(8 * KiB, 64 * KiB)
        log.add(64 * KiB, bytes(8 * KiB))
        guest.handle.trim(16 * KiB, 128 * KiB)
        log.add(128 * KiB, flags=_DISCARD, length=16 * KiB)
        guest.handle.flush()
        log.add(flags=_FLUSH)
        self.assert_log(log)
        guest.handle.flush()  # has nothing to do
        guest.write(0, b"f" * 512, nbd.CMD_FLAG_FUA)
        log.add(0, b"f" * 512)
        log.add(flags=_FLUSH)
        guest.write(512, b"g" * 512)
        log.add(512, b"g" * 512)
        self.assert_log(log)
        guest.close()
        self.remove()  # which flushes
        log.add(flags=_FLUSH)
        self.assert_log(log)

    def test_sector_size_and_interval(self) -> None:
        self.add(log_sector_size=4096, log_super_update_interval=3)
        self.export("r")
        guest = self.guest("r")
        log = Log(4096)
        disk = bytearray(MiB)
        for number in range(7):
            disk[number * 4096 + 512 : number * 4096 + 1024] = b"x" * 512
            guest.write(number * 4096 + 512, b"x" * 512)
            log.add(number * 4096, bytes(disk[number * 4096 : (number + 1) * 4096]))
        log.counted = 6
        self.assert_log(log)
        guest.close()

    def test_append(self) -> None:
        self.add(log_append=True)
        self.export("r")
        guest = self.guest("r")
        log = Log()
        guest.write(0, b"a" * 1024)
        log.add(0, b"a" * 1024)
        guest.handle.flush()
        log.add(flags=_FLUSH)
        guest.close()
        self.remove()
        self.add(log_append=True)
        self.export("r")
        guest = self.guest("r")
        guest.write(2048, b"b" * 512)
        log.add(2048, b"b" * 512)
        guest.handle.flush()
        log.add(flags=_FLUSH)
        self.assert_log(log)
        guest.close()

    def test_refused(self) -> None:
        def refused(desc: str, **options: Any) -> None:
            self.assert_qmp_error(
                desc, "blockdev-add", driver="blklogwrites", node_name="n", file="f", log="l", **options
            )
            self.assert_nothing_left("f", "l")

        refused("log-append and log-sector-size are mutually exclusive", log_append=True, log_sector_size=512)
        refused("Invalid log sector size 3", log_sector_size=3)
        refused("Invalid log sector size 16", log_sector_size=16)
        refused("Invalid log sector size 16777216", log_sector_size=1 << 24)
        refused("Invalid log superblock update interval 0", log_super_update_interval=0)
        for head, desc in (
            (struct.pack("<QQQI", 1, 1, 0, 512), "Invalid log superblock magic"),
            (struct.pack("<QQQI", _MAGIC, 2, 0, 512), "Unsupported log version 2"),
            (struct.pack("<QQQI", _MAGIC, 1, 0, 100), "Invalid log sector size 100"),
        ):
            Path(self.log_file).write_bytes(head.ljust(512, b"\0"))
            self.reopen_log()
            refused(desc, log_append=True)
        entry = struct.pack("<QQQQ", 0, 0, 0x100, 0).ljust(512, b"\0")
        Path(self.log_file).write_bytes(struct.pack("<QQQI", _MAGIC, 1, 1, 512).ljust(512, b"\0") + entry)
        self.reopen_log()
        refused("Invalid flags 0x100 in log entry 0", log_append=True)

    def reopen_log(self) -> None:
        """Open the log's node anew, for its new length."""
        self.qmp.cmd("blockdev-del", node_name="l")
        self.qmp.cmd("blockdev-add", driver="file", node_name="l", filename=self.log_file)

    @blockd_only("the rival would go through 2^64 entries of zeroes behind the end of the log")
    def test_hostile_count(self) -> None:
        for entry in (b"", struct.pack("<QQQQ", 0, (1 << 64) - 1, 0, 0).ljust(512, b"\0")):
            Path(self.log_file).write_bytes(
                struct.pack("<QQQI", _MAGIC, 1, (1 << 64) - 1, 512).ljust(512, b"\0") + entry
            )
            self.reopen_log()
            self.assert_qmp_error(
                "Failed to read log entry 0: Input/output error",
                "blockdev-add",
                driver="blklogwrites",
                node_name="n",
                file="f",
                log="l",
                log_append=True,
            )

    def test_names(self) -> None:
        self.add(log_sector_size=4096, log_super_update_interval=3)
        self.assertEqual(
            json.loads(self.nodes()["n"]["image"]["filename"].removeprefix("json:")),
            {
                "driver": "blklogwrites",
                "log-sector-size": 4096,
                "file": {"driver": "file", "filename": self.image},
                "log": {"driver": "file", "filename": self.log_file},
            },
        )


class Verify(QMPTestCase):
    """blkverify over a qcow2 image and a raw copy."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a.qcow2", MiB)
        self.copy = self.create_image("a.img", MiB, RAW)
        self.launch()
        self.add_node("t", self.image)
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.copy)
        self.qmp.cmd("blockdev-add", driver="blkverify", node_name="v", test="t", raw="f")
        self.export("v")

    @daemon_differs("a zero write through blkverify ends the rival with a failed assertion")
    def test_both_are_written(self) -> None:
        guest = self.guest("v")
        data = self.random_bytes(256 * KiB)
        guest.write(128 * KiB, data)
        if self.per_daemon(blockd=True, rival=False):
            guest.handle.zero(64 * KiB, 128 * KiB)
            data = bytes(64 * KiB) + data[64 * KiB :]
        expected = bytes(128 * KiB) + data + bytes(640 * KiB)
        self.assertEqual(guest.read(0, MiB), expected)
        guest.handle.flush()
        guest.close()
        self.daemon.quit()
        self.assert_content(self.image, expected)
        self.assertEqual(Path(self.copy).read_bytes(), expected)

    def test_name(self) -> None:
        node = self.nodes()["v"]
        self.assertEqual(node["image"]["filename"], f"blkverify:{self.copy}:{self.image}")

    @blockd_only("the rival ends there")
    def test_mismatch(self) -> None:
        with open(self.copy, "r+b") as file:
            file.seek(1000)
            file.write(b"!")
        guest = self.guest("v")
        self.assertEqual(guest.read(4096, 512), bytes(512))
        with self.assertRaises(nbd.Error):
            guest.read(0, 4096)
        self.assertEqual(guest.read(4096, 512), bytes(512))
