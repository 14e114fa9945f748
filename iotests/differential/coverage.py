"""Which commands and which errors the sequences have reached."""

from __future__ import annotations

import collections
import re
from typing import Sequence

from .execute import Record
from .step import Command, Step

# What in an error's text is a name or a number.
_NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|#block|\b\d+\b|\bnode\d\S*|\bjob\d+")


class Coverage:
    """Counts, over many sequences."""

    def __init__(self) -> None:
        self.good: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()

    def add(self, steps: Sequence[Step], record: Record) -> None:
        """A sequence. One in which nothing but its first command was reached does not count."""
        for step, seen in zip(steps, record.steps):
            if not isinstance(step.action, Command):
                self.good[type(step.action).__name__] += "errno" not in str(seen.reply)
            elif "return" in seen.reply:
                self.good[step.action.name] += 1
                if step.action.name == "transaction":
                    for action in step.action.arguments["actions"]:
                        self.good[f"transaction: {action['type']}"] += 1
            else:
                self.errors[_NAMES.sub("*", str(seen.reply["error"]["desc"]))] += 1

    def table(self) -> str:
        """Both counts, the rarest last."""
        lines = [f"{count:6} {name}" for name, count in self.good.most_common()]
        lines.append("errors:")
        lines += [f"{count:6} {text}" for text, count in self.errors.most_common()]
        return "\n".join(lines)
