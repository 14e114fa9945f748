"""Draws steps for exports and their guests, objects, character devices, queries, and words on the wire that are no commands."""

from __future__ import annotations

from .pen import Actions, Pen
from .queries import COMPARED, LOOKED_AT_ELSEWHERE
from .step import GuestClear, GuestRead, GuestWrite, Message, Wire
from .world import SIZE, KiB, MiB, Node

# Each of them is answered with one error.
_WORDS = (
    '{"execute": "query-version", "bar": 1}',
    '["execute"]',
    '{"execute": 1}',
    '{"execute": "query-jobs", "arguments": []}',
    '{"arguments": {}}',
    '{"execute": nope}',
    '{"execute": "query-jobs", "exec-oob": "query-jobs"}',
    '{"exec-oob": "query-jobs"}',
    "[" * 1025,
)


class ServicePen(Pen):
    """All that is neither a node nor a job."""

    def service_actions(self) -> Actions:
        """What can be drawn here."""
        return (
            (7, self.export),
            (4, self.unexport),
            (3, self.old_export),
            (3, self.server),
            (14, self.guest_io),
            (5, self.objects),
            (4, self.qom),
            (5, self.chardev),
            (7, self.query),
            (2, self.wire),
        )

    # Exports.

    def start_server(self) -> None:
        """The NBD server, once."""
        if not self.world.server:
            self.world.server = self.send("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd.sock"}}})

    def server(self) -> None:
        """nbd-server-start and nbd-server-stop, when it may be in the wrong state for that."""
        if self.chance(0.5):
            path = self.rng.choice(["nbd.sock", "nbd.sock", "/nosuch/nbd.sock"])
            sent = self.send("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}, "max-connections": self.rng.choice([0, 1, 100])})
            self.world.server = self.world.server or (sent and path == "nbd.sock")
        elif self.chance(0.3 if self.world.exports else 0.8):
            if self.send("nbd-server-stop", {}):
                self.world.server = False
                self.world.exports.clear()

    def export(self) -> None:
        """block-export-add."""
        if self.chance(0.95):
            self.start_server()
        node = self.pick(self.world.tops())
        known = self.world.nodes.get(node)
        identity = self.rng.choice([self.world.new_name("export")] * 8 + [*self.world.exports, "1 bad"])
        writable = self.chance(0.7 if known and not known.read_only else 0.2)
        arguments: Message = {"type": "nbd", "id": identity, "node-name": node, "name": identity, "writable": writable}
        if self.chance(0.1):
            arguments["name"] = self.rng.choice(["a" * 4097, *self.world.exports, *self.world.exports])
        if self.chance(0.6 if known and known.bitmaps else 0.1):
            arguments["bitmaps"] = self.rng.choice([known.bitmaps[:1], known.bitmaps[:2]]) if known and known.bitmaps else ["nobitmap"]
        if self.chance(0.1):
            arguments["iothread"] = self.rng.choice([*self.world.threads, "nothread"])
        if self.chance(0.1):
            arguments["writethrough"] = True
        if self.send("block-export-add", arguments):
            self.world.exports.setdefault(identity, node)
            self.world.busy += [(node, name) for name in arguments.get("bitmaps", [])]

    def old_export(self) -> None:
        """nbd-server-add and nbd-server-remove."""
        if self.world.exports and self.chance(0.5):
            name = self.rng.choice([*sorted(self.world.exports), "noexport"])
            if self.send("nbd-server-remove", {"name": name, "mode": self.rng.choice(["safe", "hard"])}):
                self.world.exports.pop(name, None)
            return
        self.start_server()
        node = self.pick(self.world.tops())
        name = self.world.new_name("export")
        if self.send("nbd-server-add", {"device": node, "name": name, "writable": self.chance(0.7)}):
            self.world.exports[name] = node

    def unexport(self) -> None:
        """block-export-del."""
        identity = self.rng.choice([*sorted(self.world.exports), "noexport"])
        if self.send("block-export-del", {"id": identity, "mode": self.rng.choice(["safe", "hard"])}):
            self.world.exports.pop(identity, None)

    def guest_io(self) -> None:
        """A guest reads, writes, or clears."""
        doubtful = [name for name in self.world.unused_nodes() if self.world.nodes[name].doubtful]
        if doubtful:
            self._read_quorum(doubtful[0])
            return
        # Guests of the rival wait for a mirror that waits to be finalized.
        if not self.world.exports or any(job.kind in ("mirror", "commit") and job.pending for job in self.world.jobs.values()):
            return
        export = self.rng.choice(sorted(self.world.exports))
        offset = self.rng.randrange(SIZE // 512) * 512
        length = min(self.rng.choice([512, 4096, 65536, 200 * KiB]), SIZE - offset)
        kind = self.rng.random()
        if kind < 0.25:
            self.steps.append(self.world.step(GuestRead(export, offset, length)))
            return
        for job in self.world.jobs.values():
            job.behind = job.behind or job.kind in ("mirror", "commit")
        if kind < 0.8:
            self.steps.append(self.world.step(GuestWrite(export, offset, length, self.rng.randrange(256))))
        else:
            self.steps.append(self.world.step(GuestClear(export, offset, length, trim=kind < 0.9)))

    def _read_quorum(self, name: str) -> None:
        """A guest reads where the images differ most, so that a quorum that several have to agree in fails."""
        self.world.nodes[name].doubtful = False
        self.start_server()
        identity = self.world.new_name("export")
        if self.send("block-export-add", {"type": "nbd", "id": identity, "node-name": name, "name": identity}):
            self.world.exports[identity] = name
            self.steps.append(self.world.step(GuestRead(identity, MiB - 64 * KiB, 128 * KiB, in_one_piece=True)))

    # Objects.

    def objects(self) -> None:
        """Throttle groups, secrets, threads."""
        choice = self.rng.randrange(7)
        if choice < 2:
            self.add_throttle_group()
        elif choice < 4:
            name = self.world.new_name("thread")
            if self.send("object-add", {"qom-type": "iothread", "id": name}):
                self.world.threads.append(name)
        elif choice == 4:
            self.throttle_group()
            # A thread that nodes belong to must stay, or the rival crashes later.
            self.send("object-del", {"id": self.rng.choice([*self.world.groups, "nogroup"])})
        elif choice == 5:
            self.throttle_group()
            identity = self.rng.choice([self.world.new_name("secret"), *self.world.groups, *self.world.threads])
            self.send("object-add", {"qom-type": "secret", "id": identity, "data": "x"})
        else:
            self.send("object-add", {"qom-type": self.rng.choice(["zz", "secret"]), "id": self.rng.choice(["1 bad", "s", ""])})

    def qom(self) -> None:
        """qom-get, qom-set, and lists of the objects there are."""
        # The rival has no list of objects until there is one.
        self.throttle_group()
        known = [*self.world.groups, *self.world.threads]
        path = "/objects/" + self.rng.choice([*self.world.groups, *self.world.groups, "nogroup"])
        choice = self.rng.randrange(5)
        if choice == 0:
            self.send("qom-get", {"path": path, "property": self.rng.choice(["limits", "type", "nothere"])})
        elif choice == 1:
            limits = {self.rng.choice(["iops-total", "bps-read", "nonsense"]): self.rng.choice([0, 1000000, -1])}
            self.send("qom-set", {"path": path, "property": "limits", "value": limits})
        elif choice == 2:
            self.send("qom-list", {"path": self.rng.choice(["/objects", path, "/zz"] if known else [path, "/zz"])})
        elif choice == 3:
            self.send("qom-list-types", {"implements": "throttle-group"} if self.chance(0.5) else {})
        else:
            self.send("qom-list-properties", {"typename": self.rng.choice(["throttle-group", "iothread", "nothere"])})

    # Character devices.

    def chardev(self) -> None:
        """Files and null devices, which need nobody at the other end."""
        name = self.rng.choice(self.world.chardevs) if self.world.chardevs and self.chance(0.85) else self.world.new_name("chr")
        choice = self.rng.randrange(5)
        backend: Message = {"type": "null", "data": {}}
        if self.chance(0.5):
            backend = {"type": "file", "data": {"out": self.rng.choice([name, "nosuch/" + name])}}
        if choice < 2 or not self.world.chardevs:
            if self.send("chardev-add", {"id": name, "backend": backend}) and name not in self.world.chardevs:
                self.world.chardevs.append(name)
        elif choice == 2:
            self.send("chardev-change", {"id": name, "backend": backend})
        elif choice == 3:
            if self.send("chardev-remove", {"id": name}) and name in self.world.chardevs:
                self.world.chardevs.remove(name)
        else:
            self.send("chardev-send-break", {"id": name})

    # The rest.

    def query(self) -> None:
        """A command that changes nothing."""
        bitmaps = [node for node in self.world.nodes.values() if node.bitmaps]
        if self.chance(0.35):
            node = self.rng.choice(bitmaps) if bitmaps else Node("nope", "", 0)
            name = self.rng.choice(node.bitmaps) if node.bitmaps else "nobitmap"
            self.send("x-debug-block-dirty-bitmap-sha256", {"node": node.name, "name": name})
            return
        name = self.rng.choice([*COMPARED, *LOOKED_AT_ELSEWHERE, "qmp_capabilities", "nonexistent-command"])
        self.send(name, {"query-nodes": True} if name == "query-blockstats" and self.chance(0.5) else {})

    def wire(self) -> None:
        """Words that are no command."""
        self.steps.append(self.world.step(Wire(self.rng.choice(_WORDS))))
