"""Where two records differ, and what can be asked of what led there."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any, Callable, Iterator, Sequence

from .execute import Seen
from .step import Command, Message, Step

# What shows another node's content as its own, which it has as `file` or `image`.
FILTERS = frozenset({"raw", "throttle", "copy-on-read", "copy-before-write", "preallocate", "blkdebug", "snapshot-access"})


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where two records differ: the steps so far and what both daemons showed, the step at hand being the last."""

    steps: Sequence[Step]
    ours: Sequence[Seen]
    theirs: Sequence[Seen]
    state: Callable[[Message], Any]  # makes of a state what is compared

    def actions(self) -> Iterator[tuple[str, Message]]:
        """The commands so far, and those within transactions, that one of the daemons did not refuse."""
        for step, ours, theirs in zip(self.steps, self.ours, self.theirs):
            if not isinstance(step.action, Command) or "error" in ours.reply and "error" in theirs.reply:
                continue
            if step.action.name != "transaction":
                yield step.action.name, dict(step.action.arguments)
                continue
            for action in step.action.arguments["actions"]:
                yield action["type"], action["data"]

    def now(self) -> list[tuple[str, Message]]:
        """The commands of the step at hand."""
        return list(Moment(self.steps[-1:], self.ours[-1:], self.theirs[-1:], self.state).actions())

    def names(self) -> list[str]:
        """The command of the step at hand, or the actions of its transaction, refused or not."""
        action = self.steps[-1].action
        if not isinstance(action, Command):
            return []
        actions = action.arguments.get("actions")
        return [str(one["type"]) for one in actions] if isinstance(actions, list) else [action.name]

    def asked(self) -> list[Message]:
        """The arguments of the step at hand, or of the actions of its transaction, refused or not."""
        action = self.steps[-1].action
        if not isinstance(action, Command):
            return []
        actions = action.arguments.get("actions")
        return [one["data"] for one in actions] if isinstance(actions, list) else [dict(action.arguments)]

    def started_with(self, identity: str, name: str) -> Any:
        """What a job was given as that argument."""
        return next((arguments.get(name) for _, arguments in self.actions() if arguments.get("job-id") == identity), None)

    def jobs(self, kind: str, *states: str) -> set[str]:
        """The ids of the jobs of a kind that the rival had before the step or has after it, in one of these states."""
        return {
            job["id"]
            for seen in self.theirs[-2:]
            for job in seen.jobs
            if job["type"] == kind and (not states or job["status"] in states)
        }

    def held(self) -> set[str]:
        """The nodes that the rival's streams and commits hold that are over, and wait to be dismissed; made-up names without numbers."""
        over = self.jobs("stream", "concluded") | self.jobs("commit", "concluded")
        graphs = [seen.state["x-debug-query-block-graph"] for seen in self.theirs[-2:]]
        found: set[str] = set()
        for graph in (graph for graph in graphs if "nodes" in graph):
            names = {node["id"]: re.sub(r"#block\d+", "#block", node["name"]) for node in graph["nodes"]}
            jobs = {node["id"] for node in graph["nodes"] if node["type"] == "block-job" and node["name"] in over}
            found |= {names[edge["child"]] for edge in graph["edges"] if edge["parent"] in jobs}
        return found

    def exclusive_mirror(self) -> bool:
        """Whether a mirror lets nobody else write: in write-blocking mode, or when it waits to be finalized."""
        return any(self.started_with(job, "copy-mode") == "write-blocking" for job in self.jobs("mirror")) or bool(
            self.jobs("mirror", "pending")
        )

    def refused_read_only(self) -> bool:
        """Whether a reopen to read-only was refused, be it that of what gets an overlay, which is not told."""
        return any(map(_puts_over_a_target, self.steps)) or any(
            isinstance(step.action, Command)
            and step.action.name == "blockdev-reopen"
            and "error" in seen.reply
            and any(options.get("read-only") is True for options in _list(step.action.arguments.get("options")) if isinstance(options, dict))
            for step, seen in zip(self.steps, self.theirs)
        )

    def top_over_a_filter(self) -> bool:
        """Whether a new image is asked for that gets the top of one that stands on a filter in the rival."""
        tops = [data.get("device") for data in self.asked() if data.get("sync") == "top" and "format" in data]
        filters = {node["node-name"] for node in nodes(self.theirs[-2]) if node["drv"] in FILTERS - {"raw"}} if len(self.theirs) > 1 else set()
        return any(backing(self.theirs[-2], name) in filters for name in tops if isinstance(name, str))

    def top_of_nothing(self) -> bool:
        """Whether there was a mirror of the top of an image without a backing file."""
        for number, step in enumerate(self.steps):
            arguments = step.action.arguments if isinstance(step.action, Command) else {}
            if "return" not in self.theirs[number].reply or not arguments.get("sync") == "top" or number == 0:
                continue
            assert isinstance(step.action, Command)
            if step.action.name in ("blockdev-mirror", "drive-mirror") and not backing(self.theirs[number - 1], arguments["device"]):
                return True
        return False


def _puts_over_a_target(step: Step) -> bool:
    """Whether a transaction puts an overlay over what a job of it writes to."""
    if not isinstance(step.action, Command) or step.action.name != "transaction":
        return False
    actions = _list(step.action.arguments.get("actions"))
    below = {action["data"].get("node", action["data"].get("node-name")) for action in actions if action["type"].startswith("blockdev-snapshot")} - {None}
    return any(action["data"].get("target") in below for action in actions if action["type"].endswith("-backup"))


def _list(value: Any) -> list[Any]:
    """An argument that should be a list, and is empty where it was spoilt."""
    return value if isinstance(value, list) else []


def backing(seen: Seen, name: str) -> str:
    """The node that an image stands on, filters over the image left aside; nothing if there is none."""
    graph = seen.state["x-debug-query-block-graph"]
    if "nodes" not in graph:
        return ""
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    below = {(names[edge["parent"]], edge["name"]): names[edge["child"]] for edge in graph["edges"]}
    drivers = {node["node-name"]: node["drv"] for node in nodes(seen)}
    while drivers.get(name) in FILTERS:
        name = below.get((name, "file"), below.get((name, "image"), ""))
    return below.get((name, "backing"), "")


def nodes(seen: Seen) -> list[Message]:
    """The nodes after a step, if they could be asked for."""
    answer = seen.state["query-named-block-nodes"]
    return list(answer) if isinstance(answer, list) else []


def unstored(records: Sequence[Seen], among: set[str] | None = None) -> bool:
    """Whether a node that is read-only has a persistent bitmap; any node, or one of these."""
    return any(
        node["ro"] and (among is None or node["node-name"] in among) and any(bitmap.get("persistent") for bitmap in node.get("dirty-bitmaps", []))
        for seen in records
        for node in nodes(seen)
    )


def without_permissions(edge: str) -> str:
    """An edge as such."""
    return edge.partition(" uses ")[0].partition(" shares ")[0]


def ends(edge: str) -> tuple[str, str]:
    """An edge's parent and child, by their labels."""
    parent, _, rest = edge.partition(" -")
    return parent, rest.partition("-> ")[2]


def reached(names: set[str], edges: collections.Counter[str]) -> set[str]:
    """These nodes and all below them."""
    found = set(names)
    while more := {ends(edge)[1] for edge in edges if ends(edge)[0] in found} - found:
        found |= more
    return found


def without_writers(edge: str) -> str:
    """An edge that shares neither writing nor resizing."""
    begin, shares, shared = edge.partition(" shares ")
    return begin + shares + shared.replace("'resize', ", "").replace("'write', ", "")
