"""
`make demo`: the daemon at work on real images, in the time of a coffee.

A guest writes over NBD to the top of a chain of three qcow2 images while a transaction backs up two disks
at one point in time, and then while a stream takes the chain into its top. Events and progress are shown
as they come. In the end the distribution's own tools judge every image. Exit status 0 means that all of
them hold exactly what they must.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

from iotests.harness import guest as guest_module
from iotests.harness import images
from iotests.harness.daemon import Daemon, program
from iotests.harness.guest import GuestWriter
from iotests.harness.images import QCOW2, MiB
from iotests.harness.qmp import Message, QMPClient

SIZE = 96 * MiB
SEED = 20260101
# Bytes per second: slow enough to be watched, fast enough for the whole to end within a minute.
BACKUP_SPEED = 24 * MiB
STREAM_SPEED = 24 * MiB
# The guest writes below this offset only, so that the stream has something left to take in.
GUEST_REACH = 16 * MiB
BAR_WIDTH = 30


@dataclasses.dataclass
class Verdict:
    """One judged image."""

    what: str
    problem: str = ""


class Show:
    """Prints with the time since the start, bars in place when a person looks on."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._live = sys.stdout.isatty()
        self._bar_shown = False
        self._last_tenth: dict[str, int] = {}

    def line(self, text: str) -> None:
        """A line of its own."""
        if self._bar_shown:
            print("\r\x1b[K", end="")
            self._bar_shown = False
        print(f"{time.monotonic() - self._start:6.2f}s  {text}", flush=True)

    def event(self, event: Message) -> None:
        """An event of the daemon."""
        data = " ".join(f"{key}={value}" for key, value in sorted(event.get("data", {}).items()))
        self.line(f"    event {event['event']:<20} {data}")

    def progress(self, jobs: list[Message], writes: int) -> None:
        """The jobs' progress; on a terminal in place, else every tenth once."""
        parts = []
        for job in jobs:
            done = job["current-progress"] / max(1, job["total-progress"])
            parts.append((job["id"], done))
        if self._live and parts:
            bars = "  ".join(f"{name} [{'#' * int(done * BAR_WIDTH):<{BAR_WIDTH}}]{done:4.0%}" for name, done in parts)
            print(f"\r\x1b[K        {bars}  guest: {writes} writes", end="", flush=True)
            self._bar_shown = True
            return
        for name, done in parts:
            tenth = int(done * 10)
            if tenth > self._last_tenth.get(name, -1):
                self._last_tenth[name] = tenth
                self.line(f"    {name:<8} {done:4.0%}   guest: {writes} writes so far")


