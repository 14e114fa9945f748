"""Draws steps for dirty bitmaps, and transactions."""

from __future__ import annotations

import itertools

from .draw_jobs import JobPen
from .draw_nodes import NodePen
from .pen import APT, Actions
from .step import Message
from .world import Job


class BitmapPen(JobPen, NodePen):
    """Dirty bitmaps, transactions."""

    def bitmap_actions(self) -> Actions:
        """What can be drawn here."""
        return ((14, self.bitmap), (10, self.transaction))

    def bitmap(self) -> None:
        """A command for a dirty bitmap."""
        command, arguments = self.bitmap_command()
        if self.send(command, arguments):
            self.bitmap_effect(command, arguments)

    def bitmap_effect(self, command: str, arguments: Message) -> None:
        """What the command should have done."""
        node = self.world.nodes.get(arguments["node"])
        if node is None:
            return
        if command.endswith("-add") and arguments["name"] not in ("", *node.bitmaps):
            node.bitmaps.append(arguments["name"])
        elif command.endswith("-remove") and arguments["name"] in node.bitmaps and self.chance(0.8):
            node.bitmaps.remove(arguments["name"])

    def bitmap_command(self, *, within: bool = False) -> tuple[str, Message]:
        """Its name and arguments; the rival does not survive one `within` a transaction that enables what is not there."""
        verb = self.rng.choice(["add", "add", "add", "remove", "clear", "enable", "disable", "merge", "merge"])
        there = any(node.bitmaps for node in self.world.nodes.values())
        if not there and (within or self.chance(APT)):
            verb = "add"
        if verb == "add":
            name = self.pick(self.world.writable_tops())
        else:
            name = self.pick([node.name for node in self.world.nodes.values() if node.bitmaps])
        node = self.world.nodes.get(name)
        known = self.rng.choice(node.bitmaps) if node and node.bitmaps else "nobitmap"
        if verb != "add" and self.world.busy and self.chance(0.25):
            name, known = self.rng.choice(self.world.busy)
        if within and verb == "enable" and known == "nobitmap":
            verb = "disable"
        arguments: Message = {"node": name, "name": known}
        if verb == "add":
            arguments["name"] = self.rng.choice([self.world.new_name("bitmap")] * 4 + [known, ""])
            if self.chance(0.3):
                arguments["granularity"] = self.rng.choice([512, 65536, 65536, 4096, 100, 1 << 31])
            if self.chance(0.4):
                arguments["persistent"] = True
            if self.chance(0.2):
                arguments["disabled"] = True
        elif verb == "merge":
            arguments = {"node": name, "target": known, "bitmaps": self._sources(name)}
        return f"block-dirty-bitmap-{verb}", arguments

    def _sources(self, name: str) -> list[str | Message]:
        """What is merged: bitmaps of the node, of others, and some that are not there."""
        found: list[str | Message] = []
        for _ in range(self.rng.choice([1, 1, 2, 0, 3])):
            other = name if self.chance(0.6) else self.pick([node.name for node in self.world.nodes.values() if node.bitmaps])
            node = self.world.nodes.get(other)
            bitmap = self.rng.choice(node.bitmaps) if node and node.bitmaps and self.chance(0.95) else "nobitmap"
            found.append(bitmap if other == name else {"node": other, "name": bitmap})
        return found

    def transaction(self) -> None:
        """Several actions, all or nothing."""
        grouped = self.chance(0.3)
        # Most of the grouped are of backups alone, as they have to be.
        kinds = ["backup"] if grouped and self.chance(0.8) else ["backup", "snapshot-sync", "snapshot", "internal", *["bitmap"] * 4, "abort"]
        actions: list[Message] = []
        made: list[Job] = []
        for _ in range(self.rng.randrange(1, 4)):
            kind = self.rng.choice(kinds)
            if kind == "abort" and not self.chance(0.3):
                continue
            if kind == "backup":
                data = self.backup_arguments()
                job = self.job_arguments("backup", data, slow=False)
                job.endless = data["sync"] == "none"
                made.append(job)
                actions.append({"type": "drive-backup" if "format" in data else "blockdev-backup", "data": data})
            elif kind == "snapshot-sync":
                data, _ = self.snapshot_sync_arguments(self.pick(self.world.writable_tops()))
                actions.append({"type": "blockdev-snapshot-sync", "data": data})
            elif kind == "snapshot":
                actions.append({"type": "blockdev-snapshot", "data": self.snapshot_arguments()})
            elif kind == "internal":
                actions.append({"type": "blockdev-snapshot-internal-sync", "data": self.internal_snapshot_arguments()})
            elif kind == "bitmap":
                command, data = self.bitmap_command(within=True)
                actions.append({"type": command, "data": data})
            else:
                actions.append({"type": "abort", "data": {}})
        targets = [str(action["data"]["target"]) for action in actions if "target" in action["data"] and action["type"].endswith("-backup")]
        written = [{name, *self.world.chain(name)} for name in targets]
        if any(one & other for one, other in itertools.combinations(written, 2)):
            self.world.partial = True  # jobs that write to one image, each when it comes to it
        arguments: Message = {"actions": actions}
        if grouped:
            arguments["properties"] = {"completion-mode": "grouped"}
        if not self.send("transaction", arguments):
            # What is spoilt may start jobs all the same, which must not be waited for in vain.
            self.world.jobs.update({job.id: job for job in made if job.endless})
            self.settle_again()
        elif not any(action["type"] == "abort" for action in actions):
            self._transaction_effect(actions, made, grouped)

    def _transaction_effect(self, actions: list[Message], made: list[Job], grouped: bool) -> None:
        """What the transaction should have done."""
        for job in made:
            self.world.jobs[job.id] = job
        if grouped:
            self.world.groups_of_jobs.append(frozenset(job.id for job in made))
        for action in actions:
            data = action["data"]
            if action["type"].startswith("block-dirty-bitmap"):
                self.bitmap_effect(action["type"], data)
            elif action["type"] == "blockdev-snapshot-sync":
                self.put_over(data["node-name"], data.get("snapshot-node-name", ""))
            elif action["type"] == "blockdev-snapshot" and data["overlay"] in self.world.nodes:
                self.put_over(data["node"], data["overlay"])
            elif action["type"] == "blockdev-snapshot-internal-sync" and data["device"] in self.world.nodes:
                self.world.nodes[data["device"]].snapshots.append(data["name"])
        self.settle_again()
