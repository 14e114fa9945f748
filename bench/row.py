"""What a row of the table is: a small class with a name, what it needs, its goal, and one measured run."""

from __future__ import annotations

import shutil
from typing import ClassVar, Sequence

from .schema import Need, Schema
from .store import Store
from .trial import Sample, Trial

SECONDS = "s"
MICROSECONDS = "us"
MEBIBYTES = "MiB"
TIMES = "times"


class Row:
    """
    A row. A new one is a subclass with `measure`, in a module of `rows/` that `rows/__init__.py` imports;
    the order of definition is the order in the table.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # What `measure` gives, less being better; kept in that unit in JSON, too.
    unit: ClassVar[str] = SECONDS
    # The wanted median of right over left; 0 where there is none.
    goal: ClassVar[float] = 0.0
    # The most that the left side's median may be, in the row's unit; 0 where there is none.
    limit: ClassVar[float] = 0.0
    # What both sides must have, and programs of this machine.
    needs: ClassVar[Sequence[Need]] = ()
    tools: ClassVar[Sequence[str]] = ()
    # Whether the run writes to images through the daemon, so that its flushes are audited.
    writes: ClassVar[bool] = False
    # How much data the run handles, for CPU seconds per GiB; 0 where that says nothing.
    bytes_per_size: ClassVar[float] = 0.0

    # At most so many rounds unless the number is asked for, and no thorough run before them; 0 for no bound. For
    # rows that take long and are not measured by the other side.
    most_rounds: ClassVar[int] = 0

    registry: ClassVar[list[type["Row"]]] = []

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            Row.registry.append(cls)

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def handled(cls, size: int) -> float:
        """How much data the run handles with images of `size`, both in bytes."""
        return cls.bytes_per_size * size

    def prepare(self) -> None:
        """Make the pristine images; not timed, once per row."""

    def measure(self, trial: Trial) -> Sample:
        """One run. What is to be compared happens inside `trial.timed()`."""
        raise NotImplementedError

    def missing_tools(self) -> list[str]:
        """Programs that this machine lacks."""
        return [tool for tool in self.tools if shutil.which(tool) is None]

    def missing_from(self, schema: Schema) -> list[str]:
        """What a side lacks of what the row needs."""
        return [need.label for need in self.needs if not need.present(schema)]
