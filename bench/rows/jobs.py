"""Jobs that move 512 MiB of data between qcow2 images in memory.

The window ends when the written image is closed. The rival reports success before it has written its
cached metadata and without a flush; a daemon that flushes first must not look slower for it.
"""

from __future__ import annotations

from pathlib import Path

from iotests.harness import images
from iotests.harness.images import QCOW2, ImageOptions

from ..row import Row
from ..schema import argument, command
from ..trial import Sample, Trial


class FullBackup(Row):
    """blockdev-backup into an empty image."""

    name = "backup"
    title = "full backup"
    goal = 1.25
    needs = (command("blockdev-backup"),)
    writes = True
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial) -> Sample:
        target = trial.new_image("target.qcow2", self.store.size)
        trial.node("source", self.store.half_qcow2())
        trial.node("target", target)
        trial.produces(target, self.store.half_raw())
        with trial.timed():
            trial.run_job("blockdev-backup", device="source", target="target", sync="full")
            trial.close_node("target")
        return trial.sample()


class Mirror(Row):
    """blockdev-mirror to READY and the pivot."""

    name = "mirror"
    title = "mirror to READY and pivot"
    goal = 1.0
    needs = (command("blockdev-mirror"), command("job-complete"))
    writes = True
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial) -> Sample:
        target = trial.new_image("target.qcow2", self.store.size)
        trial.node("source", self.store.half_qcow2())
        trial.node("target", target)
        trial.produces(target, self.store.half_raw())
        with trial.timed():
            trial.start_job("blockdev-mirror", device="source", target="target", sync="full")
            trial.wait_ready()
            trial.qmp.cmd("job-complete", id="job")
            trial.finish_job()
            trial.close_node("target")
        return trial.sample()


class Stream(Row):
    """block-stream of base and mid into the top."""

    name = "stream"
    title = "stream of a chain of three"
    goal = 2.0
    needs = (command("block-stream"),)
    writes = True
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.chain()

    def measure(self, trial: Trial) -> Sample:
        base, mid, top = self.store.chain()
        # Only the top is written to; the others are read where they are.
        own_top = trial.copy_of(top)
        trial.node("base", base)
        trial.node("mid", mid, backing="base")
        trial.node("top", own_top, backing="mid")
        trial.produces(own_top, self.store.half_raw())
        with trial.timed():
            trial.run_job("block-stream", device="top")
            trial.close_node("top")
        return trial.sample()


class Commit(Row):
    """block-commit of mid into base, under a top."""

    name = "commit"
    title = "intermediate commit"
    goal = 1.1
    needs = (command("block-commit"),)
    writes = True
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_raw()
        self.store.half_qcow2()

    def measure(self, trial: Trial) -> Sample:
        # All data is in the middle, so that the commit has as much to move as the other jobs.
        size = self.store.size
        base = trial.new_image("base.qcow2", size)
        mid = trial.copy_of(self.store.half_qcow2())
        top = trial.new_image("top.qcow2", size)
        self._rebase(mid, base)
        self._rebase(top, mid)
        trial.node("base", base)
        trial.node("mid", mid, backing="base")
        trial.node("top", top, backing="mid")
        trial.produces(base, self.store.half_raw())
        trial.produces(top, self.store.half_raw())
        with trial.timed():
            trial.run_job("block-commit", device="top", top_node="mid", base_node="base")
            for node in ("top", "mid", "base"):
                trial.close_node(node)
        return trial.sample()

    @staticmethod
    def _rebase(overlay: str, backing: str) -> None:
        images.run_tool("qemu-img", "rebase", "-u", "-b", Path(backing).name, "-F", "qcow2", overlay)


class _CompressedBackup(Row):
    title = ""
    goal = 2.0
    needs = (command("blockdev-backup"), argument("blockdev-backup", "compress"))
    writes = True
    compression = "zlib"

    def source(self) -> tuple[str, str]:
        """The source image, and the model of its content."""
        raise NotImplementedError

    def prepare(self) -> None:
        self.source()

    def measure(self, trial: Trial) -> Sample:
        source, model = self.source()
        size = Path(model).stat().st_size
        kind = ImageOptions(self.compression, "qcow2", (*QCOW2.create, f"compression_type={self.compression}"))
        target = trial.new_image("target.qcow2", size, kind)
        trial.node("source", source)
        trial.node("target", target)
        trial.produces(target, model)
        with trial.timed():
            trial.run_job("blockdev-backup", device="source", target="target", sync="full", compress=True)
            trial.close_node("target")
        trial.more["target_mib"] = Path(target).stat().st_blocks * 512 / (1 << 20)
        self.check_size(trial, Path(model))
        return trial.sample()

    def check_size(self, trial: Trial, model: Path) -> None:
        """Fail when the target is not as small as the data allows."""


class _RandomData(_CompressedBackup):
    bytes_per_size = 0.5

    def source(self) -> tuple[str, str]:
        return self.store.half_qcow2(), self.store.half_raw()


class _CompressibleData(_CompressedBackup):
    bytes_per_size = 0.25

    def source(self) -> tuple[str, str]:
        return self.store.compressible_qcow2(), self.store.compressible_raw()

    def check_size(self, trial: Trial, model: Path) -> None:
        uncompressed = model.stat().st_size / (1 << 20)
        if trial.more["target_mib"] > 0.75 * uncompressed:
            raise AssertionError(f"the target takes {trial.more['target_mib']:.0f} MiB: it is not compressed")


class BackupZlib(_RandomData):
    """Deflate on data that does not shrink."""

    name = "backup-zlib"
    title = "compressed backup, zlib, random data"


class BackupZlibText(_CompressibleData):
    """Deflate on data that shrinks."""

    name = "backup-zlib-text"
    title = "compressed backup, zlib, compressible data"


class BackupZstd(_RandomData):
    """zstd on data that does not shrink."""

    name = "backup-zstd"
    title = "compressed backup, zstd, random data"
    compression = "zstd"


class BackupZstdText(_CompressibleData):
    """zstd on data that shrinks."""

    name = "backup-zstd-text"
    title = "compressed backup, zstd, compressible data"
    compression = "zstd"
