"""Results as text for a terminal, as JSON, and as the generated part of docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

from .figures import FAILED, MEASURED, NOT_YET, SKIPPED
from .row import MEBIBYTES, MICROSECONDS, SECONDS, TIMES

BEGIN = "<!-- bench: generated from here; notes belong outside of these marks -->"
END = "<!-- bench: generated up to here -->"

_FRESH = f"""# How fast blockd is

{BEGIN}
{END}

## Notes
"""

Entry = Mapping[str, Any]


def value(number: float, unit: str) -> str:
    """A figure with its unit, three digits that matter."""
    if unit == SECONDS:
        return f"{number * 1000:.3g} ms" if number < 1 else f"{number:.3g} s"
    if unit == MICROSECONDS:
        return f"{number:.3g} us" if number < 1000 else value(number / 1e6, SECONDS)
    if unit == MEBIBYTES:
        return f"{number:.1f} MiB"
    if unit == TIMES:
        return f"{number:.2f}"
    raise ValueError(f"unknown unit {unit}")


def goal(entry: Entry) -> str:
    """What a row is measured by."""
    wanted = []
    if entry["goal"]:
        wanted.append(f"{entry['goal']:g}")
    if entry["limit"]:
        wanted.append(f"under {value(entry['limit'], entry['unit'])}")
    return ", ".join(wanted)


def line(name: str, entry: Entry) -> str:
    """One row for a terminal."""
    if entry["status"] != MEASURED:
        return f"{name:<20} {entry['status']}: {entry['reason']}"
    unit = entry["unit"]
    text = (
        f"{name:<20} {value(entry['left']['median'], unit):>9} {value(entry['right']['median'], unit):>9}"
        f"   ratio {entry['ratio']:5.2f} ({entry['ratio_low']:.2f} to {entry['ratio_high']:.2f})"
    )
    wanted = goal(entry)
    text += f"   goal {wanted}: {entry['verdict']}" if wanted else ""
    text += f"   [{entry['took']:.0f} s]"
    unflushed = _unflushed(entry)
    return text + (f"   NOT FLUSHED: {unflushed}" if unflushed else "")


def _unflushed(entry: Entry) -> str:
    flushes = entry.get("flushes", {})
    return ", ".join(
        side for side in ("left", "right") if side in flushes and not flushes[side]["flushed_at_end"]
    )


def merge(
    old: Mapping[str, Any], rows: Mapping[str, Entry], growth: Mapping[str, Entry], environment: Entry
) -> dict[str, Any]:
    """
    New rows over those of an earlier recording; every row keeps the environment of its own run. A row that
    came to no figure now keeps those that it has, and what became of it since is noted beside them.
    """

    def over(kept: Mapping[str, Entry], new: Mapping[str, Entry]) -> dict[str, Any]:
        merged = dict(kept)
        for name, entry in new.items():
            older = kept.get(name, {})
            if entry["status"] != MEASURED and older.get("status") == MEASURED:
                since = {"status": entry["status"], "reason": entry["reason"], "date": environment["date"]}
                merged[name] = {**older, "since": since}
            else:
                merged[name] = {**entry, "environment": environment}
        return merged

    return {
        "environment": environment,
        "rows": over(old.get("rows", {}), rows),
        "growth": over(old.get("growth", {}), growth),
    }


def load(path: Path) -> dict[str, Any]:
    """An earlier recording; empty when there is none."""
    if not path.exists():
        return {}
    recorded: dict[str, Any] = json.loads(path.read_text())
    return recorded


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Write results, one member a line so that changes show in a diff."""
    path.write_text(json.dumps(results, indent=1, sort_keys=False) + "\n")


def into_document(path: Path, generated: str) -> None:
    """Put the generated part between the marks; everything else in the document stays as it is."""
    text = path.read_text() if path.exists() else _FRESH
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has lost its marks:\n{BEGIN}\n{END}")
    path.write_text(f"{before}{BEGIN}\n{generated.rstrip()}\n{END}{after}")


def markdown(results: Mapping[str, Any], order: Sequence[str], plot: str) -> str:
    """The tables, rows in the given order."""
    rows = {name: results["rows"][name] for name in order if name in results["rows"]}
    environment = results["environment"]
    measured = {name: entry for name, entry in rows.items() if entry["status"] == MEASURED}
    parts = [_environment(environment), ""]
    if plot:
        parts += [f"![ratios of the rows]({plot})", ""]
    parts += _ratios(rows, environment)
    parts += ["", "### What it cost", ""] + _costs(measured)
    audited = {name: entry for name, entry in measured.items() if "flushes" in entry}
    if audited:
        parts += ["", "### Flushes", ""] + _flush_table(audited)
    return "\n".join(parts)


