"""Draws steps that add, change and delete nodes, and take snapshots."""

from __future__ import annotations

from .pen import Actions, Pen
from .step import Message
from .world import EMPTY, FULL, IMAGES, SIZE, KiB, MiB, Node


class NodePen(Pen):
    """Nodes, chains, snapshots."""

    def node_actions(self) -> Actions:
        """What can be drawn here."""
        return (
            (12, self.add_image),
            (5, self.add_empty),
            (5, self.add_filter),
            (4, self.add_null),
            (2, self.add_wrong),
            (2, self.add_quorum),
            (6, self.delete_node),
            (6, self.reopen),
            (4, self.resize),
            (4, self.snapshot_sync),
            (5, self.snapshot),
            (7, self.internal_snapshot),
            (4, self.change_backing),
            (2, self.change_quorum),
            (3, self.set_iothread),
            (3, self.threshold),
        )

    def add_image(self) -> None:
        """blockdev-add of a file of the folder."""
        self.add_image_of(self.rng.choice(sorted(IMAGES)))

    def add_empty(self) -> None:
        """blockdev-add of an image without data, for copies and overlays."""
        self.add_image_of(self.rng.choice(EMPTY))

    def add_image_of(self, image: str) -> None:
        """blockdev-add of an image, with any of its options."""
        kind, size, backing = IMAGES[image]
        name = self.world.new_name("node")
        options: Message = {"driver": kind, "node-name": name, "file": {"driver": "file", "filename": image}}
        if self.chance(0.4):
            options["file"]["node-name"] = name + "-file"
        below = self._backing_options(options, name, backing)
        if not backing and kind == "qcow2" and self.chance(0.3):
            options["backing"] = None
        if self.chance(0.12):
            options["read-only"] = True
            if self.chance(0.2):
                options["auto-read-only"] = True
            if self.chance(0.2):
                options["force-share"] = True
                self.world.partial = True  # what it sees of an image that another node writes depends on when that is stored
        if self.chance(0.15):
            options["discard"] = self.rng.choice(["unmap", "ignore"])
        if self.chance(0.1):
            options["detect-zeroes"] = self.rng.choice(["on", "unmap", "off"])
        if self.chance(0.1):
            options["cache"] = {"no-flush": self.chance(0.5)}
        if self.chance(0.1) and kind == "qcow2":
            options["lazy-refcounts"] = True
        if self.chance(0.1) and kind == "raw":
            options.update(offset=self.rng.choice([0, 512, 100, MiB]), size=self.rng.choice([512, MiB, SIZE]))
        if self.send("blockdev-add", options):
            for number, deeper in enumerate(below):
                self.world.nodes[deeper] = Node(deeper, "qcow2", size, below[number + 1 : number + 2], read_only=True, full=number == 1)
            self.world.nodes[name] = Node(
                name,
                kind,
                options.get("size", size),
                below[:1],
                read_only="read-only" in options,
                image=image,
                full=image in FULL and "size" not in options,
                bare=not backing or options.get("backing", "") is None,
            )

    def _backing_options(self, options: Message, name: str, backing: str) -> list[str]:
        """Mostly names for the images below, and sometimes none of them; the names."""
        if not backing:
            return []
        if self.chance(0.1):
            options["backing"] = None
            return []
        below: list[str] = []
        inner = options
        while backing and self.chance(0.75):
            deeper = f"{name}-backing{len(below) or ''}"
            file: Message = {"driver": "file", "filename": backing}
            if self.chance(0.5):
                file["read-only"] = True
            if self.chance(0.5):
                file["node-name"] = deeper + "-file"
            inner["backing"] = {"driver": "qcow2", "node-name": deeper, "file": file}
            inner = inner["backing"]
            if self.chance(0.8):
                inner["read-only"] = True
            below.append(deeper)
            backing = IMAGES[backing][2]
        return below

    def add_filter(self) -> None:
        """blockdev-add of a filter over a node."""
        below = self.pick(self.world.unused_nodes())
        name = self.world.new_name("filter")
        kind = self.rng.choice(["throttle", "copy-on-read", "raw", "copy-before-write", "blkdebug", "preallocate", "snapshot-access"])
        options: Message = {"driver": kind, "node-name": name}
        child = "image" if kind == "blkdebug" else "file"
        options[child] = below
        under = [below]
        if kind == "throttle":
            self.throttle_group()
            options["throttle-group"] = group = self.rng.choice([*self.world.groups, "nogroup"])
        if kind == "copy-before-write":
            # A target that is part of the source ends the rival soon.
            apart = sorted(set(self.world.targets(below)))
            target = self.rng.choice([*apart, "nope"])
            options["target"] = target
            under.append(target)
        # The rival looks for ever for a bottom that is not in the chain.
        if kind == "copy-on-read" and self.chance(0.3) and self.world.chain(below):
            options["bottom"] = self.rng.choice(self.world.chain(below))
        if self.send("blockdev-add", options):
            size = self.world.nodes[below].size if below in self.world.nodes else SIZE
            self.world.nodes[name] = Node(name, kind, size, under)
            # Mostly it cannot be deleted now.
            if kind == "throttle" and self.chance(0.3):
                self.send("object-del", {"id": group})

    def add_null(self) -> None:
        """blockdev-add of a null device."""
        name = self.world.new_name("null")
        size = self.rng.choice([SIZE, SIZE, MiB, 0, 1000])
        if self.send("blockdev-add", {"driver": self.rng.choice(["null-co", "null-aio"]), "node-name": name, "size": size, "read-zeroes": True}):
            self.world.nodes[name] = Node(name, "null-co", size)

    def add_wrong(self) -> None:
        """blockdev-add of what cannot be opened."""
        name = self.rng.choice([self.world.new_name("wrong"), self.world.any_node(), "1bad", "a" * 32, "n#", "dots.and-dashes_"])
        file: Message = {"driver": "file", "filename": self.rng.choice(["nothere.qcow2", "plain.raw", "base.qcow2", "."])}
        options: Message = {"driver": self.rng.choice(["qcow2", "raw", "nosuch", "luks", "quorum", "nbd"]), "node-name": name, "file": file}
        kind = self.rng.randrange(6)
        if kind == 5:
            options.update({"driver": "qcow2", "file": {"driver": "file", "filename": "plain.raw"}})
        elif kind == 0:
            options.update(file)
            del options["file"]
        elif kind == 1:
            options.update({"driver": "null-co", "detect-zeroes": "unmap"})
            del options["file"]
        elif kind == 2:
            options["backing"] = self.rng.choice([None, "nope", {"driver": "null-co"}])
        elif kind == 3:
            del options["node-name"]
        if name == "dots.and-dashes_" and options.get("driver") in ("qcow2", "raw"):
            self.world.partial = True  # whatever comes of it
        self.send("blockdev-add", options)

    def add_quorum(self) -> None:
        """blockdev-add of a quorum of several nodes."""
        free = [node for node in self.world.unused_nodes() if self.world.nodes[node].size == SIZE]
        children = self.rng.sample(free, min(len(free), self.rng.randrange(1, 4)))
        name = self.world.new_name("quorum")
        threshold = self.rng.choice([1, 1, 1, 1, 2, 0, 5])
        options = {"driver": "quorum", "node-name": name, "children": children, "vote-threshold": threshold}
        if self.send("blockdev-add", options):
            self.world.nodes[name] = Node(name, "quorum", SIZE, children, doubtful=1 < threshold <= len(children))

    def change_quorum(self) -> None:
        """x-blockdev-change, mostly of a quorum."""
        if not any(node.driver == "quorum" for node in self.world.nodes.values()):
            self.add_quorum()
        quorums = [node for node in self.world.nodes.values() if node.driver == "quorum"]
        parent = self.rng.choice(quorums).name if quorums and self.chance(0.9) else self.world.any_node()
        arguments: Message = {"parent": parent}
        if self.chance(0.4):
            arguments["child"] = f"children.{self.rng.randrange(3)}"
        else:
            arguments["node"] = self.pick(self.world.unused_nodes())
        if self.chance(0.05):
            arguments["node"] = self.world.any_node()
        if self.send("x-blockdev-change", arguments) and quorums and "node" in arguments and parent in self.world.nodes:
            self.world.nodes[parent].below.append(arguments["node"])

    def delete_node(self) -> None:
        """blockdev-del, mostly of what nothing uses."""
        unused = self.world.unused_nodes()
        name = self.pick(unused)
        if self.send("blockdev-del", {"node-name": name}) and name in unused:
            self.world.nodes.pop(name, None)

    def reopen(self) -> None:
        """blockdev-reopen of one image or two."""
        images = [node for node in self.world.nodes.values() if node.driver in ("qcow2", "raw")]
        if not images:
            return
        chosen = self.rng.sample(images, min(len(images), self.rng.choice([1, 1, 1, 2])))
        written = [node for node in images if node.name in self.world.exports.values() and not node.read_only]
        if written and self.chance(0.3):
            chosen = [self.rng.choice(written)]
        options = [self._reopen_options(node) for node in chosen]
        if chosen[0] in written and self.chance(0.3):
            options[0]["read-only"] = True
        if self.chance(0.05) and len(options) == 1:
            options[0] = {"driver": chosen[0].driver, "node-name": chosen[0].name, "read-only": False, "file": {"driver": "file", "filename": "elsewhere.qcow2"}}
        elif self.chance(0.05):
            del options[0]["node-name"]
        if self.send("blockdev-reopen", {"options": options}):
            for node, chosen_options in zip(chosen, options):
                node.read_only = chosen_options["read-only"]

    def _reopen_options(self, node: Node) -> Message:
        options: Message = {"driver": node.driver, "node-name": node.name, "read-only": self.chance(0.3)}
        if node.image and self.chance(0.5):
            options["file"] = {"driver": "file", "filename": node.image, "node-name": node.name + "-file"}
        else:
            # Another image's bytes make a damaged image, of which each finds another fault first.
            options["file"] = node.name + "-file" if self.chance(0.9) else "nope"
        if node.driver == "qcow2" and (node.below or self.chance(0.3)):
            choice = self.rng.random()
            if choice < 0.5 and node.below:
                options["backing"] = node.below[0]
            else:
                options["backing"] = None if choice < 0.7 else self.pick(self.world.targets(node.name))
        if self.chance(0.2):
            options["discard"] = "unmap"
        else:
            options["discard"] = "ignore"
        if self.chance(0.1):
            options["detect-zeroes"] = "on"
        return options

    def resize(self) -> None:
        """block_resize."""
        size = self.rng.choice([SIZE, SIZE + 64 * KiB, 2 * SIZE, MiB, 1000, 0, -1])
        name = self.pick(self.world.writable_tops())
        if self.send("block_resize", {"node-name": name, "size": size}) and size >= 0 and name in self.world.nodes:
            self.world.nodes[name].size = size

    def threshold(self) -> None:
        """block-set-write-threshold."""
        self.send("block-set-write-threshold", {"node-name": self.world.any_node(), "write-threshold": self.rng.choice([0, 512, MiB, -1])})

    def set_iothread(self) -> None:
        """x-blockdev-set-iothread."""
        arguments: Message = {"node-name": self.pick(self.world.unused_nodes()), "iothread": self.rng.choice([*self.world.threads, None, "nothread"])}
        if self.chance(0.3):
            arguments["force"] = self.chance(0.7)
        self.send("x-blockdev-set-iothread", arguments)

    # Snapshots.

    def snapshot_sync(self) -> None:
        """blockdev-snapshot-sync."""
        exported = sorted(set(self.world.exports.values()) & set(self.world.writable_tops()))
        arguments, name = self.snapshot_sync_arguments(self.pick(exported or self.world.writable_tops()))
        if self.send("blockdev-snapshot-sync", arguments):
            self.put_over(arguments["node-name"], name)

    def snapshot_sync_arguments(self, node: str) -> tuple[Message, str]:
        """Arguments, and the name of the new node."""
        name = self.world.new_name("snap")
        arguments: Message = {"node-name": node, "snapshot-file": name + ".qcow2", "format": "qcow2"}
        if self.chance(0.95):
            arguments["snapshot-node-name"] = name
        if self.chance(0.05):
            arguments["mode"] = "existing"
        return arguments, arguments.get("snapshot-node-name", "")

    def put_over(self, node: str, overlay: str) -> None:
        """An overlay that is new stands on a node now."""
        if not overlay or node not in self.world.nodes:
            return
        # What nobody uses goes at once, unless it was added by name.
        used = node in self.world.exports.values() or node not in self.world.tops()
        if overlay not in self.world.nodes and not used:
            return
        old = self.world.nodes[node]
        old.read_only = True
        for above in self.world.nodes.values():
            above.below = [overlay if name == node else name for name in above.below]
        self.world.nodes.setdefault(overlay, Node(overlay, "qcow2", old.size)).below = [node]
        self.world.exports = {export: overlay if name == node else name for export, name in self.world.exports.items()}

    def snapshot(self) -> None:
        """blockdev-snapshot."""
        arguments = self.snapshot_arguments()
        if self.send("blockdev-snapshot", arguments):
            self.put_over(arguments["node"], arguments["overlay"] if arguments["overlay"] in self.world.nodes else "")

    def snapshot_arguments(self) -> Message:
        """A node and an overlay for it."""
        node = self.pick(self.world.writable_tops())
        overlays = [name for name in self.world.targets(node) if self.world.nodes[name].bare and self.world.nodes[name].driver == "qcow2"]
        return {"node": node, "overlay": self.pick(overlays)}

    def internal_snapshot(self) -> None:
        """blockdev-snapshot-internal-sync, or the end of one."""
        images = [node for node in self.world.nodes.values() if node.driver == "qcow2" and node.name in self.world.tops()]
        known = [node for node in images if node.snapshots]
        if known and self.chance(0.5):
            node = self.rng.choice(known)
            name = self.rng.choice([*node.snapshots, "nosnapshot"])
            arguments: Message = {"device": node.name}
            if self.chance(0.6):
                arguments["name"] = name
            if self.chance(0.2):
                arguments["id"] = self.rng.choice(["1", "2", "nosnapshot", ""])
            if self.send("blockdev-snapshot-delete-internal-sync", arguments) and name in node.snapshots:
                node.snapshots.remove(name)
            return
        arguments = self.internal_snapshot_arguments()
        if self.send("blockdev-snapshot-internal-sync", arguments) and arguments["device"] in self.world.nodes:
            self.world.nodes[arguments["device"]].snapshots.append(arguments["name"])

    def internal_snapshot_arguments(self) -> Message:
        """A node, and a name for its snapshot."""
        name = self.pick([name for name in self.world.tops() if self.world.nodes[name].driver == "qcow2"])
        old = self.world.nodes[name].snapshots if name in self.world.nodes else []
        return {"device": name, "name": self.rng.choice([self.world.new_name("internal")] * 3 + [*old, *old, ""])}

    def change_backing(self) -> None:
        """change-backing-file."""
        device = self.pick([name for name in self.world.tops() if self.world.chain(name)])
        self.send(
            "change-backing-file",
            {
                "device": device,
                "image-node-name": self.pick([device, *self.world.chain(device)[:-1]]),
                "backing-file": self.rng.choice(["base.qcow2", "nothere.qcow2"]),
            },
        )
