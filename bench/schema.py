"""What a daemon says it can do: query-commands and query-qmp-schema, read once.

A row asks here whether both sides have what it needs, so that a feature that comes to blockd is measured
from that day on without anybody editing a list.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Mapping, Sequence

from iotests.harness.qmp import QMPClient, QMPError


class Schema:
    """The commands of one daemon, their arguments, and the values that enumerations take."""

    def __init__(self, commands: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> None:
        self.commands = frozenset(commands)
        self._types = {entry["name"]: entry for entry in entries if entry["meta-type"] != "command"}
        self._arguments = {entry["name"]: entry["arg-type"] for entry in entries if entry["meta-type"] == "command"}

    @classmethod
    def ask(cls, qmp: QMPClient) -> "Schema":
        """Ask a running daemon. One without query-qmp-schema has only its commands."""
        commands = [command["name"] for command in qmp.execute("query-commands")]
        try:
            entries = qmp.execute("query-qmp-schema")
        except QMPError:
            entries = []
        return cls(commands, entries)

    def has_argument(self, command: str, argument: str) -> bool:
        """Whether a command takes an argument, at its top level or in the variant of a union."""
        return any(member["name"] == argument for member in self._members(self._arguments.get(command)))

    def values(self, command: str, argument: str) -> frozenset[str]:
        """The values of a command's argument that is an enumeration; empty when there is none."""
        for member in self._members(self._arguments.get(command)):
            if member["name"] == argument:
                entry = self._types.get(member["type"], {})
                return frozenset(entry.get("values", ()))
        return frozenset()

    def _members(self, type_name: str | None) -> list[Mapping[str, Any]]:
        entry = self._types.get(type_name or "", {})
        found = list(entry.get("members", ()))
        for variant in entry.get("variants", ()):
            found += self._types.get(variant["type"], {}).get("members", ())
        return found


@dataclasses.dataclass(frozen=True)
class Need:
    """One thing that a row cannot do without; `label` says it in a report."""

    label: str
    present: Callable[[Schema], bool]


def command(name: str) -> Need:
    """The row uses this command."""
    return Need(name, lambda schema: name in schema.commands)


def argument(name: str, member: str) -> Need:
    """The row uses this argument of a command."""
    return Need(f"{member} of {name}", lambda schema: schema.has_argument(name, member))


def driver(name: str) -> Need:
    """The row opens nodes of this driver."""
    return Need(f"driver {name}", lambda schema: name in schema.values("blockdev-add", "driver"))


def object_type(name: str) -> Need:
    """The row creates an object of this type."""
    return Need(f"object {name}", lambda schema: name in schema.values("object-add", "qom-type"))
