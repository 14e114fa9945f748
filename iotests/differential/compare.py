"""Compares two records."""

from __future__ import annotations

import collections
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Iterable, Sequence

from iotests.harness.deadline import SCALE

from . import known
from .execute import Record
from .moment import Moment
from .queries import LOOKED_AT_ELSEWHERE
from .step import Command, Message, Step
from .world import MiB

# Names that the daemons make up.
_MADE_UP = re.compile(r"#block\d+")

# The drivers that use what their users need; raw with a part of its own uses more.
_FILTERS = frozenset({"raw", "throttle", "copy-on-read", "copy-before-write", "preallocate", "blkdebug", "snapshot-access", "quorum"})

# How long a file may be that is read into memory: a disk can be resized to a TiB.
_READABLE = 64 * MiB

# What a tool says of an image whose backing file is not there, or is one that it cannot open.
_NO_BACKING = re.compile("Could not open backing file")


def difference(steps: Sequence[Step], ours: Record, theirs: Record, *, partial: bool) -> str:
    """Where the records first differ, or nothing. The content of images counts unless it is `partial`."""
    if ours.hello != theirs.hello:
        return f"before negotiation:\n    blockd: {ours.hello}\n    rival:  {theirs.hello}"
    pictures = _Picture(), _Picture()
    for number, step in enumerate(steps):
        if number >= len(theirs.steps) and theirs.crashed:
            return ""  # the rival did not survive the sequence
        if number >= len(theirs.steps) and theirs.hung and number < len(ours.steps):
            return ""  # it never answered
        if number >= len(theirs.steps):
            return f"step {number}: {step}\n  rival ended: {theirs.ending}\n  blockd: {ours.ending}"
        if number >= len(ours.steps):
            return f"step {number}: {step}\n  blockd ended: {ours.ending}"
        try:
            found = _step(Moment(steps[: number + 1], ours.steps[: number + 1], theirs.steps[: number + 1], _state), *pictures)
        except _PartedError:
            return ""
        if found:
            return f"step {number}: {step}\n{found}"
    if ours.ending:
        return f"blockd at the end: {ours.ending}"
    if theirs.crashed or theirs.hung:
        return ""
    if theirs.ending:
        return f"rival at the end: {theirs.ending}"
    moment = Moment(steps, ours.steps, theirs.steps, _state)
    renamed = any(name == "change-backing-file" for name, _ in moment.actions())
    return _images(ours.folder, theirs.folder, _refused(steps, theirs), partial=partial or moment.top_of_nothing(), renamed=renamed)


class _PartedError(Exception):
    """The two went different ways, as they are to."""


class _Picture:
    """What of a daemon's states is compared; most steps change nothing, so the last one is kept."""

    def __init__(self) -> None:
        self._state: Message | None = None
        self._picture: Any = None

    def of(self, state: Message) -> Any:
        """What is compared of this one."""
        if state != self._state:
            self._state, self._picture = state, _state(state)
        return self._picture


def _step(moment: Moment, our_picture: _Picture, their_picture: _Picture) -> str:
    """How the last step differs."""
    ours, theirs = moment.ours[-1], moment.theirs[-1]
    for what, left, right in (
        ("reply", *_replies(moment.steps[-1], ours.reply, theirs.reply)),
        ("jobs", _jobs(ours.jobs), _jobs(theirs.jobs)),
        ("events", _events(ours.events, moment.steps[-1]), _events(theirs.events, moment.steps[-1])),
        ("state", our_picture.of(ours.state), their_picture.of(theirs.state)),
    ):
        if left == right:
            continue
        if known.wanted(moment, what, left, right):
            continue
        if known.parts(moment, what, left, right):
            raise _PartedError
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


# Lists whose order says nothing, by what their members are sorted by.
_UNORDERED = {
    "query-block-exports": "id",
    "query-chardev": "label",
    "qom-list": "name",
    "qom-list-properties": "name",
}


def _replies(step: Step, ours: Message, theirs: Message) -> tuple[Any, Any]:
    """Both replies, as far as they have to be the same."""
    left, right = ({key: plain(value) for key, value in reply.items() if key != "id"} for reply in (ours, theirs))
    if not isinstance(step.action, Command) or "return" not in left or "return" not in right:
        return left, right
    name = step.action.name
    # A bitmap's hash is looked at after every step, too.
    if name in LOOKED_AT_ELSEWHERE or name in ("qom-list-types", "x-debug-block-dirty-bitmap-sha256"):
        return "success", "success"
    if key := _UNORDERED.get(name):
        return tuple(sorted(reply["return"], key=lambda member: str(member[key])) for reply in (left, right))  # type: ignore[return-value]
    if name == "query-blockstats":
        return tuple({stats.get("node-name", "") for stats in reply["return"]} for reply in (left, right))  # type: ignore[return-value]
    if name == "blockdev-snapshot-delete-internal-sync":
        for reply in (left, right):
            for time in ("date-sec", "date-nsec", "vm-clock-nsec", "vm-clock-sec"):
                reply["return"].pop(time, None)
    return left, right


def _jobs(jobs: Sequence[Message]) -> Any:
    kept = ("id", "type", "status", "error")
    return {job["id"]: {key: plain(job[key]) for key in kept if key in job} for job in jobs}


