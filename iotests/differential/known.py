"""
The differences that are known and wanted, each with its reason. Every one is a row of docs/compatibility.md,
or of the kind that this file's comments say. A rule holds in its exact situation only, so it looks at what
led there, too.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any, Iterator, Sequence

from .execute import Seen
from .step import Command, Message, Step

_BUSY = "Node '.*' is busy: block device is in use by block job: "


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where two records differ: the steps so far and what both daemons showed, the step at hand being the last."""

    steps: Sequence[Step]
    ours: Sequence[Seen]
    theirs: Sequence[Seen]

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
        return list(Moment(self.steps[-1:], self.ours[-1:], self.theirs[-1:]).actions())

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

    def exclusive_mirror(self) -> bool:
        """Whether a mirror lets nobody else write: in write-blocking mode, or when it waits to be finalized."""
        return any(self.started_with(job, "copy-mode") == "write-blocking" for job in self.jobs("mirror")) or bool(
            self.jobs("mirror", "pending")
        )


def wanted(moment: Moment, what: str, ours: Any, theirs: Any) -> bool:
    """Whether a difference is one of those. The state after it is the same in both."""
    if what == "jobs":
        return any(
            _create_size(ours.get(identity, {}).get("error", ""), job.get("error", "")) for identity, job in theirs.items()
        )
    if what == "state":
        return _rival_cannot_answer(ours, theirs) or _exclusive_mirror(moment, ours, theirs)
    return _failed(ours) == _failed(theirs) and any(rule(moment, _text(ours), _text(theirs)) for rule in _RULES)


def parts(moment: Moment, what: str, ours: Any, theirs: Any) -> bool:
    """Whether a difference is one of those, after which the rest of a sequence cannot be compared."""
    if what == "reply":
        return _failed(ours) != _failed(theirs) and any(rule(moment, _text(ours), _text(theirs)) for rule in _RULES)
    if what == "jobs":
        return _compressed_again(moment)
    if what == "events":
        return _copied_up(moment, ours, theirs) or _compressed_again(moment)
    return (
        _cancelled_commit(moment, ours, theirs)
        or _user_of_a_failed_job(moment, ours, theirs)
        or _nodes_of_a_concluded_job(moment, ours, theirs)
        or _tables_within_a_disk(moment, ours, theirs)
        or _bitmap_below_a_snapshot(moment, ours, theirs)
    )


def _failed(reply: Any) -> bool:
    return isinstance(reply, dict) and "error" in reply


def _text(reply: Any) -> str:
    """An error's text, or nothing for success."""
    if isinstance(reply, dict) and "error" in reply:
        return str(reply["error"]["desc"])
    return ""


# Replies.


def _resize_in_use(moment: Moment, ours: str, theirs: str) -> bool:
    """The old text is a mistake, mended in 9.0."""
    return theirs == "Device '(null)' is in use" and re.fullmatch(r"Node '.*' is busy: .*", ours) is not None


def _concluded_stream_holds_nodes(moment: Moment, ours: str, theirs: str) -> bool:
    """The rival's stream keeps its nodes until it is dismissed; blockd's gives them up when it ends."""
    if not moment.jobs("stream", "concluded"):
        return False
    return theirs == "Need a root block node" or (ours == "" and re.fullmatch(_BUSY + "stream", theirs) is not None)


def _copy_before_write_unused(moment: Moment, ours: str, theirs: str) -> bool:
    """A source that is its own target is refused when the filter is used, by the rival already under a parent."""
    return theirs.startswith("Permission conflict on node") and "as 'target' child) and unshared by" in theirs


def _create_size(ours: str, theirs: str) -> bool:
    """Of two mistakes blockd names the file's first, the rival the sizes'."""
    return theirs.startswith(("Image size must be a multiple of", "Cluster size must be a power of two")) and ours != ""


def _busy_for_another_reason(moment: Moment, ours: str, theirs: str) -> bool:
    """Of several reasons why a node is in use each names the one it comes to first."""
    left, right = re.match("Node '.*' is busy: ", ours), re.match("Node '.*' is busy: ", theirs)
    return left is not None and right is not None and left[0] == right[0]


def _long_backing_format(moment: Moment, ours: str, theirs: str) -> bool:
    """A format's name that a header has no room for is refused; the rival writes its first 15 letters."""
    found = re.fullmatch("Could not assign backing file '.*' with format '(.*)': Invalid argument", ours)
    return theirs == "" and found is not None and len(found[1]) > 15


