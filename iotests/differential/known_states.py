"""Known differences of events, jobs and states; see known.py."""

from __future__ import annotations

import collections
import re
from typing import Any

from .moment import FILTERS, Moment, ends, nodes, reached, unstored, without_permissions, without_writers
from .step import GuestClear, Message
from .world import KiB, MiB


def create_size(ours: Any, theirs: Any) -> bool:
    """Of two mistakes in blockdev-create blockd names the file's first, the rival the sizes'."""
    sizes = ("Image size must be a multiple of", "Cluster size must be a power of two")
    return all(_error(theirs, name).startswith(sizes) and _error(ours, name) for name in _differing(ours, theirs))


def create_beside_a_mirror(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Of two mistakes in blockdev-create blockd names first that a mirror is to miss nothing, the rival that the node is read-only."""
    return moment.exclusive_mirror() and all(
        _error(ours, name).startswith("Permission conflict on node") and _error(theirs, name) == "Block node is read-only"
        for name in _differing(ours, theirs)
    )


def _differing(ours: Any, theirs: Any) -> set[str]:
    """The jobs that differ."""
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


def _error(jobs: Any, name: str) -> str:
    """What a job failed with, or nothing."""
    return str(jobs.get(name, {}).get("error", ""))


def create_in_a_held_node(moment: Moment, ours: Any, theirs: Any) -> bool:
    """blockdev-create in a node that only the rival still has, for a job that is over, and that it may not change."""
    held = moment.held()

    def is_held(name: str) -> bool:
        gone = re.match("Cannot find device='(.*?)'", _error(ours, name))
        return gone is not None and gone[1] in held and _error(theirs, name).startswith(f"Permission conflict on node '{gone[1]}'")

    return all(map(is_held, _differing(ours, theirs)))


def refused_later(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    A copy-before-write filter that nobody uses yet lets others write below it, in the rival only one that nothing is
    above. So a job over one, or one that makes its own, is there already when it is refused for that.
    """
    refused = [str(seen.reply.get("error", {}).get("desc")) for seen in (moment.ours[-1], moment.theirs[-1])]
    filtered = any(name.endswith("-backup") for name in moment.names()) or any(node["drv"] == "copy-before-write" for node in nodes(moment.theirs[-1]))
    jobs = {about for about in ours if about not in theirs}
    return (
        filtered
        and all(re.match("(Could not (create|replace) node: )?Permission conflict on node ", text) for text in refused)
        and {about: list_ for about, list_ in ours.items() if about not in jobs} == theirs
        and all(ours[job] == [("JOB_STATUS_CHANGE", [("id", job), ("status", status)]) for status in ("created", "null")] for job in jobs)
    )


def refused_for_a_concluded_job(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    A stream or commit that is concluded holds its nodes in the rival, so that an earlier action of a transaction is
    refused there; in blockd jobs of that action are created, and undone with the rest.
    """
    undone = {about: list_ for about, list_ in ours.items() if about not in theirs}
    refused = "error" in moment.ours[-1].reply and "error" in moment.theirs[-1].reply
    busy = re.search("block device is in use by block job: (stream|commit)$", str(moment.theirs[-1].reply.get("error", {}).get("desc")))
    return (
        refused
        and busy is not None
        and bool(moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded"))
        and {about: list_ for about, list_ in ours.items() if about not in undone} == theirs
        and all(event == "JOB_STATUS_CHANGE" and ("status", "running") not in data for list_ in undone.values() for event, data in list_)
    )


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


def _threshold_of_a_discard(moment: Moment, ours: Any, theirs: Any) -> bool:
    """What of a guest's discard is less than a cluster is not done; the rival tells that it is past the threshold all the same."""
    action = moment.steps[-1].action
    return isinstance(action, GuestClear) and action.trim and _without_thresholds(ours) == _without_thresholds(theirs)


def _without_thresholds(events: Any) -> Any:
    kept = {about: [event for event in list_ if event[0] != "BLOCK_WRITE_THRESHOLD"] for about, list_ in events.items()}
    return {about: list_ for about, list_ in kept.items() if list_}


def rival_cannot_answer(theirs: Any) -> bool:
    """The rival reads a list of bitmaps anew for each query, and cannot where an image lies in another that changes."""
    answer = theirs.get("query-named-block-nodes") if isinstance(theirs, dict) else None
    return isinstance(answer, dict) and answer.get("desc") == "Bitmap '' doesn't satisfy the constraints"


def _exclusive_mirror(moment: Moment, ours: Any, theirs: Any) -> Any:
    """Below a mirror that is to miss nothing nobody else may write, so what it passes on shares less."""
    left, right = ours["graph"] - theirs["graph"], theirs["graph"] - ours["graph"]
    if moment.exclusive_mirror() and sorted(left.elements()) == sorted(map(without_writers, right.elements())):
        return {**ours, "graph": theirs["graph"]}
    return ours


def _cancelled_commit(moment: Moment, ours: Any, theirs: Any) -> bool:
    """The base of a cancelled commit of the active layer is read-only again in blockd."""
    cancelled = any(
        event["event"] in ("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED") and event["data"]["type"] == "commit"
        for event in moment.theirs[-1].events
    )
    if not cancelled or "nodes" not in ours or "nodes" not in theirs:
        return False
    return any(node["ro"] and not theirs["nodes"].get(name, node)["ro"] for name, node in ours["nodes"].items())


def _nodes_of_a_concluded_job(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    The rival's stream, commit or amendment keeps its nodes until it is dismissed, so what has been taken out of
    the chain or deleted lives on. Nothing else may differ, but how other nodes' files are shared.
    """
    over = {f"(block-job {job})" for job in moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded")}
    edges = collections.Counter(map(without_permissions, theirs["graph"].elements()))
    held = {moment.started_with(job, "node-name") for job in moment.jobs("amend", "concluded")}
    held = reached(held | {ends(edge)[1] for edge in edges if ends(edge)[0] in over}, edges)
    extra = {name: node for name, node in theirs["nodes"].items() if name not in ours["nodes"]}
    if not extra or any(re.sub(r" \(\d+\)$", "", name) not in held for name in extra):
        return False
    left, right = collections.Counter(map(without_permissions, ours["graph"].elements())), edges
    return (
        all(theirs["nodes"].get(name) == node for name, node in ours["nodes"].items())
        and ours["bitmaps"].items() <= theirs["bitmaps"].items()
        and all(key.rpartition(":")[0] in extra for key in theirs["bitmaps"].keys() - ours["bitmaps"].keys())
        and all(ours[part] == theirs[part] for part in ("exports", "block jobs"))
        and not left - right
        and all(ends(edge)[0] in over | held for edge in right - left)
    )


def _differ_in_bitmaps_of(moment: Moment, names: set[Any], ours: Any, theirs: Any) -> bool:
    """Whether nothing but the bitmaps of these nodes differs, and of those to which jobs and merges took it on."""
    names = set(names)
    for name, arguments in moment.actions():
        if name == "block-dirty-bitmap-merge":
            sources = {source["node"] for source in arguments["bitmaps"] if isinstance(source, dict)}
            names |= {arguments["node"]} if names & sources else set()
        elif arguments.get("bitmap") and arguments.get("device") in names:
            names |= {arguments["target"]} if "target" in arguments else set()
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
    disks = {str(arguments["options"].get("file")) for name, arguments in moment.actions() if name == "blockdev-create"}
    disks = reached(disks, collections.Counter(map(without_permissions, theirs["graph"].elements())))
    return _differ_in_bitmaps_of(moment, disks, ours, theirs)


def _zeroes_over_a_target(moment: Moment, ours: Any, theirs: Any) -> bool:
    """The rival writes zeroes over the whole of a mirror's target first, blockd where it has anything else."""
    targets = {
        arguments["node-name"] if name == "drive-mirror" else arguments["target"]
        for name, arguments in moment.actions()
        if name == "blockdev-mirror" or name == "drive-mirror" and "node-name" in arguments
    }
    targets = reached(targets, collections.Counter(map(without_permissions, theirs["graph"].elements())))
    return _differ_in_bitmaps_of(moment, targets, ours, theirs) and all(
        _dirty(ours["nodes"][name]) <= _dirty(theirs["nodes"][name]) for name in targets & set(ours["nodes"])
    )


def _copied_through_a_filter(moment: Moment, ours: Any, theirs: Any) -> bool:
    """What a stream copies into an image by way of a filter over it counts as changed in the rival; no guest sees a change."""
    edges = collections.Counter(map(without_permissions, theirs["graph"].elements()))
    filters = {node["node-name"] for node in nodes(moment.theirs[-1]) if node["drv"] in FILTERS}
    streamed = {str(arguments["device"]) for name, arguments in moment.actions() if name == "block-stream"} & filters
    below = reached(streamed, edges) - streamed
    return _differ_in_bitmaps_of(moment, below, ours, theirs) and all(
        _dirty(ours["nodes"][name]) <= _dirty(theirs["nodes"][name]) for name in below & set(ours["nodes"])
    )


def _ends_of_a_discard(moment: Moment, ours: Any, theirs: Any) -> bool:
    """What of a guest's discard is less than a cluster is not done; the rival's bitmaps count it all the same."""
    trims = [step.action for step in moment.steps if isinstance(step.action, GuestClear) and step.action.trim]
    ends = sum((end % (64 * KiB) > 0) for trim in trims for end in (trim.offset, trim.offset + trim.length))
    names = {name for name, node in theirs["nodes"].items() if node["bitmaps"]} & set(ours["nodes"])
    missed = {name: _dirty(theirs["nodes"][name]) - _dirty(ours["nodes"][name]) for name in names}
    counted = (int(size) for name in names for bitmap in theirs["nodes"][name]["bitmaps"] for size in re.findall(r"\('granularity', (\d+)\)", bitmap))
    return (
        ends > 0
        and all(size >= 0 for size in missed.values())
        and sum(missed.values()) <= sum(ends * max(size, 64 * KiB) for size in counted)
        and _differ_in_bitmaps_of(moment, names, ours, theirs)
    )


def _filter_over_a_resized(moment: Moment, ours: Any, theirs: Any) -> bool:
    """The bitmaps of a filter follow when what is below it is resized; the rival's filter does not notice."""
    resized = {str(arguments["node-name"]) for name, arguments in moment.actions() if name == "block_resize"}
    edges = collections.Counter(map(without_permissions, theirs["graph"].elements()))
    names = {name for name, node in ours["nodes"].items() if node["drv"] in FILTERS and resized & (reached({name}, edges) - {name})}
    return _differ_in_bitmaps_of(moment, names, ours, theirs)


def _dirty(node: Message) -> int:
    """How much all bitmaps of a node cover, in bytes."""
    return sum(int(count) for bitmap in node["bitmaps"] for count in re.findall(r"\('count', (\d+)\)", bitmap))


def _flushes_inherited(moment: Moment, ours: Any, theirs: Any) -> Any:
    """What nodes below have inherited stays in the rival when one is reopened without it; blockd's follow."""
    if not any(name == "blockdev-reopen" for name, _ in moment.actions()):
        return ours
    changed = {
        name: {**node, "cache": {**node["cache"], "no-flush": True}} if theirs["nodes"].get(name, node)["cache"]["no-flush"] else node
        for name, node in ours["nodes"].items()
    }
    return {**ours, "nodes": changed}


def _idle_copy_before_write(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Below a copy-before-write others may write as long as nothing is done above it; in the rival, as long as nothing is above it."""
    if any(ours[part] != theirs[part] for part in ("nodes", "exports", "block jobs", "bitmaps")):
        return False
    left, right = ours["graph"] - theirs["graph"], theirs["graph"] - ours["graph"]
    above = {ends(without_permissions(edge))[0] for edge in left}
    filters = {name for name, node in ours["nodes"].items() if node["drv"] == "copy-before-write"}
    return bool(above & filters) and sorted(map(without_writers, left.elements())) == sorted(right.elements())


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


def _share_as_before(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    Whoever uses a node with force-share shares all of it. When a job's filter or a snapshot's overlay comes in
    between, that is not so any more; the rival only notices when it looks at that user again.
    """
    if any(ours[part] != theirs[part] for part in ("nodes", "exports", "block jobs", "bitmaps")):
        return False
    forced = {arguments.get("node-name") for _, arguments in moment.actions() if arguments.get("force-share")}
    left, right = ours["graph"] - theirs["graph"], theirs["graph"] - ours["graph"]
    edges = collections.Counter(map(without_permissions, theirs["graph"].elements()))
    filters = {ends(without_permissions(edge))[1] for edge in right}
    overlays = {arguments[key] for _, arguments in moment.now() for key in ("overlay", "snapshot-node-name") if key in arguments}
    between = {name for name in filters if name in overlays or name.startswith(("#copy-before-write", "#mirror_top", "#commit_top"))}
    return (
        bool(filters)
        and all(name in between and forced & reached({name}, edges) for name in filters)
        and sorted(left.elements()) == sorted(map(without_writers, right.elements()))
    )


def _bitmaps_of_a_sharer(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Bitmaps are in their image at once; in the rival another node of that image does not find them before they are stored."""
    if "nodes" not in ours or "nodes" not in theirs:
        return False
    sharers = {name for _, arguments in moment.actions() for name in _sharers(arguments)}
    late = reached(sharers, collections.Counter(map(without_permissions, theirs["graph"].elements())))
    marked = {name: node["file"] for name, node in ours["nodes"].items() if any("('persistent', True)" in bitmap for bitmap in node["bitmaps"])}
    late = {name for name in late & ours["nodes"].keys() if ours["nodes"][name]["file"] in (file for other, file in marked.items() if other != name)}
    return bool(late) and _differ_in_bitmaps_of(moment, late, ours, theirs)


def _sharers(options: Message) -> set[str]:
    """The nodes that options give force-share to; what is below has it from these."""
    own = {str(options["node-name"])} if options.get("force-share") and "node-name" in options else set()
    return own.union(*(_sharers(options[child]) for child in ("backing", "file") if isinstance(options.get(child), dict)))


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
    edges = [collections.Counter(map(without_permissions, state["graph"].elements())) for state in (ours, theirs)]
    lenient = {name for name, node in theirs["nodes"].items() if not node["ro"] and ours["nodes"].get(name, node)["ro"]}
    below = reached(lenient, edges[1])
    return unstored(moment.theirs[-1:], below) and bool(lenient) and left == right and edges[0] == edges[1]


def _format_of_a_changed_name(moment: Moment, ours: Any, theirs: Any) -> Any:
    """change-backing-file keeps the format of the backing file in the header; the rival writes that of the image itself."""
    changed = {arguments["image-node-name"] for name, arguments in moment.actions() if name == "change-backing-file"} & ours["nodes"].keys()
    key = "image.backing-filename-format"
    told = {name: ours["nodes"][name] for name in changed if key in ours["nodes"][name]}
    followed = {name: {**node, key: theirs["nodes"].get(name, {}).get(key)} for name, node in told.items()}
    return {**ours, "nodes": {**ours["nodes"], **followed}}


def _top_over_a_filter(moment: Moment, ours: Any, theirs: Any) -> bool:
    """The new image of a drive-mirror of the top gets the name of the image that is below, the rival's that of a filter over that."""
    if not moment.top_over_a_filter() or "nodes" not in ours or "nodes" not in theirs:
        return False
    key = "image.backing-filename-format"
    return any(theirs["nodes"].get(name, {}).get(key) in FILTERS and node.get(key) not in FILTERS for name, node in ours["nodes"].items())


def _target_of_a_slow_job(moment: Moment, ours: Any, theirs: Any) -> bool:
    """How far a slow job comes before it waits is a matter of the pieces it copies, which the bitmaps of its target tell."""
    done = {
        event["data"]["device"]
        for seen in moment.theirs
        for event in seen.events
        if event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"] and event["data"]["len"] == event["data"]["offset"]
    }
    slow = {arguments.get("target") for _, arguments in moment.actions() if arguments.get("speed") and arguments.get("job-id") not in done}
    edges = collections.Counter(map(without_permissions, theirs["graph"].elements()))
    return _differ_in_bitmaps_of(moment, reached({str(name) for name in slow}, edges), ours, theirs)


def _traces_of_a_refused_command(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    A command that is refused leaves all as it was; the rival's does not always: a stream's users stay, a transaction
    has put one image over another, an internal snapshot is forgotten, a bitmap counts what was never copied.
    """
    refused = "error" in moment.ours[-1].reply and "error" in moment.theirs[-1].reply
    return refused and ours in [moment.state(seen.state) for seen in moment.ours[-2:-1]]


def _compressed_again(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Compressed data can be written where there is data already; the rival's job fails, or stops."""
    return any(
        (event["event"] == "BLOCK_JOB_COMPLETED" and event["data"].get("error") == "Input/output error")
        or (event["event"] == "BLOCK_JOB_ERROR" and event["data"]["operation"] == "write")
        for event in moment.theirs[-1].events
        if "device" in event.get("data", {}) and moment.started_with(event["data"]["device"], "compress") is True
    )


def _target_of_a_top(moment: Moment, ours: Any, theirs: Any) -> bool:
    """What a mirror of the top of an image without a backing file does to its target, as its bitmaps tell, and those of what is copied from there."""
    if "nodes" not in ours or "nodes" not in theirs or not moment.top_of_nothing():
        return False
    return _differ_in_bitmaps_of(moment, {name for name, node in ours["nodes"].items() if node["bitmaps"]}, ours, theirs)


def _top_to_what_takes_nothing(moment: Moment, ours: Any, theirs: Any) -> bool:
    """As above: where the target takes no writes, blockd's mirror fails, and the rival's has nothing to write."""
    failed = {name for name, job in ours.items() if job["type"] == "mirror" and job.get("error") == "Operation not supported"}
    return moment.top_of_nothing() and any(theirs.get(name, {}).get("status") == "ready" for name in failed)


def _huge_buffer(moment: Moment, ours: Any, theirs: Any) -> bool:
    """A mirror's buffer is at most what all jobs may have; the rival's mirror needs as much as it is told, and fails."""
    return any(
        event["event"] == "BLOCK_JOB_COMPLETED"
        and event["data"].get("error") == "Cannot allocate memory"
        and moment.started_with(event["data"]["device"], "buf-size") > 1 << 30
        for event in moment.theirs[-1].events
    )


def _image_past_the_end(moment: Moment, ours: Any, theirs: Any) -> bool:
    """An image that is to be made in a disk must fit into it; the rival writes past the end of the disk, where nobody can read it again."""
    text = re.compile("Could not write (qcow2 header|refcount table): Input/output error")
    late = {None, "Image is not in qcow2 format"}  # a null device has forgotten the header, too
    created = {
        name
        for name, job in ours.items()
        if job["type"] == "create" and text.fullmatch(job.get("error", "")) and theirs.get(name, job).get("error") in late
    }
    options = [moment.started_with(name, "options") or {} for name in created]
    sizes = {node["node-name"]: node["image"]["virtual-size"] for node in nodes(moment.ours[-1])}
    return bool(options) and all(sizes.get(str(one.get("file")), MiB) < MiB for one in options)


def _held_by_a_pending_mirror(moment: Moment, ours: Any, theirs: Any) -> bool:
    """Jobs and guests go on while a mirror waits to be finalized; the rival's wait with it."""
    waiting = {name for name, job in theirs.items() if job["status"] in ("paused", "created", "running") and ours.get(name) != job}
    pending = moment.jobs("mirror", "pending") | moment.jobs("commit", "pending")
    return bool(waiting and pending) and {name: job for name, job in ours.items() if name not in waiting} == {
        name: job for name, job in theirs.items() if name not in waiting
    }


def _job_beside_a_read_only_bitmap(moment: Moment, ours: Any, theirs: Any) -> bool:
    """A reopen to read-only that was refused; in the rival nothing can be written then where a persistent bitmap is."""
    return moment.refused_read_only() and any(
        event["event"] == "BLOCK_JOB_COMPLETED" and event["data"].get("error") == "Operation not permitted" for event in moment.theirs[-1].events
    )


def _through_raw(moment: Moment, device: str) -> bool:
    """Whether there is a copy-before-write or raw node in what a device shows."""
    before = moment.theirs[-2] if len(moment.theirs) > 1 else moment.theirs[-1]
    graph = moment.state(before.state).get("graph", collections.Counter())
    below = reached({device}, collections.Counter(map(without_permissions, graph.elements())))
    return any(node["node-name"] in below and node["drv"] in ("copy-before-write", "raw") for node in nodes(before))


def _length_after_zeroes(moment: Moment, ours: Any, theirs: Any) -> bool:
    """
    A mirror of what was a mirror's target, over which the rival has written zeroes: it has more to copy. Or any job
    on the target of a mirror of the top of an image without a backing file, over which blockd has. Or a mirror
    through a copy-before-write or raw node, which leaves out in the rival what backing files hold.
    """
    mirrors = [arguments for name, arguments in moment.actions() if name in ("blockdev-mirror", "drive-mirror")]
    targets = {arguments.get("node-name", arguments["target"]) for arguments in mirrors}
    readers = [arguments for _, arguments in moment.actions() if "job-id" in arguments] if moment.top_of_nothing() else mirrors
    again = {arguments["job-id"] for arguments in readers if arguments.get("device") in targets}
    again |= {arguments["job-id"] for arguments in mirrors if _through_raw(moment, arguments["device"])}

    def without_length(events: Any) -> Any:
        return {
            about: [(event, [pair for pair in data if pair[0] not in ("len", "offset")]) for event, data in list_] if about in again else list_
            for about, list_ in events.items()
        }

    return bool(again) and bool(without_length(ours) == without_length(theirs))


# What follows the rival where the two differ as they are to; what is left may differ as one of those that come next.
FOLLOWED = (_exclusive_mirror, _flushes_inherited, _format_of_a_changed_name)

# After these both are the same again.
WANTED = (
    _share_as_before,
    _idle_copy_before_write,
    _nodes_of_a_concluded_job,
    _tables_within_a_disk,
    _zeroes_over_a_target,
    _copied_through_a_filter,
    _ends_of_a_discard,
    _filter_over_a_resized,
    _target_of_a_slow_job,
)

# After these the rest cannot be compared.
JOBS = (_compressed_again, _top_to_what_takes_nothing, _image_past_the_end, _huge_buffer, _held_by_a_pending_mirror, _job_beside_a_read_only_bitmap)
EVENTS = (
    _copied_up,
    _threshold_of_a_discard,
    _status_of_a_source,
    _compressed_again,
    _length_after_zeroes,
    _job_beside_a_read_only_bitmap,
)
STATES = (
    _cancelled_commit,
    _top_over_a_filter,
    _traces_of_a_refused_command,
    _bitmap_below_a_snapshot,
    _bitmaps_of_a_sharer,
    _target_of_a_top,
)
