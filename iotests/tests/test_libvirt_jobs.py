"""The conversations of libvirt 9 about snapshots, commits, pulls, copies and sizes, with a guest at the disk.

What `virsh` sent is played word by word, as data: a client that acts on JOB_STATUS_CHANGE alone, and
reads query-jobs and query-block-jobs where libvirt does.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase, SUCCESS
from iotests.harness.guest import Guest, GuestWriter
from iotests.harness.images import KiB, MiB

SIZE = 64 * MiB
# What the installation wrote; the guest stays below it, so that the lengths are those of the recordings.
USED = 8 * MiB
CLUSTER = 64 * KiB

CREATED = ("created", "running", "waiting", "pending", "concluded", "null")
PIVOTED = ("created", "running", "ready", "BLOCK_JOB_READY", *SUCCESS[2:])


@dataclasses.dataclass(frozen=True)
class Step:
    """One command; `until` is the (job, status) that libvirt waits for before the next."""

    command: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    until: tuple[str, str] = ("", "")


def node(disk: int) -> str:
    """The name of a format node."""
    return f"libvirt-{disk}-format"


LOOK = Step("query-named-block-nodes", {"flat": True})
KEPT: dict[str, Any] = {"auto-finalize": True, "auto-dismiss": False}


def created(disk: int, path: str, **backing: str) -> list[Step]:
    """An image is made in two steps, and opened without its backing."""
    storage, job = f"libvirt-{disk}-storage", f"create-{node(disk)}"
    options = {"driver": "qcow2", "file": storage, "size": SIZE, "cluster-size": CLUSTER}
    options.update({name.replace("_", "-"): value for name, value in backing.items()})
    return [
        Step(
            "blockdev-add",
            {"driver": "file", "filename": path, "node-name": storage, "auto-read-only": True, "discard": "unmap"},
        ),
        Step("blockdev-create", {"job-id": job, "options": options}, (job, "concluded")),
        Step("query-jobs"),
        Step("job-dismiss", {"id": job}, (job, "null")),
        Step(
            "blockdev-add",
            {
                "node-name": node(disk), "read-only": False, "discard": "unmap", "driver": "qcow2", "file": storage,
                "backing": None,
            },
        ),
    ]


def acts(*actions: tuple[str, dict[str, Any]]) -> Step:
    """A transaction."""
    return Step("transaction", {"actions": [{"type": verb, "data": data} for verb, data in actions]})


def dismissed(job: str) -> list[Step]:
    """What follows a job's end."""
    return [Step("query-jobs"), Step("job-dismiss", {"id": job}, (job, "null")), LOOK]


def deleted(disk: int) -> list[Step]:
    """An image is closed."""
    return [Step("blockdev-del", {"node-name": f"libvirt-{disk}-{layer}"}) for layer in ("format", "storage")]


def pivoted(job: str, target: int) -> list[Step]:
    """What follows READY: a bitmap for the time in between, and the pivot."""
    bitmap = {"node": node(target), "name": "libvirt-tmp-activewrite"}
    return [
        Step("query-block-jobs"),
        acts(("block-dirty-bitmap-add", {**bitmap, "persistent": False, "disabled": False})),
        Step("job-complete", {"id": job}, (job, "concluded")),
        *dismissed(job),
        acts(("block-dirty-bitmap-remove", bitmap)),
    ]


