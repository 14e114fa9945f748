"""What the kernel says about a running daemon: processor time and resident memory."""

from __future__ import annotations

import dataclasses
import os
import resource
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Processor seconds so far, and resident memory in bytes: now, and at its highest."""

    cpu_seconds: float
    resident: int
    peak_resident: int


def usage(pid: int) -> Usage:
    """Read the usage of a process, all its threads included."""
    # The name in parentheses may hold spaces; the fields are counted from behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return Usage(
        cpu_seconds=(int(fields[11]) + int(fields[12])) * _TICK,
        resident=_kilobytes(status["VmRSS"]),
        peak_resident=_kilobytes(status["VmHWM"]),
    )


def allow_files(number: int) -> None:
    """Raise the limit of this process, which the daemons that it starts inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        if hard != resource.RLIM_INFINITY and hard < number:
            raise OSError(f"this machine allows {hard} open files, {number} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def opened_direct(pid: int, path: str) -> bool:
    """Whether a process has a file open with O_DIRECT."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(descriptor) != path:
                continue
            lines = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().splitlines()
        except FileNotFoundError:
            continue  # closed meanwhile
        flags = next(line for line in lines if line.startswith("flags:")).split()[1]
        if int(flags, 8) & os.O_DIRECT:
            return True
    return False


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024