def _environment(environment: Entry) -> str:
    return (
        f"{environment['date']}: {environment['left']} (commit {environment['commit']}) beside "
        f"{environment['right']}, on {environment['cpus']} CPUs ({environment['cpu']}), "
        f"{environment['memory_gib']} GiB, Linux {environment['kernel']}; images on {environment['scratch']}, "
        f"the real disk is {environment['disk']}; {environment['go']}, {environment['nbdcopy']}, "
        f"{environment['fio']}; images of {environment['image_mib']} MiB, {environment['rounds']} rounds, "
        f"load {environment['load']:.1f} at the start. Made by `{environment['made_by']}`."
    )


def aside(entry: Entry, environment: Entry) -> str:
    """What must be known of figures that are not of the latest run: when they were taken, and why not since."""
    own = entry["environment"]
    rounds = len(entry.get("ratios", ())) or own["rounds"]
    notes = []
    if own["date"] != environment["date"]:
        notes.append(f"of {own['date']}, {rounds} rounds")
    elif rounds < own["rounds"]:
        notes.append(f"{rounds} rounds")
    if "since" in entry:
        since = entry["since"]
        notes.append(f"{since['status']} on {since['date']}: {_cell(since['reason'])}")
    return "; ".join(notes)


def _ratios(rows: Mapping[str, Entry], environment: Entry) -> list[str]:
    lines = [
        "The ratio is the rival's figure over ours, the median over the rounds (middle half of the rounds "
        "in parentheses); above 1, blockd is ahead. A row says when it was measured if that was not in the run "
        "named above.",
        "",
        "| row | work | blockd | rival | ratio | goal | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in rows.items():
        if entry["status"] == MEASURED:
            unit = entry["unit"]
            cells = [
                value(entry["left"]["median"], unit),
                value(entry["right"]["median"], unit),
                f"**{entry['ratio']:.2f}** ({entry['ratio_low']:.2f} to {entry['ratio_high']:.2f})",
                goal(entry),
                "; ".join(filter(None, (entry["verdict"], aside(entry, environment)))),
            ]
        else:
            cells = ["", "", entry["status"], goal(entry), _cell(entry["reason"])]
        lines.append(f"| `{name}` | {entry['title']} | {' | '.join(cells)} |")
    return lines


def _costs(rows: Mapping[str, Entry]) -> list[str]:
    lines = [
        "Processor seconds and the highest resident memory of the whole run, blockd / rival; percentiles are of "
        "single requests.",
        "",
        "| row | CPU s | CPU s per GiB | peak MiB | more |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in rows.items():
        left, right = entry["left"], entry["right"]
        per_gib = (
            f"{left['cpu_seconds_per_gib']:.2f} / {right['cpu_seconds_per_gib']:.2f}"
            if "cpu_seconds_per_gib" in left
            else ""
        )
        more = "; ".join(
            f"{key} {left['more'][key]:.3g} / {right['more'].get(key, float('nan')):.3g}" for key in left["more"]
        )
        lines.append(
            f"| `{name}` | {left['cpu_seconds']:.2f} / {right['cpu_seconds']:.2f} | {per_gib} "
            f"| {left['peak_resident'] / (1 << 20):.0f} / {right['peak_resident'] / (1 << 20):.0f} | {more} |"
        )
    return lines


def _flush_table(rows: Mapping[str, Entry]) -> list[str]:
    lines = [
        "From one untimed run under strace, blockd / rival: `fdatasync` calls inside the timed window, and whether "
        "the last write to every image was covered by one when the job reported success, and when the window ended.",
        "",
        "| row | fdatasync | covered at success | covered at the end |",
        "| --- | --- | --- | --- |",
    ]
    for name, entry in rows.items():
        flushes = entry["flushes"]
        if "unavailable" in flushes:
            lines.append(f"| `{name}` | not counted: {_cell(flushes['unavailable'])} | | |")
            continue
        left, right = flushes["left"], flushes["right"]
        lines.append(
            f"| `{name}` | {left['flushes_in_window']} / {right['flushes_in_window']} "
            f"| {_yes(left['flushed_at_success'])} / {_yes(right['flushed_at_success'])} "
            f"| {_yes(left['flushed_at_end'])} / {_yes(right['flushed_at_end'])} |"
        )
    return lines


def _yes(answer: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[answer]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def summary(rows: Mapping[str, Entry]) -> str:
    """The last line: how many rows ended how."""
    counts = {status: 0 for status in (MEASURED, NOT_YET, SKIPPED, FAILED)}
    short = 0
    for entry in rows.values():
        counts[entry["status"]] += 1
        short += entry.get("verdict") == "short"
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == MEASURED)
    return f"{text}; {short} short of their goal"
