"""Known differences of replies; see known.py."""

from __future__ import annotations

import re

from .moment import Moment, nodes, unstored
from .step import Command, GuestClear, GuestRead, GuestWrite

def _resize_in_use(moment: Moment, ours: str, theirs: str) -> bool:
    """The old text is a mistake, mended in 9.0."""
    return theirs == "Device '(null)' is in use" and re.fullmatch(r"Node '.*' is busy: .*", ours) is not None


def _concluded_job_holds_nodes(moment: Moment, ours: str, theirs: str) -> bool:
    """
    The rival's stream or commit keeps its nodes until it is dismissed; blockd's gives them up when it ends, and may
    come to another mistake.
    """
    held = moment.held()
    if theirs in ("Device '(null)' is in use", "Need a root block node"):
        return bool(held)
    busy = re.fullmatch("Node '(.*)' is busy: block device is in use by block job: (stream|commit)", theirs)
    return busy is not None and busy[1] in held


def _copy_before_write_unused(moment: Moment, ours: str, theirs: str) -> bool:
    """A source that is its own target is refused when the filter is used, by the rival already under a parent."""
    return (
        "Permission conflict on node" in theirs
        and "as 'target' child) and unshared by" in theirs
        or ours.startswith("Permission conflict on node")
        and ours.endswith("as 'file' child).")
        and theirs == "Could not create node: " + ours
    )


def _busy_for_another_reason(moment: Moment, ours: str, theirs: str) -> bool:
    """Of several reasons why a node is in use each names the one it comes to first."""
    left, right = re.match("Node '.*' is busy: ", ours), re.match("Node '.*' is busy: ", theirs)
    return left is not None and right is not None and left[0] == right[0]


def _long_backing_format(moment: Moment, ours: str, theirs: str) -> bool:
    """A format's name that a header has no room for is refused, when the image is made; the rival writes its first 15 letters."""
    found = re.fullmatch("Could not assign backing file '.*' with format '(.*)': Invalid argument", ours)
    return found is not None and len(found[1]) > 15


def _conflict_of_another_edge(moment: Moment, ours: str, theirs: str) -> bool:
    """
    Of several users that conflict, or of two permissions, each names the one it comes to first; one of the users is
    the same, or a new job and its filter bring several, over a commit also on several nodes.
    """
    begin = "(?:Could not (?:create|replace) node: )?Permission conflict on node '([^']*)': "
    conflict = re.compile(begin + "permissions '.*' are both required by (.*) and unshared by (.*)\\.")
    left, right = conflict.fullmatch(ours), conflict.fullmatch(theirs)
    if left is None or right is None:
        return False
    same = bool(set(left.group(2, 3)) & set(right.group(2, 3)))
    new = any("job-id" in data for data in moment.asked())
    return left[1] == right[1] and (same or new) or new and bool(moment.jobs("commit"))


def _overlay_of_a_backup(moment: Moment, ours: str, theirs: str) -> bool:
    """What a backup reads gets no new backing file; the rival lets it, and the backup is of no point in time."""
    names = moment.names()
    begins = any(name.endswith("-backup") for name in names)
    later = "blockdev-snapshot" in names[:-1]  # what comes after it may be the rival's mistake
    return ours == "The overlay is already in use" and (begins or bool(moment.jobs("backup"))) and (
        theirs == "" or later or theirs.startswith(("The overlay ", "Filters cannot be used as overlays", "Making ", "Permission conflict on node "))
    )


def _backing_circle(moment: Moment, ours: str, theirs: str) -> bool:
    """A header that leads back to its own image; the rival runs into the lock of what is open already."""
    return re.search("Backing file '.*' creates an infinite loop", ours) is not None and theirs.endswith(
        ('Failed to get "write" lock', 'Failed to get shared "write" lock')
    )


def _second_writer(moment: Moment, ours: str, theirs: str) -> bool:
    """Who writes past a mirror that is to miss nothing is refused; the rival's mirror loses what is written."""
    text = "Permission conflict on node '.*': permissions '[^']*(write|resize)[^']*' are both required by .* and unshared by node '"
    return moment.exclusive_mirror() and re.search(text, ours) is not None