class Client(QMPTestCase):
    """A virtual machine's disks, as libvirt opens them, and what libvirt does."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def open_disk(self, disk: int, name: str, data: bytes) -> str:
        path = self.create_image(name, SIZE)
        self.fill(path, data)
        storage = f"libvirt-{disk}-storage"
        self.qmp.cmd(
            "blockdev-add", driver="file", filename=path, node_name=storage, auto_read_only=True, discard="unmap"
        )
        self.qmp.cmd(
            "blockdev-add",
            node_name=node(disk), read_only=False, discard="unmap", driver="qcow2", file=storage, backing=None,
        )
        return path

    def play(self, *steps: Step) -> None:
        for step in steps:
            arguments = step.arguments
            if step.command == "blockdev-add" and arguments["driver"] == "file":
                # libvirt makes the file itself, with the owner that it must have.
                Path(arguments["filename"]).touch()
            answer = self.qmp.execute(step.command, arguments or None)
            if step.until[0]:
                self.wait_status(*step.until)
            if step.command == "query-jobs":
                self.judge_ended(answer)
            elif step.command == "query-block-jobs":
                self.judge_running(answer)
            elif step.command == "query-named-block-nodes":
                self.judge_nodes(answer)
            else:
                self.assertEqual(answer, {}, step.command)

    def judge_ended(self, jobs: list[dict[str, Any]]) -> None:
        """Before job-dismiss: one job, at its end, and nothing that looks like an error."""
        (job,) = map(self.without_extensions, jobs)
        self.assertEqual(set(job), {"current-progress", "status", "total-progress", "type", "id"})
        self.assertEqual((job["status"], job["current-progress"]), ("concluded", job["total-progress"]))

    def judge_running(self, jobs: list[dict[str, Any]]) -> None:
        """The members of a block job; how far it got, and whether a drain holds it, is a matter of time."""
        (job,) = map(self.without_extensions, jobs)
        steady = {name: job.pop(name) for name in ("auto-finalize", "auto-dismiss", "io-status")}
        self.assertEqual(steady, {"auto-finalize": True, "auto-dismiss": False, "io-status": "ok"})
        job.pop("actively-synced", None)  # a mirror's, since 8.2
        self.assertEqual(set(job), {"device", "busy", "paused", "len", "offset", "status", "speed", "ready", "type"})
        self.assertLessEqual(job["offset"], job["len"])

    def judge_nodes(self, nodes: list[dict[str, Any]]) -> None:
        """What libvirt takes from each image."""
        for one in nodes:
            if one["drv"] != "qcow2":
                continue
            image = one["image"]
            self.assertEqual((image["virtual-size"], image["cluster-size"]), (SIZE, CLUSTER))
            self.assertGreater(image["actual-size"], 0)
            self.assertEqual((image["format-specific"]["data"]["compat"], one["write_threshold"]), ("1.1", 0))

    def assert_ended(self, job: str, expected: tuple[str, ...]) -> None:
        """The job's sequence, without the drains that other commands show."""
        steps: list[str] = []
        for step in self.job_sequence(job):
            resting = [past for past in steps if past != "BLOCK_JOB_READY"][-2:]
            # BLOCK_JOB_READY may come between the two.
            if (resting, step) in ((["running", "paused"], "running"), (["ready", "standby"], "ready")):
                steps.pop()
            else:
                steps.append(step)
        self.assertEqual(tuple(steps), expected)

    def backing_name(self, disk: int) -> str | None:
        """What the image's header names."""
        name = self.nodes()[node(disk)]["image"].get("backing-filename")
        return None if name is None else str(name)

    # The conversations, each for any disk of the chain.

    def snapshot(self, disk: int, over: int, path: str, below: str) -> None:
        self.play(
            LOOK,
            *created(disk, path, backing_file=below, backing_fmt="qcow2"),
            acts(("blockdev-snapshot", {"node": node(over), "overlay": node(disk)})),
        )
        self.assert_job_sequence(f"create-{node(disk)}", CREATED, exact=True)
        self.assertEqual(self.node_at(f"{node(disk)}/backing"), node(over))

    def commit_intermediate(self, active: int, top: int, base: int, below: str) -> None:
        job = f"commit-vda-{node(top)}"
        arguments: dict[str, Any] = {
            "device": node(active), "job-id": job, "top-node": node(top), "base-node": node(base),
            "backing-file": below, **KEPT,
        }
        self.play(Step("block-commit", arguments, (job, "waiting")), Step("query-block-jobs"))
        self.wait_status(job, "concluded")
        self.play(*dismissed(job), *deleted(top))
        self.assert_ended(job, SUCCESS)

    def pull(self, active: int, gone: int, **options: Any) -> None:
        job = f"pull-vda-{node(active)}"
        arguments: dict[str, Any] = {"device": node(active), "job-id": job, **options, **KEPT}
        self.play(Step("block-stream", arguments, (job, "running")), Step("query-block-jobs"))
        self.wait_status(job, "concluded")
        self.play(*dismissed(job), *deleted(gone))
        self.assert_ended(job, SUCCESS)
        self.assertEqual(self.completed_event(job)["len"], SIZE)

    def commit_active(self, active: int, base: int) -> None:
        job = f"commit-vda-{node(active)}"
        chain = {"device": node(active), "top-node": node(active), "base-node": node(base)}
        arguments: dict[str, Any] = {**chain, "job-id": job, **KEPT}
        self.play(Step("block-commit", arguments, (job, "running")), Step("query-block-jobs"))
        self.wait_status(job, "ready")
        self.play(*pivoted(job, base), *deleted(active))
        self.assert_ended(job, PIVOTED)

    def copy(self, active: int, target: int, path: str) -> None:
        job = f"copy-vda-{node(active)}"
        disks = {"device": node(active), "target": node(target)}
        arguments: dict[str, Any] = {"job-id": job, **disks, "sync": "full", **KEPT}
        self.play(
            LOOK,
            *created(target, path),
            Step("blockdev-mirror", arguments, (job, "running")),
            Step("query-block-jobs"),
        )
        self.wait_status(job, "ready")
        self.play(*pivoted(job, target), *deleted(active))
        self.assert_ended(job, PIVOTED)


