"""Series as text for a terminal, and as their part of docs/performance.md."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ..figures import MEASURED
from ..report import aside, value
from .series import FLAT, FLAT_FACTOR, LINEAR_EXPONENT, exponent

Entry = Mapping[str, Any]


def lines(name: str, entry: Entry) -> list[str]:
    """One series for a terminal: a line a curve."""
    if entry["status"] != MEASURED:
        return [f"{name:<20} {entry['status']}: {entry['reason']}"]
    return [
        f"{name:<20} {curve['name']:<9} {' '.join(_cells(entry, curve))}   {_growth(entry, curve)}"
        for curve in entry["curves"]
    ]


def markdown(series: Mapping[str, Entry], order: Sequence[str], plot: str, environment: Entry) -> str:
    """A table a series, blockd / rival."""
    parts = [
        "### How it grows",
        "",
        f"Medians, blockd / rival. What is linear by nature may grow by a power of {LINEAR_EXPONENT:g} at the far "
        f"end, what is not may reach {FLAT_FACTOR:g} times what smaller numbers cost.",
        "",
        f"![costs over growing numbers]({plot})",
    ]
    for name in order:
        if name not in series:
            continue
        entry = series[name]
        note = aside(entry, environment)
        parts += ["", f"**`{name}`: {entry['title']}**" + (f" ({note})" if note else ""), ""]
        if entry["status"] != MEASURED:
            parts.append(f"{entry['status']}: {' '.join(entry['reason'].split())}")
            continue
        parts.append(f"| {entry['of']} | " + " | ".join(str(point) for point in entry["points"]) + " | |")
        parts.append("| --- |" + " --- |" * (len(entry["points"]) + 1))
        for curve in entry["curves"]:
            parts.append(f"| {curve['title']} | {' | '.join(_cells(entry, curve))} | {_growth(entry, curve)} |")
    return "\n".join(parts)


def _cells(entry: Entry, curve: Entry) -> list[str]:
    ours, theirs = (entry["values"][side][curve["name"]] for side in ("left", "right"))
    return [
        f"{value(left, curve['unit'])} / {value(right, curve['unit']) if right else 'gave up'}"
        for left, right in zip(ours, theirs)
    ]


def _growth(entry: Entry, curve: Entry) -> str:
    ours = entry["values"]["left"][curve["name"]]
    if curve["law"] == FLAT:
        found = f"{ours[-1] / max(ours[:-1]):.2f} times"
    else:
        found = f"power {exponent(entry['points'], ours):.2f}"
    return f"{curve['law']}: {found}, {entry['verdicts'][curve['name']]}"