def _quorum_of_strangers(moment: Moment, ours: str, theirs: str) -> bool:
    """Of two mistakes blockd names the child's first that is not there or cannot be read, the rival the threshold's or another child's."""
    action = moment.steps[-1].action
    quorum = isinstance(action, Command) and action.arguments.get("driver") == "quorum"
    left = ours.startswith(("Cannot find device=", "Could not refresh total sector count", "Permission conflict"))
    return quorum and left and ("threshold" in theirs or theirs.startswith(("Permission conflict", "Failed to get ")))


def _overlay_of_a_sharer(moment: Moment, ours: str, theirs: str) -> bool:
    """Who uses a node with force-share shares all of it, but not an overlay that takes its place; the rival does not notice that."""
    forced = {arguments.get("node-name") for _, arguments in moment.actions() if arguments.get("force-share")}
    placed = any("overlay" in data and data.get("node") in forced for data in moment.asked())
    return placed and ours.startswith("Permission conflict on node") and theirs == ""


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
    """Of several mistakes blockd names the bottom first that is not in the chain, the rival that this is a filter, or the chain read-only."""
    return ours.startswith("Bottom node '") and theirs in ("Block node is read-only", ours.replace(" not found", " is a filter"))


def _read_only_or_in_use(moment: Moment, ours: str, theirs: str) -> bool:
    """Of two mistakes with a job's nodes, that its target is read-only and that users conflict, each names the one it comes to first."""
    with_target = any("target" in data for data in moment.asked())
    mistakes = sorted(text.removeprefix("Could not create node: ") for text in (ours, theirs))
    return with_target and mistakes[0] == "Block node is read-only" and mistakes[1].startswith("Permission conflict on node ")


def _top_over_a_filter(moment: Moment, ours: str, theirs: str) -> bool:
    """The new image of a drive-backup of the top gets what is below, also beneath a job's filter, whose name the rival cannot open."""
    return theirs in ("Parameter 'target' is missing", "Block node is read-only") and moment.top_over_a_filter()


def _another_driver(moment: Moment, ours: str, theirs: str) -> bool:
    """Of two mistakes in a node's new options blockd names the driver, the rival what the old driver cannot do without."""
    return ours == "Cannot change the option 'driver'" and re.fullmatch("Option '.*' cannot be reset to its default value", theirs) is not None


def _bitmap_without_access(moment: Moment, ours: str, theirs: str) -> bool:
    """A persistent bitmap in an image that is read-only, which the rival has yet to store; blockd has stored it, and may come to another mistake."""
    return theirs == "No write access" and unstored(moment.theirs[-2:-1])


def _bitmap_merely_stored(moment: Moment, ours: str, theirs: str) -> bool:
    """
    A persistent bitmap of an image that has become read-only can be merged into itself, until the rival has stored
    it on an occasion that opened the image for a moment.
    """
    if not _undone(moment, ours):
        return False
    opening = ("change-backing-file", "blockdev-reopen", "block-commit", "block-stream")  # refused or not
    occasions = any(isinstance(step.action, Command) and step.action.name in opening for step in moment.steps)
    text = "Bitmap '.*' is readonly and cannot be modified"
    return occasions and re.fullmatch(text, theirs) is not None and unstored(moment.theirs[-2:-1])


def _bitmap_left_read_only(moment: Moment, ours: str, theirs: str) -> bool:
    """
    A reopen to read-only that is refused leaves all as it was, so that blockd may come to another mistake; in the
    rival a persistent bitmap cannot be changed any more.
    """
    return moment.refused_read_only() and re.fullmatch("Bitmap '.*' is readonly and cannot be modified", theirs) is not None


def _undone(moment: Moment, ours: str) -> bool:
    """Whether blockd has done what the rival has refused, be it that a later action of the same transaction was refused."""
    return ours == "" or len(moment.names()) > 1


