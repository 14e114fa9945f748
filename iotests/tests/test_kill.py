"""kill -9 of the daemon under a guest's load, again and again over the same images."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path
from typing import Any, Sequence

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.guest import Guest, nbd
from iotests.harness.images import KiB, MiB

SIZE = 8 * MiB
SECTOR = 512

# How often the daemon is killed: all of them in `make test-all`.
ROUNDS = 100 if os.environ.get("BLOCKD_TEST_ALL") == "1" else 5

EXTENDED = images.ImageOptions("extended", "qcow2", ("extended_l2=on", "cluster_size=16k"), 16 * KiB)
# The path of the image is filled in.
DATA_FILE = images.ImageOptions("data_file", "qcow2", ("data_file={}.data", "cluster_size=4k"), 4 * KiB)
ENCRYPTED = images.ImageOptions(
    "encrypted", "qcow2", ("encrypt.format=luks", "encrypt.key-secret=s", "encrypt.iter-time=10"), 64 * KiB
)
KINDS = (
    images.QCOW2_4K,
    images.QCOW2,
    EXTENDED,
    DATA_FILE,
    ENCRYPTED,
    images.QCOW2_512,
    images.QCOW2_V2,
    images.QCOW2_2M,
)

# The secret of the encrypted image, for the tools and for the daemon.
SECRET = ("--object", "secret,id=s,data=a password")


class Disk:
    """What each sector may hold: what it held at the last flush, or something written since."""

    def __init__(self, content: bytes) -> None:
        self.allowed = [{content[at : at + SECTOR]} for at in range(0, len(content), SECTOR)]

    def may_become(self, offset: int, data: bytes) -> None:
        """A write of these bytes has begun."""
        for at in range(0, len(data), SECTOR):
            self.allowed[(offset + at) // SECTOR].add(data[at : at + SECTOR])

    def is_durable(self, offset: int, data: bytes) -> None:
        """What was written was flushed."""
        for at in range(0, len(data), SECTOR):
            self.allowed[(offset + at) // SECTOR] = {data[at : at + SECTOR]}

    def wrong(self, content: bytes) -> list[int]:
        """The sectors that hold what they may not."""
        return [n for n, allowed in enumerate(self.allowed) if content[n * SECTOR : (n + 1) * SECTOR] not in allowed]


class Load:
    """A guest with several requests in flight, no two of them over the same sectors."""

    def __init__(self, guest: Guest, disk: Disk, rng: random.Random) -> None:
        self.handle = guest.handle
        self.disk = disk
        self.rng = rng
        self.number = rng.getrandbits(48)
        # What was written, and acknowledged, since the last flush.
        self.since: list[tuple[int, bytes]] = []

    def issue(self, count: int) -> list[tuple[int, int, bytes]]:
        """Begin some requests; cookies with what they write are given back."""
        issued: list[tuple[int, int, bytes]] = []
        taken: list[tuple[int, int]] = []
        while len(issued) < count:
            length = SECTOR * self.rng.choice((1, 1, 3, 8, 16, 100, 300))
            offset = SECTOR * self.rng.randrange((SIZE - length) // SECTOR)
            if any(offset < end and start < offset + length for start, end in taken):
                continue
            taken.append((offset, offset + length))
            self.number += 1
            if self.rng.randrange(5) == 0:
                data = bytes(length)
                self.disk.may_become(offset, data)
                cookie = self.handle.aio_zero(length, offset)
            else:
                data = self.number.to_bytes(8, "little") * (length // 8)
                self.disk.may_become(offset, data)
                cookie = self.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset)
            issued.append((cookie, offset, data))
        return issued

    def wait(self, issued: list[tuple[int, int, bytes]], count: int) -> None:
        """Wait until that many of the requests are acknowledged."""
        while True:
            left = []
            for cookie, offset, data in issued:
                if self.handle.aio_command_completed(cookie):
                    self.since.append((offset, data))
                    count -= 1
                else:
                    left.append((cookie, offset, data))
            issued = left
            if count <= 0 or not issued:
                return
            self.handle.poll(-1)

    def flush(self) -> None:
        """Flush, with nothing in flight."""
        self.handle.flush()
        for offset, data in self.since:
            self.disk.is_durable(offset, data)
        self.since.clear()


class Killed(QMPTestCase):
    """The image is clean but for leaks, and every sector holds what it may."""

    encrypted: set[str]

    def tool(self, command: str, image: str, *more: str, statuses: Sequence[int] = (0,)) -> None:
        """A command of qemu-img on an image."""
        key = "encrypt.key-secret=s," if image in self.encrypted else ""
        opened = f"driver=qcow2,{key}file.driver=file,file.filename={image}"
        images.run_tool("qemu-img", *command.split(), *SECRET, "--image-opts", opened, *more, statuses=statuses)

    def content(self, image: str) -> bytes:
        """The guest's view of an image, by qemu-img."""
        raw = Path(self.path("back.raw"))
        self.tool("convert -O raw", image, str(raw))
        return raw.read_bytes()

    def new_image(self, name: str, kind: images.ImageOptions, backing: str) -> str:
        """An image of that kind."""
        path = self.path(name)
        if kind is ENCRYPTED:
            self.encrypted.add(path)
        words = ",".join(word.format(path) for word in kind.create)
        below = ("-b", backing, "-F", "qcow2") if backing else ()
        images.run_tool("qemu-img", "create", "-q", *SECRET, "-f", "qcow2", "-o", words, *below, path, str(SIZE))
        return path

    def test_under_load(self) -> None:
        self.need_libnbd()
        base = self.filled_image("base", self.random_bytes(SIZE), images.QCOW2)
        self.encrypted = set()
        disks = [
            self.new_image(f"disk{number}", kind, base if number % 2 == 0 else "")
            for number, kind in enumerate(KINDS[:ROUNDS])
        ]
        for number in range(ROUNDS):
            image = disks[number % len(disks)]
            with self.subTest(round=number, image=image):
                self.kill_once(number, image)
        for image in disks:
            self.tool("check -q -r leaks", image)
            self.tool("check -q", image)

    def kill_once(self, number: int, image: str) -> None:
        """Write, kill somewhere in between, and look."""
        rng = random.Random(zlib.crc32(self.id().encode()) + number)
        disk = Disk(self.content(image))
        daemon = self.launch(*SECRET, name=f"d{number}")
        self.qmp = daemon.qmp
        key: dict[str, Any] = {"encrypt": {"format": "luks", "key-secret": "s"}} if image in self.encrypted else {}
        self.add_node("n", image, "qcow2", discard="unmap", **key)
        self.nbd_socket = self.path(f"nbd{number}")
        self.export("n")
        guest = self.guest("n")
        load = Load(guest, disk, rng)
        for turn in range(rng.randrange(2, 8)):
            load.wait(load.issue(8), 8)
            if turn % 2 == 0:
                load.flush()
        # The last requests are at any stage when the daemon dies, with a flush among them or none.
        last = load.issue(16)
        if rng.randrange(2) == 0:
            guest.handle.aio_flush()
        load.wait(last, rng.randrange(12))
        daemon.kill()
        guest.vanish()
        self.tool("check -q", image, statuses=(images.CHECK_CLEAN, images.CHECK_LEAKS))
        self.assertEqual(disk.wrong(self.content(image)), [], f"sectors of round {number}")