class Life(Client):
    """The recordings in their order: one disk's life."""

    def setUp(self) -> None:
        super().setUp()
        self.first = self.random_bytes(USED)
        self.base = self.open_disk(1, "base.qcow2", self.first)
        self.overlays = {disk: self.path(f"s{disk - 1}.qcow2") for disk in (2, 3, 4, 5)}
        self.end = self.path("copy.qcow2")

    def live(self, between: Any) -> None:
        """All of them; `between` is called before each, by a name."""
        below, over = self.base, 1
        for disk in (2, 3, 4):
            between(f"snapshot {disk}")
            self.snapshot(disk, over, self.overlays[disk], below)
            below, over = self.overlays[disk], disk
        between("commit")
        self.commit_intermediate(4, 3, 2, self.overlays[2])
        self.assert_chain(node(4), node(2), node(1))
        self.assertEqual(self.backing_name(4), self.overlays[2])
        between("pull")
        self.pull(4, 2, **{"base-node": node(1), "backing-file": self.base})
        self.assert_chain(node(4), node(1))
        self.assertEqual(self.backing_name(4), self.base)
        between("active commit")
        self.commit_active(4, 1)
        self.assertEqual(self.export_node(), node(1))
        between("snapshot 5")
        self.snapshot(5, 1, self.overlays[5], self.base)
        between("full pull")
        self.pull(5, 1, speed=100 * MiB)
        self.assert_chain(node(5))
        self.assertIsNone(self.backing_name(5))
        between("copy")
        self.copy(5, 6, self.end)
        self.assertEqual(self.export_node(), node(6))
        self.assertEqual(set(self.nodes()), {node(6), "libvirt-6-storage"})
        self.assertNotIn("dirty-bitmaps", self.nodes()[node(6)])
        between("resize")

    def export_node(self) -> str:
        """The node under the guest."""
        (export,) = self.qmp.cmd("query-block-exports")
        return str(export["node-name"])

    def resize(self) -> None:
        """A guest's device lets the size change; an export does not, so that it is away meanwhile."""
        self.unexport(f"exp-{node(1)}", "hard")
        self.play(Step("block_resize", {"node-name": node(6), "size": 2 * SIZE}))
        self.qmp.cmd("block-export-add", type="nbd", id="again", node_name=node(6), name="vda", writable=True)
        guest = self.guest("vda")
        self.assertEqual(guest.size, 2 * SIZE)
        guest.write(2 * SIZE - CLUSTER, b"E" * CLUSTER)
        guest.close()
        self.unexport("again", "hard")

    def assert_end(self, data: bytes) -> None:
        self.resize()
        self.daemon.quit()
        self.assert_content(self.end, data + bytes(SIZE - CLUSTER) + b"E" * CLUSTER)

    def test_to_the_byte(self) -> None:
        """A guest that writes between the commands: every length and every image left behind is known."""
        data = bytearray(self.first + bytes(SIZE - USED))
        states: dict[str, bytes] = {}
        self.export(node(1))
        guest = Guest(self.nbd_socket, node(1))
        written = 0

        def between(what: str) -> None:
            nonlocal written
            states[what] = bytes(data)
            # After the three snapshots, one cluster is in each layer; during the jobs the guest rests.
            if what in ("commit", "snapshot 3", "snapshot 4", "full pull"):
                written += 1
                piece = self.random_bytes(CLUSTER, written)
                guest.write(written * 3 * CLUSTER, piece)
                data[written * 3 * CLUSTER : (written * 3 + 1) * CLUSTER] = piece

        self.live(between)
        lengths = {
            message["data"]["device"]: message["data"]["len"]
            for message in self.qmp.transcript
            if message.get("event") == "BLOCK_JOB_COMPLETED"
        }
        self.assertEqual(
            lengths,
            {
                f"commit-vda-{node(3)}": SIZE,
                f"pull-vda-{node(4)}": SIZE,
                f"commit-vda-{node(4)}": 3 * CLUSTER,
                f"pull-vda-{node(5)}": SIZE,
                f"copy-vda-{node(5)}": USED,
            },
        )
        guest.close()
        self.assert_end(bytes(data))
        # What libvirt has let go of holds what it held.
        self.assert_content(self.base, states["snapshot 5"])
        self.assert_content(self.overlays[5], bytes(data))
        for disk, layers in ((2, 2), (4, 3)):
            # Each by itself: the clusters that the guest wrote below it and into it.
            images.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", self.overlays[disk])
            own = bytearray(SIZE)
            for number in range(1, layers + 1):
                place = slice(number * 3 * CLUSTER, (number * 3 + 1) * CLUSTER)
                own[place] = data[place]
            self.assert_content(self.overlays[disk], bytes(own))

    def test_under_a_writing_guest(self) -> None:
        """The guest writes all the while."""
        data = self.first + bytes(SIZE - USED)
        self.export(node(1))
        writer = GuestWriter(self.nbd_socket, node(1), len(self.id()), data, reach=USED)
        writer.start()
        self.addCleanup(writer.stop)
        self.live(lambda _what: writer.wait_writes(3))
        writer.wait_writes(3)
        self.assert_end(writer.stop())


