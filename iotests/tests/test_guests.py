"""Guests that write while jobs run, and a daemon that dies while guests write."""

from __future__ import annotations

from pathlib import Path

from iotests.harness import images
from iotests.harness.case import QMPTestCase, over_images
from iotests.harness.guest import nbd
from iotests.harness.images import KiB, MiB

SIZE = 8 * MiB


@over_images(images.RAW, images.QCOW2_512, images.QCOW2, images.QCOW2_2M, images.QCOW2_V2, images.QCOW2_EXTENDED)
class UnderJobs(QMPTestCase):
    """One guest writes at random; the result is compared with the test's own model."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(SIZE)
        self.image = self.filled_image("disk", self.data)
        self.launch()
        self.add_node("s", self.image, discard="unmap")
        self.export("s")

    def test_backup_keeps_the_point_in_time(self) -> None:
        target = self.create_image("target", SIZE)
        self.add_node("t", target)
        early = self.guest_writer("s", self.data)
        early.wait_writes(20)
        before = early.stop()
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="full", speed=2 * MiB)
        late = self.guest_writer("s", before)
        late.wait_writes(40)
        self.unthrottle("j")
        self.wait_status("j", "null")
        self.assertIn("BLOCK_JOB_COMPLETED", self.job_sequence("j"))
        after = late.stop()
        self.daemon.quit()
        self.assert_content(target, before)
        self.assert_content(self.image, after)

    def test_snapshots_and_stream(self) -> None:
        writer = self.guest_writer("s", self.data)
        node = "s"
        for number in range(3):
            name = f"o{number}"
            kind = self.image_options.driver
            path = self.create_image(f"{name}.qcow2", SIZE, images.QCOW2, backing=self.image, backing_format=kind)
            self.add_node(name, path, "qcow2", backing=None)
            self.qmp.cmd("blockdev-snapshot", node=node, overlay=name)
            node = name
            writer.wait_writes(10)
        self.qmp.cmd("block-stream", job_id="j", device=node, base_node="s", speed=4 * MiB)
        writer.wait_writes(20)
        self.unthrottle("j")
        self.wait_status("j", "null")
        self.assertIn("BLOCK_JOB_COMPLETED", self.job_sequence("j"))
        writer.wait_writes(5)
        final = writer.stop()
        self.assert_chain("o2", "s")
        self.daemon.quit()
        images.check(self.image, self.image_options.driver)
        self.assert_content(self.path("o2.qcow2"), final, "qcow2")

    def test_cancelled_backups_leave_no_trace(self) -> None:
        target = self.create_image("target", SIZE)
        self.add_node("t", target)
        writer = self.guest_writer("s", self.data)
        for number in range(5):
            job = f"j{number}"
            self.qmp.cmd("blockdev-backup", job_id=job, device="s", target="t", sync="full", speed=MiB)
            writer.wait_writes(5)
            self.qmp.cmd("job-cancel", id=job)
            self.wait_status(job, "null")
        final = writer.stop()
        self.assert_nothing_left("s", "s-file", "t", "t-file")
        self.daemon.quit()
        self.assert_content(self.image, final)


class ManyAtOnce(QMPTestCase):
    """Several guests, jobs and queries at the same time."""

    def test_four_guests_four_backups_and_queries(self) -> None:
        self.launch()
        models = {f"d{number}": self.random_bytes(4 * MiB, number) for number in range(4)}
        for name, data in models.items():
            self.add_node(name, self.filled_image(name, data))
            self.add_node(f"t{name}", self.create_image(f"t{name}", 4 * MiB))
            self.export(name)
        writers = {name: self.guest_writer(name, data) for name, data in models.items()}
        for round_number in range(2):
            jobs = [f"{name}-{round_number}" for name in models]
            for name, job in zip(models, jobs):
                self.qmp.cmd("blockdev-backup", job_id=job, device=name, target=f"t{name}", sync="full")
            for _ in range(20):
                self.qmp.cmd("query-named-block-nodes")
                self.qmp.cmd("query-jobs")
                self.qmp.cmd("query-blockstats", query_nodes=True)
            for job in jobs:
                self.wait_status(job, "null")
                self.assertIn("BLOCK_JOB_COMPLETED", self.job_sequence(job))
        finals = {name: writer.stop() for name, writer in writers.items()}
        self.daemon.quit()
        for name, final in finals.items():
            self.assert_content(self.path(name), final)
            images.check(self.path(f"t{name}"))

    def test_eight_guests_while_their_chains_change(self) -> None:
        size = 2 * MiB
        base = self.random_bytes(size)
        path = self.filled_image("base", base)
        self.launch()
        self.add_node("base", path, read_only=True)
        disks = [f"d{number}" for number in range(8)]
        for disk in disks:
            image = self.create_image(disk, size, backing=path)
            self.add_node(disk, image, backing="base")
            self.export(disk)
        target = self.create_image("target", size)
        self.add_node("target", target)
        tops = dict(zip(disks, disks))
        writers = {disk: self.guest_writer(disk, base) for disk in disks}
        for round_number in range(3):
            for disk in disks:  # a longer chain
                below, tops[disk] = tops[disk], f"{disk}-{round_number}"
                image = self.create_image(tops[disk], size, backing=self.path(below), backing_format="qcow2")
                self.add_node(tops[disk], image, backing=None)
                self.qmp.cmd("blockdev-snapshot", node=below, overlay=tops[disk])
            busy = tops[disks[round_number]]  # a filter comes and goes
            self.qmp.cmd("blockdev-backup", job_id="b", device=busy, target="target", sync="full", speed=64 * KiB)
            writers[disks[round_number]].wait_writes(5)
            self.qmp.cmd("job-cancel", id="b")
            self.wait_status("b", "null")
            for disk in disks:  # and short again, all at once
                self.qmp.cmd("block-stream", job_id=disk, device=tops[disk], base_node="base")
            for disk in disks:
                writers[disk].wait_writes(5)
                self.wait_status(disk, "null")
                self.assertIn("BLOCK_JOB_COMPLETED", self.job_sequence(disk))
                self.assert_chain(tops[disk], "base")
        finals = {disk: writer.stop() for disk, writer in writers.items()}
        self.daemon.quit()
        for disk, final in finals.items():
            self.assert_content(self.path(tops[disk]), final)
        self.assert_content(path, base)

    def test_two_guests_on_one_export(self) -> None:
        self.launch()
        image = self.create_image("a", 4 * MiB)
        self.add_node("n", image)
        self.export("n")
        first, second = self.guest("n"), self.guest("n")
        for number in range(64):
            (first if number % 2 else second).write(number * 64 * KiB, bytes([number + 1]) * 64 * KiB)
        first.handle.flush()
        expected = b"".join(bytes([number + 1]) * 64 * KiB for number in range(64))
        self.assertEqual(second.read(0, 4 * MiB), expected)
        first.close()
        second.close()
        self.daemon.quit()
        self.assert_content(image, expected)


@over_images(images.QCOW2_512, images.QCOW2_4K, images.QCOW2, images.QCOW2_2M, images.QCOW2_V2, images.QCOW2_EXTENDED)
class Crash(QMPTestCase):
    """kill -9 in the middle of writes: leaks are allowed, corruption and lost flushes never."""

    def crash_under_writes(self, *, with_backing: bool) -> None:
        """Write with flushes in between, kill, and look."""
        backing = self.filled_image("base", self.random_bytes(SIZE, 1)) if with_backing else ""
        image = self.create_image("disk", SIZE, backing=backing)
        for round_number in range(3):
            daemon = self.launch(name=f"d{round_number}")
            self.qmp = daemon.qmp
            self.add_node("n", image, discard="unmap")
            self.nbd_socket = self.path(f"nbd{round_number}")
            self.export("n")
            guest = self.guest("n")
            durable = []
            for number in range(20):
                # Places no later write touches hold what was flushed.
                offset = number * 96 * KiB
                piece = self.random_bytes(10_000, 100 * round_number + number)
                guest.write(offset, piece)
                durable.append((offset, piece))
            guest.handle.flush()
            # Many in flight when the daemon dies, in a part of their own.
            for number in range(32):
                data = nbd.Buffer.from_bytearray(bytearray(self.random_bytes(50_000, number)))
                guest.handle.aio_pwrite(data, 4 * MiB + number * 100_000)
            guest.handle.aio_zero(512 * KiB, 3 * MiB)
            daemon.kill()
            guest.vanish()
            images.check(image, allow_leaks=True)
            content = self.read_back(image)
            for offset, piece in durable:
                self.assertTrue(content[offset : offset + len(piece)] == piece, f"lost flush at {offset}")
        images.run_tool("qemu-img", "check", "-q", "-r", "leaks", image)
        images.check(image)

    def read_back(self, image: str) -> bytes:
        """The guest's view of an image, by qemu-img."""
        raw = Path(self.path("back.raw"))
        images.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, str(raw))
        return raw.read_bytes()

    def test_allocating_writes(self) -> None:
        self.crash_under_writes(with_backing=False)

    def test_copy_on_write(self) -> None:
        self.crash_under_writes(with_backing=True)

    def test_during_a_stream(self) -> None:
        data = self.random_bytes(SIZE)
        base = self.filled_image("base", data)
        image = self.create_image("disk", SIZE, backing=base)
        self.launch()
        self.add_node("n", image)
        self.qmp.cmd("block-stream", job_id="j", device="n", speed=2 * MiB)
        self.qmp.wait_event("JOB_STATUS_CHANGE", {"id": "j", "status": "running"})
        while self.job("j")["current-progress"] == 0:
            pass  # Each query is a round trip to the daemon: this waits for its work, not for the clock.
        self.daemon.kill()
        images.check(image, allow_leaks=True)
        images.compare(image, base, "qcow2", "qcow2")
