"""
The differences that are known and wanted, each with its reason. Every one is a row of docs/compatibility.md,
or of the kind that this file's comments say. A rule holds in its exact situation only, so it looks at what
led there, too.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any, Callable, Iterator, Sequence

from .execute import Seen
from .step import Command, Message, Step

_BUSY = "Node '.*' is busy: block device is in use by block job: "


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
        return _rival_cannot_answer(ours, theirs) or "nodes" in ours and "nodes" in theirs and any(
            rule(moment, ours, theirs)
            for rule in (
                _exclusive_mirror,
                _idle_copy_before_write,
                _nodes_of_a_concluded_job,
                _tables_within_a_disk,
                _zeroes_over_a_target,
                _flushes_inherited,
                _format_of_a_changed_name,
                _target_of_a_slow_job,
            )
        )
    return _failed(ours) == _failed(theirs) and any(rule(moment, _text(ours), _text(theirs)) for rule in _RULES)


def parts(moment: Moment, what: str, ours: Any, theirs: Any) -> bool:
    """Whether a difference is one of those, after which the rest of a sequence cannot be compared."""
    if what == "reply":
        return _failed(ours) != _failed(theirs) and any(rule(moment, _text(ours), _text(theirs)) for rule in _RULES)
    if what == "jobs":
        return _compressed_again(moment)
    if what == "events":
        return _copied_up(moment, ours, theirs) or _status_of_a_source(moment, ours, theirs) or _compressed_again(moment)
    return (
        _cancelled_commit(moment, ours, theirs)
        or _traces_of_a_refused_command(moment, ours, theirs)
        or _bitmap_below_a_snapshot(moment, ours, theirs)
        or _bitmaps_of_a_sharer(moment, ours, theirs)
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


def _concluded_job_holds_nodes(moment: Moment, ours: str, theirs: str) -> bool:
    """The rival's stream or commit keeps its nodes until it is dismissed; blockd's gives them up when it ends."""
    if not moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded"):
        return False
    busy = re.fullmatch(_BUSY + "(stream|commit)", theirs) is not None or theirs == "Device '(null)' is in use"
    return theirs == "Need a root block node" or ours == "" and busy


def _copy_before_write_unused(moment: Moment, ours: str, theirs: str) -> bool:
    """A source that is its own target is refused when the filter is used, by the rival already under a parent."""
    return "Permission conflict on node" in theirs and "as 'target' child) and unshared by" in theirs


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
    if left is None or right is None:
        return False
    return left[0] == right[0] and ours[: left.start()] == theirs[: right.start()]


def _overlay_of_a_backup(moment: Moment, ours: str, theirs: str) -> bool:
    """What a backup reads gets no new backing file; the rival lets it, and the backup is of no point in time."""
    action = moment.steps[-1].action
    actions = action.arguments.get("actions") if isinstance(action, Command) else None
    begins = isinstance(actions, list) and any(str(other.get("type")).endswith("-backup") for other in actions)
    return ours == "The overlay is already in use" and (begins or bool(moment.jobs("backup"))) and (
        theirs == "" or theirs.startswith(("The overlay ", "Making ", "Permission conflict on node "))
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
    """Of two mistakes blockd names the child's first that is not there or cannot be read, the rival the threshold's or another child's."""
    action = moment.steps[-1].action
    quorum = isinstance(action, Command) and action.arguments.get("driver") == "quorum"
    left = ours.startswith(("Cannot find device=", "Could not refresh total sector count"))
    return quorum and left and ("threshold" in theirs or theirs.startswith("Permission conflict"))


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


def _bottom_of_nothing(moment: Moment, ours: str, theirs: str) -> bool:
    """Of two mistakes blockd names the bottom first that is not in the chain, the rival that the chain is read-only."""
    return ours.startswith("Bottom node '") and theirs == "Block node is read-only"


def _several_reopened(moment: Moment, ours: str, theirs: str) -> bool:
    """Of mistakes in the options of several nodes each names the one it comes to first."""
    action = moment.steps[-1].action
    options = action.arguments.get("options") if isinstance(action, Command) and action.name == "blockdev-reopen" else None
    return isinstance(options, list) and len(options) > 1 and ours != "" and theirs != ""


def _bitmap_without_access(moment: Moment, ours: str, theirs: str) -> bool:
    """A persistent bitmap in an image that is read-only, which the rival has yet to store; blockd has stored it."""
    return theirs == "No write access" and ours in ("", "Block node is read-only") and _unstored(moment.theirs[-2:-1])


