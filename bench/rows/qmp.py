"""The control plane: one command after the other, and a thousand at once."""

from __future__ import annotations

import statistics

from ..row import MICROSECONDS, Row
from ..schema import command, driver
from ..trial import Sample, Trial
from ..wire import Wire, request

ROUND_TRIPS = 3000
WARM_UP = 200
NODES = 1000


class RoundTrip(Row):
    """query-version, asked again as soon as it is answered."""

    name = "qmp"
    title = "QMP round trip (query-version)"
    unit = MICROSECONDS
    goal = 1.0
    needs = (command("query-version"),)
    query = "query-version"

    def measure(self, trial: Trial) -> Sample:
        text = request(self.query)
        with Wire(trial.qmp) as wire:
            wire.round_trips(text, WARM_UP)
            with trial.timed():
                times = wire.round_trips(text, ROUND_TRIPS)
        ordered = sorted(times)
        trial.more.update(p50_us=statistics.median(times) * 1e6, p99_us=ordered[len(ordered) * 99 // 100] * 1e6)
        return trial.sample(statistics.fmean(times) * 1e6)


class GraphRoundTrip(RoundTrip):
    """query-jobs, which has to ask the owner of the state."""

    name = "qmp-jobs"
    title = "QMP round trip (query-jobs)"
    needs = (command("query-jobs"),)
    query = "query-jobs"


class ThousandNodes(Row):
    """blockdev-add of 1,000 null-co nodes in one write, then one flat query."""

    name = "nodes"
    title = "1,000 null-co nodes by pipelined blockdev-add, then one flat query"
    goal = 1.5
    needs = (command("blockdev-add"), command("query-named-block-nodes"), driver("null-co"))

    def measure(self, trial: Trial) -> Sample:
        adds = [
            request("blockdev-add", {"driver": "null-co", "node-name": f"n{number}", "size": 1 << 30})
            for number in range(NODES)
        ]
        query = request("query-named-block-nodes", {"flat": True})
        with Wire(trial.qmp) as wire, trial.timed():
            adding, _ = wire.pipeline(adds)
            querying, answers = wire.pipeline([query])
        found = {node["node-name"] for node in answers[0]}
        if found != {f"n{number}" for number in range(NODES)}:
            raise AssertionError(f"{len(found)} nodes instead of {NODES}")
        trial.more.update(add_s=adding, query_s=querying)
        return trial.sample(adding + querying)