class SeveralDisks(Client):
    """snapshot-create-as --atomic of a machine with two disks."""

    def setUp(self) -> None:
        super().setUp()
        self.first = {1: self.random_bytes(MiB, 1), 2: self.random_bytes(MiB, 2)}
        self.bases = {disk: self.open_disk(disk, f"base{disk}.qcow2", data) for disk, data in self.first.items()}
        self.overlays = {disk: self.path(f"over{disk}.qcow2") for disk in self.bases}
        self.play(LOOK)
        for disk, base in self.bases.items():
            self.play(*created(disk + 2, self.overlays[disk], backing_file=base, backing_fmt="qcow2"))

    def snapshots(self) -> list[tuple[str, dict[str, Any]]]:
        return [("blockdev-snapshot", {"node": node(disk), "overlay": node(disk + 2)}) for disk in self.bases]

    def test_both_under_writing_guests(self) -> None:
        writers: dict[int, GuestWriter] = {}
        for disk, data in self.first.items():
            self.export(node(disk))
            writer = GuestWriter(self.nbd_socket, node(disk), disk, data + bytes(SIZE - MiB), reach=MiB)
            writer.start()
            self.addCleanup(writer.stop)
            writer.wait_writes(3)
            writers[disk] = writer
        self.play(acts(*self.snapshots()))
        for writer in writers.values():
            writer.wait_writes(3)
        for disk in self.bases:
            self.assert_chain(node(disk + 2), node(disk))
        frozen = {disk: self.path(f"frozen{disk}.qcow2") for disk in self.bases}
        for disk, path in frozen.items():
            shutil.copy(self.bases[disk], path)
        for writer in writers.values():
            writer.wait_writes(3)
        ends = {disk: writer.stop() for disk, writer in writers.items()}
        self.daemon.quit()
        for disk, end in ends.items():
            images.compare(frozen[disk], self.bases[disk], "qcow2", "qcow2")
            self.assert_content(self.overlays[disk], end)

    def test_none_when_one_cannot_be_made(self) -> None:
        before = self.graph_edges()
        wrong = ("blockdev-snapshot", {"node": node(2), "overlay": "libvirt-9-format"})
        actions = [{"type": verb, "data": data} for verb, data in (self.snapshots()[0], wrong)]
        missing = "Cannot find device='libvirt-9-format' nor node-name='libvirt-9-format'"
        self.assert_qmp_error(missing, "transaction", {"actions": actions})
        self.assertEqual(self.graph_edges(), before)
        self.play(acts(*self.snapshots()))
        self.daemon.quit()
        for disk, data in self.first.items():
            self.assert_content(self.overlays[disk], data + bytes(SIZE - MiB))
