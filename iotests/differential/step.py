"""The steps that sequences are made of: plain data, so that they can be printed and cut."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Mapping, Union

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Command:
    """A QMP command."""

    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name} {json.dumps(self.arguments)}"


@dataclasses.dataclass(frozen=True)
class GuestWrite:
    """A guest's write over NBD, of one byte value."""

    export: str
    offset: int
    length: int
    value: int

    def __str__(self) -> str:
        return f"(guest of {self.export} writes {self.length} bytes of {self.value} at {self.offset})"


@dataclasses.dataclass(frozen=True)
class GuestRead:
    """A guest's read over NBD; one in one piece is answered also where it fails, after which the rival hangs up else."""

    export: str
    offset: int
    length: int
    in_one_piece: bool = False

    def __str__(self) -> str:
        return f"(guest of {self.export} reads {self.length} bytes at {self.offset}{' in one piece' if self.in_one_piece else ''})"


@dataclasses.dataclass(frozen=True)
class GuestClear:
    """A guest's zero write, or trim, over NBD."""

    export: str
    offset: int
    length: int
    trim: bool

    def __str__(self) -> str:
        return f"(guest of {self.export} {'trims' if self.trim else 'zeroes'} {self.length} bytes at {self.offset})"


@dataclasses.dataclass(frozen=True)
class Wire:
    """Words sent to the monitor as they are, which it answers with one error."""

    words: str

    def __str__(self) -> str:
        return f"(the monitor is sent {self.words[:80]})"


Action = Union[Command, GuestWrite, GuestRead, GuestClear, Wire]


@dataclasses.dataclass(frozen=True)
class Step:
    """
    One action, and what should be true of jobs when it has settled.
    """

    action: Action
    # On their way still, so slow that they stay where they are.
    slow: frozenset[str] = frozenset()
    # On their way for ever, without progress.
    endless: frozenset[str] = frozenset()
    # Of both, what the user has paused.
    paused: frozenset[str] = frozenset()
    # Those that wait for each other.
    groups: tuple[frozenset[str], ...] = ()

    def together(self, identity: str) -> frozenset[str]:
        """The jobs that one waits for before it ends."""
        return frozenset[str]().union(*(group for group in self.groups if identity in group)) - {identity}

    def __str__(self) -> str:
        return str(self.action)
