"""
Whether a run's writes were flushed: an untimed run under strace, whose log is read afterwards.

A daemon that skips flushes would win every row, so each row that writes says, for both sides, how many
fdatasync calls came inside the timed window, and whether the last write to each file was covered by one
when the daemon reported success, and when the window ended.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Iterable, Sequence

from .trial import Window

# Calls that change an image, and calls that make changes durable. Both sides write images at offsets only; what
# they write besides goes to sockets and event counters, ten calls for one to an image.
_WRITES = ("pwrite64", "pwritev", "pwritev2", "fallocate", "ftruncate", "copy_file_range")
_FLUSHES = ("fdatasync", "fsync")

_CALL = re.compile(r"^(?P<pid>\d+)\s+(?P<time>\d+\.\d+) (?P<call>\w+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?P<pid>\d+)\s+(?P<time>\d+\.\d+) <\.\.\. (?P<call>\w+) resumed>")
_FILE = re.compile(r"(\d+)<(/[^>]*)>")


@dataclasses.dataclass
class FileLog:
    """
    What was done to one file, in seconds of the wall clock: when writes began and ended, and flushes.
    The end of a call is not logged; the beginning of the thread's next call stands for it, unless the
    call was interrupted by another thread's and its end was logged.
    """

    writes: list[float] = dataclasses.field(default_factory=list)
    flushes: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Audit:
    """The verdict on one run. None where it cannot be said."""

    flushes_in_window: int
    writes_in_window: int
    flushed_at_success: bool | None
    flushed_at_end: bool


def unavailable() -> str:
    """Why flushes cannot be counted on this machine; empty if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"strace does not work here: {probe.stderr.strip()[-200:]}"


def wrapper(log: Path) -> list[str]:
    """The program that executes a daemon and writes down what it does to files."""
    calls = ",".join((*_WRITES, *_FLUSHES))
    # Without the filter every call of the daemon stops, which makes a thousand of them take seconds.
    return ["strace", "-f", "--seccomp-bpf", "-ttt", "-y", "-s", "0", "-o", str(log), "-e", f"trace={calls}", "-e", "signal=none"]


def audit(log: Path, window: Window, folders: Sequence[Path]) -> Audit:
    """Judge a run by the tracer's log; files outside of the folders do not count."""
    with open(log, errors="replace") as lines:
        files = read_log(lines, [str(folder) for folder in folders])
    return judge(files.values(), window)


def judge(files: Iterable[FileLog], window: Window) -> Audit:
    """See `audit`."""
    files = list(files)

    def inside(times: Iterable[float]) -> int:
        return sum(window.started_at <= time <= window.ended_at for time in times)

    return Audit(
        flushes_in_window=sum(inside(file.flushes) for file in files),
        writes_in_window=sum(inside(file.writes) for file in files),
        flushed_at_success=all(_covered(file, window, window.success_at) for file in files)
        if window.success_at
        else None,
        flushed_at_end=all(_covered(file, window, window.ended_at) for file in files),
    )


def read_log(lines: Iterable[str], folders: Sequence[str]) -> dict[str, FileLog]:
    """Sort a log's calls by file."""
    files: dict[str, FileLog] = {}
    open_calls: dict[str, tuple[str, str]] = {}
    for line in lines:
        resumed = _RESUMED.match(line)
        if resumed:
            call, path = open_calls.pop(resumed["pid"], ("", ""))
            # A write counts from its end, a flush from its beginning: only what had landed is covered.
            if call in _WRITES:
                files.setdefault(path, FileLog()).writes.append(float(resumed["time"]))
            continue
        found = _CALL.match(line)
        if not found:
            continue
        call, rest = found["call"], found["rest"]
        # copy_file_range names the written file second.
        names = _FILE.findall(rest)
        if not names:
            continue
        path = names[1 if call == "copy_file_range" and len(names) > 1 else 0][1]
        if not any(path.startswith(folder + "/") for folder in folders):
            continue
        log = files.setdefault(path, FileLog())
        if call in _FLUSHES:
            log.flushes.append(float(found["time"]))
        elif "<unfinished" in rest:
            open_calls[found["pid"]] = (call, path)
        else:
            log.writes.append(float(found["time"]))
    return files


def _covered(file: FileLog, window: Window, until: float) -> bool:
    writes = [time for time in file.writes if window.started_at <= time <= until]
    flushes = [time for time in file.flushes if time <= until]
    return not writes or (bool(flushes) and max(flushes) >= max(writes))
