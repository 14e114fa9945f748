"""The command line, and where scratch files go."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator, Sequence

from iotests.harness.images import GiB, MiB

from . import environment, plot, profile, report, rows as _rows  # noqa: F401  (rows register themselves)
from .figures import FAILED, MEASURED, Outcome
from .growth import plot as growth_plot, report as growth_report
from .growth.series import REPEATS, Series, measured
from .row import Row
from .session import Session, measure
from .side import LEFT, RIGHT, Side
from .store import ROOM_PER_BYTE, Store

ROOT = environment.ROOT
OUT = ROOT / "bench/out"
DOCUMENT = ROOT / "docs/performance.md"
RECORDING = ROOT / "docs/performance.json"
PLOT = ROOT / "docs/performance.svg"
GROWTH_PLOT = ROOT / "docs/performance-growth.svg"
QUICK_ROUNDS = 5
RECORD_ROUNDS = 15
# Minutes that a recording may take, and how many of them a series needs.
RECORD_MINUTES = 30.0
SERIES_MINUTES = 1.0

_DESCRIPTION = """
Runs the same work through two daemons in turn, on the same images with the same options, and prints the
medians and the median of the per-round ratios (the right side's figure over the left's: above 1, the left
is faster). Every produced image is judged by qemu-img; rows that write are run once more, untimed, under
strace to see whether their writes were flushed. What a side lacks, by query-commands and query-qmp-schema,
makes a row "not yet". Rows called growth-... measure one cost at growing numbers, and how it grows.
"""

_EPILOG = """
examples:
  bench/run                                 every row, five rounds; results in bench/out/
  bench/run backup stream --rounds 9        rows whose names contain these words
  bench/run --record                        fifteen rounds, into docs/performance*
  bench/run growth --record                 only how cost grows
  bench/run --left old/blockd --right bin/blockd nbd      two builds of blockd
  bench/run --size 64 --rounds 1            a smoke test; the figures mean little
  bench/run nbd-randwrite-1 --perf          and where the time goes, on both sides
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        "bench/run", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("rows", nargs="*", metavar="NAME", help="only rows whose names contain NAME")
    flags.add_argument("-l", "--list", action="store_true", help="list the rows and their goals")
    flags.add_argument("--rounds", type=_positive, help=f"rounds per row ({QUICK_ROUNDS}; {RECORD_ROUNDS} with --record)")
    flags.add_argument(
        "--minutes",
        type=_positive,
        help=f"rows end with fewer rounds when they would take longer ({RECORD_MINUTES:g} with --record; else no end)",
    )
    flags.add_argument("--left", default=str(ROOT / "bin/blockd"), help="the program to judge (bin/blockd)")
    flags.add_argument("--right", default="qemu-storage-daemon", help="the program beside it (qemu-storage-daemon)")
    flags.add_argument("--size", type=_positive, default=1024, metavar="MIB", help="size of the images (1024)")
    flags.add_argument("--scratch", default="/dev/shm", help="where images are, in memory (/dev/shm)")
    flags.add_argument("--disk", default="/var/tmp", help="a folder on a real disk (/var/tmp)")
    flags.add_argument(
        "--record",
        action="store_true",
        help="write docs/performance*; rows that did not run keep their earlier figures",
    )
    flags.add_argument("--perf", action="store_true", help="also profile each row on both sides with perf (needs root)")
    return flags


def select(patterns: Sequence[str]) -> tuple[list[type[Row]], list[type[Series]]]:
    """The rows and series whose names contain one of the patterns; all without one. An unused pattern is an error."""
    names = [kind.name for kind in Row.registry] + [kind.name for kind in Series.registry]
    unused = [pattern for pattern in patterns if not any(pattern in name for name in names)]
    if unused:
        raise ValueError(f"no row is called {', '.join(unused)} (see --list)")

    def wanted(kind: type[Row] | type[Series]) -> bool:
        return not patterns or any(pattern in kind.name for pattern in patterns)

    return list(filter(wanted, Row.registry)), list(filter(wanted, Series.registry))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be positive")
    return number


@contextlib.contextmanager
def scratch(parent: str, needed: int, what: str) -> Iterator[Path]:
    """A folder that is gone afterwards; a file system without room for what is needed (bytes) is an error."""
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise RuntimeError(f"{what} {parent} has {free >> 20} MiB free, {needed >> 20} MiB are needed (see --size)")
    with tempfile.TemporaryDirectory(prefix="blockd-bench-", dir=parent) as folder:
        yield Path(folder)