class Demo:
    """The scenes, in order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.show = Show()
        self.random = random.Random(SEED)
        self.socket = str(directory / "nbd")
        self.verdicts: list[Verdict] = []

    def path(self, name: str) -> str:
        """A file of the demo."""
        return str(self.directory / name)

    def write_model(self, name: str, content: bytes) -> str:
        """A raw file with what an image must hold."""
        path = self.path(name)
        Path(path).write_bytes(content)
        return path

    def prepare(self) -> tuple[bytes, bytes]:
        """base <- middle <- top with known data, a second disk, and empty targets; both disks' contents."""
        model = bytearray(self.random.randbytes(SIZE // 2) + bytes(SIZE // 2))
        images.create(self.path("base.qcow2"), SIZE, QCOW2)
        self.fill("base.qcow2", 0, bytes(model[: SIZE // 2]))
        below = "base.qcow2"
        for number, name in enumerate(("middle.qcow2", "top.qcow2"), start=1):
            images.create(self.path(name), SIZE, QCOW2, self.path(below))
            piece = self.random.randbytes(8 * MiB)
            offset = number * 20 * MiB + 12345 * 512
            self.fill(name, offset, piece)
            model[offset : offset + len(piece)] = piece
            below = name
        second = self.random.randbytes(SIZE // 3) + bytes(SIZE - SIZE // 3)
        images.create(self.path("second.qcow2"), SIZE, QCOW2)
        self.fill("second.qcow2", 0, second[: SIZE // 3])
        for target in ("backup-1.qcow2", "backup-2.qcow2"):
            images.create(self.path(target), SIZE, QCOW2)
        return bytes(model), second

    def fill(self, name: str, offset: int, data: bytes) -> None:
        """Write data into an image with qemu-io."""
        raw = self.write_model("fill.raw", data)
        images.qemu_io(self.path(name), f"write -q -s {raw} {offset} {len(data)}", driver="qcow2")

    def watch(self, qmp: QMPClient, jobs: set[str], writer: GuestWriter) -> None:
        """Show events and progress until every one of these jobs is gone; raise if one failed."""
        left = set(jobs)
        failed: list[str] = []
        while left:
            # An event ends the wait at once; without one, progress is asked for five times a second.
            self.show.progress(qmp.cmd("query-jobs"), writer.writes)
            event = qmp.next_event(0.2)
            while event is not None:
                self.show.event(event)
                data = event["data"]
                if event["event"] == "BLOCK_JOB_COMPLETED" and "error" in data:
                    failed.append(f"{data['device']}: {data['error']}")
                if event["event"] == "JOB_STATUS_CHANGE" and data["status"] == "null":
                    left.discard(data["id"])
                event = qmp.next_event(0)
        if failed:
            raise AssertionError("; ".join(failed))

    def run(self) -> None:
        """All of it."""
        self.show.line("making a qcow2 chain base <- middle <- top, a second disk and two empty targets")
        first, second = self.prepare()
        self.show.line(f"starting {program()}")
        daemon = Daemon([], self.directory)
        try:
            self.scenes(daemon, first, second)
        except BaseException:
            if daemon.process.poll() is None:
                daemon.kill()
            raise

    def scenes(self, daemon: Daemon, first: bytes, second: bytes) -> None:
        """What happens while the daemon runs, and the judgement after its end."""
        qmp = daemon.qmp
        version = qmp.greeting["version"]
        self.show.line("    QMP {major}.{minor}.{micro}".format(**version["qemu"]) + f" {version['package']}")
        for name in ("top", "second", "backup-1", "backup-2"):
            file = {"driver": "file", "filename": self.path(f"{name}.qcow2")}
            qmp.cmd("blockdev-add", driver="qcow2", node_name=name, file=file)
        qmp.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": self.socket}})
        qmp.cmd("block-export-add", type="nbd", id="export", node_name="top", writable=True)

        self.show.line("the guest connects over NBD and writes, until it is told to stop for a moment")
        early = GuestWriter(self.socket, "top", SEED, first, reach=GUEST_REACH)
        early.start()
        early.wait_writes(200)
        at_backup = early.stop()

        self.show.line("a transaction backs up both disks at this very moment; the guest writes on")
        actions = [
            {
                "type": "blockdev-backup",
                "data": {"job-id": job, "device": disk, "target": job, "sync": "full", "speed": BACKUP_SPEED},
            }
            for job, disk in (("backup-1", "top"), ("backup-2", "second"))
        ]
        qmp.cmd("transaction", actions=actions, properties={"completion-mode": "grouped"})
        writer = GuestWriter(self.socket, "top", SEED + 1, at_backup, reach=GUEST_REACH)
        writer.start()
        self.watch(qmp, {"backup-1", "backup-2"}, writer)

        self.show.line("a stream takes middle and base into top; the guest still writes")
        qmp.cmd("block-stream", job_id="stream", device="top", speed=STREAM_SPEED)
        self.watch(qmp, {"stream"}, writer)
        writer.wait_writes(50)
        final = writer.stop()
        self.show.line(f"the guest stops after {early.writes + writer.writes} writes; the daemon quits")
        daemon.quit()

        self.show.line("judging every image with qemu-img check and compare")
        self.judge("backup-1.qcow2", at_backup, "the moment of the transaction")
        self.judge("backup-2.qcow2", second, "the moment of the transaction")
        self.judge("second.qcow2", second, "what it held before")
        self.judge("top.qcow2", final, "every write of the guest")
        self.judge_that("top.qcow2 stands alone", self.top_stands_alone)
        for name in ("middle.qcow2", "base.qcow2"):
            self.judge_that(f"{name} checks clean", lambda name=name: images.check(self.path(name)))

    def judge(self, name: str, content: bytes, holds: str) -> None:
        """An image checks clean and holds exactly this."""

        def compare() -> None:
            images.check(self.path(name))
            images.compare(self.path(name), self.write_model("model.raw", content), "qcow2", "raw")

        self.judge_that(f"{name} checks clean and holds {holds}", compare)

    def judge_that(self, what: str, test: Callable[[], Any]) -> None:
        """Note and show one verdict."""
        verdict = Verdict(what)
        try:
            test()
        except AssertionError as error:
            verdict.problem = str(error)
        self.verdicts.append(verdict)
        self.show.line(f"    {'ok   ' if not verdict.problem else 'WRONG'} {what}")
        if verdict.problem:
            self.show.line(f"          {verdict.problem}")

    def top_stands_alone(self) -> None:
        """The header of top names no backing file any more."""
        if "backing-filename" in images.info(self.path("top.qcow2")):
            raise AssertionError("the header still names a backing file")


def main() -> int:
    """Run the demo in a folder that is removed afterwards."""
    if guest_module.nbd is None:
        print("demo: needs python3-libnbd: apt-get install python3-libnbd", file=sys.stderr)
        return 1
    directory = Path(tempfile.mkdtemp(prefix="demo"))
    demo = Demo(directory)
    try:
        demo.run()
    except Exception as error:  # pylint: disable=broad-except; the demo tells, in one line, what went wrong
        demo.show.line(f"FAILED: {type(error).__name__}: {error}")
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    wrong = [one for one in demo.verdicts if one.problem]
    demo.show.line("all is well" if not wrong else f"{len(wrong)} of {len(demo.verdicts)} judgements are bad")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
