"""What a client feels while jobs keep all cores busy: with two of them, and with very many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from iotests.harness.qmp import QMPError

from ..proc import allow_files
from ..row import TIMES, Row
from ..schema import Need, command, driver
from ..side import LEFT
from ..trial import Sample, Trial
from ..wire import Wire, request

FEW = 2
MANY = 1000
# Over NBD two daemons share the cores, and each job takes four round trips between them to start.
MANY_OVER_NBD = 100
# How long the judged side may take to start them, and the other, which is reported with those that it got.
START_SECONDS = 20.0
OTHER_START_SECONDS = 5.0
PROBES = 1500
# With fewer probes it ends after this time, or as soon as one is answered then.
PROBE_SECONDS = 10.0
# A client that asks now and then, not one that keeps the daemon awake.
GAP_SECONDS = 0.001
# Descriptors that the side needs which has a connection for each job, at either end.
_FILES = 4096
# So many probes apart the jobs that have ended are started again.
BATCH = 50


class QueryBesideJobs(Row):
    """
    The p99 of query-version beside 1,000 backups of 1 GiB in memory into null-co, over that beside 2 of them:
    each backup alone would keep a core busy.
    """

    name = "jobs-1000"
    title = "1,000 jobs at once: p99 of query-version, in times of that with 2 jobs"
    unit = TIMES
    limit = 5.0
    needs: ClassVar[Sequence[Need]] = (command("blockdev-backup"), driver("null-co"))
    # The rival uses all of its time.
    most_rounds = 2
    many = MANY

    def prepare(self) -> None:
        self.store.full_qcow2()

    def sources(self, trial: Trial) -> None:
        """Make what the jobs' sources need, before the first of them."""

    def source(self, trial: Trial, number: int) -> None:
        """Add the node of the job's source."""
        trial.node(f"source{number}", self.store.full_qcow2(), file={"locking": "off"}, read_only=True)

    def measure(self, trial: Trial) -> Sample:
        self.sources(trial)
        beside = trial.beside()
        few = self._start(beside, FEW)
        assert few == FEW
        calm = self._probe(beside, few)
        beside.abandon()
        many = self._start(trial, self.many)
        if many < self.many and trial.side.position == LEFT:
            raise AssertionError(f"{many} jobs in {START_SECONDS} s")
        with trial.timed():
            crowded = self._probe(trial, many)
        if trial.side.position == LEFT and len(trial.qmp.cmd("query-jobs")) < many:
            raise AssertionError("jobs ended before the last probe")
        trial.more.update(
            jobs=many,
            p50_us_few=calm[len(calm) // 2] * 1e6,
            p50_us_many=crowded[len(crowded) // 2] * 1e6,
            p99_us_few=_p99(calm) * 1e6,
            p99_us_many=_p99(crowded) * 1e6,
        )
        trial.abandon()
        return trial.sample(_p99(crowded) / _p99(calm))

    def _start(self, trial: Trial, wanted: int) -> int:
        """Start the jobs, and tell how many there was time and room for."""
        trial.adopt(trial.side.launch(trial.directory, monitors=2, wrapper=trial.wrapper))
        left = trial.side.position == LEFT
        until = time.monotonic() + (START_SECONDS if left else OTHER_START_SECONDS)
        for number in range(wanted):
            if time.monotonic() > until:
                return number
            try:
                self.source(trial, number)
                trial.add(f"target{number}", "null-co", size=self.store.size)
                self._backup(trial, number)
            except QMPError:
                if number < FEW:
                    raise
                return number  # descriptors, say
        return wanted

    @staticmethod
    def _backup(trial: Trial, number: int) -> None:
        trial.qmp.cmd(
            "blockdev-backup",
            job_id=f"job{number}",
            device=f"source{number}",
            target=f"target{number}",
            sync="full",
        )

    def _probe(self, trial: Trial, jobs: int) -> list[float]:
        """The sorted seconds of round trips, while as many jobs run."""
        text = request("query-version")
        times: list[float] = []
        client = trial.daemon.connect(1)
        with Wire(client) as wire:
            until = time.monotonic() + PROBE_SECONDS
            while len(times) < PROBES and time.monotonic() < until:
                times += wire.spaced(text, BATCH, GAP_SECONDS, until)
                if jobs > FEW:
                    continue  # a thousand take minutes
                running = {job["id"] for job in trial.qmp.cmd("query-jobs")}
                for number in range(jobs):
                    if f"job{number}" not in running:
                        self._backup(trial, number)
                trial.qmp.take_events()
        return sorted(times)


class QueryBesideNBDJobs(QueryBesideJobs):
    """
    The same with sources over NBD, each with a connection to a second daemon of the same side, which exports
    the image: steps that wait for answers, and are all answered as fast as that daemon can.
    """

    name = "jobs-nbd"
    title = "100 jobs at once over NBD: p99 of query-version, in times of that with 2 jobs"
    many = MANY_OVER_NBD
    needs = (*QueryBesideJobs.needs, driver("nbd"), command("block-export-add"))

    # Of the server.
    _address: dict[str, str] = {}

    def sources(self, trial: Trial) -> None:
        allow_files(_FILES)
        server = trial.beside()
        server.node("disk", self.store.full_qcow2(), read_only=True)
        server.export("disk")
        self._address = {"type": "unix", "path": server.path("nbd")}

    def source(self, trial: Trial, number: int) -> None:
        trial.add(f"source{number}", "nbd", server=self._address, export="disk", read_only=True)


def _p99(ordered: list[float]) -> float:
    return ordered[len(ordered) * 99 // 100]