def memory_for(needed: int) -> None:
    """Refuse to fill more memory than is there: the daemons need some, too."""
    for text in Path("/proc/meminfo").read_text().splitlines():
        if text.startswith("MemAvailable:"):
            available = int(text.split()[1]) * 1024
            if available < needed + GiB // 2:
                raise RuntimeError(f"{available >> 20} MiB of memory free, {needed >> 20} MiB are needed (see --size)")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 when every row that could run did, 1 when one failed, 2 for a mistake."""
    flags = parser().parse_args(arguments)
    # As at an interrupt: daemons end, and gigabytes of images go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        chosen, series = select(flags.rows)
        if flags.list:
            for row in chosen:
                print(f"{row.name:<20} {row.title}" + (f"; goal {row.goal:g}" if row.goal else ""))
            for kind in series:
                print(f"{kind.name:<20} {kind.title}, {kind.points[0]} to {kind.points[-1]}")
            return 0
        unable = profile.unavailable() if flags.perf else ""
        if unable:
            raise RuntimeError(unable)
        return run(flags, chosen, series, f"bench/run {shlex.join(arguments)}".strip())
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def run(
    flags: argparse.Namespace, chosen: Sequence[type[Row]], series: Sequence[type[Series]], made_by: str
) -> int:
    """See main."""
    # Half of the image is data, which the store holds in a few forms and a run copies.
    size = flags.size * MiB
    needed = ROOM_PER_BYTE * size
    left, right = Side(LEFT, flags.left, OUT / "programs"), Side(RIGHT, flags.right, OUT / "programs")
    rounds = flags.rounds or (RECORD_ROUNDS if flags.record else QUICK_ROUNDS)
    memory_for(needed)
    with (
        scratch(flags.scratch, needed, "the scratch file system") as folder,
        scratch(flags.disk, 2 * size, "the disk") as disk,
    ):
        where = environment.describe(left, right, folder, disk)
        where.update(rounds=rounds, image_mib=flags.size, made_by=made_by)
        print(f"left:  {left.version} ({flags.left})\nright: {right.version} ({flags.right})")
        print(", ".join(f"{key} {where[key]}" for key in ("commit", "cpus", "cpu", "kernel", "scratch", "load", "rounds")))
        (folder / "store").mkdir()
        (folder / "runs").mkdir()
        store = Store(folder / "store", size, disk)
        session = Session(
            left, right, store, folder / "runs", rounds=rounds, exact=bool(flags.rounds), say=print
        )
        entries: dict[str, Any] = {}
        growth: dict[str, Any] = {}

        def shown(outcome: Outcome) -> None:
            entry = outcome.figures()
            entries[outcome.row.name] = entry
            print(report.line(outcome.row.name, entry), flush=True)
            if flags.perf and entry["status"] == MEASURED:
                session.profiles(outcome.row, OUT)
            # At once, so that a run that is broken off has not been for nothing.
            save(flags.record, entries, growth, where)

        minutes = flags.minutes or (RECORD_MINUTES if flags.record else 0)
        measure(session, chosen, shown, max(1.0, minutes - SERIES_MINUTES * len(series)) * 60 if minutes else 0)
        for kind in series:
            growth[kind.name] = entry = measured(kind, session, min(REPEATS, rounds))
            print("\n".join(growth_report.lines(kind.name, entry)), flush=True)
            save(flags.record, entries, growth, where)
    print(report.summary(entries))
    print(f"results: {os.path.relpath(DOCUMENT if flags.record else OUT / 'results.md')}")
    return 1 if any(entry["status"] == FAILED for entry in (*entries.values(), *growth.values())) else 0


def save(record: bool, entries: dict[str, Any], growth: dict[str, Any], where: dict[str, Any]) -> None:
    """Write the results: into docs when they are for the record, else beside the benchmark."""
    order = [row.name for row in Row.registry]
    document, recording, picture, growing = (
        (DOCUMENT, RECORDING, PLOT, GROWTH_PLOT)
        if record
        else (OUT / "results.md", OUT / "results.json", OUT / "results.svg", OUT / "growth.svg")
    )
    results = report.merge(report.load(recording) if record else {}, entries, growth, where)
    measured = {
        name: results["rows"][name]
        for name in order
        if results["rows"].get(name, {}).get("status") == MEASURED
    }
    picture.write_text(plot.ratios(measured))
    report.write_json(recording, results)
    text = report.markdown(results, order, picture.name)
    if results["growth"]:
        growing.write_text(growth_plot.curves(results["growth"]))
        text += "\n\n" + growth_report.markdown(
            results["growth"], [kind.name for kind in Series.registry], growing.name, results["environment"]
        )
    report.into_document(document, text)
