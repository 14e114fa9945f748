"""Images that grow, with as much data in each."""

from __future__ import annotations

import time
from typing import Mapping

from iotests.harness import images as tools
from iotests.harness.images import KiB, MiB, QCOW2, GiB

from .. import fio
from ..row import MEBIBYTES, MICROSECONDS, SECONDS
from ..schema import command
from ..trial import Trial
from .graph import resident
from .series import FLAT, LINEAR, Curve, Series

# Places with data in an image, spread evenly.
PIECES = 1024


class Sparse(Series):
    """qcow2 images with 4 KiB of data at 1,024 places; numbers are GiB, up to 64 TiB."""

    name = "growth-size"
    title = "size of a sparse qcow2 image"
    of = "GiB"
    points = (1, 16, 256, 4096, 65536)
    curves = (
        Curve("open", "blockdev-add", SECONDS, LINEAR),
        Curve("read", "NBD 4 KiB random read of any place, depth 16, per request", MICROSECONDS, FLAT),
        Curve("backup", "full backup", SECONDS, LINEAR),
        Curve("resident", "resident memory", MEBIBYTES, LINEAR),
    )
    needs = (command("blockdev-add"), command("blockdev-backup"), command("block-export-add"))
    tools = ("fio",)

    def prepare(self) -> None:
        for number in self.points:
            path = self._image(number)
            tools.create(path, number * GiB, QCOW2)
            step = number * GiB // PIECES
            tools.qemu_io(path, *(f"write -q -P 0x5a {piece * step} {4 * KiB}" for piece in range(PIECES)), driver="qcow2")

    def measure(self, trial: Trial, number: int) -> Mapping[str, float]:
        started = time.monotonic()
        trial.node("disk", self._image(number))
        opened = time.monotonic() - started
        load = fio.Load("read", connections=1, depth=16, size=number * GiB, amount=32 * MiB, repeats=True)
        answer = fio.over_nbd(trial.export("disk"), load)
        trial.unexport("disk")
        trial.node("target", trial.new_image("target.qcow2", number * GiB))
        started = time.monotonic()
        trial.run_job("blockdev-backup", device="disk", target="target", sync="full")
        trial.close_node("target")
        copied = time.monotonic() - started
        return {"open": opened, "read": answer.per_request, "backup": copied, "resident": resident(trial)}

    def _image(self, number: int) -> str:
        return str(self.store.directory / f"sparse{number}.qcow2")