def _conflict_of_another_edge(moment: Moment, ours: str, theirs: str) -> bool:
    """Of several users that conflict each names the one it comes to first."""
    conflict = re.compile("Permission conflict on node '[^']*'")
    left, right = conflict.search(ours), conflict.search(theirs)
    return left is not None and right is not None and left[0] == right[0]


def _overlay_of_a_backup(moment: Moment, ours: str, theirs: str) -> bool:
    """What a backup reads gets no new backing file; the rival lets it, and the backup is of no point in time."""
    return ours == "The overlay is already in use" and bool(moment.jobs("backup")) and (
        theirs == "" or theirs.startswith(("The overlay ", "Making "))
    )


def _backing_circle(moment: Moment, ours: str, theirs: str) -> bool:
    """A header that leads back to its own image; the rival runs into the lock of what is open already."""
    return re.search("Backing file '.*' creates an infinite loop", ours) is not None and theirs.endswith(
        ('Failed to get "write" lock', 'Failed to get shared "write" lock')
    )


def _second_writer(moment: Moment, ours: str, theirs: str) -> bool:
    """Who writes past a mirror that is to miss nothing is refused; the rival's mirror loses what is written."""
    return ours.startswith("Permission conflict on node") and moment.exclusive_mirror()


def _quorum_of_strangers(moment: Moment, ours: str, theirs: str) -> bool:
    """Of two mistakes blockd names the child's first, the rival the threshold's."""
    return "threshold" in theirs and ours.startswith("Cannot find device=")


def _force_share_as_before(moment: Moment, ours: str, theirs: str) -> bool:
    """The rival takes an unchanged force-share for another one whenever a node is reopened."""
    return theirs.endswith("Cannot change the option 'force-share'")


def _concluded_amend_holds_node(moment: Moment, ours: str, theirs: str) -> bool:
    """The rival's amendment keeps its node in use until it is dismissed; blockd's gives it up when it ends."""
    held = {moment.started_with(job, "node-name") for job in moment.jobs("amend", "concluded")}
    return ours == "" and any(theirs == f"Block device {name} is in use" for name in held)


def _bitmap_of_nothing(moment: Moment, ours: str, theirs: str) -> bool:
    """A persistent bitmap of an empty disk; the rival writes one, and cannot open the image any more."""
    return ours.endswith("A disk of size 0 cannot have persistent bitmaps")


def _empty_cache(moment: Moment, ours: str, theirs: str) -> bool:
    """The rival takes a cache without members for an unknown option."""
    return ours == "" and re.fullmatch("Block format '.*' does not support the option 'cache'", theirs) is not None


def _another_unexpected(moment: Moment, ours: str, theirs: str) -> bool:
    """Of several arguments that are not expected each names one."""
    return all(re.fullmatch("Parameter '.*' is unexpected", text) for text in (ours, theirs))


def _its_own_child(moment: Moment, ours: str, theirs: str) -> bool:
    """A node that is named as its own child is not there yet in blockd; the rival has half of it."""
    found = re.fullmatch("Making '(.*)' a .* child of '(.*)' would create a cycle", theirs)
    return found is not None and found[1] == found[2] and ours == f"Cannot find device='{found[1]}' nor node-name='{found[1]}'"


_RULES = (
    _empty_cache,
    _another_unexpected,
    _its_own_child,
    _bitmap_of_nothing,
    _concluded_amend_holds_node,
    _second_writer,
    _quorum_of_strangers,
    _force_share_as_before,
    _resize_in_use,
    _concluded_stream_holds_nodes,
    _copy_before_write_unused,
    _busy_for_another_reason,
    _long_backing_format,
    _conflict_of_another_edge,
    _overlay_of_a_backup,
    _backing_circle,
)


# Events, jobs and states.


def _copied_up(moment: Moment, ours: Any, theirs: Any) -> bool:
    """What is copied up by a stream or a filter counts as a write in blockd; the rival writes it past its node."""
    copies = any(name == "block-stream" or arguments.get("driver") == "copy-on-read" for name, arguments in moment.actions())
    return copies and _without_thresholds(ours) == _without_thresholds(theirs)


def _without_thresholds(events: Any) -> Any:
    kept = {about: [event for event in list_ if event[0] != "BLOCK_WRITE_THRESHOLD"] for about, list_ in events.items()}
    return {about: list_ for about, list_ in kept.items() if list_}


