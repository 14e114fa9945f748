"""The program itself: how soon it answers, and how much memory it holds with nothing to do."""

from __future__ import annotations

import time

from .. import proc
from ..row import MEBIBYTES, Row
from ..schema import command
from ..trial import Sample, Trial


class StartUp(Row):
    """From fork to the reply to qmp_capabilities, on a descriptor that the daemon inherits."""

    name = "start"
    title = "start-up to the first QMP reply"
    limit = 0.050

    def measure(self, trial: Trial) -> Sample:
        started = time.monotonic()
        # Without a monitor of its own path, the daemon's ready when it answers on the inherited one.
        trial.adopt(trial.side.launch(trial.directory, monitors=0, wrapper=trial.wrapper))
        return trial.sample(time.monotonic() - started)


class Rest(Row):
    """Resident memory of a fresh daemon that has answered a client."""

    name = "rss"
    title = "resident memory at rest"
    unit = MEBIBYTES
    limit = 24.0

    def measure(self, trial: Trial) -> Sample:
        trial.qmp.cmd("query-version")
        return trial.sample(proc.usage(trial.daemon.pid).resident / (1 << 20))


class RestWithDisk(Row):
    """Resident memory with an image open and exported."""

    name = "rss-disk"
    title = "resident memory with an exported qcow2 image"
    unit = MEBIBYTES
    needs = (command("block-export-add"),)

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial) -> Sample:
        trial.node("disk", self.store.half_qcow2())
        trial.export("disk")
        return trial.sample(proc.usage(trial.daemon.pid).resident / (1 << 20))
