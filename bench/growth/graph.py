"""Nodes side by side, and nodes on top of each other."""

from __future__ import annotations

import statistics
import time
from typing import Mapping

from iotests.harness import images as tools
from iotests.harness.images import GiB, MiB, QCOW2

from .. import fio, proc
from ..row import MEBIBYTES, MICROSECONDS, SECONDS
from ..schema import command, driver
from ..trial import Trial
from ..wire import Wire, request
from .series import FLAT, LINEAR, Curve, Series

# Commands over which one command's time is taken.
SAMPLE = 200


def round_trip(trial: Trial) -> float:
    """The median time of query-version, microseconds."""
    with Wire(trial.qmp) as wire:
        return statistics.median(wire.round_trips(request("query-version"), SAMPLE)) * 1e6


def resident(trial: Trial) -> float:
    """Resident memory now, MiB."""
    return proc.usage(trial.daemon.pid).resident / MiB


class Nodes(Series):
    """null-co nodes, added by pipelined commands."""

    name = "growth-nodes"
    title = "nodes in the graph"
    of = "nodes"
    points = (1, 10, 100, 1000, 10000)
    curves = (
        Curve("add", "one more blockdev-add", MICROSECONDS, FLAT),
        Curve("query", "query-named-block-nodes, flat", SECONDS, LINEAR),
        Curve("version", "query-version", MICROSECONDS, FLAT),
        Curve("resident", "resident memory", MEBIBYTES, LINEAR),
    )
    needs = (command("blockdev-add"), command("query-named-block-nodes"), driver("null-co"))

    def measure(self, trial: Trial, number: int) -> Mapping[str, float]:
        with Wire(trial.qmp) as wire:
            wire.pipeline([_null(f"n{index}") for index in range(number)])
            adding, _ = wire.pipeline([_null(f"more{index}") for index in range(SAMPLE)])
            wire.pipeline([request("blockdev-del", {"node-name": f"more{index}"}) for index in range(SAMPLE)])
            querying, answers = wire.pipeline([request("query-named-block-nodes", {"flat": True})])
        if len(answers[0]) != number:
            raise AssertionError(f"{len(answers[0])} nodes instead of {number}")
        return {
            "add": adding / SAMPLE * 1e6,
            "query": querying,
            "version": round_trip(trial),
            "resident": resident(trial),
        }


def _null(name: str) -> bytes:
    return request("blockdev-add", {"driver": "null-co", "node-name": name, "size": GiB})


class Chain(Series):
    """A chain of empty overlays over an image that holds the data; numbers count the overlays."""

    name = "growth-chain"
    title = "overlays between a guest and its data"
    of = "overlays"
    points = (1, 5, 20, 50, 100, 200)
    curves = (
        Curve("open", "blockdev-add of the top", SECONDS, LINEAR),
        Curve("read", "NBD 4 KiB random read, depth 16, per request", MICROSECONDS, LINEAR),
        Curve("resident", "resident memory", MEBIBYTES, LINEAR),
    )
    needs = (command("blockdev-add"), command("block-export-add"))
    tools = ("fio",)

    def prepare(self) -> None:
        below = self.store.half_qcow2()
        for number in range(1, self.points[-1] + 1):
            above = self._link(number)
            tools.create(above, self.store.size, QCOW2, below)
            below = above

    def measure(self, trial: Trial, number: int) -> Mapping[str, float]:
        started = time.monotonic()
        trial.node("disk", self._link(number), read_only=True)
        opened = time.monotonic() - started
        # The first quarter of the disk, which has as many holes as data.
        load = fio.Load("read", connections=1, depth=16, size=self.store.size // 4, amount=32 * MiB)
        answer = fio.over_nbd(trial.export("disk"), load)
        return {"open": opened, "read": answer.per_request, "resident": resident(trial)}

    def _link(self, number: int) -> str:
        return str(self.store.directory / f"link{number}.qcow2")
