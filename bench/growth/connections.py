"""Clients of one export: idle ones, and ones that read at once."""

from __future__ import annotations

import time
from typing import Mapping

from iotests.harness import images as tools

from ..proc import allow_files
from ..row import MEBIBYTES, MICROSECONDS, SECONDS
from ..schema import command
from ..trial import Trial
from .graph import resident, round_trip
from .series import FLAT, LINEAR, Curve, Series

# Descriptors that a process needs besides its connections.
_OTHER_FILES = 200


class Connections(Series):
    """nbdcopy to nowhere over so many connections: the same bytes each time."""

    name = "growth-connections"
    title = "connections of one NBD client that reads"
    of = "connections"
    points = (1, 4, 16, 64, 256)
    curves = (
        Curve("read", "sequential read of the disk", SECONDS, FLAT),
        Curve("resident", "resident memory", MEBIBYTES, LINEAR),
    )
    needs = (command("nbd-server-start"), command("block-export-add"))
    tools = ("nbdcopy",)

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial, number: int) -> Mapping[str, float]:
        trial.node("disk", self.store.half_qcow2())
        uri = trial.export("disk")
        started = time.monotonic()
        tools.run_tool("nbdcopy", f"--connections={number}", f"--threads={min(number, 4)}", uri, "null:")
        return {"read": time.monotonic() - started, "resident": resident(trial)}


class Idle(Series):
    """Connections that have negotiated, and ask for nothing."""

    name = "growth-idle"
    title = "idle NBD connections"
    of = "connections"
    points = (1, 10, 100, 1000)
    curves = (
        Curve("connect", "one more connection", MICROSECONDS, FLAT),
        Curve("version", "query-version", MICROSECONDS, FLAT),
        Curve("resident", "resident memory", MEBIBYTES, LINEAR),
    )
    needs = (command("nbd-server-start"), command("block-export-add"))

    def prepare(self) -> None:
        self.store.half_qcow2()

    def measure(self, trial: Trial, number: int) -> Mapping[str, float]:
        import nbd  # not on every machine, and needed by this series alone

        allow_files(2 * number + _OTHER_FILES)
        trial.node("disk", self.store.half_qcow2())
        uri = trial.export("disk")
        clients = []
        started = time.monotonic()
        for _ in range(number):
            client = nbd.NBD()
            client.connect_uri(uri)
            clients.append(client)
        each = (time.monotonic() - started) / number
        values = {"connect": each * 1e6, "version": round_trip(trial), "resident": resident(trial)}
        for client in clients:
            client.shutdown()
        return values
