"""What everything that draws steps shares: the dice, the picture of the world, and sending."""

from __future__ import annotations

import copy
import random
from typing import Callable, Sequence

from .step import Command, Message, Step
from .world import World

# How many of the commands are made wrong on purpose.
WRONG = 0.1

# How likely a choice is one that makes sense, and not any at all.
APT = 0.8

# Actions with how often they are drawn.
Actions = Sequence[tuple[int, Callable[[], None]]]

# When a job settles is known from these, so they are never spoilt.
_SETTLING = frozenset({"job-id", "speed", "auto-finalize", "auto-dismiss"})


class Pen:
    """Writes steps."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(self.rng)
        self.steps: list[Step] = []

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.rng.random() < probability

    def pick(self, apt: Sequence[str]) -> str:
        """Mostly one of those that make sense, else any node."""
        if apt and self.chance(APT):
            return self.rng.choice(sorted(apt))
        return self.world.any_node()

    def send(self, name: str, arguments: Message) -> bool:
        """A command; whether it was left as it is, and should have the effect that the caller has in mind."""
        wrong = self.chance(WRONG)
        if wrong:
            arguments = self.spoil(copy.deepcopy(arguments))
        self.steps.append(self.world.step(Command(name, arguments)))
        return not wrong

    def add_throttle_group(self) -> None:
        """object-add of a throttle group."""
        name = self.world.new_name("group")
        if self.send("object-add", {"qom-type": "throttle-group", "id": name, "limits": {"iops-total": self.rng.choice([0, 1000000])}}):
            self.world.groups.append(name)

    def throttle_group(self) -> None:
        """One, mostly, if there is none."""
        if not self.world.groups and self.chance(APT):
            self.add_throttle_group()

    def settle_again(self) -> None:
        """The last step has changed which jobs are slow or paused."""
        self.steps[-1] = self.world.step(self.steps[-1].action)

    def spoil(self, arguments: Message) -> Message:
        """Something wrong with the arguments."""
        rng = self.rng
        keys = sorted(set(arguments) - _SETTLING)
        if not keys:
            return {**arguments, "nonsense": 1}
        key = rng.choice(keys)
        kind = rng.randrange(6)
        if kind == 0:
            del arguments[key]
        elif kind == 1:
            arguments["nonsense"] = True
        elif kind == 2:
            arguments[key] = rng.choice([1, -1, True, "", {}, [], None, 1 << 63, 0.5])
        elif kind == 3 and isinstance(arguments[key], str):
            arguments[key] = rng.choice(["nope", "", arguments[key] + "x", "a" * 40, "1abc", "full"])
        elif kind == 4 and isinstance(arguments[key], dict):
            arguments[key] = self.spoil(arguments[key])
        elif kind == 5 and isinstance(arguments[key], int):
            arguments[key] = rng.choice([0, 1, -1, 3, 511, 1 << 40])
        else:
            arguments["x-nonsense"] = {}
        return arguments
