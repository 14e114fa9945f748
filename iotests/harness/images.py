"""Image files made and judged by the distribution's own tools, never by the daemon under test."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from typing import Any, Sequence

from .deadline import SCALE

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

# Exit statuses of `qemu-img check`.
CHECK_CLEAN = 0
CHECK_LEAKS = 3


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """One kind of image: a format and how it is created. `label` names it in test names."""

    label: str
    driver: str
    create: tuple[str, ...] = ()
    cluster_size: int = 64 * KiB

    @property
    def has_backing(self) -> bool:
        """Whether images of this kind can have a backing file."""
        return self.driver == "qcow2"


def _qcow2(label: str, cluster_size: int, *extra: str) -> ImageOptions:
    return ImageOptions(label, "qcow2", (f"cluster_size={cluster_size}", *extra), cluster_size)


RAW = ImageOptions("raw", "raw")
QCOW2 = _qcow2("qcow2", 64 * KiB)
QCOW2_512 = _qcow2("qcow2_512", 512)
QCOW2_4K = _qcow2("qcow2_4k", 4 * KiB)
QCOW2_2M = _qcow2("qcow2_2m", 2 * MiB)
QCOW2_V2 = _qcow2("qcow2_v2", 64 * KiB, "compat=0.10")
QCOW2_V2_512 = _qcow2("qcow2_v2_512", 512, "compat=0.10")
QCOW2_EXTENDED = _qcow2("qcow2_extended", 16 * KiB, "extended_l2=on")

ALL_QCOW2 = (QCOW2_512, QCOW2_4K, QCOW2, QCOW2_2M, QCOW2_V2, QCOW2_V2_512, QCOW2_EXTENDED)
ALL_IMAGES = (RAW, *ALL_QCOW2)


# What a tool says that cannot measure how fast a busy machine is, by which it makes a key. It may have more
# luck the next time.
BUSY = "Unable to get accurate CPU usage"
TRIES = 5


class ToolFailed(AssertionError):
    """A tool said no; its output is the message."""


def run_tool(*command: str, statuses: Sequence[int] = (0,), seconds: float = 60) -> str:
    """Run a tool, demand one of the exit statuses, and give back stdout and stderr together."""
    for _ in range(TRIES):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds * SCALE,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if BUSY not in done.stdout:
            break
    if done.returncode not in statuses:
        raise ToolFailed(f"{' '.join(command)}: exit status {done.returncode}:\n{done.stdout}")
    return done.stdout


def create(path: str, size: int, options: ImageOptions, backing: str = "", backing_format: str = "qcow2") -> str:
    """Create an image of `size` bytes with qemu-img; its path is given back."""
    command = ["qemu-img", "create", "-q", "-f", options.driver]
    if options.create:
        command += ["-o", ",".join(options.create)]
    if backing:
        command += ["-b", backing, "-F", backing_format]
    run_tool(*command, path, str(size))
    return path


def qemu_io(target: str, *commands: str, driver: str = "", options: str = "", extra: Sequence[str] = ()) -> str:
    """Run qemu-io commands on an image or export; pattern mismatches and failed requests raise."""
    command = ["qemu-io", *extra]
    for one in commands:
        command += ["-c", one]
    if options:
        command += ["--image-opts", options]
    else:
        command += ["-f", driver, target] if driver else [target]
    output = run_tool(*command)
    for sign in ("verification failed", "Pattern verification", "failed:", "error"):
        if sign in output:
            raise ToolFailed(f"{' '.join(command)}:\n{output}")
    return output


def supports_direct(path: str) -> bool:
    """Whether the file can be opened with O_DIRECT."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def check(path: str, driver: str = "qcow2", *, allow_leaks: bool = False) -> None:
    """`qemu-img check` finds no corruption, and no leaks unless they are allowed (after a crash)."""
    if driver != "qcow2":
        return
    allowed = (CHECK_CLEAN, CHECK_LEAKS) if allow_leaks else (CHECK_CLEAN,)
    run_tool("qemu-img", "check", "-f", driver, path, statuses=allowed)


def compare(left: str, right: str, left_format: str, right_format: str) -> None:
    """`qemu-img compare` finds the same guest contents and the same size (strict about size only)."""
    run_tool("qemu-img", "compare", "-f", left_format, "-F", right_format, left, right)


def info(path: str, *, chain: bool = False) -> Any:
    """`qemu-img info` as decoded JSON."""
    extra = ["--backing-chain"] if chain else []
    return json.loads(run_tool("qemu-img", "info", "--output=json", *extra, path))


def info_shared(path: str) -> Any:
    """`info` of an image that another program has open for writing."""
    return json.loads(run_tool("qemu-img", "info", "-U", "--output=json", path))


def allocation(path: str, driver: str) -> list[dict[str, Any]]:
    """`qemu-img map` as decoded JSON: what is allocated where, and how deep in the chain."""
    extents: list[dict[str, Any]] = json.loads(run_tool("qemu-img", "map", "--output=json", "-f", driver, path))
    return extents