def _of_a_held_node(moment: Moment, ours: str, theirs: str) -> bool:
    """A node that only the rival still has, for a job that is over, or one whose image that holds."""
    if len(moment.steps) < 2 or not moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded") | moment.jobs("amend", "concluded"):
        return False
    left, right = ({node["node-name"]: node for node in nodes(seen)} for seen in (moment.ours[-2], moment.theirs[-2]))
    held = {name: node for name, node in right.items() if name not in left and not name.startswith("#")}
    named = any(f"'{name}'" in text for name in held for text in (ours, theirs))
    locked = re.search('Failed to get (shared )?"(write|consistent read)" lock$', theirs) is not None
    return named or locked and len(right) > len(left)


def _backup_of_a_mirrors_target(moment: Moment, ours: str, theirs: str) -> bool:
    """A backup does not read what a mirror is still to fill; the rival's does where a filter is in between."""
    text = "Permission conflict on node '.*': permissions 'consistent read' are both required by backup job '.*' .* and unshared by node '.*'.*"
    return theirs == "" and re.fullmatch(text, ours) is not None and bool(moment.jobs("mirror"))


def _threshold_cut_off(moment: Moment, ours: str, theirs: str) -> bool:
    """A threshold of more than 32 bits is one that is too large; the rival cuts it off first."""
    action = moment.steps[-1].action
    threshold = action.arguments.get("vote-threshold") if isinstance(action, Command) else 0
    return ours == "threshold may not exceed children count" and "threshold" in theirs and isinstance(threshold, int) and threshold >= 1 << 32


def stats_of_held_nodes(moment: Moment, ours: set[str], theirs: set[str]) -> bool:
    """What the rival's finished jobs hold has its statistics, too."""
    return ours < theirs and bool(moment.jobs("stream", "concluded") | moment.jobs("commit", "concluded") | moment.jobs("amend", "concluded"))


RULES = (
    _top_over_a_filter,
    _read_only_or_in_use,
    _another_driver,
    _threshold_cut_off,
    _backup_of_a_mirrors_target,
    _bottom_of_nothing,
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
    _overlay_of_a_sharer,
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


def lost_chardev(moment: Moment) -> bool:
    """A chardev-change that is refused leaves the character device as it was; in the rival it is gone, if nobody uses it."""
    action = moment.steps[-1].action
    if not isinstance(action, Command) or "chardev" not in action.name:
        return False
    lost = [
        step.action.arguments.get("id")
        for step, ours, theirs in zip(moment.steps, moment.ours, moment.theirs)
        if isinstance(step.action, Command)
        and step.action.name == "chardev-change"
        and all(str(seen.reply.get("error", {}).get("desc")).startswith("Failed to add chardev") for seen in (ours, theirs))
    ]
    return bool(lost) if action.name == "query-chardev" else action.arguments.get("id") in lost


# What guests get.


def hung_up(moment: Moment, ours: str, theirs: str) -> bool:
    """A guest's read that fails is told so; the rival hangs up on one that could have had the answer in pieces."""
    return isinstance(moment.steps[-1].action, GuestRead) and ours == "errno EIO" and theirs == "errno ENOTCONN"


def _write_beside_a_read_only_bitmap(moment: Moment, ours: str, theirs: str) -> bool:
    """As above: nor can what such a bitmap is to record be written."""
    done = isinstance(moment.steps[-1].action, (GuestWrite, GuestClear)) and ours in ("written", "cleared")
    return done and theirs == "errno EPERM" and moment.refused_read_only()


def _target_of_a_top(moment: Moment, ours: str, theirs: str) -> bool:
    """The target of a mirror of the top of an image without a backing file is like that image; the rival's is a mixture."""
    return isinstance(moment.steps[-1].action, GuestRead) and not theirs.startswith("errno") and not ours.startswith("errno") and moment.top_of_nothing()


GUESTS = (_write_beside_a_read_only_bitmap, _target_of_a_top)