def _events(events: Sequence[Message], step: Step) -> Any:
    """Events by who they are about; pauses of drains are not told."""
    told: dict[str, list[Any]] = collections.defaultdict(list)
    for event in events:
        if event["event"].startswith("QUORUM_"):
            continue  # these tell in what pieces a job has read
        data = dict(event.get("data", {}))
        about = str(data.get("id") or data.get("device") or data.get("node-name") or "")
        data.pop("amount-exceeded", None)  # it tells in what pieces a job has written
        for progress in ("len", "offset", "speed"):
            if event["event"] != "BLOCK_JOB_COMPLETED" or "error" in data:
                data.pop(progress, None)
        told[about].append((event["event"], sorted(plain(data).items(), key=str)))
    return {about: kept for about, list_ in told.items() if (kept := _without_pauses(list_, grouped=bool(step.together(about))))}


def _without_pauses(list_: list[Any], *, grouped: bool) -> list[Any]:
    """
    Without what comes and goes in a drained section, which state a job ends in being compared with the jobs. Of
    one in a group that fails it is a matter of time, too, whether it has begun to wait for the others.
    """
    kept: list[Any] = []
    for name, data in list_:
        status = dict(data).get("status")
        if name == "JOB_STATUS_CHANGE" and status in ("paused", "standby", "running", "ready"):
            continue
        if name == "BLOCK_JOB_ERROR" and kept and kept[-1] == (name, data):
            continue  # how often one is told depends on the pieces, too
        if grouped and kept and status == "aborting" and dict(kept[-1][1]).get("status") == "waiting":
            kept.pop()
        kept.append((name, data))
    return kept


def _state(state: Message) -> Any:
    if any("desc" in answer for name, answer in state.items() if name != "bitmaps"):
        return plain(state)  # a query failed
    nodes = state["query-named-block-nodes"]
    labels = {node["node-name"]: _label(node) for node in nodes}
    return {
        "bitmaps": plain(state["bitmaps"]),
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
    told = ("drv", "file", "ro", "backing_file", "backing_file_depth", "encrypted", "detect_zeroes", "cache", "write_threshold")
    kept = {key: plain(node[key]) for key in told if key in node}
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


def _refused(steps: Sequence[Step], record: Record) -> set[str]:
    """The files that commands and jobs were to make which were refused, or failed."""
    found: set[str] = set()
    failed = {job["id"] for seen in record.steps for job in seen.jobs if "error" in job}
    for step, seen in zip(steps, record.steps):
        if isinstance(step.action, Command) and step.action.name == "blockdev-create" and step.action.arguments.get("job-id") in failed:
            options = step.action.arguments.get("options")
            found.add(str(options.get("filename")) if isinstance(options, dict) else "")
        if isinstance(step.action, Command) and "error" in seen.reply:
            actions = step.action.arguments.get("actions")
            for data in (step.action.arguments, *(action["data"] for action in (actions if isinstance(actions, list) else ()))):
                found |= {str(data[key]) for key in ("target", "snapshot-file") if key in data}
    return found


def _images(ours: Path, theirs: Path, refused: set[str], *, partial: bool, renamed: bool) -> str:
    """
    Images that do not hold the same. A backing file was `renamed`, so that a header may have another format for it,
    with which it cannot be opened.
    """
    names = {path.name for folder in (ours, theirs) for path in folder.iterdir() if path.is_file() and path.name != "stderr"}
    for name in sorted(names):
        left, right = ours / name, theirs / name
        if right.exists() and not left.exists() and name in refused:
            continue  # a failed command leaves what it has made; blockd's does not
        if left.exists() != right.exists():
            return f"images: {name} is only in {'blockd' if left.exists() else 'the rival'}'s folder"
        if _same_bytes(left, right):
            continue
        with left.open("rb") as file:
            kind = "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
        if kind == "qcow2":
            check = _qemu_img("check", "-q", "-f", kind, str(left))
            if check.returncode not in (0, 3) and not _NO_BACKING.search(check.stderr):
                return f"images: {name} is damaged: {check.stdout}{check.stderr}"
        if partial:
            continue
        done = _qemu_img("compare", "-f", kind, "-F", kind, str(left), str(right))
        if done.returncode == 2 and renamed and kind == "qcow2":
            done = _qemu_img("compare", _alone(left), _alone(right))
        # What cannot be opened or read at all, for want of a backing file, cannot be compared with itself.
        if done.returncode != 0 and (done.returncode == 1 or _qemu_img("compare", "-f", kind, "-F", kind, str(right), str(right)).returncode == 0):
            return f"images: {name}: {done.stdout}{done.stderr}"
    return ""


def _alone(path: Path) -> str:
    """A name for an image without its backing file."""
    return "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None})


def _same_bytes(left: Path, right: Path) -> bool:
    """Whether two files are known to be the same, as far as they are not so long that only a tool that knows holes can tell."""
    sizes = {path.stat().st_size for path in (left, right)}
    return len(sizes) == 1 and max(sizes) <= _READABLE and left.read_bytes() == right.read_bytes()


def _qemu_img(*arguments: str) -> subprocess.CompletedProcess[str]:
    """qemu-img, which may be lost in backing files that form a circle."""
    try:
        return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=20 * SCALE)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 2, "", "Could not open backing file: it takes too long")
