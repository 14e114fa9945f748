"""The images that every run starts from, made once, lazily, and never written to afterwards.

`half.raw` is the model: of every two MiB one is random data, one a hole. Every other image holds the same
guest content (or says what else), so that whatever a daemon produces from it is compared with the model.
They are made by the distribution's tools, not by either daemon.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Callable, Iterable

from iotests.harness import images
from iotests.harness.images import QCOW2, GiB, KiB, MiB

SEED = 20260101
PIECE = MiB
# Of the images for sources with a latency, in bytes.
SMALL = 64 * MiB

# The part of the data that each member of the chain holds, by the number of the piece.
_IN_TOP = 32
_ABOVE_BASE = 4

# All pristine images and models together take 6.5 times the size, and a run's own at most 1.5 times.
ROOM_PER_BYTE = 9


class Store:
    """
    The folder of pristine images; `size` is the virtual size of the images in bytes. `disk` is a folder on
    a real disk for the rows that want one.
    """

    def __init__(self, directory: Path, size: int, disk: Path) -> None:
        self.directory = directory
        self.disk = disk
        self.size = size

    # The model, and images with its content.

    def half_raw(self) -> str:
        """The model: half data, half holes, raw."""
        return self._once("half.raw", lambda path: self._write_pieces(path, lambda number: True))

    def half_qcow2(self) -> str:
        """The model as one qcow2 image."""
        return self._once("half.qcow2", lambda path: self._convert(self.half_raw(), path))

    PASSWORD = "of the bench"

    def half_luks(self) -> str:
        """The model, encrypted by the default cipher with PASSWORD."""
        return self._once("half.luks", self._encrypt)

    def chain(self) -> tuple[str, str, str]:
        """base, mid and top of a backing chain with the model's content, names in headers relative."""
        base = self._once("base.qcow2", lambda path: self._link(path, "", lambda number: not _above_base(number)))
        mid = self._once("mid.qcow2", lambda path: self._link(path, "base.qcow2", _in_mid))
        top = self._once("top.qcow2", lambda path: self._link(path, "mid.qcow2", _in_top))
        return base, mid, top

    def compressible_raw(self) -> str:
        """Data of a quarter of the size that deflate halves, as logs and binaries do; raw."""
        return self._once("compressible.raw", self._write_compressible)

    def compressible_qcow2(self) -> str:
        """`compressible_raw` as qcow2."""
        return self._once("compressible.qcow2", lambda path: self._convert(self.compressible_raw(), path))

    def small_raw(self) -> str:
        """64 MiB (or the size, if that is less) of data without holes, for sources with a latency; raw."""
        return self._once("small.raw", lambda path: _write_random(path, min(SMALL, self.size), PIECE, lambda _: True))

    def small_qcow2(self) -> str:
        """`small_raw` as qcow2."""
        return self._once("small.qcow2", lambda path: self._convert(self.small_raw(), path))

    def solid_qcow2(self) -> str:
        """A quarter of the size, data without holes."""
        raw = self._once("solid.raw", lambda path: _write_random(path, self.size // 4, PIECE, lambda _: True))
        return self._once("solid.qcow2", lambda path: self._convert(raw, path))

    def full_qcow2(self) -> str:
        """The whole size of data without holes."""
        return self._once("full.qcow2", self._write_full)

    def sparse_qcow2(self) -> str:
        """1 TiB with 4 KiB of data in every GiB."""
        return self._once("sparse.qcow2", self._write_sparse)

    # How they are made.

    def _once(self, name: str, make: Callable[[str], object]) -> str:
        path = self.directory / name
        if not path.exists():
            # Somebody may have tidied up below a run that takes half an hour.
            self.directory.mkdir(parents=True, exist_ok=True)
            unfinished = str(self.directory / f"unfinished-{name}")
            make(unfinished)
            Path(unfinished).rename(path)
        return str(path)

    def _write_pieces(self, path: str, wanted: Callable[[int], bool]) -> None:
        _write_random(path, self.size, PIECE, lambda number: number % 2 == 0 and wanted(number // 2))

    def _convert(self, raw: str, path: str) -> None:
        images.run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *_create(QCOW2.create), raw, path)

    def _encrypt(self, path: str) -> None:
        secret = ["--object", f"secret,id=key,data={self.PASSWORD}"]
        options = ["-o", "key-secret=key,iter-time=10"]
        images.run_tool("qemu-img", "convert", *secret, "-f", "raw", "-O", "luks", *options, self.half_raw(), path)

    def _link(self, path: str, backing: str, wanted: Callable[[int], bool]) -> None:
        part = str(self.directory / "part.raw")
        self._write_pieces(part, wanted)
        images.create(path, self.size, QCOW2, backing)
        # Holes of the part must stay unallocated in the image, which "convert" would not leave so.
        images.run_tool("nbdcopy", "--destination-is-zero", part, "--", "[", "qemu-nbd", "-f", "qcow2", path, "]")
        Path(part).unlink()

    def _write_compressible(self, path: str) -> None:
        words = [random.Random(SEED + number).randbytes(24).hex().encode() for number in range(512)]
        source = random.Random(SEED)
        with open(path, "wb") as file:
            for _ in range(max(1, self.size // 4 // PIECE)):
                text = b" ".join(source.choices(words, k=PIECE // 49 + 1))
                file.write(text[:PIECE])

    def _write_full(self, path: str) -> None:
        raw = str(self.directory / "part.raw")
        _write_random(raw, self.size, PIECE, lambda _: True)
        self._convert(raw, path)
        Path(raw).unlink()

    def _write_sparse(self, path: str) -> None:
        images.create(path, 1024 * GiB, QCOW2)
        images.qemu_io(path, *(f"write -q -P 0x5a {number * GiB} {4 * KiB}" for number in range(1024)), driver="qcow2")


def _above_base(number: int) -> bool:
    return number % _ABOVE_BASE == 0


def _in_mid(number: int) -> bool:
    return _above_base(number) and not _in_top(number)


def _in_top(number: int) -> bool:
    return number % _IN_TOP == 0


def _create(options: Iterable[str]) -> list[str]:
    joined = ",".join(options)
    return ["-o", joined] if joined else []


def _write_random(path: str, size: int, piece: int, wanted: Callable[[int], bool]) -> None:
    with open(path, "wb") as file:
        for number in range(size // piece):
            if wanted(number):
                file.seek(number * piece)
                file.write(random.Random(SEED + number).randbytes(piece))
        file.truncate(size)
