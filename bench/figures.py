"""From runs to figures: medians, per-round ratios, and the verdict by a row's goal."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, Sequence

from .flushes import Audit
from .row import Row
from .trial import Sample

# What a goal of 1.0 means: as good as, within what a median can tell.
EVEN = 0.97

MEASURED = "measured"
NOT_YET = "not yet"
SKIPPED = "skipped"
FAILED = "failed"


@dataclasses.dataclass
class Outcome:
    """
    What came out of one row. `rounds` are pairs of samples, left and right; `reason` says why there are
    none. `audits` are the two sides' flushes, where the row writes.
    """

    row: type[Row]
    status: str
    reason: str = ""
    rounds: list[tuple[Sample, Sample]] = dataclasses.field(default_factory=list)
    audits: tuple[Audit, Audit] | None = None
    audit_reason: str = ""
    size: int = 0
    # Seconds that it took to measure the row, with all that is not timed.
    took: float = 0.0

    def figures(self) -> dict[str, Any]:
        """The row as JSON: raw values, and what is computed from them."""
        row = self.row
        entry: dict[str, Any] = {
            "title": row.title,
            "unit": row.unit,
            "goal": row.goal,
            "limit": row.limit,
            "status": self.status,
            "reason": self.reason,
        }
        if self.status != MEASURED:
            return entry
        left, right = [list(side) for side in zip(*self.rounds)]
        ratios = [theirs.value / ours.value for ours, theirs in self.rounds]
        entry.update(
            took=round(self.took, 1),
            left=self._side(left),
            right=self._side(right),
            ratios=ratios,
            ratio=statistics.median(ratios),
            ratio_low=quantile(ratios, 0.25),
            ratio_high=quantile(ratios, 0.75),
        )
        entry["verdict"] = verdict(row, entry["ratio"], entry["left"]["median"])
        if row.writes:
            entry["flushes"] = self._flushes()
        return entry

    def _side(self, samples: Sequence[Sample]) -> dict[str, Any]:
        side: dict[str, Any] = {
            "median": statistics.median(sample.value for sample in samples),
            "values": [sample.value for sample in samples],
            "cpu_seconds": statistics.median(sample.cpu_seconds for sample in samples),
            "peak_resident": max(sample.peak_resident for sample in samples),
            "more": {
                name: statistics.median(sample.more[name] for sample in samples) for name in sorted(samples[0].more)
            },
        }
        handled = self.row.handled(self.size)
        if handled:
            side["cpu_seconds_per_gib"] = side["cpu_seconds"] / (handled / (1 << 30))
        return side

    def _flushes(self) -> dict[str, Any]:
        if self.audits is None:
            return {"unavailable": self.audit_reason}
        left, right = self.audits
        return {"left": dataclasses.asdict(left), "right": dataclasses.asdict(right)}


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie, by linear interpolation."""
    ordered = sorted(values)
    position = part * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def verdict(row: type[Row], ratio: float, left: float) -> str:
    """"met" or "short" by the row's goal and limit; empty where it has neither."""
    wanted = []
    if row.goal:
        wanted.append(ratio >= (EVEN if row.goal == 1.0 else row.goal))
    if row.limit:
        wanted.append(left <= row.limit)
    if not wanted:
        return ""
    return "met" if all(wanted) else "short"
