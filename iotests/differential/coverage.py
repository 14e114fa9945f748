"""Which commands and which errors the sequences have reached."""

from __future__ import annotations

import collections
from typing import Sequence

from .execute import Record
from .rows import ERRORS
from .step import Command, Message, Step, Wire

# blockd does not have these; docs/compatibility.md says so.
_ABSENT = ("ringbuf-read", "ringbuf-write")

# Both daemons begin with these, and end with the last.
_EVERY = ("qmp_capabilities", "query-version", "quit")


class Coverage:
    """Counts, over many sequences."""

    def __init__(self) -> None:
        self.good: collections.Counter[str] = collections.Counter()
        self.rows: collections.Counter[tuple[str, str]] = collections.Counter({(row, text): 0 for row, text, _ in ERRORS})
        self.others: collections.Counter[str] = collections.Counter()
        self.crashes: collections.Counter[str] = collections.Counter()

    def add(self, steps: Sequence[Step], record: Record) -> None:
        """A sequence that the rival went through. One in which nothing but its first command was reached does not count."""
        self._error(record.hello.get("error", {}))
        self.good.update(_EVERY if not record.ending else _EVERY[:-1])
        succeeded = False
        failed_jobs: set[str] = set()
        for step, seen in zip(steps, record.steps):
            for job in seen.jobs:
                if "error" in job and job["id"] not in failed_jobs:
                    failed_jobs.add(job["id"])
                    self._error({"class": "GenericError", "desc": job["error"]})
            for event in seen.events:
                if error := event.get("data", {}).get("error"):
                    self._error({"class": "GenericError", "desc": error})
                self.good[f"event {event['event']}"] += 1
            if not isinstance(step.action, (Command, Wire)):
                self.good[type(step.action).__name__] += "errno" not in str(seen.reply)
            elif "return" in seen.reply:
                assert isinstance(step.action, Command)
                succeeded = True
                self.good[step.action.name] += 1
                if step.action.name == "transaction":
                    for action in step.action.arguments["actions"]:
                        self.good[f"transaction: {action['type']}"] += 1
            elif succeeded:
                self._error(seen.reply["error"])
        if record.crashed or record.hung:
            number = len(record.steps)
            self.crashes[f"at {steps[number].action if number < len(steps) else 'its end'}: {record.ending[-300:].strip()}"] += 1

    def join(self, other: Coverage) -> None:
        """Adds the counts of another one."""
        for mine, its in ((self.good, other.good), (self.others, other.others), (self.crashes, other.crashes)):
            mine.update(its)
        self.rows.update(other.rows)

    def _error(self, error: Message) -> None:
        """Counts an error in every row that it fits."""
        if not error:
            return
        text = str(error["desc"])
        if error["class"] not in ("GenericError", "CommandNotFound"):
            text = f"{error['class']}: {text}"
        found = [(row, known) for row, known, pattern in ERRORS if pattern.fullmatch(text)]
        self.rows.update(found)
        if not found:
            self.others[text] += 1

    def table(self, commands: Sequence[str], wanted: int) -> str:
        """All counts, with a mark at what was reached less than `wanted` times."""
        reached = collections.Counter({name: self.good[name] for name in commands if name not in _ABSENT})
        reached.update({name: count for name, count in self.good.items() if name not in commands})
        lines = [f"{'*' if count < wanted else ' '}{count:7} {name}" for name, count in sorted(reached.items())]
        lines.append("errors, by their rows:")
        lines += [f"{'*' if count < wanted else ' '}{count:7} {row:>3} {text}" for (row, text), count in self.rows.items()]
        lines.append(f"{len(self.others)} other errors, {sum(self.others.values())} times")
        lines += [f"the rival did not go on {count} times {what}" for what, count in self.crashes.most_common()]
        return "\n".join(lines)
