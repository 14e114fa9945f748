"""
A rough picture of what exists while a sequence is made. It only has to be right often enough for most
steps to make sense: what a step really does is what the two daemons say.
"""

from __future__ import annotations

import dataclasses
import random
import subprocess
from pathlib import Path
from typing import Sequence

from .step import Action, Step

KiB, MiB = 1 << 10, 1 << 20

SIZE = 4 * MiB

# The files that every sequence begins with: name -> (format, size, backing file).
IMAGES = {
    "base.qcow2": ("qcow2", SIZE, ""),
    "mid.qcow2": ("qcow2", SIZE, "base.qcow2"),
    "top.qcow2": ("qcow2", SIZE, "mid.qcow2"),
    "other.qcow2": ("qcow2", SIZE, ""),
    "empty.qcow2": ("qcow2", SIZE, ""),
    "empty2.qcow2": ("qcow2", SIZE, ""),
    "empty3.qcow2": ("qcow2", SIZE, ""),
    "overlay.qcow2": ("qcow2", SIZE, "other.qcow2"),
    "small.qcow2": ("qcow2", SIZE // 4, ""),
    "old.qcow2": ("qcow2", SIZE, ""),
    "plain.raw": ("raw", SIZE, ""),
}

# The images with at least a MiB of data of their own.
FULL = {"base.qcow2", "other.qcow2", "small.qcow2", "old.qcow2", "plain.raw"}

# The images without any.
EMPTY = ("empty.qcow2", "empty2.qcow2", "empty3.qcow2")


def make_images(folder: Path) -> None:
    """The files of IMAGES, with data, zeroes and holes."""
    for name, (kind, size, backing) in IMAGES.items():
        command = ["qemu-img", "create", "-q", "-f", kind, name, str(size)]
        if backing:
            command[5:5] = ["-b", backing, "-F", "qcow2"]
        if name == "old.qcow2":
            command[5:5] = ["-o", "compat=0.10,cluster_size=4k"]
        subprocess.run(command, cwd=folder, check=True)
    for name, *writes in (
        ("base.qcow2", "write -P 1 0 1M", "write -P 2 3M 64k"),
        ("mid.qcow2", "write -P 3 512k 256k", "write -z 3M 32k"),
        ("top.qcow2", "write -P 4 1M 128k", "write -P 5 2M 4k"),
        ("other.qcow2", "write -P 6 1M 2M"),
        ("overlay.qcow2", "write -P 7 0 64k", "write -z 1M 64k"),
        ("small.qcow2", "write -P 8 0 1M"),
        ("old.qcow2", "write -P 9 64k 8k", "write -P 9 2M 1M"),
        ("plain.raw", "write -P 10 256k 1M"),
    ):
        words = [word for write in writes for word in ("-c", write)]
        kind = IMAGES[name][0]
        subprocess.run(["qemu-io", "-f", kind, *words, name], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def files_of(steps: Sequence[Step]) -> set[str]:
    """The files that steps can come to, with what these stand on."""
    text = "\n".join(map(str, steps))
    found = {name for name in IMAGES if name in text}
    while deeper := {IMAGES[name][2] for name in found} - found - {""}:
        found |= deeper
    return found


@dataclasses.dataclass
class Node:
    """A node that should be there."""

    name: str
    driver: str
    size: int
    below: list[str] = dataclasses.field(default_factory=list)
    bitmaps: list[str] = dataclasses.field(default_factory=list)
    snapshots: list[str] = dataclasses.field(default_factory=list)
    read_only: bool = False
    # Its image, for what is opened from one.
    image: str = ""
    # It has at least a MiB of data of its own, which takes a slow job a while.
    full: bool = False
    # It was opened without its backing file, so that it can become an overlay.
    bare: bool = False
    # A quorum that several have to agree in, and nobody has read yet.
    doubtful: bool = False


@dataclasses.dataclass
class Job:
    """A job that should be there."""

    id: str
    kind: str
    slow: bool
    halfway: bool = False  # it was slow, so how far it is cannot be known
    endless: bool = False
    paused: bool = False
    ready: bool = False  # it waits to be completed
    pending: bool = False  # it waits to be finalized
    kept: bool = False  # it waits to be dismissed, in the end
    behind: bool = False  # a guest has written what it may not have copied


class World:
    """What should exist."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.nodes: dict[str, Node] = {}
        self.jobs: dict[str, Job] = {}
        self.exports: dict[str, str] = {}  # id -> node
        self.busy: list[tuple[str, str]] = []  # bitmaps that exports hold, or jobs: node, name
        self.groups: list[str] = []
        self.threads: list[str] = []
        self.chardevs: list[str] = []
        self.groups_of_jobs: list[frozenset[str]] = []
        self.server = False
        self.partial = False
        self.numbers = 0

    def new_name(self, kind: str) -> str:
        """A name that nothing has had yet."""
        self.numbers += 1
        return f"{kind}{self.numbers}"

    def any_node(self) -> str:
        """A node, mostly one that should be there."""
        if self.nodes and self.rng.random() < 0.95:
            return self.rng.choice(sorted(self.nodes))
        return self.rng.choice(["nope", "", "base"])

    def any_job(self) -> str:
        """A job, mostly one that should be there."""
        if self.jobs and self.rng.random() < 0.95:
            return self.rng.choice(sorted(self.jobs))
        return "nojob"

    def family(self, name: str) -> set[str]:
        """A node with all that stands on it, and all that these stand on."""
        found = {name}
        while True:
            above = {node.name for node in self.nodes.values() if found & set(node.below)}
            below = {other for node in found if node in self.nodes for other in self.nodes[node].below}
            if above | below <= found:
                return found
            found |= above | below

    def chain(self, name: str) -> list[str]:
        """What a node stands on, from the top."""
        found: list[str] = []
        while name in self.nodes and self.nodes[name].below and name not in found:
            name = self.nodes[name].below[0]
            found.append(name)
        return found

    def tops(self) -> list[str]:
        """Nodes that no other should stand on."""
        used = {name for node in self.nodes.values() for name in node.below}
        return [name for name in sorted(self.nodes) if name not in used]

    def unused_nodes(self) -> list[str]:
        """Nodes that nothing should stand on or use."""
        exported = set(self.exports.values())
        return [name for name in self.tops() if name not in exported]

    def writable_tops(self) -> list[str]:
        """Those on which guests can write."""
        return [name for name in self.tops() if not self.nodes[name].read_only]

    def targets(self, source: str) -> list[str]:
        """Where a copy of a node can go."""
        family, size = self.family(source), self.nodes[source].size if source in self.nodes else SIZE
        return [
            name
            for name in self.unused_nodes()
            if name not in family and not self.nodes[name].read_only and self.nodes[name].size == size
        ]

    def step(self, action: Action) -> Step:
        """An action with what should be true of the jobs after it."""
        jobs = self.jobs.values()
        return Step(
            action,
            slow=frozenset(job.id for job in jobs if job.slow),
            endless=frozenset(job.id for job in jobs if job.endless),
            paused=frozenset(job.id for job in jobs if (job.slow or job.endless) and job.paused),
            groups=tuple(self.groups_of_jobs),
        )
