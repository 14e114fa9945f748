"""
The differences that are known and wanted, each with its reason. Every one is a row of docs/compatibility.md,
or of the kind that this file's comments say. A rule holds in its exact situation only, so it looks at what
led there, too.
"""

from __future__ import annotations

from typing import Any

from . import known_replies, known_states
from .moment import Moment


def wanted(moment: Moment, what: str, ours: Any, theirs: Any) -> bool:
    """Whether a difference is one of those. The state after it is the same in both."""
    if isinstance(ours, set):
        return known_replies.stats_of_held_nodes(moment, ours, theirs)
    if what == "reply" and isinstance(ours, dict) and "guest" in ours:
        return known_replies.hung_up(moment, ours["guest"], theirs["guest"])
    if what == "reply":
        return _failed(ours) == _failed(theirs) and _reply(moment, ours, theirs)
    if what == "jobs":
        beside = known_states.create_beside_a_mirror(moment, ours, theirs) or known_states.create_in_a_held_node(moment, ours, theirs)
        return known_states.create_size(ours, theirs) or beside
    if what == "events":
        return known_states.refused_later(moment, ours, theirs) or known_states.refused_for_a_concluded_job(moment, ours, theirs)
    if known_states.rival_cannot_answer(theirs):
        return True
    if "nodes" not in ours or "nodes" not in theirs:
        return False
    ours = _followed(moment, ours, theirs)
    return bool(ours == theirs) or any(rule(moment, ours, theirs) for rule in known_states.WANTED)


def parts(moment: Moment, what: str, ours: Any, theirs: Any) -> bool:
    """Whether a difference is one of those, after which the rest of a sequence cannot be compared."""
    if what == "reply":
        if known_replies.lost_chardev(moment):
            return True
        if _failed(ours) != _failed(theirs):
            return _reply(moment, ours, theirs)
        return "guest" in ours and any(rule(moment, ours["guest"], theirs["guest"]) for rule in known_replies.GUESTS)
    if what == "state" and "nodes" in ours and "nodes" in theirs:
        ours = _followed(moment, ours, theirs)
    rules = {"jobs": known_states.JOBS, "events": known_states.EVENTS, "state": known_states.STATES}[what]
    return any(rule(moment, ours, theirs) for rule in rules)


def _followed(moment: Moment, ours: Any, theirs: Any) -> Any:
    """Our state, like theirs in what is to differ on the way."""
    for follow in known_states.FOLLOWED:
        ours = follow(moment, ours, theirs)
    return ours


def _reply(moment: Moment, ours: Any, theirs: Any) -> bool:
    return any(rule(moment, _text(ours), _text(theirs)) for rule in known_replies.RULES)


def _failed(reply: Any) -> bool:
    return isinstance(reply, dict) and "error" in reply


def _text(reply: Any) -> str:
    """An error's text, or nothing for success."""
    if isinstance(reply, dict) and "error" in reply:
        return str(reply["error"]["desc"])
    return ""
