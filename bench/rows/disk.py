"""On a real disk: direct I/O, and a backup whose flushes cost something."""

from __future__ import annotations

from pathlib import Path

from iotests.harness import images
from iotests.harness.images import MiB

from .. import fio, proc
from ..fio import Load
from ..row import MICROSECONDS, Row
from ..schema import command
from ..trial import Sample, Trial

_DIRECT = {"cache": {"direct": True}}


class _OnDisk(Row):
    """The images lie in the folder named by --disk, where a run adds one of its own."""

    def on_disk(self, pristine: str) -> str:
        """A copy of an image on the disk, made once."""
        path = self.store.disk / Path(pristine).name
        if not path.exists():
            images.run_tool("cp", "--sparse=always", pristine, str(path))
            images.run_tool("sync", "-f", str(path))
        return str(path)


class DiskRandomRead(_OnDisk):
    """4 KiB at depth 32, past the page cache."""

    name = "disk-randread"
    title = "real disk, cache.direct=on: NBD 4 KiB random read, depth 32"
    unit = MICROSECONDS
    goal = 1.0
    needs = (command("block-export-add"),)
    tools = ("fio",)

    @classmethod
    def handled(cls, size: int) -> float:
        return min(size // 4, 128 * MiB)

    def prepare(self) -> None:
        self.on_disk(self.store.half_qcow2())

    def measure(self, trial: Trial) -> Sample:
        trial.node("disk", self.on_disk(self.store.half_qcow2()), file=_DIRECT)
        uri = trial.export("disk")
        if not proc.opened_direct(trial.daemon.pid, self.on_disk(self.store.half_qcow2())):
            raise AssertionError("the image is not open with O_DIRECT")
        size = self.store.size
        with trial.timed():
            answer = fio.over_nbd(uri, Load("read", 1, 32, size, int(self.handled(size))))
        trial.more.update(p50_us=answer.p50, p99_us=answer.p99)
        return trial.sample(answer.per_request)


class DiskBackup(_OnDisk):
    """A backup into an image on the disk, until it is closed and so on stable storage."""

    name = "disk-backup"
    title = "real disk: full backup until the target is on stable storage"
    needs = (command("blockdev-backup"),)
    writes = True
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial) -> Sample:
        target = images.create(str(trial.folder_on(self.store.disk) / "target.qcow2"), self.store.size, images.QCOW2)
        trial.node("source", self.store.half_qcow2())
        trial.node("target", target)
        trial.produces(target, self.store.half_raw())
        with trial.timed():
            trial.run_job("blockdev-backup", device="source", target="target", sync="full")
            trial.close_node("target")
        return trial.sample()