def _bitmap_merely_stored(moment: Moment, ours: str, theirs: str) -> bool:
    """
    A persistent bitmap of an image that has become read-only can be merged into itself, until the rival has stored
    it on an occasion that opened the image for a moment.
    """
    occasions = any(name in ("change-backing-file", "blockdev-reopen", "block-commit", "block-stream") for name, _ in moment.actions())
    text = "Bitmap '.*' is readonly and cannot be modified"
    return occasions and ours == "" and re.fullmatch(text, theirs) is not None and _unstored(moment.theirs[-2:-1])


def _bitmap_left_read_only(moment: Moment, ours: str, theirs: str) -> bool:
    """A reopen to read-only that is refused leaves all as it was; in the rival a persistent bitmap cannot be changed any more."""
    refused = any(
        isinstance(step.action, Command)
        and step.action.name == "blockdev-reopen"
        and "error" in seen.reply
        and any(options.get("read-only") is True for options in step.action.arguments.get("options") or () if isinstance(options, dict))
        for step, seen in zip(moment.steps, moment.theirs)
    )
    return refused and ours == "" and re.fullmatch("Bitmap '.*' is readonly and cannot be modified", theirs) is not None


def _of_a_held_node(moment: Moment, ours: str, theirs: str) -> bool:
    """A node that only the rival still has, for a job that is over, or one whose image that holds."""
    if len(moment.steps) < 2 or not moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded") | moment.jobs("amend", "concluded"):
        return False
    left, right = ({node["node-name"]: node for node in _nodes(seen)} for seen in (moment.ours[-2], moment.theirs[-2]))
    held = {name: node for name, node in right.items() if name not in left and not name.startswith("#")}
    named = any(f"'{name}'" in text for name in held for text in (ours, theirs))
    locked = theirs.endswith(('Failed to get "write" lock', 'Failed to get shared "write" lock'))
    return named or locked and len(right) > len(left)


_RULES = (
    _bottom_of_nothing,
    _several_reopened,
    _bitmap_without_access,
    _bitmap_merely_stored,
    _bitmap_left_read_only,
    _of_a_held_node,
    _empty_cache,
    _another_unexpected,
    _its_own_child,
    _bitmap_of_nothing,
    _concluded_amend_holds_node,
    _second_writer,
    _quorum_of_strangers,
    _force_share_as_before,
    _resize_in_use,
    _concluded_job_holds_nodes,
    _copy_before_write_unused,
    _busy_for_another_reason,
    _long_backing_format,
    _conflict_of_another_edge,
    _overlay_of_a_backup,
    _backing_circle,
)


# Events, jobs and states.


