"""What a measurement ran on, as far as it bears on the numbers."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from .side import Side

ROOT = Path(__file__).resolve().parents[1]


def describe(left: Side, right: Side, scratch: Path, disk: Path) -> dict[str, Any]:
    """The environment as JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "left": left.version,
        "right": right.version,
        "commit": first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": platform.release(),
        "scratch": first_line("stat", "-f", "-c", "%T", str(scratch)),
        "disk": first_line("stat", "-f", "-c", "%T", str(disk)),
        "go": first_line("go", "version"),
        "nbdcopy": first_line("nbdcopy", "--version"),
        "fio": first_line("fio", "--version"),
        "load": os.getloadavg()[0],
    }


def first_line(*command: str) -> str:
    """The first line that a program prints; "none" when there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "none"
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


def cpu_model() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
