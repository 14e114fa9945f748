"""transaction: all or nothing, one point in time, completion modes."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import SUCCESS, QMPTestCase
from iotests.harness.guest import Guest
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only

SIZE = 2 * MiB
SLOW = 64 * KiB
DISKS = 3


class TransactionCase(QMPTestCase):
    """Several disks dN with data, each with an empty target tN."""

    def setUp(self) -> None:
        super().setUp()
        self.data = [self.random_bytes(SIZE, number) for number in range(DISKS)]
        self.launch()
        for number in range(DISKS):
            self.add_node(f"d{number}", self.filled_image(f"d{number}", self.data[number]))
            self.add_node(f"t{number}", self.create_image(f"t{number}", SIZE))
        self.opened = set(self.nodes())

    def backup(self, number: int, **more: Any) -> dict[str, Any]:
        """The action that backs up disk N as job jN."""
        data = {"job-id": f"j{number}", "device": f"d{number}", "target": f"t{number}", "sync": "full", **more}
        return {"type": "blockdev-backup", "data": data}

    def transaction(self, *actions: dict[str, Any], grouped: bool = False) -> None:
        """Run a transaction."""
        arguments: dict[str, Any] = {"actions": list(actions)}
        if grouped:
            arguments["properties"] = {"completion-mode": "grouped"}
        self.assertEqual(self.qmp.execute("transaction", arguments), {})

    def refuse(self, desc: str, *actions: dict[str, Any], **properties: str) -> None:
        """The transaction fails with this text."""
        arguments: dict[str, Any] = {"actions": list(actions)}
        if properties:
            arguments["properties"] = {name.replace("_", "-"): value for name, value in properties.items()}
        self.assert_qmp_error(desc, "transaction", arguments)

    def snapshot(self, number: int, overlay: str) -> dict[str, Any]:
        """The action that puts an overlay node over disk N."""
        return {"type": "blockdev-snapshot", "data": {"node": f"d{number}", "overlay": overlay}}

    def overlay(self, number: int) -> str:
        """An overlay node for disk N, ready for a snapshot."""
        path = self.create_image(f"o{number}", SIZE, backing=self.path(f"d{number}"))
        self.add_node(f"o{number}", path, backing=None)
        self.opened = set(self.nodes())
        return f"o{number}"

    def wait_end(self, *jobs: str) -> None:
        """Wait until all these jobs are gone."""
        for job in jobs:
            self.wait_status(job, "null")


ABORT = {"type": "abort", "data": {}}


class AllOrNothing(TransactionCase):
    """A failing action takes back those before it."""

    def test_no_actions(self) -> None:
        self.transaction()

    def test_backups_of_all_disks(self) -> None:
        self.transaction(*(self.backup(number) for number in range(DISKS)))
        self.wait_end("j0", "j1", "j2")
        for number in range(DISKS):
            self.assert_job_sequence(f"j{number}", SUCCESS)
        self.daemon.quit()
        for number in range(DISKS):
            self.assert_content(self.path(f"t{number}"), self.data[number])

    def test_abort_takes_back_backups(self) -> None:
        self.refuse("Transaction aborted using Abort action", self.backup(0), self.backup(1), ABORT)
        self.assert_nothing_left(*self.opened)
        for job in ("j0", "j1"):
            self.assertEqual(self.job_sequence(job), ("created", "aborting", "concluded", "null"))
        self.transaction(self.backup(0))
        self.wait_end("j0")

    def test_abort_takes_back_snapshots(self) -> None:
        overlay = self.overlay(0)
        self.export("d0")
        self.refuse("Transaction aborted using Abort action", self.snapshot(0, overlay), ABORT)
        self.assert_nothing_left(*self.opened)
        self.assertEqual(self.qmp.cmd("query-block-exports")[0]["node-name"], "d0")
        self.assertFalse(self.nodes()["d0"]["ro"])
        guest = self.guest("d0")
        guest.write(0, b"w" * 512)
        guest.close()
        self.transaction(self.snapshot(0, overlay))
        self.assert_chain("o0", "d0")

    def test_failed_action_takes_back_those_before(self) -> None:
        overlay = self.overlay(0)
        self.refuse(
            "Cannot find device='zz' nor node-name='zz'",
            self.snapshot(0, overlay),
            self.backup(1),
            self.backup(2, target="zz"),
        )
        self.assert_nothing_left(*self.opened)
        self.assert_chain("o0")
        self.assertEqual(self.job_sequence("j1"), ("created", "aborting", "concluded", "null"))

    def test_snapshot_sync_taken_back(self) -> None:
        data = {"node-name": "d0", "snapshot-file": self.path("new"), "snapshot-node-name": "new"}
        self.refuse("Transaction aborted using Abort action", {"type": "blockdev-snapshot-sync", "data": data}, ABORT)
        self.assert_nothing_left(*self.opened)

    def test_snapshots_of_all_disks(self) -> None:
        overlays = [self.overlay(number) for number in range(DISKS)]
        self.transaction(*(self.snapshot(number, one) for number, one in enumerate(overlays)))
        for number in range(DISKS):
            self.assert_chain(f"o{number}", f"d{number}")

    def test_drive_backup_in_a_transaction(self) -> None:
        data = {"job-id": "j0", "device": "d0", "target": self.path("made"), "sync": "full"}
        self.transaction({"type": "drive-backup", "data": data}, self.backup(1))
        self.wait_end("j0", "j1")
        self.daemon.quit()
        self.assert_content(self.path("made"), self.data[0])

    def test_snapshot_then_backup_of_the_same_disk(self) -> None:
        overlay = self.overlay(0)
        self.transaction(self.snapshot(0, overlay), self.backup(0))
        self.wait_end("j0")
        self.daemon.quit()
        self.assert_content(self.path("t0"), self.data[0])

    def test_argument_errors(self) -> None:
        self.refuse("Parameter 'type' does not accept value 'zz'", {"type": "zz", "data": {}})
        self.refuse(
            "Parameter 'actions[0].data.sync' is missing",
            {"type": "blockdev-backup", "data": {"job-id": "j", "device": "d0", "target": "t0"}},
        )
        self.refuse(
            "Parameter 'actions[1].data.foo' is unexpected", self.backup(0), {"type": "abort", "data": {"foo": 1}}
        )
        self.assert_nothing_left(*self.opened)
        # Decoding comes before the first action.
        self.assertEqual(self.job_sequence("j0"), ())


BEYOND = "the field has no such action"


class BeyondTheField(TransactionCase):
    """The actions under x- names: in, or out, with all others."""

    def chain(self, number: int) -> str:
        """A chain base, middle, top over disk N; the name of its top."""
        below = f"d{number}"
        for part in ("middle", "top"):
            path = self.create_image(f"{part}{number}", SIZE, backing=self.path(below))
            below = f"{part}{number}"
            self.add_node(below, path, backing=f"middle{number}" if part == "top" else f"d{number}")
        self.opened = set(self.nodes())
        return below

    def actions(self) -> list[dict[str, Any]]:
        """A stream, a commit and an export."""
        streamed, committed = self.chain(0), self.chain(1)
        self.start_nbd()
        return [
            {"type": "x-block-stream", "data": {"job-id": "s", "device": streamed}},
            {"type": "x-block-commit", "data": {"job-id": "c", "device": committed, "top-node": "middle1"}},
            self.adding("e", "d2"),
        ]

    @staticmethod
    def adding(identity: str, node: str, **options: Any) -> dict[str, Any]:
        """The action that exports a node."""
        return {"type": "x-block-export-add", "data": {"type": "nbd", "id": identity, "node-name": node, **options}}

    def exports(self) -> list[str]:
        """The ids of all exports."""
        return [export["id"] for export in self.qmp.cmd("query-block-exports")]

    @blockd_only(BEYOND)
    def test_all_of_them(self) -> None:
        self.transaction(*self.actions(), self.backup(2))
        self.assertEqual(self.exports(), ["e"])
        self.wait_end("s", "c", "j2")
        self.assert_job_sequence("s", SUCCESS)
        self.assert_job_sequence("c", SUCCESS)
        self.assert_chain("top0")
        self.assert_chain("top1", "d1")
        self.daemon.quit()
        self.assert_content(self.path("top0"), self.data[0])
        self.assert_content(self.path("top1"), self.data[1])

    @blockd_only(BEYOND)
    def test_none_of_them(self) -> None:
        actions = self.actions()
        self.refuse("Transaction aborted using Abort action", *actions, ABORT)
        self.assertEqual(self.exports(), [])
        for job in ("s", "c"):
            self.assertEqual(self.job_sequence(job), ("created", "aborting", "concluded", "null"))
        self.assert_nothing_left(*self.opened)
        self.assert_chain("top0", "middle0", "d0")
        self.transaction(*actions)
        self.wait_end("s", "c")

    @blockd_only(BEYOND)
    def test_two_exports_that_exclude_each_other(self) -> None:
        self.start_nbd()
        self.refuse("Block export id 'e' is already in use", self.adding("e", "d0"), self.adding("e", "d1"))
        self.refuse("NBD server already has export named 'd0'", self.adding("e", "d0"), self.adding("f", "d0"))
        self.assertEqual(self.exports(), [])
        self.transaction(self.adding("e", "d0"), self.adding("f", "d0", name="other"))
        self.assertEqual(sorted(self.exports()), ["e", "f"])

    @blockd_only(BEYOND)
    def test_none_can_be_grouped(self) -> None:
        for action in self.actions():
            self.refuse(
                f"Action '{action['type']}' does not support Transaction property completion-mode = grouped",
                self.backup(2),
                action,
                completion_mode="grouped",
            )
        self.assert_nothing_left(*self.opened)


class Grouped(TransactionCase):
    """completion-mode grouped: nobody commits until everybody is ready to."""

    def test_first_done_waits_for_the_last(self) -> None:
        self.transaction(self.backup(0), self.backup(1, speed=SLOW), grouped=True)
        self.wait_status("j0", "waiting")
        self.assertEqual(self.job("j0")["status"], "waiting")
        self.unthrottle("j1")
        self.wait_end("j0", "j1")
        for job in ("j0", "j1"):
            self.assert_job_sequence(job, SUCCESS)
        self.assertLess(
            self.position(event="JOB_STATUS_CHANGE", data={"id": "j0", "status": "waiting"}),
            self.position(event="JOB_STATUS_CHANGE", data={"id": "j1", "status": "waiting"}),
        )
        last_pending = max(
            self.position(event="JOB_STATUS_CHANGE", data={"id": job, "status": "pending"}) for job in ("j0", "j1")
        )
        self.assertLess(
            last_pending, self.position(event="JOB_STATUS_CHANGE", data={"id": "j1", "status": "concluded"})
        )
        self.daemon.quit()
        for number in (0, 1):
            self.assert_content(self.path(f"t{number}"), self.data[number])

    def test_jobs_conclude_one_after_the_other(self) -> None:
        """Last added first, each with COMPLETED, concluded, null before the next one's."""
        self.transaction(self.backup(0), self.backup(1), self.backup(2), grouped=True)
        self.wait_end("j0", "j1", "j2")
        ends = [
            (data.get("device") or data.get("id"), data.get("status") or "COMPLETED")
            for data in (one.get("data", {}) for one in self.qmp.transcript)
            if data.get("status") in ("concluded", "null") or "offset" in data
        ]
        expected = [(job, step) for job in ("j2", "j1", "j0") for step in ("COMPLETED", "concluded", "null")]
        self.assertEqual(ends, expected)

    def test_cancelled_member_cancels_the_group(self) -> None:
        self.transaction(self.backup(0), self.backup(1, speed=SLOW), grouped=True)
        self.wait_status("j0", "waiting")
        self.qmp.cmd("job-cancel", id="j1")
        self.wait_end("j0", "j1")
        self.assert_job_sequence(
            "j1", ("created", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null")
        )
        self.assert_job_sequence(
            "j0", ("created", "running", "waiting", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null")
        )
        self.assert_nothing_left(*self.opened)

    def test_cancelling_the_waiting_member_cancels_the_group(self) -> None:
        self.transaction(self.backup(0), self.backup(1, speed=SLOW), grouped=True)
        self.wait_status("j0", "waiting")
        self.qmp.cmd("job-cancel", id="j0")
        self.wait_end("j0", "j1")
        for job in ("j0", "j1"):
            self.assertIn("BLOCK_JOB_CANCELLED", self.job_sequence(job))

    def test_finalize_of_one_finalizes_all(self) -> None:
        self.transaction(self.backup(0, **{"auto-finalize": False}), self.backup(1), grouped=True)
        self.qmp.wait_event("BLOCK_JOB_PENDING", {"id": "j0"})
        self.wait_status("j1", "pending")
        self.qmp.cmd("job-finalize", id="j0")
        self.wait_end("j0", "j1")
        self.assertIn("BLOCK_JOB_COMPLETED", self.job_sequence("j1"))

    def test_setup_failure_in_a_group(self) -> None:
        self.assert_qmp_error(
            "Cannot find device='zz' nor node-name='zz'",
            "transaction",
            actions=[self.backup(0), self.backup(1, target="zz")],
            properties={"completion-mode": "grouped"},
        )
        self.assertEqual(self.job_sequence("j0"), ("created", "aborting", "concluded", "null"))
        self.assert_nothing_left(*self.opened)

    def test_only_backups_can_be_grouped(self) -> None:
        """An action that cannot be fails when its turn comes: those before it are taken back."""
        overlay = self.overlay(0)
        self.refuse(
            "Action 'blockdev-snapshot' does not support Transaction property completion-mode = grouped",
            self.backup(1),
            self.snapshot(0, overlay),
            completion_mode="grouped",
        )
        self.assertEqual(self.job_sequence("j1"), ("created", "aborting", "concluded", "null"))
        self.assert_nothing_left(*self.opened)

    def test_abort_can_be_grouped(self) -> None:
        self.refuse("Transaction aborted using Abort action", self.backup(1), ABORT, completion_mode="grouped")
        self.assert_nothing_left(*self.opened)

    def test_earlier_action_fails_before_the_mode_of_a_later_one(self) -> None:
        overlay = self.overlay(0)
        self.refuse(
            "Cannot find device='zz' nor node-name='zz'",
            self.backup(1, target="zz"),
            self.snapshot(0, overlay),
            completion_mode="grouped",
        )

    def test_unknown_completion_mode(self) -> None:
        self.refuse("Parameter 'completion-mode' does not accept value 'zz'", self.backup(0), completion_mode="zz")

    def test_individual_members_end_by_themselves(self) -> None:
        self.transaction(self.backup(0), self.backup(1, speed=SLOW))
        self.wait_end("j0")
        self.assertEqual(self.job("j1")["status"], "running")
        self.qmp.cmd("job-cancel", id="j1")
        self.wait_end("j1")


class SequenceWriter(threading.Thread):
    """
    Writes the numbers 1, 2, 3... to several disks in turn, each after the acknowledgement of the one
    before: number n goes to disk n % disks, sector n // disks. Whatever a point in time across the disks
    holds must be a prefix of the sequence.
    """

    def __init__(self, guests: list[Guest], sectors: int) -> None:
        super().__init__(daemon=True)
        self._guests = guests
        self._limit = sectors * len(guests)
        self._condition = threading.Condition()
        self._stop_asked = False
        self.written = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Write until stopped, full or failed."""
        try:
            while not self._stop_asked and self.written + 1 < self._limit:
                number = self.written + 1
                disk, sector = number % len(self._guests), number // len(self._guests)
                self._guests[disk].write(sector * 512, struct.pack(">Q", number) * 64)
                with self._condition:
                    self.written = number
                    self._condition.notify_all()
        except BaseException as error:  # pylint: disable=broad-except; checked by stop()
            with self._condition:
                self.failure = error
                self._condition.notify_all()

    def wait_written(self, count: int) -> None:
        """Wait until `count` more numbers are acknowledged."""
        with self._condition:
            goal = self.written + count
            done = self._condition.wait_for(lambda: self.written >= goal or self.failure, 30)
        if self.failure or not done:
            raise AssertionError(f"the writer stands still at {self.written}: {self.failure}")

    def stop(self) -> int:
        """Stop; the last number written is given back."""
        self._stop_asked = True
        self.join(30)
        if self.failure or self.is_alive():
            raise AssertionError(f"the writer failed at {self.written}: {self.failure}")
        return self.written


class PointInTimeCase(QMPTestCase):
    """Disks of one guest that writes to all of them, and an empty target for each."""

    sectors = 4 * 1024
    disks = 1

    def setUp(self) -> None:
        super().setUp()
        self.launch()
        guests = []
        for number in range(self.disks):
            self.add_node(f"d{number}", self.create_image(f"d{number}", self.sectors * 512))
            self.add_node(f"t{number}", self.create_image(f"t{number}", self.sectors * 512))
            self.export(f"d{number}")
            guests.append(self.guest(f"d{number}"))
        self.writer = SequenceWriter(guests, self.sectors)

    def numbers_in(self, names: list[str]) -> set[int]:
        """Every number that the images hold, each at its place."""
        found: set[int] = set()
        for disk, name in enumerate(names):
            raw = self.path("numbers.raw")
            images.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path(name), raw)
            content = Path(raw).read_bytes()
            os.unlink(raw)
            for sector in range(self.sectors):
                block = content[sector * 512 : sector * 512 + 512]
                number = struct.unpack_from(">Q", block)[0]
                if number:
                    self.assertEqual(block, struct.pack(">Q", number) * 64, f"{name}: torn sector {sector}")
                    self.assertEqual((number % self.disks, number // self.disks), (disk, sector), name)
                    found.add(number)
        return found

    def assert_prefix(self, names: list[str], at_least: int, at_most: int) -> None:
        """The images hold 1..N and nothing else, N within the bounds."""
        found = self.numbers_in(names)
        last = max(found, default=0)
        missing = sorted(set(range(1, last + 1)) - found)
        self.assertEqual(missing, [], f"up to {last} there are holes: not one point in time")
        self.assertTrue(at_least <= last <= at_most, (at_least, last, at_most))


class PointInTime(PointInTimeCase):
    """A transaction of backups sees every disk at the same moment."""

    # Enough, and against the writer's order, that jobs started one after the other, even a single write
    # apart, leave holes.
    disks = 8
    order = tuple(reversed(range(disks)))

    def transaction_of_backups(self, grouped: bool) -> None:
        """Backups of all disks at once, under the writer."""
        actions = [
            {
                "type": "blockdev-backup",
                "data": {"job-id": f"j{n}", "device": f"d{n}", "target": f"t{n}", "sync": "full", "speed": MiB},
            }
            for n in self.order
        ]
        self.writer.start()
        self.writer.wait_written(300)
        before = self.writer.written
        self.qmp.cmd(
            "transaction", actions=actions, properties={"completion-mode": "grouped" if grouped else "individual"}
        )
        after = self.writer.written + 1
        self.writer.wait_written(300)
        for number in range(self.disks):
            self.unthrottle(f"j{number}")
        for number in range(self.disks):
            self.wait_status(f"j{number}", "null")
            self.assertIn("BLOCK_JOB_COMPLETED", self.job_sequence(f"j{number}"))
        written = self.writer.stop()
        self.daemon.quit()
        for number in range(self.disks):
            images.check(self.path(f"t{number}"))
            images.check(self.path(f"d{number}"))
        self.assert_prefix([f"t{number}" for number in range(self.disks)], before, after)
        self.assert_prefix([f"d{number}" for number in range(self.disks)], written, written)

    def test_backups(self) -> None:
        self.transaction_of_backups(grouped=False)

    def test_grouped_backups(self) -> None:
        self.transaction_of_backups(grouped=True)

    def test_snapshots(self) -> None:
        for number in range(self.disks):
            path = self.create_image(f"o{number}", self.sectors * 512, backing=self.path(f"d{number}"))
            self.add_node(f"o{number}", path, backing=None)
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": f"d{n}", "overlay": f"o{n}"}} for n in self.order
        ]
        self.writer.start()
        self.writer.wait_written(300)
        before = self.writer.written
        self.qmp.cmd("transaction", actions=actions)
        after = self.writer.written + 1
        self.writer.wait_written(300)
        written = self.writer.stop()
        self.daemon.quit()
        self.assert_prefix([f"d{number}" for number in range(self.disks)], before, after)
        self.assert_prefix([f"o{number}" for number in range(self.disks)], written, written)


class PointInTimeOfOneDisk(PointInTimeCase):
    """That of a single backup is between the command and its reply."""

    def test_drive_backup(self) -> None:
        self.writer.start()
        self.writer.wait_written(300)
        before = self.writer.written
        self.qmp.cmd("drive-backup", job_id="j", device="d0", target=self.path("made"), sync="full", speed=MiB)
        after = self.writer.written + 1
        self.writer.wait_written(300)
        self.unthrottle("j")
        self.wait_status("j", "null")
        self.assertIn("BLOCK_JOB_COMPLETED", self.job_sequence("j"))
        self.writer.stop()
        self.daemon.quit()
        self.assert_prefix(["made"], before, after)
