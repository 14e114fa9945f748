"""
The differences that are known and wanted, each with its reason. Every one is a row of docs/compatibility.md,
or of the kind that this file's comments say.
"""

from __future__ import annotations

import re
from typing import Any, Sequence

from .execute import Seen
from .step import Step


_BUSY = "Node '.*' is busy: block device is in use by block job: "


def wanted(step: Step, what: str, ours: Any, theirs: Any) -> bool:
    """Whether a difference is one of those. The state after it is the same in both."""
    if what == "jobs":
        return any(
            _create_size(ours.get(identity, {}).get("error", ""), job.get("error", "")) for identity, job in theirs.items()
        )
    if what == "state":
        return _rival_cannot_answer(ours, theirs) or _exclusive_mirror(ours, theirs)
    return _failed(ours) == _failed(theirs) and any(rule(step, _text(ours), _text(theirs)) for rule in _RULES)


def parts(step: Step, what: str, ours: Any, theirs: Any, so_far: Sequence[Seen]) -> bool:
    """Whether a difference is one of those, after which the rest of a sequence cannot be compared."""
    if what == "reply":
        return _failed(ours) != _failed(theirs) and any(rule(step, _text(ours), _text(theirs)) for rule in _RULES)
    if what == "events":
        return _without_copied_up(ours) == _without_copied_up(theirs) or _compressed_again(ours, theirs)
    return what == "state" and (_cancelled_commit(ours, theirs, so_far) or _user_of_a_failed_job(ours, theirs))


def _failed(reply: Any) -> bool:
    return isinstance(reply, dict) and "error" in reply


def _text(reply: Any) -> str:
    """An error's text, or nothing for success."""
    if isinstance(reply, dict) and "error" in reply:
        return str(reply["error"]["desc"])
    return ""


def _resize_in_use(step: Step, ours: str, theirs: str) -> bool:
    """The old text is a mistake, mended in 9.0."""
    return theirs == "Device '(null)' is in use" and re.fullmatch(r"Node '.*' is busy: .*", ours) is not None


def _concluded_job_holds_nodes(step: Step, ours: str, theirs: str) -> bool:
    """The rival's stream keeps its nodes until it is dismissed; blockd's gives them up when it ends."""
    return theirs == "Need a root block node" or (ours == "" and re.fullmatch(_BUSY + "stream", theirs) is not None)


def _copy_before_write_unused(step: Step, ours: str, theirs: str) -> bool:
    """A source that is its own target is refused when the filter is used, by the rival already under a parent."""
    return theirs.startswith("Permission conflict on node") and "as 'target' child) and unshared by" in theirs


def _create_size(ours: str, theirs: str) -> bool:
    """Of two mistakes blockd names the file's first, the rival the sizes'."""
    return theirs.startswith(("Image size must be a multiple of", "Cluster size must be a power of two")) and ours != ""


def _busy_for_another_reason(step: Step, ours: str, theirs: str) -> bool:
    """Of several reasons why a node is in use each names the one it comes to first."""
    left, right = re.match("Node '.*' is busy: ", ours), re.match("Node '.*' is busy: ", theirs)
    return left is not None and right is not None and left[0] == right[0]


def _long_backing_format(step: Step, ours: str, theirs: str) -> bool:
    """A format's name that a header has no room for is refused; the rival writes its first 15 letters."""
    found = re.fullmatch("Could not assign backing file '.*' with format '(.*)': Invalid argument", ours)
    return theirs == "" and found is not None and len(found[1]) > 15


def _conflict_of_another_edge(step: Step, ours: str, theirs: str) -> bool:
    """Of several users that conflict each names the one it comes to first."""
    conflict = re.compile("Permission conflict on node '[^']*'")
    left, right = conflict.search(ours), conflict.search(theirs)
    return left is not None and right is not None and left[0] == right[0]


def _filter_as_image(step: Step, ours: str, theirs: str) -> bool:
    """Of two mistakes, a filter as the image and one of another chain, each names one."""
    return ours.startswith("not allowing backing file change on") and theirs.endswith("and image file are not in the same chain")


_RULES = (
    _filter_as_image,
    _resize_in_use,
    _concluded_job_holds_nodes,
    _copy_before_write_unused,
    _busy_for_another_reason,
    _long_backing_format,
    _conflict_of_another_edge,
)


def _without_copied_up(events: Any) -> Any:
    """What is copied up by a stream or a filter counts as a write in blockd; the rival writes it past its node."""
    kept = {about: [event for event in list_ if event[0] != "BLOCK_WRITE_THRESHOLD"] for about, list_ in events.items()}
    return {about: list_ for about, list_ in kept.items() if list_}


def _rival_cannot_answer(ours: Any, theirs: Any) -> bool:
    """The rival reads a list of bitmaps anew for each query, and cannot where an image lies in another that changes."""
    answer = theirs.get("query-named-block-nodes") if isinstance(theirs, dict) else None
    return isinstance(answer, dict) and answer.get("desc") == "Bitmap '' doesn't satisfy the constraints"


def _exclusive_mirror(ours: Any, theirs: Any) -> bool:
    """Below a mirror that is the only writer of its source nobody else may write, either."""
    if any(ours[part] != theirs[part] for part in ("nodes", "exports", "block jobs")):
        return False
    edges = set((ours["graph"] - theirs["graph"]) + (theirs["graph"] - ours["graph"]))
    return all(" -backing-> " in edge for edge in edges) and any(job["type"] == "mirror" for job in ours["block jobs"].values())


def _cancelled_commit(ours: Any, theirs: Any, so_far: Sequence[Seen]) -> bool:
    """The base of a cancelled commit of the active layer is read-only again in blockd."""
    cancelled = any(
        event["event"] in ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED") and event["data"]["type"] == "commit"
        for seen in so_far
        for event in seen.events
    )
    if not cancelled or "nodes" not in ours or "nodes" not in theirs:
        return False
    return any(node["ro"] and not theirs["nodes"].get(name, node)["ro"] for name, node in ours["nodes"].items())


def _user_of_a_failed_job(ours: Any, theirs: Any) -> bool:
    """What a stream has used stays in use in the rival when the command has failed."""
    if "graph" not in ours or "graph" not in theirs:
        return False
    more = theirs["graph"] - ours["graph"]
    return bool(more) and not ours["graph"] - theirs["graph"] and all(edge.startswith("(block-backend ) -root-> ") for edge in more)


def _compressed_again(ours: Any, theirs: Any) -> bool:
    """Compressed data can be written where there is data already; the rival's job fails."""
    failed = {
        about
        for about, list_ in theirs.items()
        for name, data in list_
        if name == "BLOCK_JOB_COMPLETED" and dict(data).get("error") == "Input/output error" and dict(data)["type"] == "backup"
    }
    return any(
        any(name == "BLOCK_JOB_COMPLETED" and "error" not in dict(data) for name, data in ours.get(about, ())) for about in failed
    )
