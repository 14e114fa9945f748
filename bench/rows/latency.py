"""Jobs over a source that answers each read after 5 ms, as a busy network disk does (64 MiB of data)."""

from __future__ import annotations

from pathlib import Path

from iotests.harness import images

from ..row import Row
from ..schema import command, driver
from ..store import SMALL
from ..trial import Sample, Trial

LATENCY_MS = 5


class _SlowSource(Row):
    tools = ("nbdkit",)
    writes = True

    def prepare(self) -> None:
        self.store.small_qcow2()

    @classmethod
    def handled(cls, size: int) -> float:
        return min(SMALL, size)

    @property
    def size(self) -> int:
        """The source's size in bytes."""
        return Path(self.store.small_raw()).stat().st_size

    def add_source(self, trial: Trial, name: str, path: str, **options: object) -> None:
        """A qcow2 node whose file has the latency."""
        trial.add(name, "qcow2", file=trial.slow_server(path, milliseconds=LATENCY_MS), **options)


class LatencyBackup(_SlowSource):
    """blockdev-backup from the slow source."""

    name = "latency-backup"
    title = "backup from a source of 5 ms latency"
    goal = 1.2
    needs = (driver("nbd"), command("blockdev-backup"))

    def measure(self, trial: Trial) -> Sample:
        target = trial.new_image("target.qcow2", self.size)
        self.add_source(trial, "source", self.store.small_qcow2())
        trial.node("target", target)
        trial.produces(target, self.store.small_raw())
        with trial.timed():
            trial.run_job("blockdev-backup", device="source", target="target", sync="full")
            trial.close_node("target")
        return trial.sample()


class LatencyMirror(_SlowSource):
    """blockdev-mirror from the slow source, to the pivot."""

    name = "latency-mirror"
    title = "mirror from a source of 5 ms latency"
    goal = 1.2
    needs = (driver("nbd"), command("blockdev-mirror"))

    def measure(self, trial: Trial) -> Sample:
        target = trial.new_image("target.qcow2", self.size)
        self.add_source(trial, "source", self.store.small_qcow2())
        trial.node("target", target)
        trial.produces(target, self.store.small_raw())
        with trial.timed():
            trial.start_job("blockdev-mirror", device="source", target="target", sync="full")
            trial.wait_ready()
            trial.qmp.cmd("job-complete", id="job")
            trial.finish_job()
            trial.close_node("target")
        return trial.sample()


class LatencyStream(_SlowSource):
    """block-stream from a slow base."""

    name = "latency-stream"
    title = "stream from a source of 5 ms latency"
    goal = 6.0
    needs = (driver("nbd"), command("block-stream"))

    def measure(self, trial: Trial) -> Sample:
        top = trial.new_image("top.qcow2", self.size)
        self.add_source(trial, "source", self.store.small_qcow2(), read_only=True)
        trial.node("top", top, backing="source")
        trial.produces(top, self.store.small_raw())
        with trial.timed():
            trial.run_job("block-stream", device="top")
            trial.close_node("top")
        return trial.sample()


class LatencyCommit(_SlowSource):
    """block-commit of a slow middle into a fast base."""

    name = "latency-commit"
    title = "commit from a source of 5 ms latency"
    goal = 6.0
    needs = (driver("nbd"), command("block-commit"))

    def measure(self, trial: Trial) -> Sample:
        base = trial.new_image("base.qcow2", self.size)
        mid = trial.copy_of(self.store.small_qcow2())
        top = trial.new_image("top.qcow2", self.size)
        for overlay, backing in ((mid, base), (top, mid)):
            images.run_tool("qemu-img", "rebase", "-u", "-b", Path(backing).name, "-F", "qcow2", overlay)
        trial.node("base", base)
        self.add_source(trial, "mid", mid, backing="base")
        trial.node("top", top, backing="mid")
        trial.produces(base, self.store.small_raw())
        with trial.timed():
            trial.run_job("block-commit", device="top", top_node="mid", base_node="base", backing_file=base)
            for node in ("top", "mid", "base"):
                trial.close_node(node)
        return trial.sample()
