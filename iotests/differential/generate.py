"""Makes a sequence of steps from a seed."""

from __future__ import annotations

import copy
import random
from typing import Any, Callable

from .step import Command, GuestRead, GuestWrite, Message, Step
from .world import FULL, IMAGES, SIZE, Job, KiB, MiB, Node, World

# How many steps a sequence has.
LENGTH = 25

# How many of the commands are made wrong on purpose.
WRONG = 0.12


class Generator:
    """Draws steps, and keeps the picture of what they should leave."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(self.rng)
        self.steps: list[Step] = []
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (14, self.add_image),
            (5, self.add_filter),
            (4, self.add_null),
            (6, self.delete_node),
            (5, self.reopen),
            (4, self.resize),
            (6, self.snapshot),
            (3, self.change_backing),
            (10, self.backup),
            (8, self.mirror),
            (8, self.commit),
            (8, self.stream),
            (4, self.create),
            (16, self.job_verb),
            (10, self.bitmap),
            (8, self.transaction),
            (5, self.export),
            (3, self.unexport),
            (10, self.guest_io),
            (3, self.threshold),
            (3, self.objects),
            (4, self.query),
        ]

    def sequence(self) -> list[Step]:
        """All steps."""
        # Something to work on.
        for name in ("top.qcow2", "other.qcow2"):
            if self.rng.random() < 0.8:
                self.add_image_of(name)
        while len(self.steps) < LENGTH:
            weights = [weight for weight, _ in self.actions]
            self.rng.choices([action for _, action in self.actions], weights)[0]()
        # The end of a daemon does not wait for those that are behind.
        for job in self.world.jobs.values():
            if job.behind:
                for verb in ("resume", "cancel"):
                    self.steps.append(self.world.step(Command(f"block-job-{verb}", {"device": job.id})))
        return self.steps

    @property
    def partial(self) -> bool:
        """Whether a job ended on its way, so that its target may hold any part of what it copied."""
        return self.world.partial

    # The pieces.

    def send(self, name: str, arguments: Message) -> bool:
        """A command; whether it was left as it is, and should have the effect that the caller has in mind."""
        wrong = self.rng.random() < WRONG
        if wrong:
            arguments = self.spoil(copy.deepcopy(arguments))
        self.steps.append(self.world.step(Command(name, arguments)))
        return not wrong

    def settle_again(self) -> None:
        """The last step has changed which jobs are slow or paused."""
        self.steps[-1] = self.world.step(self.steps[-1].action)

    def spoil(self, arguments: Message) -> Message:
        """Something wrong with the arguments."""
        rng = self.rng
        if not arguments:
            return {"nonsense": 1}
        # When a job settles is known from these.
        keys = sorted(set(arguments) - {"job-id", "speed", "auto-finalize", "auto-dismiss"})
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

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.rng.random() < probability

    # Nodes.

    def add_image(self) -> None:
        """blockdev-add of a file of the folder."""
        self.add_image_of(self.rng.choice(sorted(IMAGES)))

    def add_image_of(self, image: str) -> None:
        kind, size, backing = IMAGES[image]
        name = self.world.new_name("node")
        options: Message = {"driver": kind, "node-name": name, "file": {"driver": "file", "filename": image}}
        below: list[str] = []
        if self.chance(0.3):
            options["file"]["node-name"] = name + "-file"
        if backing and self.chance(0.5):
            deeper = name + "-backing"
            options["backing"] = {
                "driver": "qcow2",
                "node-name": deeper,
                "file": {"driver": "file", "filename": backing, "read-only": True} if self.chance(0.5) else {"driver": "file", "filename": backing},
            }
            if self.chance(0.8):
                options["backing"]["read-only"] = True
            below.append(deeper)
        elif backing and self.chance(0.1):
            options["backing"] = None
        if self.chance(0.15):
            options["read-only"] = True
        if self.chance(0.15):
            options["discard"] = self.rng.choice(["unmap", "ignore"])
        if self.chance(0.1):
            options["detect-zeroes"] = self.rng.choice(["on", "unmap", "off"])
        if self.chance(0.1) and kind == "qcow2":
            options["lazy-refcounts"] = True
        if self.chance(0.1) and kind == "raw":
            options.update(offset=self.rng.choice([0, 512, 100, MiB]), size=self.rng.choice([512, MiB, SIZE]))
        if self.send("blockdev-add", options):
            for deeper in below:
                self.world.nodes[deeper] = Node(deeper, "qcow2", size, read_only=True)
            self.world.nodes[name] = Node(name, kind, size, below, read_only="read-only" in options, full=image in FULL)

    def add_filter(self) -> None:
        """blockdev-add of a filter over a node."""
        below = self.world.any_node()
        name = self.world.new_name("filter")
        kind = self.rng.choice(["throttle", "copy-on-read", "raw", "copy-before-write", "blkdebug", "preallocate"])
        options: Message = {"driver": kind, "node-name": name}
        child = "image" if kind == "blkdebug" else "file"
        options[child] = below
        under = [below]
        if kind == "throttle":
            options["throttle-group"] = self.rng.choice([*self.world.groups, "nogroup"])
        if kind == "copy-before-write":
            # A target that is part of the source ends the rival soon.
            apart = sorted(set(self.world.nodes) - self.world.family(below))
            target = self.rng.choice([*apart, "nope"])
            options["target"] = target
            under.append(target)
        if self.send("blockdev-add", options):
            self.world.nodes[name] = Node(name, kind, SIZE, under)

    def add_null(self) -> None:
        """blockdev-add of a null device."""
        name = self.world.new_name("null")
        size = self.rng.choice([SIZE, SIZE, MiB, 0, 1000])
        if self.send("blockdev-add", {"driver": self.rng.choice(["null-co", "null-aio"]), "node-name": name, "size": size, "read-zeroes": True}):
            self.world.nodes[name] = Node(name, "null-co", size)

    def delete_node(self) -> None:
        """blockdev-del, mostly of what nothing uses."""
        unused = self.world.unused_nodes()
        name = self.rng.choice(unused) if unused and self.chance(0.7) else self.world.any_node()
        if self.send("blockdev-del", {"node-name": name}) and name in unused:
            self.world.nodes.pop(name, None)

    def reopen(self) -> None:
        """blockdev-reopen of an image."""
        images = [node for node in self.world.nodes.values() if node.driver in ("qcow2", "raw")]
        if not images:
            return
        node = self.rng.choice(images)
        options: Message = {"driver": node.driver, "node-name": node.name, "read-only": self.chance(0.5)}
        options["file"] = self.rng.choice([node.name + "-file", self.world.any_node()])
        if node.driver == "qcow2" and self.chance(0.6):
            options["backing"] = self.rng.choice([None, self.world.any_node()])
        if self.chance(0.2):
            options["discard"] = "unmap"
        self.send("blockdev-reopen", {"options": [options]})

    def resize(self) -> None:
        """block_resize."""
        size = self.rng.choice([SIZE, SIZE + 64 * KiB, 2 * SIZE, MiB, 1000, 0, -1])
        self.send("block_resize", {"node-name": self.world.any_node(), "size": size})

    def snapshot(self) -> None:
        """blockdev-snapshot or blockdev-snapshot-sync."""
        node = self.world.any_node()
        if self.chance(0.5):
            arguments, name = self.snapshot_sync(node)
            if self.send("blockdev-snapshot-sync", arguments) and name:
                self.world.nodes[name] = Node(name, "qcow2", SIZE, [node])
            return
        overlay = self.world.any_node()
        self.send("blockdev-snapshot", {"node": node, "overlay": overlay})

    def snapshot_sync(self, node: str) -> tuple[Message, str]:
        """Arguments, and the name of the new node."""
        name = self.world.new_name("snap")
        arguments: Message = {"node-name": node, "snapshot-file": name + ".qcow2", "format": "qcow2"}
        if self.chance(0.9):
            arguments["snapshot-node-name"] = name
        else:
            name = ""
        if self.chance(0.1):
            arguments["mode"] = "existing"
        return arguments, name

    def change_backing(self) -> None:
        """change-backing-file."""
        self.send(
            "change-backing-file",
            {
                "device": self.world.any_node(),
                "image-node-name": self.world.any_node(),
                "backing-file": self.rng.choice(["base.qcow2", "mid.qcow2", "nothere.qcow2"]),
            },
        )

    def threshold(self) -> None:
        """block-set-write-threshold."""
        self.send("block-set-write-threshold", {"node-name": self.world.any_node(), "write-threshold": self.rng.choice([0, 512, MiB, -1])})

    # Jobs.

    def job_arguments(self, kind: str, arguments: Message, *, slow: bool) -> Job:
        """What all jobs take."""
        job = Job(self.world.new_name("job"), kind, slow)
        arguments["job-id"] = job.id
        if slow:
            arguments["speed"] = 1
        if self.chance(0.15):
            arguments["auto-dismiss"] = False
            job.kept = True
        if self.chance(0.15):
            arguments["auto-finalize"] = False
        return job

    def start(self, command: str, kind: str, arguments: Message) -> None:
        """A command that starts a job."""
        node = self.world.nodes.get(arguments["device"])
        slow = self.chance(0.5) and node is not None and node.full and arguments.get("sync", "full") == "full" and kind in ("backup", "mirror")
        job = self.job_arguments(kind, arguments, slow=slow)
        job.endless = kind == "backup" and arguments["sync"] == "none"
        if not self.send(command, arguments):
            return
        self.world.jobs[job.id] = job
        self.settle_again()
        if slow:
            # Every drain lets the rival's go on a little, so it must not stay for long.
            for _ in range(self.rng.randrange(3)):
                self.verb(job.id)
            self.hurry(job)

    def hurry(self, job: Job) -> None:
        """An end to a slow job's slowness."""
        if job.slow and job.id in self.world.jobs:
            job.slow = False
            self.steps.append(self.world.step(Command("block-job-set-speed", {"device": job.id, "speed": 0})))

    def backup(self) -> None:
        """blockdev-backup or drive-backup."""
        arguments = self.backup_arguments()
        self.start("drive-backup" if "mode" in arguments or "format" in arguments else "blockdev-backup", "backup", arguments)

    def backup_arguments(self) -> Message:
        source = self.world.any_node()
        arguments: Message = {"device": source, "sync": self.rng.choice(["full", "full", "top", "none", "incremental", "bitmap"])}
        if arguments["sync"] in ("incremental", "bitmap") or self.chance(0.05):
            node = self.world.nodes.get(source)
            arguments["bitmap"] = self.rng.choice(node.bitmaps) if node and node.bitmaps else "nobitmap"
            if self.chance(0.7):
                arguments["bitmap-mode"] = self.rng.choice(["on-success", "never", "always"])
        if self.chance(0.1):
            arguments["compress"] = True
        if self.chance(0.2):
            arguments["on-target-error"] = self.rng.choice(["report", "stop", "ignore", "enospc"])
        if self.chance(0.35):
            arguments["target"] = self.world.new_name("file") + ".qcow2"
            arguments["format"] = "qcow2"
        else:
            arguments["target"] = self.world.any_node()
        return arguments

    def mirror(self) -> None:
        """blockdev-mirror or drive-mirror."""
        arguments: Message = {"device": self.world.any_node(), "sync": self.rng.choice(["full", "full", "top", "none"])}
        if self.chance(0.2):
            arguments["copy-mode"] = self.rng.choice(["write-blocking", "background"])
        if self.chance(0.1):
            arguments["granularity"] = self.rng.choice([65536, 512, 1000, 1 << 27])
        if self.chance(0.1):
            arguments["buf-size"] = self.rng.choice([0, 1, MiB, -1])
        if self.chance(0.35):
            arguments["target"] = self.world.new_name("file") + ".qcow2"
            arguments["format"] = "qcow2"
            if self.chance(0.5):
                arguments["node-name"] = self.world.new_name("mirrored")
            self.start("drive-mirror", "mirror", arguments)
            return
        arguments["target"] = self.world.any_node()
        if self.chance(0.1):
            arguments["replaces"] = self.world.any_node()
        self.start("blockdev-mirror", "mirror", arguments)

    def commit(self) -> None:
        """block-commit."""
        arguments: Message = {"device": self.world.any_node()}
        if self.chance(0.4):
            arguments["top-node"] = self.world.any_node()
        elif self.chance(0.1):
            arguments["top"] = "mid.qcow2"
        if self.chance(0.5):
            arguments["base-node"] = self.world.any_node()
        if self.chance(0.1):
            arguments["backing-file"] = "base.qcow2"
        self.start("block-commit", "commit", arguments)

    def stream(self) -> None:
        """block-stream."""
        arguments: Message = {"device": self.world.any_node()}
        choice = self.rng.randrange(6)
        if choice == 0:
            arguments["base-node"] = self.world.any_node()
        elif choice == 1:
            arguments["base"] = "base.qcow2"
        elif choice == 2:
            arguments["bottom"] = self.world.any_node()
        if self.chance(0.1):
            arguments["backing-file"] = "base.qcow2"
        self.start("block-stream", "stream", arguments)

    def create(self) -> None:
        """blockdev-create of a file, or of an image in a node."""
        job = self.world.new_name("job")
        if self.chance(0.6):
            options: Message = {"driver": "file", "filename": self.world.new_name("made"), "size": self.rng.choice([0, SIZE, 1000])}
        else:
            # A null device forgets what is written, which only one of the two finds out.
            nodes = [node.name for node in self.world.nodes.values() if node.driver != "null-co"]
            options = {"driver": "qcow2", "file": self.rng.choice([*nodes, "nope"]), "size": self.rng.choice([SIZE, 0, 1000])}
            self.world.partial = True  # an image within a disk: each lays its tables out in its own way
            if self.chance(0.3):
                options["cluster-size"] = self.rng.choice([512, 65536, 3])
        if self.send("blockdev-create", {"job-id": job, "options": options}):
            self.world.jobs[job] = Job(job, "create", False, kept=True)
            self.settle_again()

    def job_verb(self) -> None:
        """A verb for a job."""
        self.verb(self.world.any_job())

    def verb(self, identity: str) -> None:
        """A verb of the old or the new kind."""
        job = self.world.jobs.get(identity)
        verb = self.rng.choice(["pause", "resume", "cancel", "complete", "finalize", "dismiss", "set-speed"])
        old = self.chance(0.5)
        if verb == "set-speed":
            speed = self.rng.choice([0, 0, 1, 1, -1])
            if self.send("block-job-set-speed", {"device": identity, "speed": speed}) and job and speed >= 0:
                # What is paused stays where it is, however fast it may be.
                job.slow = speed == 1 and job.slow
                self.settle_again()
            return
        command = f"block-job-{verb}" if old else f"job-{verb}"
        key = "device" if old and verb not in ("finalize", "dismiss") else "id"
        arguments: Message = {key: identity}
        if verb == "cancel" and old and self.chance(0.3):
            arguments["force"] = self.chance(0.7)
        if not self.send(command, arguments) or job is None:
            return
        if verb == "pause":
            job.paused = True
        elif verb == "resume":
            job.paused = False
        elif verb in ("cancel", "dismiss"):
            hard = not old or arguments.get("force", False)
            self.world.partial = self.world.partial or job.slow or (hard and job.behind)
            # A soft cancel of a paused job is refused, and it stays as it is.
            # And who is on the way cannot be dismissed.
            refused = job.slow or job.endless if verb == "dismiss" else old and job.paused and not arguments.get("force")
            if not refused and (verb == "dismiss" or not job.kept):
                self.world.jobs.pop(identity)
        self.settle_again()

    # Bitmaps, transactions.

    def bitmap(self) -> None:
        """A command for a dirty bitmap."""
        command, arguments = self.bitmap_command()
        if self.send(command, arguments) and command.endswith("-add") and arguments["node"] in self.world.nodes:
            self.world.nodes[arguments["node"]].bitmaps.append(arguments["name"])

    def bitmap_command(self) -> tuple[str, Message]:
        name = self.world.any_node()
        node = self.world.nodes.get(name)
        known = self.rng.choice(node.bitmaps) if node and node.bitmaps else "nobitmap"
        verb = self.rng.choice(["add", "add", "add", "remove", "clear", "enable", "disable", "merge"])
        arguments: Message = {"node": name, "name": known}
        if verb == "add":
            arguments["name"] = self.rng.choice([self.world.new_name("bitmap"), known, ""])
            if self.chance(0.3):
                arguments["granularity"] = self.rng.choice([512, 65536, 100, 1 << 31])
            if self.chance(0.4):
                arguments["persistent"] = True
            if self.chance(0.2):
                arguments["disabled"] = True
        elif verb == "merge":
            arguments = {"node": name, "target": known, "bitmaps": [known, {"node": self.world.any_node(), "name": "nobitmap"}][: self.rng.randrange(3)]}
            if node and len(node.bitmaps) > 1:
                arguments["bitmaps"] = self.rng.sample(node.bitmaps, self.rng.randrange(1, 3))
        return f"block-dirty-bitmap-{verb}", arguments

    def transaction(self) -> None:
        """Several actions, all or nothing."""
        actions: list[Message] = []
        made: list[Job] = []
        grouped = self.chance(0.4)
        for _ in range(self.rng.randrange(1, 4)):
            kind = self.rng.choice(["backup", "backup", "snapshot", "bitmap", "bitmap", "abort"])
            if kind == "abort" and not self.chance(0.4):
                continue
            if kind == "backup":
                data = self.backup_arguments()
                job = self.job_arguments("backup", data, slow=False)
                job.endless = data["sync"] == "none"
                made.append(job)
                actions.append({"type": "drive-backup" if "format" in data else "blockdev-backup", "data": data})
            elif kind == "snapshot":
                data, _ = self.snapshot_sync(self.world.any_node())
                actions.append({"type": "blockdev-snapshot-sync", "data": data})
            elif kind == "bitmap":
                command, data = self.bitmap_command()
                actions.append({"type": command, "data": data})
            else:
                actions.append({"type": "abort", "data": {}})
        arguments: Message = {"actions": actions}
        if grouped:
            arguments["properties"] = {"completion-mode": "grouped"}
        if self.send("transaction", arguments):
            for job in made:
                self.world.jobs[job.id] = job
            if grouped:
                self.world.groups_of_jobs.append(frozenset(job.id for job in made))
            self.settle_again()

    # Exports, guests.

    def start_server(self) -> None:
        """The NBD server, once."""
        if not self.world.server:
            self.world.server = self.send("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd.sock"}}})

    def export(self) -> None:
        """block-export-add."""
        self.start_server()
        node = self.world.any_node()
        identity = self.world.new_name("export")
        arguments: Message = {"type": "nbd", "id": identity, "node-name": node, "name": identity, "writable": self.chance(0.8)}
        if self.chance(0.15):
            known = self.world.nodes.get(node)
            arguments["bitmaps"] = known.bitmaps[:1] if known and known.bitmaps else ["nobitmap"]
        if self.send("block-export-add", arguments):
            self.world.exports[identity] = node

    def unexport(self) -> None:
        """block-export-del."""
        identity = self.rng.choice([*sorted(self.world.exports), "noexport"])
        if self.send("block-export-del", {"id": identity, "mode": self.rng.choice(["safe", "hard"])}):
            self.world.exports.pop(identity, None)

    def guest_io(self) -> None:
        """A guest reads or writes."""
        if not self.world.exports:
            return
        export = self.rng.choice(sorted(self.world.exports))
        offset = self.rng.randrange(SIZE // 512) * 512
        length = min(self.rng.choice([512, 4096, 65536, 200 * KiB]), SIZE - offset)
        if self.chance(0.7):
            action: Any = GuestWrite(export, offset, length, self.rng.randrange(256))
            for job in self.world.jobs.values():
                job.behind = job.behind or job.kind in ("mirror", "commit")
        else:
            action = GuestRead(export, offset, length)
        self.steps.append(self.world.step(action))

    # The rest.

    def objects(self) -> None:
        """Throttle groups, secrets."""
        if self.chance(0.6) or not self.world.groups:
            name = self.world.new_name("group")
            if self.send("object-add", {"qom-type": "throttle-group", "id": name, "limits": {"iops-total": self.rng.choice([0, 1000000])}}):
                self.world.groups.append(name)
        elif self.chance(0.5):
            self.send("object-del", {"id": self.rng.choice([*self.world.groups, "nogroup"])})
        else:
            self.send("object-add", {"qom-type": "secret", "id": self.world.new_name("secret"), "data": "x"})

    def query(self) -> None:
        """A command that changes nothing."""
        choice = self.rng.randrange(4)
        if choice == 0:
            node = self.world.any_node()
            known = self.world.nodes.get(node)
            name = self.rng.choice(known.bitmaps) if known and known.bitmaps else "nobitmap"
            self.send("x-debug-block-dirty-bitmap-sha256", {"node": node, "name": name})
        elif choice == 1:
            self.send("query-block-exports", {})
        elif choice == 2:
            self.send("qom-get", {"path": "/objects/" + self.rng.choice([*self.world.groups, "nogroup"]), "property": "limits"})
        else:
            self.send("nonexistent-command", {})
