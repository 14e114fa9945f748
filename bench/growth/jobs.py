"""Jobs at once, each slow enough that they wait rather than compute."""

from __future__ import annotations

import time
from typing import Mapping

from iotests.harness.deadline import Deadline
from iotests.harness.images import GiB, MiB
from iotests.harness.qmp import QMPError

from ..row import MEBIBYTES, MICROSECONDS, SECONDS
from ..schema import command, driver
from ..trial import Trial
from ..wire import Wire, request
from .graph import resident, round_trip
from .series import FLAT, LINEAR, Curve, Series

# Bytes per second of each job.
SPEED = MiB

# Seconds that all jobs may take to start.
PATIENCE = 60.0


class Jobs(Series):
    """Backups from null-co to null-co, at 1 MiB/s each."""

    name = "growth-jobs"
    title = "jobs at once, each at 1 MiB/s"
    of = "jobs"
    points = (1, 10, 100, 1000)
    curves = (
        Curve("start", "blockdev-backup, each", MICROSECONDS, FLAT),
        Curve("query", "query-jobs", SECONDS, LINEAR),
        Curve("version", "query-version", MICROSECONDS, FLAT),
        Curve("resident", "resident memory", MEBIBYTES, LINEAR),
    )
    needs = (command("blockdev-backup"), command("query-jobs"), driver("null-co"))

    def measure(self, trial: Trial, number: int) -> Mapping[str, float]:
        nodes = [
            request("blockdev-add", {"driver": "null-co", "node-name": f"{kind}{index}", "size": GiB})
            for index in range(number)
            for kind in ("source", "target")
        ]
        with Wire(trial.qmp) as wire:
            wire.pipeline(nodes)
        started = time.monotonic()
        pending = [
            trial.qmp.send(
                "blockdev-backup",
                {"job-id": f"job{i}", "device": f"source{i}", "target": f"target{i}", "sync": "full", "speed": SPEED},
            )
            for i in range(number)
        ]
        deadline = Deadline(PATIENCE, doing="all jobs to run")
        for sent in pending:
            reply = trial.qmp.reply(sent, seconds=deadline.remaining())
            if "error" in reply:
                raise QMPError(reply, sent.command)
        each = (time.monotonic() - started) / number
        # A job's last event of its start comes before it shows as running; from then on, nothing is said.
        while any(job["status"] != "running" for job in trial.qmp.cmd("query-jobs")):
            deadline.remaining()
        trial.qmp.take_events()
        with Wire(trial.qmp) as wire:
            querying, answers = wire.pipeline([request("query-jobs")])
        if len(answers[0]) != number:
            raise AssertionError(f"{len(answers[0])} jobs instead of {number}")
        values = {
            "start": each * 1e6,
            "query": querying,
            "version": round_trip(trial),
            "resident": resident(trial),
        }
        trial.abandon()
        return values
