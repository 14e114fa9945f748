"""Compares two records."""

from __future__ import annotations

import collections
import re
import subprocess
from pathlib import Path
from typing import Any, Iterable, Sequence

from . import known
from .execute import Record, Seen
from .step import Command, Message, Step

# Names that the daemons make up.
_MADE_UP = re.compile(r"#block\d+")

# The drivers that use what their users need; raw with a part of its own uses more.
_FILTERS = frozenset({"raw", "throttle", "copy-on-read", "copy-before-write", "preallocate", "blkdebug"})

# What a tool says of an image whose backing file is not there, or is one that it cannot open.
_NO_BACKING = re.compile("Could not open backing file")


def difference(steps: Sequence[Step], ours: Record, theirs: Record, *, partial: bool) -> str:
    """Where the records first differ, or nothing. The content of images counts unless it is `partial`."""
    for number, step in enumerate(steps):
        if number >= len(theirs.steps) and theirs.crashed:
            return ""  # the rival did not survive the sequence
        if number >= len(theirs.steps):
            return f"step {number}: {step}\n  rival ended: {theirs.ending}\n  blockd: {ours.ending}"
        if number >= len(ours.steps):
            return f"step {number}: {step}\n  blockd ended: {ours.ending}"
        try:
            found = _step(step, ours.steps[number], theirs.steps[number], theirs.steps[: number + 1])
        except _PartedError:
            return ""
        if found:
            return f"step {number}: {step}\n{found}"
    if ours.ending:
        return f"blockd at the end: {ours.ending}"
    if theirs.crashed:
        return ""
    return f"rival at the end: {theirs.ending}" if theirs.ending else _images(ours.folder, theirs.folder, partial)


class _PartedError(Exception):
    """The two went different ways, as they are to."""


def _step(step: Step, ours: Seen, theirs: Seen, so_far: Sequence[Seen]) -> str:
    for what, left, right in (
        ("reply", _reply(step, ours.reply), _reply(step, theirs.reply)),
        ("jobs", _jobs(ours.jobs, step), _jobs(theirs.jobs, step)),
        ("events", _events(ours.events, step), _events(theirs.events, step)),
        ("state", _state(ours.state, step), _state(theirs.state, step)),
    ):
        if left == right:
            continue
        if known.parts(step, what, left, right, so_far):
            raise _PartedError
        if not known.wanted(step, what, left, right):
            return f"  {what}\n    blockd: {_only(left, right)}\n    rival:  {_only(right, left)}"
    return ""


def _only(value: Any, other: Any) -> Any:
    """What of a value differs from another one, to keep reports short."""
    if isinstance(value, collections.Counter) and isinstance(other, collections.Counter):
        return dict(value - other)
    if isinstance(value, dict) and isinstance(other, dict):
        return {key: _only(v, other.get(key)) for key, v in value.items() if other.get(key, v) != v or key not in other}
    return value


def plain(value: Any) -> Any:
    """A value without the names that the daemons make up."""
    if isinstance(value, str):
        return _MADE_UP.sub("#block", value)
    if isinstance(value, list):
        return [plain(element) for element in value]
    if isinstance(value, dict):
        return {plain(key): plain(element) for key, element in value.items()}
    return value


def _reply(step: Step, reply: Message) -> Any:
    answer = {key: value for key, value in reply.items() if key != "id"}
    if isinstance(step.action, Command) and step.action.name == "query-block-exports" and "return" in answer:
        answer["return"] = sorted(answer["return"], key=lambda export: str(export["id"]))
    return plain(answer)


def _jobs(jobs: Sequence[Message], step: Step) -> Any:
    kept = ("id", "type", "status", "error")
    return {job["id"]: {key: plain(job[key]) for key in kept if key in job} for job in jobs}


def _events(events: Sequence[Message], step: Step) -> Any:
    """Events by who they are about; pauses of drains are not told."""
    told: dict[str, list[Any]] = collections.defaultdict(list)
    for event in events:
        data = dict(event.get("data", {}))
        about = str(data.get("id") or data.get("device") or data.get("node-name") or "")
        for progress in ("len", "offset", "speed"):
            if event["event"] != "BLOCK_JOB_COMPLETED" or "error" in data:
                data.pop(progress, None)
        told[about].append((event["event"], sorted(plain(data).items(), key=str)))
    return {about: kept for about, list_ in told.items() if (kept := _without_pauses(list_))}


def _without_pauses(list_: list[Any]) -> list[Any]:
    """Without what comes and goes in a drained section, and with states that repeat told once."""
    kept: list[Any] = []
    for name, data in list_:
        status = dict(data).get("status")
        if name == "JOB_STATUS_CHANGE" and status in ("paused", "standby", "running", "ready"):
            # Which of them it ends in is compared with the jobs.
            continue
        kept.append((name, data))
    return kept


