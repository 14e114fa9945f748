"""Sends a sequence to one daemon, and records all that can be seen."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import select
import socket
import subprocess
from pathlib import Path
from typing import Any, Mapping, Sequence

from iotests.harness.daemon import environment
from iotests.harness.deadline import SCALE, Deadline
from iotests.harness.guest import Guest
from iotests.harness.qmp import ConnectionClosed, QMPClient

from .step import Command, GuestClear, GuestRead, GuestWrite, Message, Step, Wire

# How long one step may take, until nothing moves any more.
STEP_SECONDS = 20.0

# How often a job is seen in the same pause until it is believed, though it is not known who has paused it.
PATIENCE = 100

_NODES: tuple[str, Message | None] = ("query-named-block-nodes", {"flat": True})
_BLOCK_JOBS: tuple[str, Message | None] = ("query-block-jobs", None)


@dataclasses.dataclass
class Seen:
    """What one step has led to."""

    reply: Message
    events: list[Message]
    jobs: list[Message]
    state: Message  # nodes, graph, exports, block jobs, bitmaps' hashes


@dataclasses.dataclass
class Record:
    """What a whole sequence has led to."""

    steps: list[Seen]
    ending: str  # "" or how the daemon ended badly
    crashed: bool  # it ended by itself, or hung after it had damaged an image
    hung: bool  # it did not answer, or a job never came to rest
    folder: Path
    hello: Message  # the answer before negotiation


class Run:
    """A daemon in a folder of its own; all names in commands are relative to it."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self.paused: set[str] = set()  # the jobs that the user has paused
        ours, theirs = socket.socketpair()
        with theirs, open(folder / "stderr", "wb") as stderr:
            self.process = subprocess.Popen(
                [program, "--chardev", f"socket,id=m,fd={theirs.fileno()}", "--monitor", "m"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
                pass_fds=[theirs.fileno()],
            )
        self.qmp = QMPClient(ours)
        self.qmp.read_greeting()
        self.hello = self.qmp.exchange(b'{"execute": "query-version"}')
        self.qmp.negotiate()

    def follow(self, steps: Sequence[Step]) -> Record:
        """Everything in turn, until the end of the daemon."""
        record = Record([], "", False, False, self.folder, self.hello)
        try:
            for step in steps:
                reply = self.act(step)
                self.await_removal(step, reply)
                jobs = self.settle(step, reply)
                state = self.look(jobs)
                record.steps.append(Seen(reply, self.qmp.take_events(), jobs, state))
            self.qmp.execute("quit", seconds=STEP_SECONDS)
            self.process.wait(STEP_SECONDS * SCALE)
        except (ConnectionClosed, AssertionError, OSError, subprocess.TimeoutExpired) as error:
            record.ending = f"{type(error).__name__}: {error}"
            # Who is about to die has hung up already.
            with contextlib.suppress(subprocess.TimeoutExpired):
                record.crashed = isinstance(error, (ConnectionClosed, OSError)) and self.process.wait(STEP_SECONDS) != 0
            record.hung = isinstance(error, (AssertionError, subprocess.TimeoutExpired)) and not record.crashed
            self.process.kill()
        except BaseException:
            self.process.kill()  # what is wrong is in here, and to be shown
            raise
        finally:
            self.qmp.close()
            status = self.process.wait()
        if status != 0 and not record.ending:
            record.ending, record.crashed = f"exit status {status}", True
        if record.ending:
            said = (self.folder / "stderr").read_text(errors="replace")[-4000:]
            record.ending += "\n" + said
            record.crashed = record.crashed or "Marking image as corrupt" in said
        return record

    def act(self, step: Step) -> Message:
        """One action; what came of it, in the form of a reply."""
        action = step.action
        if isinstance(action, Command):
            return self.qmp.reply(self.qmp.send(action.name, action.arguments), STEP_SECONDS)
        if isinstance(action, Wire):
            return self.qmp.exchange(action.words.encode() + b"\n", STEP_SECONDS)
        try:
            guest = self.guest(action.export, structured=not getattr(action, "in_one_piece", False))
        except Exception as error:
            if type(error).__name__ != "Error":  # libnbd's
                raise
            return {"guest": "cannot connect"}
        try:
            if isinstance(action, GuestWrite):
                guest.write(action.offset, bytes([action.value]) * action.length)
                return {"guest": "written"}
            if isinstance(action, GuestClear):
                (guest.handle.trim if action.trim else guest.handle.zero)(action.length, action.offset)
                return {"guest": "cleared"}
            assert isinstance(action, GuestRead)
            return {"guest": _runs(guest.read(action.offset, action.length))}
        except Exception as error:
            if type(error).__name__ != "Error":
                raise
            return {"guest": f"errno {getattr(error, 'errno', None)}"}
        finally:
            # The rival has hung up on a guest whose read has failed.
            if guest.handle.aio_is_ready():
                guest.close()

    def guest(self, export: str, *, structured: bool) -> Guest:
        """A guest; the socket's name must be short, and is relative to a folder that is not ours."""
        return Guest(os.path.join(self.folder, "nbd.sock"), export, prepare=None if structured else _ask_for_whole_replies)

    def await_removal(self, step: Step, reply: Message) -> None:
        """Waits until an export that is to go has gone: a guest's connection may have a moment left."""
        action = step.action
        if not isinstance(action, Command) or action.name not in ("block-export-del", "nbd-server-remove") or "return" not in reply:
            return
        gone = action.arguments.get("id", action.arguments.get("name"))
        deadline = Deadline(STEP_SECONDS, doing=f"an export to go after {step}")
        while any(export["id"] == gone for export in self.qmp.execute("query-block-exports")):
            select.select([self.qmp.fileno()], [], [], min(0.01, deadline.remaining()))

    def settle(self, step: Step, reply: Message) -> list[Message]:
        """Waits until no job moves by itself; the jobs then."""
        deadline = Deadline(STEP_SECONDS, doing=f"jobs to settle after {step}")
        leaving, left = _told_to_end(step, reply)
        self.note_pause(step, reply)
        before: list[Message] = []
        unchanged = 0
        if not self.qmp.execute("query-jobs"):
            return []
        while True:
            # In this order: what is no longer dirty is in the lengths that are looked at next, until it is copied.
            nodes, jobs, block_jobs = self.ask((_NODES, ("query-jobs", None), _BLOCK_JOBS))
            dirty, details = _to_copy(nodes), {job["device"]: job for job in block_jobs}
            states = {job["id"]: job["status"] for job in jobs}
            # Of one that stays behind nothing is known but that.
            behind = any(job["type"] in ("mirror", "commit") and job["status"] in ("running", "paused", "standby") for job in jobs)
            copied = behind or not dirty or "ready" not in states.values()
            unchanged = unchanged + 1 if jobs == before else 0
            held = frozenset(states if unchanged > PATIENCE else self.paused)
            rest = all(_rests(job, step, states, details, leaving, left, held) for job in jobs)
            if rest and copied and (not step.slow | step.endless or jobs == before):
                return list(jobs)
            before = jobs
            select.select([self.qmp.fileno()], [], [], min(0.01, deadline.remaining()))

    def note_pause(self, step: Step, reply: Message) -> None:
        """Keeps track of the jobs that the user has paused; what a drain has paused comes back by itself."""
        if not isinstance(step.action, Command) or "return" not in reply:
            return
        identity = str(step.action.arguments.get("device", step.action.arguments.get("id")))
        if step.action.name in ("block-job-pause", "job-pause"):
            self.paused.add(identity)
        elif step.action.name in ("block-job-resume", "job-resume", "block-job-cancel", "job-cancel"):
            self.paused.discard(identity)

    def ask(self, queries: Sequence[tuple[str, Message | None]]) -> list[Any]:
        """What queries that are sent at once give, or the members of their errors; the rival cannot always answer."""
        pending = [self.qmp.send(name, arguments) for name, arguments in queries]
        replies = [self.qmp.reply(one, STEP_SECONDS) for one in pending]
        return [reply["error"] if "error" in reply else reply["return"] for reply in replies]

    def look(self, jobs: Sequence[Message]) -> Message:
        """What is there, beside these jobs; without any nobody is asked for more about them."""
        queries = [_NODES, ("x-debug-query-block-graph", None), ("query-block-exports", None)]
        if jobs:
            queries.append(_BLOCK_JOBS)
        state: dict[str, Any] = {_BLOCK_JOBS[0]: []}
        state.update(zip((name for name, _ in queries), self.ask(queries)))
        # A failed query is no list of nodes, but an error's members.
        nodes = state[_NODES[0]] if isinstance(state[_NODES[0]], list) else []
        named = [(node["node-name"], bitmap["name"]) for node in nodes for bitmap in node.get("dirty-bitmaps", []) if bitmap.get("name")]
        hashes = self.ask([("x-debug-block-dirty-bitmap-sha256", {"node": node, "name": name}) for node, name in named])
        state["bitmaps"] = {f"{node}:{name}": answer for (node, name), answer in zip(named, hashes)}
        return state


def _ask_for_whole_replies(handle: Any) -> None:
    handle.set_request_structured_replies(False)


def _to_copy(nodes: Any) -> bool:
    """Whether the bitmap of a mirror, which has no name, says that there is something to copy."""
    if not isinstance(nodes, list):
        return False
    bitmaps = (bitmap for node in nodes for bitmap in node.get("dirty-bitmaps", []))
    return any("name" not in bitmap and bitmap["recording"] and bitmap["count"] > 0 for bitmap in bitmaps)


def _runs(data: bytes) -> str:
    """Bytes, told by how often each comes in a row."""
    return " ".join(f"{len(run[0])}x{run[0][0]:02x}" for run in re.finditer(rb"(.)\1*", data, re.DOTALL))


def _told_to_end(step: Step, reply: Message) -> tuple[str, frozenset[str]]:
    """The job that does not stay ready after a step, or nothing; and those that do not stay pending."""
    if not isinstance(step.action, Command) or "return" not in reply:
        return "", frozenset()
    name, arguments = step.action.name, step.action.arguments
    identity = str(arguments.get("device", arguments.get("id")))
    if name in ("job-finalize", "block-job-finalize"):
        return "", frozenset({identity, *step.together(identity)})
    if name not in ("block-job-complete", "block-job-cancel", "job-complete", "job-cancel"):
        return "", frozenset()
    hard = name == "job-cancel" or arguments.get("force") is True
    left = frozenset({identity, *step.together(identity)}) if hard else frozenset[str]()
    # What a guest writes while it is slow keeps it there.
    return "" if identity in step.slow else identity, left


def _rests(
    job: Message,
    step: Step,
    states: Mapping[str, str],
    details: Mapping[str, Message],
    leaving: str,
    left: frozenset[str],
    held: frozenset[str],
) -> bool:
    """
    Whether a job is where it stays. The states are those of all jobs, the details come from query-block-jobs a
    moment later. One that is `leaving` does not stay ready, those that have `left` not pending; paused stays what
    is `held` so, or an error has stopped.
    """
    identity, status = job["id"], job["status"]
    if job["type"] in ("create", "amend"):
        return bool(status == "concluded")
    if identity not in details or details[identity]["status"] != status:
        return False
    detail, others = details[identity], step.together(identity) & set(states)
    if status == "running":
        if identity in step.paused or detail["busy"]:
            return False
        return identity in step.endless or (identity in step.slow and bool(job["current-progress"] > 0))
    if status == "waiting":
        return any(states[other] not in ("waiting", "pending", "aborting", "concluded") for other in others)
    if status == "pending":
        return identity not in left and any(not details[other]["auto-finalize"] for other in {identity, *others} & set(details))
    if status == "concluded":
        return not detail["auto-dismiss"]
    if status == "ready":
        return identity != leaving and (identity in step.slow or detail["offset"] == detail["len"])
    return status in ("paused", "standby") and (identity in held or detail["io-status"] != "ok")
