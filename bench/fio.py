"""fio over NBD: a fixed amount of random requests, the same ones on every run.

A fixed amount, not a fixed time: on a thin image the first write to a cluster costs more than the next,
so the faster daemon would be given different work.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from iotests.harness import images
from iotests.harness.images import KiB

BLOCK = 4 * KiB


@dataclasses.dataclass(frozen=True)
class Load:
    """
    Random requests of 4 KiB: `amount` bytes in all, shared evenly by the connections' parts of the disk;
    fewer when they take longer than `seconds`, if that is given.
    """

    direction: str
    connections: int
    depth: int
    size: int
    amount: int
    seconds: int = 0
    # Requests may meet a block twice. Else fio keeps a map of the disk, which is slower than the disk when that
    # has terabytes.
    repeats: bool = False

    def arguments(self) -> list[str]:
        """fio's arguments but for where the requests go to."""
        part = self.size // self.connections
        arguments = [
            f"--rw=rand{self.direction}",
            f"--bs={BLOCK}",
            f"--iodepth={self.depth}",
            f"--numjobs={self.connections}",
            "--thread",
            f"--size={part}",
            f"--offset_increment={part}",
            f"--io_size={self.amount // self.connections}",
            "--randrepeat=1",
            "--allrandrepeat=1",
            "--randseed=20260101",
        ]
        if self.direction == "write":
            # Each block holds its own place, so that the result can be compared with a model.
            arguments += ["--verify=pattern", "--verify_pattern=%o", "--do_verify=0", "--end_fsync=1"]
            # Without a file of its state in the folder that the benchmark was called from.
            arguments += ["--verify_state_save=0"]
        if self.repeats:
            arguments.append("--norandommap")
        if self.seconds:
            arguments.append(f"--runtime={self.seconds}")
        return arguments


@dataclasses.dataclass(frozen=True)
class Answer:
    """What fio measured, in microseconds: per request over all connections, and percentiles of one request."""

    per_request: float
    p50: float
    p99: float
    p999: float
    requests: int


def over_nbd(uri: str, load: Load, *, seconds: float = 120) -> Answer:
    """Run the load against an export."""
    return run(["--ioengine=nbd", f"--uri={uri}", *load.arguments()], load.direction, seconds=seconds)


def on_file(path: str, load: Load) -> None:
    """Run the load on a raw file, which becomes the model of what the load must have written."""
    run(["--ioengine=psync", f"--filename={path}", *load.arguments()], load.direction)


def run(arguments: list[str], direction: str, *, seconds: float = 120) -> Answer:
    """Run fio and read its report."""
    output = images.run_tool(
        "fio",
        "--name=load",
        "--output-format=json",
        "--percentile_list=50:99:99.9",
        *arguments,
        seconds=seconds,
    )
    return read_report(output, direction)


def read_report(output: str, direction: str) -> Answer:
    """
    Read fio's JSON, which warnings may precede. The connections run side by side: the time of all requests
    is the slowest one's, and so are the percentiles.
    """
    jobs: list[dict[str, Any]] = json.loads(output[output.index("{") :])["jobs"]
    failed = [job["error"] for job in jobs if job["error"]]
    if failed:
        raise images.ToolFailed(f"fio: errors {failed}")
    sides = [job[direction] for job in jobs]
    requests = sum(side["total_ios"] for side in sides)
    if not requests:
        raise images.ToolFailed("fio made no requests")
    runtime = max(side["runtime"] for side in sides) * 1000

    def percentile(name: str) -> float:
        return max(side["clat_ns"]["percentile"][name] for side in sides) / 1000

    return Answer(runtime / requests, percentile("50.000000"), percentile("99.000000"), percentile("99.900000"), requests)
