"""
The differences that are known and wanted, each with its reason. Every one is a row of docs/compatibility.md,
or of the kind that this file's comments say.
"""

from __future__ import annotations

import re
from typing import Any

from .step import Step


def wanted(step: Step, what: str, ours: Any, theirs: Any) -> bool:
    """Whether a difference is one of those."""
    if what == "jobs":
        return any(
            _create_size(ours.get(identity, {}).get("error", ""), job.get("error", "")) for identity, job in theirs.items()
        )
    return what == "reply" and any(rule(step, _text(ours), _text(theirs)) for rule in _RULES)


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
    return theirs == "Need a root block node"


def _copy_before_write_unused(step: Step, ours: str, theirs: str) -> bool:
    """A source that is its own target is refused when the filter is used, by the rival already under a parent."""
    return theirs.startswith("Permission conflict on node") and "as 'target' child) and unshared by" in theirs


def _create_size(ours: str, theirs: str) -> bool:
    """Of two mistakes blockd names the file's first, the rival the size's."""
    return theirs == "Image size must be a multiple of 512 bytes" and ours != ""


_RULES = (_resize_in_use, _concluded_job_holds_nodes, _copy_before_write_unused)