def _state(state: Message, step: Step) -> Any:
    if any("desc" in answer for answer in state.values()):
        return plain(state)  # a query failed
    if not state:
        return {}
    nodes = state["query-named-block-nodes"]
    labels = {node["node-name"]: _label(node) for node in nodes}
    return {
        "nodes": _numbered((labels[node["node-name"]], _node(node)) for node in nodes),
        "graph": _graph(state["x-debug-query-block-graph"], labels, {labels[node["node-name"]] for node in nodes if node["drv"] in _FILTERS}),
        "exports": collections.Counter(str(sorted(plain(e).items())) for e in state["query-block-exports"]),
        "block jobs": {
            job["device"]: {key: job[key] for key in ("type", "paused", "io-status", "ready", "status", "auto-finalize", "auto-dismiss")}
            for job in state["query-block-jobs"]
        },
    }


def _label(node: Message) -> str:
    """A name for a node that does not depend on numbers."""
    name = node["node-name"]
    if name.startswith("#"):
        return f"#{node['drv']}:{plain(node['file'])}"
    return str(name)


def _numbered(entries: Iterable[tuple[str, Message]]) -> Message:
    """A dictionary of entries, with numbers where labels come again."""
    sorted_ = sorted(entries, key=str)
    found: Message = {}
    for label, entry in sorted_:
        number = 1
        while (key := label if number == 1 else f"{label} ({number})") in found:
            number += 1
        found[key] = entry
    return found


def _node(node: Message) -> Message:
    image = node["image"]
    kept = {key: plain(node[key]) for key in ("drv", "file", "ro", "backing_file", "backing_file_depth", "encrypted", "detect_zeroes", "cache", "write_threshold") if key in node}
    for key in ("virtual-size", "format", "filename", "backing-filename", "full-backing-filename", "backing-filename-format", "cluster-size"):
        # How long a file is below a format depends on how that allocates; and a filter of the rival does not
        # notice that what is below it was resized.
        if key in image and not (key == "virtual-size" and (node["drv"] == "file" or node["node-name"].startswith("filter"))):
            kept["image." + key] = plain(image[key])
    # Those without names are a daemon's own.
    kept["bitmaps"] = sorted(str(sorted(bitmap.items())) for bitmap in node.get("dirty-bitmaps", []) if "name" in bitmap)
    kept["snapshots"] = len(image.get("snapshots", []))
    return kept


def _graph(graph: Message, labels: Message, filters: set[str]) -> Any:
    names = {}
    for node in graph["nodes"]:
        kind = node["type"]
        names[node["id"]] = labels.get(node["name"], plain(node["name"])) if kind == "block-driver" else f"({kind} {node['name']})"
    return collections.Counter(
        f"{names[edge['parent']]} -{edge['name']}-> {names[edge['child']]}{_permissions(edge, names, filters)}" for edge in graph["edges"]
    )


def _permissions(edge: Message, names: Message, filters: set[str]) -> str:
    """What an edge uses and shares. A job's own users and filters do their work in other ways, with other needs."""
    if any(names[edge["parent"]].startswith(own) for own in ("(", "#copy-before-write", "#copy-on-read", "#mirror_top", "#commit_top")):
        return ""
    # What those above need, a job's filters among them.
    passed_on = edge["name"] == "backing" or names[edge["parent"]] in filters
    uses = "" if passed_on else f" uses {sorted(edge['perm'])}"
    return f"{uses} shares {sorted(edge['shared-perm'])}"


def _images(ours: Path, theirs: Path, partial: bool) -> str:
    """Images that do not hold the same."""
    names = {path.name for folder in (ours, theirs) for path in folder.iterdir() if path.is_file() and path.name != "stderr"}
    for name in sorted(names):
        left, right = ours / name, theirs / name
        if right.exists() and not left.exists() and name.startswith(("file", "snap")):
            continue  # a failed command leaves what it has made; blockd's does not
        if left.exists() != right.exists():
            return f"images: {name} is only in {'blockd' if left.exists() else 'the rival'}'s folder"
        if left.read_bytes() == right.read_bytes():
            continue
        kind = "qcow2" if left.read_bytes()[:4] == b"QFI\xfb" else "raw"
        if kind == "qcow2":
            check = subprocess.run(["qemu-img", "check", "-q", "-f", kind, name], cwd=ours, capture_output=True, text=True)
            if check.returncode not in (0, 3) and not _NO_BACKING.search(check.stderr):
                return f"images: {name} is damaged: {check.stdout}{check.stderr}"
        if partial:
            continue
        done = subprocess.run(["qemu-img", "compare", "-f", kind, "-F", kind, str(left), str(right)], capture_output=True, text=True)
        # 2: neither can be opened, for want of a backing file
        if done.returncode not in (0, 2):
            return f"images: {name}: {done.stdout}{done.stderr}"
    return ""
