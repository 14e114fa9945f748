"""Where a daemon's processor time goes: an untimed run under perf, and the top of its report."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

FREQUENCY = 1999


def unavailable() -> str:
    """Why there can be no profile on this machine; empty if there can."""
    if shutil.which("perf") is None:
        return "perf is not installed"
    probe = subprocess.run(
        ["perf", "record", "-q", "-o", "/dev/null", "--", "true"], capture_output=True, text=True, check=False
    )
    return "" if probe.returncode == 0 else f"perf does not work here: {probe.stderr.strip()[-200:]}"


def wrapper(data: Path) -> list[str]:
    """The program that executes a daemon and samples it, call chains included (by frame pointers)."""
    return ["perf", "record", "-q", "-g", "-F", str(FREQUENCY), "-o", str(data), "--"]


def top(data: Path, count: int = 25) -> list[str]:
    """The functions with the most samples of their own, as "percent module function"."""
    report = subprocess.run(
        ["perf", "report", "-i", str(data), "--stdio", "--no-children", "-g", "none", "--sort", "dso,symbol"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [" ".join(line.split()).removesuffix(" - -") for line in report.stdout.splitlines()]
    return [line for line in lines if line and not line.startswith("#")][:count]
