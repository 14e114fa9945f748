"""Guests over NBD on qcow2 and raw images in memory: nbdcopy for sequences, fio for 4 KiB at random."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from iotests.harness import images

from .. import fio
from ..fio import Load
from ..row import MICROSECONDS, Row
from ..schema import command, driver
from ..trial import Sample, Trial

_EXPORTS = (command("nbd-server-start"), command("block-export-add"))

# Which part of the disk's blocks a random load touches.
_PART = 4
# By how much the load is less in a run whose calls are traced.
_BRIEF = 16
DEPTH = 16


class SequentialRead(Row):
    """nbdcopy of an export to nowhere."""

    name = "nbd-read"
    title = "NBD sequential read (nbdcopy)"
    goal = 1.0
    needs = _EXPORTS
    tools = ("nbdcopy",)
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial) -> Sample:
        trial.node("disk", self.store.half_qcow2())
        uri = trial.export("disk")
        with trial.timed():
            images.run_tool("nbdcopy", uri, "null:")
        check_reads(trial, uri, self.store.half_raw())
        return trial.sample()


class SequentialWrite(Row):
    """nbdcopy of a raw file into an empty image, with a flush."""

    name = "nbd-write"
    title = "NBD sequential write (nbdcopy)"
    goal = 1.3
    needs = _EXPORTS
    tools = ("nbdcopy",)
    writes = True
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_raw()

    def measure(self, trial: Trial) -> Sample:
        target = trial.new_image("disk.qcow2", self.store.size)
        trial.node("disk", target)
        uri = trial.export("disk", writable=True)
        trial.produces(target, self.store.half_raw())
        with trial.timed():
            images.run_tool("nbdcopy", "--flush", self.store.half_raw(), uri)
        return trial.sample()


class _Random(Row):
    unit = MICROSECONDS
    goal = 1.0
    needs = _EXPORTS
    tools = ("fio",)
    bytes_per_size = 1 / _PART
    connections: ClassVar[int] = 1
    driver: ClassVar[str] = "qcow2"

    @property
    def pristine(self) -> str:
        """The disk: half of it data, the other half unallocated."""
        return self.store.half_qcow2() if self.driver == "qcow2" else self.store.half_raw()

    def prepare(self) -> None:
        self.pristine  # pylint: disable=pointless-statement

    def load(self, direction: str, brief: bool = False) -> Load:
        """A quarter of the disk's blocks, each once, in random order; in brief, few of them."""
        amount = self.store.size // _PART
        return Load(direction, self.connections, DEPTH, self.store.size, amount // _BRIEF if brief else amount)

    def report(self, trial: Trial, answer: fio.Answer) -> Sample:
        """Microseconds per request, with the percentiles beside."""
        trial.more.update(p50_us=answer.p50, p99_us=answer.p99, p999_us=answer.p999)
        return trial.sample(answer.per_request)


class RandomRead(_Random):
    """fio, one connection."""

    name = "nbd-randread-1"
    title = "NBD 4 KiB random read, 1 connection, depth 16"

    def measure(self, trial: Trial) -> Sample:
        trial.node("disk", self.pristine, self.driver)
        uri = trial.export("disk")
        with trial.timed():
            answer = fio.over_nbd(uri, self.load("read"))
        check_reads(trial, uri, self.store.half_raw())
        return self.report(trial, answer)


class RandomWrite(_Random):
    """fio, one connection; half of the writes allocate clusters."""

    name = "nbd-randwrite-1"
    title = "NBD 4 KiB random write, 1 connection, depth 16"
    writes = True

    def written(self, brief: bool) -> str:
        """The model after the load, made by fio on a file."""
        path = self.store.directory / f"written-{self.connections}{'-brief' if brief else ''}.raw"
        if not path.exists():
            images.run_tool("cp", "--sparse=always", self.store.half_raw(), str(path))
            fio.on_file(str(path), self.load("write", brief))
        return str(path)

    def prepare(self) -> None:
        super().prepare()
        for brief in (False, True):
            self.written(brief)

    def measure(self, trial: Trial) -> Sample:
        disk = trial.copy_of(self.pristine)
        trial.node("disk", disk, self.driver)
        uri = trial.export("disk", writable=True)
        trial.produces(disk, self.written(trial.brief), driver=self.driver)
        with trial.timed():
            answer = fio.over_nbd(uri, self.load("write", trial.brief))
            trial.unexport("disk")
            trial.close_node("disk")
        return self.report(trial, answer)


class RandomRead4(RandomRead):
    """fio, four connections."""

    name = "nbd-randread-4"
    title = "NBD 4 KiB random read, 4 connections, depth 16 each"
    goal = 1.3
    connections = 4


class RandomWrite4(RandomWrite):
    """fio, four connections."""

    name = "nbd-randwrite-4"
    title = "NBD 4 KiB random write, 4 connections, depth 16 each"
    goal = 1.3
    connections = 4


class RawRandomRead(RandomRead):
    """A raw file instead of qcow2."""

    name = "raw-randread-1"
    title = "raw file: NBD 4 KiB random read, 1 connection, depth 16"
    driver = "raw"


class RawRandomWrite(RandomWrite):
    """A raw file instead of qcow2."""

    name = "raw-randwrite-1"
    title = "raw file: NBD 4 KiB random write, 1 connection, depth 16"
    driver = "raw"


class SparseRead(Row):
    """nbdcopy of 1 TiB that is nearly empty: how fast block status is answered."""

    name = "nbd-sparse"
    title = "NBD read of a sparse 1 TiB image by block status (nbdcopy)"
    goal = 1.0
    needs = _EXPORTS
    tools = ("nbdcopy",)

    def prepare(self) -> None:
        self.store.sparse_qcow2()

    def measure(self, trial: Trial) -> Sample:
        trial.node("disk", self.store.sparse_qcow2())
        uri = trial.export("disk")
        with trial.timed():
            images.run_tool("nbdcopy", uri, "null:")
        return trial.sample()


class RawMirror(Row):
    """blockdev-mirror between raw files."""

    name = "raw-mirror"
    title = "raw file: mirror to READY and pivot"
    goal = 1.0
    needs = (command("blockdev-mirror"), driver("raw"))
    writes = True
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_raw()

    def measure(self, trial: Trial) -> Sample:
        target = trial.path("target.raw")
        Path(target).touch()
        images.run_tool("truncate", "-s", str(self.store.size), target)
        trial.node("source", self.store.half_raw(), "raw")
        trial.node("target", target, "raw")
        trial.produces(target, self.store.half_raw(), driver="raw")
        with trial.timed():
            trial.start_job("blockdev-mirror", device="source", target="target", sync="full")
            trial.wait_ready()
            trial.qmp.cmd("job-complete", id="job")
            trial.finish_job()
            trial.close_node("target")
        return trial.sample()


def check_reads(trial: Trial, uri: str, model: str) -> None:
    """In a thorough run, read the whole export and compare it with the model."""
    if not trial.thorough:
        return
    copy = trial.path("read.raw")
    images.run_tool("nbdcopy", uri, copy)
    images.compare(copy, model, "raw", "raw")
    Path(copy).unlink()
