"""What a guest feels while something else goes on: a slow backup target, a graph that changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from iotests.harness.deadline import DeadlineExceeded
from iotests.harness.images import MiB
from iotests.harness.qmp import QMPError

from .. import fio
from ..fio import Load
from ..row import MICROSECONDS, Row
from ..schema import Need, command, driver, object_type
from ..trial import Sample, Trial

TARGET_BYTES_PER_SECOND = MiB
# How long the guest writes; a write that is under way then is waited for.
GUEST_SECONDS = 1
# Seconds after which a cancel counts as having taken them: the rival's waits for what is in flight, 65 of them.
CANCEL_SECONDS = 1.0


class _SlowTarget(Row):
    needs: ClassVar[Sequence[Need]] = (command("blockdev-backup"), driver("throttle"), object_type("throttle-group"), command("object-add"))

    def prepare(self) -> None:
        self.store.solid_qcow2()

    @property
    def size(self) -> int:
        """The source's size in bytes."""
        return self.store.size // 4

    def start(self, trial: Trial, source: str) -> None:
        """A backup into a target that takes 1 MiB/s."""
        target = trial.new_image("target.qcow2", self.size)
        trial.node("source", source)
        trial.qmp.execute(
            "object-add",
            {"qom-type": "throttle-group", "id": "slow", "limits": {"bps-write": TARGET_BYTES_PER_SECOND}},
        )
        file = {"driver": "file", "filename": target}
        throttled = {"driver": "throttle", "throttle-group": "slow", "file": file}
        trial.add("target", "qcow2", file=throttled)


class GuestUnderBackup(_SlowTarget):
    """The median 4 KiB write of a guest at depth 1."""

    name = "slow-target-write"
    title = "guest 4 KiB write p50 while a backup's target takes 1 MiB/s"
    unit = MICROSECONDS
    goal = 50.0
    needs = (*_SlowTarget.needs, command("block-export-add"))
    tools = ("fio",)

    def measure(self, trial: Trial) -> Sample:
        self.start(trial, trial.copy_of(self.store.solid_qcow2()))
        uri = trial.export("source", writable=True)
        trial.start_job("blockdev-backup", device="source", target="target", sync="full")
        load = Load("write", 1, 1, self.size, self.size, seconds=GUEST_SECONDS)
        with trial.timed():
            answer = fio.over_nbd(uri, load)
        trial.more.update(p99_us=answer.p99, writes=answer.requests)
        trial.abandon()
        return trial.sample(answer.p50)


class CancelSlowBackup(_SlowTarget):
    """How long a cancel takes."""

    name = "slow-target-cancel"
    title = f"cancel of that backup until CANCELLED, {CANCEL_SECONDS:g} s at most"
    goal = 20.0

    def measure(self, trial: Trial) -> Sample:
        self.start(trial, self.store.solid_qcow2())
        trial.start_job("blockdev-backup", device="source", target="target", sync="full")
        self._wait_progress(trial)
        with trial.timed():
            trial.qmp.cmd("block-job-cancel", device="job")
            ended = self._ended(trial)
        if not ended:
            trial.abandon()
        return trial.sample()

    @staticmethod
    def _ended(trial: Trial) -> bool:
        try:
            trial.qmp.wait_event("BLOCK_JOB_CANCELLED", {"device": "job"}, seconds=CANCEL_SECONDS)
        except DeadlineExceeded:
            return False
        return True

    @staticmethod
    def _wait_progress(trial: Trial) -> None:
        # A target at its limit is what is to be left, so the first second's worth has to be through.
        until = time.monotonic() + 60
        while time.monotonic() < until:
            jobs = trial.qmp.cmd("query-jobs")
            if not jobs or jobs[0]["current-progress"] >= 2 * TARGET_BYTES_PER_SECOND:
                return
            trial.qmp.next_event(0.05)


class ReadsWhileRebased(Row):
    """
    A -> B -> base, C -> base: A's backing changes back and forth while C is read. The same once more as a
    control, with the changes in a second daemon: these burn the same CPU and change nothing that C can see.
    """

    name = "rebase-p999"
    title = "p99.9 of reads of C while A is rebased over a shared base"
    unit = MICROSECONDS
    goal = 2.0
    needs = (command("blockdev-reopen"), command("block-export-add"))
    tools = ("fio",)

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial) -> Sample:
        uri = self._set_up(trial)
        bystander = trial.beside()
        self._set_up(bystander)
        with trial.timed():
            answer, changes = self._read(uri, trial)
        control, control_changes = self._read(uri, bystander)
        bystander.finish()
        trial.more.update(
            p50_us=answer.p50,
            p99_us=answer.p99,
            changes=changes,
            control_p999_us=control.p999,
            control_changes=control_changes,
        )
        return trial.sample(answer.p999)

    def _set_up(self, trial: Trial) -> str:
        """The graph, and the URI of C."""
        size = self.store.size
        trial.node("base", self.store.half_qcow2(), read_only=True)
        trial.node("B", trial.new_image("b.qcow2", size), read_only=True, backing="base")
        file_a = {"driver": "file", "filename": trial.new_image("a.qcow2", size)}
        trial.add("A", "qcow2", file={**file_a, "node-name": "A-file"}, backing="B")
        trial.node("C", trial.new_image("c.qcow2", size), read_only=True, backing="base")
        return trial.export("C")

    def _read(self, uri: str, churned: Trial) -> tuple[fio.Answer, int]:
        """Read C while the graph of a daemon changes; the number of changes is given, too."""
        stop = threading.Event()
        changes: list[float] = []
        failures: list[BaseException] = []
        changer = threading.Thread(target=self._change, args=(churned, stop, changes, failures))
        changer.start()
        try:
            size = self.store.size
            answer = fio.over_nbd(uri, Load("read", 1, 1, size, min(size, 64 * MiB)))
        finally:
            stop.set()
            changer.join()
        if failures:
            raise failures[0]
        return answer, len(changes)

    @staticmethod
    def _change(trial: Trial, stop: threading.Event, changes: list[float], failures: list[BaseException]) -> None:
        # The client is this thread's alone for as long as it runs.
        try:
            while not stop.wait(0.01):
                backing = "base" if len(changes) % 2 == 0 else "B"
                options: dict[str, Any] = {"driver": "qcow2", "node-name": "A", "file": "A-file", "backing": backing}
                trial.qmp.execute("blockdev-reopen", {"options": [options]})
                changes.append(time.monotonic())
        except (QMPError, AssertionError, OSError) as error:
            failures.append(error)
