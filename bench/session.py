"""The order of things: probe, prepare, one thorough run each, alternating rounds, audits, profiles."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from subprocess import SubprocessError
from typing import Callable, Sequence

from iotests.harness.deadline import DeadlineExceeded
from iotests.harness.images import ToolFailed
from iotests.harness.qmp import ConnectionClosed, QMPError

from . import flushes, profile
from .figures import FAILED, MEASURED, NOT_YET, SKIPPED, Outcome
from .flushes import Audit
from .row import Row
from .side import Side
from .store import Store
from .trial import Sample, Trial

# What a run may die of without taking the others along.
FAILURES = (
    AssertionError, ConnectionClosed, DeadlineExceeded, OSError, QMPError, SubprocessError, ToolFailed, TimeoutError,
)  # fmt: skip


# A row has so many rounds whatever they take.
LEAST_ROUNDS = 5
# A row may take as often its even share of the time that is left: most take far less.
UNEVEN = 3.0


class Session:
    """One call of the benchmark. `exact` is for as many rounds as said, of rows that bound their number, too."""

    def __init__(
        self, left: Side, right: Side, store: Store, runs: Path, *, rounds: int, exact: bool, say: Callable[[str], None]
    ) -> None:
        self.sides = (left, right)
        self.store = store
        self.runs = runs
        self.rounds = rounds
        self.exact = exact
        # Seconds that a row's rounds may take.
        self.allowance = math.inf
        self.say = say
        self._no_audit = flushes.unavailable()

    def outcome(self, kind: type[Row]) -> Outcome:
        """Measure one row."""
        row = kind(self.store)
        missing = row.missing_tools()
        if missing:
            return Outcome(kind, SKIPPED, f"needs {', '.join(missing)} on this machine")
        for side in self.sides:
            lacking = row.missing_from(side.schema)
            if lacking:
                return Outcome(kind, NOT_YET, f"{side.label} has no {', '.join(lacking)}")
        started = time.monotonic()
        try:
            outcome = self._measured(row)
            outcome.took = time.monotonic() - started
            return outcome
        except FAILURES as error:
            return Outcome(kind, FAILED, f"{type(error).__name__}: {error}".strip()[:1000])

    def _measured(self, row: Row) -> Outcome:
        row.prepare()
        outcome = Outcome(type(row), MEASURED, size=self.store.size)
        started = time.monotonic()
        for side in self.sides:
            if not row.most_rounds:
                self._run(row, side, thorough=True)
        rounds = min(self.rounds, row.most_rounds) if row.most_rounds and not self.exact else self.rounds
        for number in range(rounds):
            if number >= LEAST_ROUNDS and time.monotonic() - started > self.allowance:
                break
            # Who goes first changes, so that neither always finds what the other left in the caches.
            order = (0, 1) if number % 2 == 0 else (1, 0)
            pair: dict[int, Sample] = {}
            for index in order:
                pair[index] = self._run(row, self.sides[index])
            outcome.rounds.append((pair[0], pair[1]))
        if row.writes:
            outcome.audit_reason = self._no_audit
            if not self._no_audit:
                outcome.audits = (self._audit(row, self.sides[0]), self._audit(row, self.sides[1]))
        return outcome

    def _run(self, row: Row, side: Side, *, thorough: bool = False) -> Sample:
        trial = Trial(side, self.runs, thorough=thorough)
        try:
            sample = row.measure(trial)
            trial.finish()
            sample.peak_resident = trial.peak_resident
            return sample
        except FAILURES as error:
            raise AssertionError(f"on {side.label}: {type(error).__name__}: {error}") from error
        finally:
            trial.clean()

    def _audit(self, row: Row, side: Side) -> Audit:
        log = self.runs / "strace.log"
        trial = Trial(side, self.runs, brief=True, wrapper=flushes.wrapper(log))
        try:
            row.measure(trial)
            trial.finish()
            return flushes.audit(log, trial.window, trial.folders)
        finally:
            trial.clean()
            log.unlink(missing_ok=True)

    def profiles(self, kind: type[Row], out: Path) -> None:
        """Profile a row on both sides, and print the top of each."""
        row = kind(self.store)
        row.prepare()
        for side in self.sides:
            data = out / f"{row.name}-{side.position}.perf.data"
            trial = Trial(side, self.runs, wrapper=profile.wrapper(data))
            try:
                row.measure(trial)
                trial.finish()
            finally:
                trial.clean()
            self.say(f"  {side.label}, profile in {data}:")
            for line in profile.top(data):
                self.say(f"    {line}")


def measure(
    session: Session, rows: Sequence[type[Row]], shown: Callable[[Outcome], None], seconds: float = 0
) -> list[Outcome]:
    """Measure rows one after the other, in `seconds` if that is given; each is shown as soon as it is there."""
    outcomes = []
    until = time.monotonic() + seconds
    for number, kind in enumerate(rows):
        if seconds:
            session.allowance = UNEVEN * max(0.0, until - time.monotonic()) / (len(rows) - number)
        live = sys.stderr.isatty()
        if live:
            print(f"{kind.name} ...", end="\r", file=sys.stderr, flush=True)
        outcome = session.outcome(kind)
        if live:
            print("\x1b[K", end="", file=sys.stderr, flush=True)
        outcomes.append(outcome)
        shown(outcome)
    return outcomes