def _rival_cannot_answer(ours: Any, theirs: Any) -> bool:
    """The rival reads a list of bitmaps anew for each query, and cannot where an image lies in another that changes."""
    answer = theirs.get("query-named-block-nodes") if isinstance(theirs, dict) else None
    return isinstance(answer, dict) and answer.get("desc") == "Bitmap '' doesn't satisfy the constraints"


def _exclusive_mirror(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Below a mirror that is to miss nothing nobody else may write, so what it passes on shares less."""
    if any(ours.get(part) != theirs.get(part) for part in ("nodes", "exports", "block jobs", "bitmaps")):
        return False
    left, right = ours["graph"] - theirs["graph"], theirs["graph"] - ours["graph"]
    return moment.exclusive_mirror() and sorted(left.elements()) == sorted(map(_without_writers, right.elements()))


def _without_writers(edge: str) -> str:
    """An edge that shares neither writing nor resizing."""
    begin, shares, shared = edge.partition(" shares ")
    return begin + shares + shared.replace("'resize', ", "").replace("'write', ", "")


def _cancelled_commit(moment: Moment, ours: Any, theirs: Any) -> bool:
    """The base of a cancelled commit of the active layer is read-only again in blockd."""
    cancelled = any(
        event["event"] in ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED") and event["data"]["type"] == "commit"
        for event in moment.theirs[-1].events
    )
    if not cancelled or "nodes" not in ours or "nodes" not in theirs:
        return False
    return any(node["ro"] and not theirs["nodes"].get(name, node)["ro"] for name, node in ours["nodes"].items())


def _user_of_a_failed_job(moment: Moment, ours: Any, theirs: Any) -> bool:
    """What a stream has used stays in use in the rival when the command has failed."""
    refused = isinstance(moment.steps[-1].action, Command) and moment.steps[-1].action.name == "block-stream"
    if not refused or "error" not in moment.theirs[-1].reply or "graph" not in ours or "graph" not in theirs:
        return False
    left, right = (collections.Counter(map(_without_permissions, answer["graph"].elements())) for answer in (ours, theirs))
    more = right - left
    return bool(more) and not left - right and all(edge.startswith("(block-backend ) -root-> ") for edge in more)


def _without_permissions(edge: str) -> str:
    return edge.partition(" uses ")[0].partition(" shares ")[0]


def _nodes_of_a_concluded_job(moment: Moment, ours: Any, theirs: Any) -> bool:
    """The rival's stream or commit keeps its nodes until it is dismissed, so what it has taken out of the chain lives on."""
    held = {edge.split(")")[0].removeprefix("(block-job ") for edge in theirs.get("graph", ()) if edge.startswith("(block-job ")}
    if not held & (moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded")):
        return False
    return set(ours["nodes"]) < set(theirs["nodes"])


def _tables_within_a_disk(moment: Moment, ours: Any, theirs: Any) -> bool:
    """An image that is made within a disk: each lays its tables out in its own way, which the disk's bitmaps tell."""
    disks = {arguments["options"].get("file") for name, arguments in moment.actions() if name == "blockdev-create"}
    return any(
        node["bitmaps"] != theirs["nodes"][name]["bitmaps"]
        for name, node in ours.get("nodes", {}).items()
        if name in disks and name in theirs.get("nodes", {})
    )


def _bitmap_below_a_snapshot(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    The node below a new overlay stays writable in the rival when a persistent bitmap further below, in an image
    that is read-only, cannot be stored, which is not told. blockd has stored it or need not do it then.
    """
    if not any(name.startswith("blockdev-snapshot") for name, _ in moment.now()):
        return False
    if "nodes" not in ours or "nodes" not in theirs:
        return False
    unstored = any(node["ro"] and "('persistent', True)" in str(node["bitmaps"]) for node in theirs["nodes"].values())
    return unstored and any(node["ro"] and not theirs["nodes"].get(name, node)["ro"] for name, node in ours["nodes"].items())


def _compressed_again(moment: Moment) -> bool:
    """Compressed data can be written where there is data already; the rival's job fails."""
    return any(
        event["event"] == "BLOCK_JOB_COMPLETED"
        and event["data"].get("error") == "Input/output error"
        and moment.started_with(event["data"]["device"], "compress") is True
        for event in moment.theirs[-1].events
    )
