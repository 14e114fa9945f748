"""What a series is: one number that grows, and the costs that are measured at each of its values.

A cost is linear by nature (so many nodes to list, so many links to open) or ought not to depend on the
number at all. The first may grow no faster than the number, the second must stay where it is.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
import time
from subprocess import TimeoutExpired
from typing import Any, ClassVar, Mapping, Sequence

from iotests.harness.deadline import DeadlineExceeded

from ..figures import FAILED, MEASURED, NOT_YET, SKIPPED
from ..schema import Need
from ..session import FAILURES, Session
from ..side import LEFT, Side
from ..store import Store
from ..trial import Trial

LINEAR = "linear"
FLAT = "flat"

# The exponent that still counts as linear: a median of a few runs on a shared machine is no closer.
LINEAR_EXPONENT = 1.2
# How often the cost of the smaller numbers a flat one may reach.
FLAT_FACTOR = 2.0

# How far the two numbers are apart that an exponent is taken between, so that noise does not make it.
SPAN = 8

# Runs of one point; the median of each cost counts.
REPEATS = 3

# A run that takes as long as this, in seconds, is not repeated: it is far above the noise.
LONG_RUN = 10.0
# Seconds that one job of the other side may take before that side gives up.
PATIENCE = 20.0


@dataclasses.dataclass(frozen=True)
class Curve:
    """One cost: its name among a run's results, its unit (as of rows), and how it may grow."""

    name: str
    title: str
    unit: str
    law: str


class Series:
    """
    A series. A new one is a subclass with `measure`, in a module that the package imports; the order of
    definition is the order in the document.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # What the numbers count.
    of: ClassVar[str]
    points: ClassVar[Sequence[int]]
    curves: ClassVar[Sequence[Curve]]
    needs: ClassVar[Sequence[Need]] = ()
    tools: ClassVar[Sequence[str]] = ()

    registry: ClassVar[list[type["Series"]]] = []

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            Series.registry.append(cls)

    def __init__(self, store: Store) -> None:
        self.store = store

    def prepare(self) -> None:
        """Make the pristine images, once."""

    def measure(self, trial: Trial, number: int) -> Mapping[str, float]:
        """One run with this number: a value for each curve, less being better."""
        raise NotImplementedError


def measured(kind: type[Series], session: Session, repeats: int) -> dict[str, Any]:
    """Measure a series on both sides in turn; the result as JSON."""
    entry: dict[str, Any] = {
        "title": kind.title,
        "of": kind.of,
        "points": list(kind.points),
        "curves": [dataclasses.asdict(curve) for curve in kind.curves],
        "status": MEASURED,
        "reason": "",
    }
    missing = [tool for tool in kind.tools if shutil.which(tool) is None]
    if missing:
        return {**entry, "status": SKIPPED, "reason": f"needs {', '.join(missing)} on this machine"}
    for side in session.sides:
        lacking = [need.label for need in kind.needs if not need.present(side.schema)]
        if lacking:
            return {**entry, "status": NOT_YET, "reason": f"{side.label} has no {', '.join(lacking)}"}
    series = kind(session.store)
    # A side that does not get through a number in time is not asked for more; the judged one must.
    gave_up: set[str] = set()
    values: dict[str, dict[str, list[float | None]]] = {
        side.position: {curve.name: [] for curve in kind.curves} for side in session.sides
    }
    try:
        series.prepare()
        for number in kind.points:
            runs: dict[str, list[Mapping[str, float]]] = {side.position: [] for side in session.sides}
            done: set[str] = set()
            for _ in range(repeats):
                for side in session.sides:
                    if side.position in gave_up | done:
                        continue
                    started = time.monotonic()
                    try:
                        runs[side.position].append(_run(series, session, side, number))
                    except (DeadlineExceeded, TimeoutError, TimeoutExpired):
                        if side.position == LEFT:
                            raise
                        gave_up.add(side.position)
                    if time.monotonic() - started > LONG_RUN:
                        done.add(side.position)
            for position, samples in runs.items():
                for curve in kind.curves:
                    known = [sample[curve.name] for sample in samples]
                    values[position][curve.name].append(statistics.median(known) if known else None)
    except FAILURES as error:
        return {**entry, "status": FAILED, "reason": f"{type(error).__name__}: {error}"[:1000]}
    entry["values"] = values
    entry["verdicts"] = {
        curve.name: verdict(curve.law, kind.points, [value or 0.0 for value in values[LEFT][curve.name]])
        for curve in kind.curves
    }
    return entry


def _run(series: Series, session: Session, side: Side, number: int) -> Mapping[str, float]:
    trial = Trial(side, session.runs)
    if side.position != LEFT:
        trial.patience = PATIENCE
    try:
        values = series.measure(trial, number)
        trial.finish()
        return values
    finally:
        trial.clean()


def verdict(law: str, points: Sequence[int], values: Sequence[float]) -> str:
    """"met" or "short": whether the costs grow as their law allows, judged at the far end."""
    if law == FLAT:
        return "met" if values[-1] <= FLAT_FACTOR * max(values[:-1]) else "short"
    return "met" if exponent(points, values) <= LINEAR_EXPONENT else "short"


def exponent(points: Sequence[int], values: Sequence[float]) -> float:
    """The power of the number by which the cost grows towards the far end; what is constant in it counts."""
    near = max([index for index, point in enumerate(points) if point * SPAN <= points[-1]], default=0)
    return math.log(values[-1] / values[near]) / math.log(points[-1] / points[near])
