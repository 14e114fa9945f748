"""The conversations of libvirt 9 about backups and checkpoints, command by command, with a guest at the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import CANCELLED, SUCCESS
from iotests.harness.guest import Guest
from iotests.harness.images import KiB, MiB
from iotests.tests.test_bitmaps import GRANULE, BitmapCase

SIZE = 64 * MiB
DISK = "libvirt-6-format"
CREATED = ("created", "running", "waiting", "pending", "concluded", "null")
# A backup shows how its start is held until the change is made.
STARTED = ("created", "running", "paused", "running")


class Backup(BitmapCase):
    """One disk, with the names that libvirt gives."""

    size = SIZE

    def setUp(self) -> None:
        super().setUp()
        self.qmp.cmd("blockdev-del", node_name="d")
        self.data = bytearray(self.random_bytes(4 * MiB) + bytes(SIZE - 4 * MiB))
        self.fill(self.disk, bytes(self.data[: 4 * MiB]))
        self.qmp.cmd(
            "blockdev-add",
            driver="file", filename=self.disk, node_name="libvirt-6-storage", auto_read_only=True, discard="unmap",
        )
        self.qmp.cmd("blockdev-add", node_name=DISK, read_only=False, driver="qcow2", file="libvirt-6-storage", backing=None)
        self.export(DISK)
        self.writer = self.guest(DISK)
        self.addCleanup(self.writer.vanish)
        self.writes = 0

    def write_at(self, *granules: int) -> bytes:
        """The guest writes; what the disk holds then is given back."""
        for granule in granules:
            self.writes += 1
            piece = self.random_bytes(GRANULE, self.writes)
            self.writer.write(granule * GRANULE, piece)
            self.data[granule * GRANULE : (granule + 1) * GRANULE] = piece
        return bytes(self.data)

    def open_target(self, number: int, name: str, *, over_disk: bool) -> str:
        """What precedes the transaction: the image is made and opened."""
        path = self.path(name)
        Path(path).touch()
        storage, node = f"libvirt-{number}-storage", f"libvirt-{number}-format"
        self.assertIn(DISK, self.nodes())
        self.qmp.cmd(
            "blockdev-add", driver="file", filename=path, node_name=storage, auto_read_only=True, discard="unmap"
        )
        options: dict[str, Any] = {"driver": "qcow2", "file": storage, "size": SIZE, "cluster-size": 64 * KiB}
        if over_disk:
            options.update({"backing-file": self.disk, "backing-fmt": "qcow2"})
        job = f"create-{node}"
        self.qmp.cmd("blockdev-create", job_id=job, options=options)
        self.wait_status(job, "concluded")
        self.assertEqual(
            self.without_extensions(self.job(job)), {"current-progress": 1, "status": "concluded", "total-progress": 1, "type": "create", "id": job}
        )
        self.qmp.cmd("job-dismiss", id=job)
        self.assert_job_sequence(job, CREATED, exact=True)
        self.qmp.cmd(
            "blockdev-add", node_name=node, read_only=False, driver="qcow2", file=storage, backing=DISK if over_disk else None
        )
        return path

    def close_target(self, number: int) -> None:
        self.qmp.cmd("blockdev-del", node_name=f"libvirt-{number}-format")
        self.qmp.cmd("blockdev-del", node_name=f"libvirt-{number}-storage")

    def act(self, *actions: tuple[str, dict[str, Any]]) -> None:
        self.qmp.cmd("transaction", actions=[{"type": verb, "data": data} for verb, data in actions])

    @staticmethod
    def checkpoint(name: str) -> tuple[str, dict[str, Any]]:
        return "block-dirty-bitmap-add", {"node": DISK, "name": name, "persistent": True, "disabled": False}

    @staticmethod
    def temporary(node: str, name: str) -> tuple[str, dict[str, Any]]:
        return (
            "block-dirty-bitmap-add",
            {"node": node, "name": name, "persistent": False, "disabled": True, "granularity": 65536},
        )

    @staticmethod
    def merged(node: str, name: str, *checkpoints: str) -> tuple[str, dict[str, Any]]:
        sources = [{"node": DISK, "name": checkpoint} for checkpoint in checkpoints]
        return "block-dirty-bitmap-merge", {"node": node, "target": name, "bitmaps": sources}

    @staticmethod
    def backup(number: int, job: str, **options: Any) -> tuple[str, dict[str, Any]]:
        common = {"device": DISK, "job-id": job, "target": f"libvirt-{number}-format"}
        return "blockdev-backup", {**common, **options, "auto-finalize": True, "auto-dismiss": False}

    def push(self, number: int, length: int, *actions: tuple[str, dict[str, Any]]) -> None:
        """A backup that the daemon writes itself, to its end."""
        job = f"backup-{number}"
        self.act(*actions)
        self.wait_status(job, "concluded")
        done = {"current-progress": length, "status": "concluded", "total-progress": length, "type": "backup", "id": job}
        self.assertEqual(self.without_extensions(self.job(job)), done)
        self.assertEqual(
            self.completed_event(job), {"device": job, "len": length, "offset": length, "speed": 0, "type": "backup"}
        )
        self.qmp.cmd("job-dismiss", id=job)
        self.assert_job_sequence(job, (*STARTED, *SUCCESS[2:]), exact=True)
        self.close_target(number)

    def test_push_full_then_incremental_then_delete(self) -> None:
        full = self.open_target(9, "push-full.qcow2", over_disk=False)
        first = bytes(self.data)
        self.push(9, SIZE, self.checkpoint("c1"), self.backup(9, "backup-9", sync="full"))
        second = self.write_at(3)
        increment = self.open_target(10, "push-inc.qcow2", over_disk=True)
        self.push(
            10, GRANULE,
            self.checkpoint("c2"),
            self.temporary(DISK, "backup-vda"),
            self.merged(DISK, "backup-vda", "c1"),
            self.backup(10, "backup-10", sync="incremental", bitmap="backup-vda"),
        )
        self.qmp.cmd("block-dirty-bitmap-remove", node=DISK, name="backup-vda")
        self.write_at(7)
        self.assertEqual((self.count("c1", DISK), self.count("c2", DISK)), (2 * GRANULE, GRANULE))
        self.act(("block-dirty-bitmap-remove", {"node": DISK, "name": "c2"}))
        self.assertEqual(list(self.bitmaps(DISK)), ["c1"])
        self.daemon.quit()
        self.assert_content(full, first)
        images.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", full, increment)
        self.assert_content(increment, second)
        self.assertEqual(list(self.stored()), ["c1"])

    def test_pull_incremental_and_abort(self) -> None:
        self.act(self.checkpoint("c1"))
        then = self.write_at(1, 5)
        self.open_target(11, "scratch.qcow2", over_disk=True)
        self.qmp.cmd("nbd-server-stop")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.export(DISK)
        self.writer = Guest(self.nbd_socket, DISK)
        node, job = "libvirt-11-format", "backup-vda-libvirt-6-format"
        self.act(
            self.checkpoint("c3"),
            self.temporary(node, "bm"),
            self.merged(node, "bm", "c1"),
            self.backup(11, job, sync="none"),
        )
        self.qmp.cmd(
            "block-export-add",
            type="nbd", id=f"libvirt-nbd-{node}", node_name=node, writable=False, name="vda", bitmaps=["bm"],
        )
        self.write_at(1, 2)
        text = images.run_tool("nbdinfo", "--json", "--map=qemu:dirty-bitmap:bm", self.nbd_uri("vda"))
        dirty = [(e["offset"], e["length"]) for e in json.loads(text) if e["type"]]
        self.assertEqual(dirty, [(GRANULE, GRANULE), (5 * GRANULE, GRANULE)])
        reader = self.guest("vda")
        for offset, length in dirty:
            self.assertEqual(reader.read(offset, length), then[offset : offset + length])
        reader.close()
        self.writer.close()
        self.qmp.cmd("block-job-cancel", device=job, force=True)
        self.wait_status(job, "concluded")
        self.assertEqual(
            self.job(job)["error"], "Operation canceled"
        )
        self.qmp.cmd("job-dismiss", id=job)
        self.assert_job_sequence(job, (*STARTED, *CANCELLED[2:5], "null"), exact=True)
        self.qmp.cmd("nbd-server-stop")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", {"id": f"libvirt-nbd-{node}"})
        self.close_target(11)
        self.assertEqual({name: bitmap["busy"] for name, bitmap in self.bitmaps(DISK).items()}, {"c3": False, "c1": False})
        self.assertEqual(self.count("c3", DISK), 2 * GRANULE)
        self.daemon.quit()
        self.assert_content(self.disk, bytes(self.data))