def _copied_up(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    What is copied up by a stream or a filter counts as a write in blockd; the rival writes it past its node. Of
    what a mirror need not copy each writes other zeroes.
    """
    copies = any(
        name in ("block-stream", "blockdev-mirror", "drive-mirror") or arguments.get("driver") == "copy-on-read"
        for name, arguments in moment.actions()
    )
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
    if any(ours[part] != theirs[part] for part in ("nodes", "exports", "block jobs", "bitmaps")):
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


def _without_permissions(edge: str) -> str:
    return edge.partition(" uses ")[0].partition(" shares ")[0]


def _nodes_of_a_concluded_job(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    The rival's stream, commit or amendment keeps its nodes until it is dismissed, so what has been taken out of
    the chain or deleted lives on. Nothing else may differ, but how other nodes' files are shared.
    """
    over = {f"(block-job {job})" for job in moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded")}
    edges = collections.Counter(map(_without_permissions, theirs["graph"].elements()))
    held = {moment.started_with(job, "node-name") for job in moment.jobs("amend", "concluded")}
    held = _reached(held | {_ends(edge)[1] for edge in edges if _ends(edge)[0] in over}, edges)
    extra = {name: node for name, node in theirs["nodes"].items() if name not in ours["nodes"]}
    if not extra or any(re.sub(r" \(\d+\)$", "", name) not in held for name in extra):
        return False
    left, right = collections.Counter(map(_without_permissions, ours["graph"].elements())), edges
    return (
        all(theirs["nodes"].get(name) == node for name, node in ours["nodes"].items())
        and ours["bitmaps"].items() <= theirs["bitmaps"].items()
        and all(key.rpartition(":")[0] in extra for key in theirs["bitmaps"].keys() - ours["bitmaps"].keys())
        and all(ours[part] == theirs[part] for part in ("exports", "block jobs"))
        and not left - right
        and all(_ends(edge)[0] in over | held for edge in right - left)
    )


def _ends(edge: str) -> tuple[str, str]:
    """An edge's parent and child, by their labels."""
    parent, _, rest = edge.partition(" -")
    return parent, rest.partition("-> ")[2]


def _nodes(seen: Seen) -> list[Message]:
    """The nodes after a step, if they could be asked for."""
    answer = seen.state["query-named-block-nodes"]
    return list(answer) if isinstance(answer, list) else []


def _reached(names: set[str], edges: collections.Counter[str]) -> set[str]:
    """These nodes and all below them."""
    found = set(names)
    while more := {_ends(edge)[1] for edge in edges if _ends(edge)[0] in found} - found:
        found |= more
    return found


def _unstored(records: Sequence[Seen], among: set[str] | None = None) -> bool:
    """Whether a node that is read-only has a persistent bitmap; any node, or one of these."""
    return any(
        node["ro"] and (among is None or node["node-name"] in among) and any(bitmap.get("persistent") for bitmap in node.get("dirty-bitmaps", []))
        for seen in records
        for node in _nodes(seen)
    )


def _differ_in_bitmaps_of(names: set[Any], ours: Any, theirs: Any) -> bool:
    """Whether nothing but the bitmaps of these nodes differs."""
    left, right = (
        {
            **state,
            "bitmaps": {key: answer for key, answer in state["bitmaps"].items() if key.rpartition(":")[0] not in names},
            "nodes": {name: {**node, "bitmaps": []} if name in names else node for name, node in state["nodes"].items()},
        }
        for state in (ours, theirs)
    )
    return bool(left == right)


def _tables_within_a_disk(moment: Moment, ours: Any, theirs: Any) -> bool:
    """An image that is made within a disk: each lays its tables out in its own way, which the disk's bitmaps tell."""
    disks = {arguments["options"].get("file") for name, arguments in moment.actions() if name == "blockdev-create"}
    return _differ_in_bitmaps_of(disks, ours, theirs)


def _zeroes_over_a_target(moment: Moment, ours: Any, theirs: Any) -> bool:
    """The rival writes zeroes over the whole of a mirror's target first, blockd where it has anything else."""
    targets = {
        arguments["node-name"] if name == "drive-mirror" else arguments["target"]
        for name, arguments in moment.actions()
        if name == "blockdev-mirror" or name == "drive-mirror" and "node-name" in arguments
    }
    return _differ_in_bitmaps_of(targets, ours, theirs) and all(
        _dirty(ours["nodes"][name]) <= _dirty(theirs["nodes"][name]) for name in targets & set(ours["nodes"])
    )


def _dirty(node: Message) -> int:
    """How much all bitmaps of a node cover, in bytes."""
    return sum(int(count) for bitmap in node["bitmaps"] for count in re.findall(r"\('count', (\d+)\)", bitmap))


def _flushes_inherited(moment: Moment, ours: Any, theirs: Any) -> bool:
    """What nodes below have inherited stays in the rival when one is reopened without it; blockd's follow."""
    if not any(name == "blockdev-reopen" for name, _ in moment.actions()):
        return False
    changed = {
        name: {**node, "cache": {**node["cache"], "no-flush": True}} if theirs["nodes"].get(name, node)["cache"]["no-flush"] else node
        for name, node in ours["nodes"].items()
    }
    return bool({**ours, "nodes": changed} == theirs)


def _idle_copy_before_write(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Below a copy-before-write others may write as long as nothing is done above it; in the rival, as long as nothing is above it."""
    if any(ours[part] != theirs[part] for part in ("nodes", "exports", "block jobs", "bitmaps")):
        return False
    left, right = ours["graph"] - theirs["graph"], theirs["graph"] - ours["graph"]
    above = {_ends(_without_permissions(edge))[0] for edge in left}
    filters = {name for name, node in ours["nodes"].items() if node["drv"] == "copy-before-write"}
    return bool(above & filters) and sorted(map(_without_writers, left.elements())) == sorted(right.elements())


def _status_of_a_source(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    What cannot be told of the source of a mirror, or of a backup of its top, is an error of reading, told like all
    others; the rival's job just fails, a mirror's target full of zeroes.
    """
    tops = {arguments.get("job-id") for name, arguments in moment.actions() if name.endswith("-backup") and arguments.get("sync") == "top"}
    failed = {
        event["data"]["device"]
        for event in moment.theirs[-1].events
        if event["event"] == "BLOCK_JOB_COMPLETED"
        and event["data"].get("error") == "Operation not supported"
        and (event["data"]["type"] == "mirror" or event["data"]["device"] in tops)
    }
    told = {
        about: [event for event in list_ if event[0] != "BLOCK_JOB_ERROR" or ("operation", "read") not in event[1]] if about in failed else list_
        for about, list_ in ours.items()
    }
    return bool(failed) and bool(told == theirs)


def _bitmaps_of_a_sharer(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Bitmaps are in their image at once; in the rival another node of that image does not find them before they are stored."""
    opened = {arguments["node-name"]: _file_name(arguments) for name, arguments in moment.actions() if name == "blockdev-add" and "node-name" in arguments}
    sharers = {arguments["node-name"] for _, arguments in moment.actions() if arguments.get("force-share") and "node-name" in arguments}
    marked = {node["node-name"] for node in _nodes(moment.ours[-1]) if any(bitmap.get("persistent") for bitmap in node.get("dirty-bitmaps", []))}
    late = {name for name in sharers if any(opened.get(other) == opened.get(name) for other in marked - {name})}
    return bool(late) and "nodes" in ours and "nodes" in theirs and _differ_in_bitmaps_of(late, ours, theirs)


def _file_name(options: Message) -> Any:
    """The file that options for a node name, if they say it themselves."""
    file = options.get("file")
    return file.get("filename") if isinstance(file, dict) else None


def _bitmap_below_a_snapshot(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    The node below a new overlay stays writable in the rival when a persistent bitmap further below, in an image
    that is read-only, cannot be stored, which is not told. blockd has stored it or need not do it then.
    """
    if not any(name.startswith("blockdev-snapshot") for name, _ in moment.now()):
        return False
    if "nodes" not in ours or "nodes" not in theirs:
        return False
    left, right = ({name: {**node, "ro": True} for name, node in state["nodes"].items()} for state in (ours, theirs))
    edges = [collections.Counter(map(_without_permissions, state["graph"].elements())) for state in (ours, theirs)]
    lenient = {name for name, node in theirs["nodes"].items() if not node["ro"] and ours["nodes"].get(name, node)["ro"]}
    below = _reached(lenient, edges[1])
    return _unstored(moment.theirs[-1:], below) and bool(lenient) and left == right and edges[0] == edges[1]


def _format_of_a_changed_name(moment: Moment, ours: Any, theirs: Any) -> bool:
    """change-backing-file keeps the format of the backing file in the header; the rival writes that of the image itself."""
    changed = {arguments["image-node-name"] for name, arguments in moment.actions() if name == "change-backing-file"} & ours["nodes"].keys()
    key = "image.backing-filename-format"
    told = {name: ours["nodes"][name] for name in changed if key in ours["nodes"][name]}
    followed = {name: {**node, key: theirs["nodes"].get(name, {}).get(key)} for name, node in told.items()}
    return bool(told) and bool({**ours, "nodes": {**ours["nodes"], **followed}} == theirs)


def _target_of_a_slow_job(moment: Moment, ours: Any, theirs: Any) -> bool:
    """How far a slow job comes before it waits is a matter of the pieces it copies, which the bitmaps of its target tell."""
    done = {
        event["data"]["device"]
        for seen in moment.theirs
        for event in seen.events
        if event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"] and event["data"]["len"] == event["data"]["offset"]
    }
    slow = {arguments.get("target") for _, arguments in moment.actions() if arguments.get("speed") and arguments.get("job-id") not in done}
    edges = collections.Counter(map(_without_permissions, theirs["graph"].elements()))
    return _differ_in_bitmaps_of(_reached({str(name) for name in slow}, edges), ours, theirs)


def _traces_of_a_refused_command(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    A command that is refused leaves all as it was; the rival's does not always: a stream's users stay, a transaction
    has put one image over another, an internal snapshot is forgotten, a bitmap counts what was never copied.
    """
    refused = "error" in moment.ours[-1].reply and "error" in moment.theirs[-1].reply
    return refused and ours in [moment.state(seen.state) for seen in moment.ours[-2:-1]]


def _compressed_again(moment: Moment) -> bool:
    """Compressed data can be written where there is data already; the rival's job fails."""
    return any(
        event["event"] == "BLOCK_JOB_COMPLETED"
        and event["data"].get("error") == "Input/output error"
        and moment.started_with(event["data"]["device"], "compress") is True
        for event in moment.theirs[-1].events
    )
