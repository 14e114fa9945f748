"""drive-backup and blockdev-backup: what is copied, into what, and what refuses."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import CANCELLED, FAILED, SUCCESS, QMPTestCase, over_images
from iotests.harness.images import KiB, MiB

SIZE = 2 * MiB


class BackupCase(QMPTestCase):
    """A chain of two with different data in each, opened as node s over base."""

    def setUp(self) -> None:
        super().setUp()
        self.base_data = self.random_bytes(SIZE, 1)
        self.top_data = self.random_bytes(256 * KiB, 2)
        self.data = self.base_data[: 512 * KiB] + self.top_data + self.base_data[768 * KiB :]
        self.base = self.filled_image("base.qcow2", self.base_data, images.QCOW2)
        self.source = self.create_image("source.qcow2", SIZE, images.QCOW2, backing=self.base)
        self.fill(self.source, self.top_data, "qcow2", offset=512 * KiB)
        self.target = self.path("target.img")
        self.launch()
        self.add_node("s", self.source, "qcow2")
        self.opened = set(self.nodes())

    def add_target(self, size: int = SIZE, **options: Any) -> None:
        """An empty target of the test's kind, as node t."""
        self.create_image("target.img", size)
        self.add_node("t", self.target, **options)


@over_images(*images.ALL_IMAGES)
class Blockdev(BackupCase):
    """blockdev-backup into every kind of image."""

    def test_full(self) -> None:
        self.add_target()
        self.assertEqual(
            self.run_job("blockdev-backup", job_id="j", device="s", target="t", sync="full")[-5:], SUCCESS[-5:]
        )
        self.daemon.quit()
        self.assert_content(self.target, self.data)
        self.assert_content(self.source, self.data, "qcow2")

    def test_top_copies_the_top_only(self) -> None:
        self.add_target()
        self.run_job("blockdev-backup", job_id="j", device="s", target="t", sync="top")
        self.daemon.quit()
        got = self.path("got.raw")
        images.run_tool("qemu-img", "convert", "-f", self.image_options.driver, "-O", "raw", self.target, got)
        content = Path(got).read_bytes()
        self.assertEqual(content[512 * KiB : 768 * KiB], self.top_data)
        # Copied in units of the larger cluster: what lies outside comes from the base, or is not there.
        unit = max(self.image_options.cluster_size, 64 * KiB)
        start, end = 512 * KiB // unit * unit, -(-768 * KiB // unit) * unit
        self.assertEqual(content[start:end], self.data[start:end])
        self.assertEqual(content[:start] + content[end:], bytes(SIZE - (end - start)))

    def test_none_copies_what_the_guest_overwrites(self) -> None:
        self.add_target()
        self.export("s")
        guest = self.guest("s")
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="none")
        guest.write(MiB, b"N" * 64 * KiB)
        guest.write(MiB, b"M" * 64 * KiB)
        guest.close()
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.daemon.quit()
        images.check(self.target, self.image_options.driver)
        expected = self.path("old.raw")
        Path(expected).write_bytes(self.data[MiB : MiB + 64 * KiB])
        got = self.path("got.raw")
        images.run_tool("qemu-img", "convert", "-f", self.image_options.driver, "-O", "raw", self.target, got)
        self.assertEqual(Path(got).read_bytes()[MiB : MiB + 64 * KiB], self.data[MiB : MiB + 64 * KiB])

    def test_size_that_is_no_multiple_of_a_cluster(self) -> None:
        data = self.random_bytes(SIZE + 512 * 7, 5)
        self.add_node("odd", self.filled_image("odd.qcow2", data, images.QCOW2), "qcow2")
        self.add_target(len(data))
        self.run_job("blockdev-backup", job_id="j", device="odd", target="t", sync="full")
        self.daemon.quit()
        self.assert_content(self.target, data)


class Sequences(BackupCase):
    """The events to the letter, with what the start under a drain shows."""

    begun = ("created", "running", "paused", "running")

    def test_start_is_paused_and_resumed(self) -> None:
        self.add_target()
        self.run_job("blockdev-backup", job_id="j", device="s", target="t", sync="full")
        self.assert_job_sequence("j", (*self.begun, *SUCCESS[2:]), exact=True)

    def test_cancel_of_a_backup_that_waits_for_its_speed(self) -> None:
        self.add_target()
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="full", speed=1)
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assert_job_sequence("j", (*self.begun, *CANCELLED[2:]), exact=True)


class Drive(BackupCase):
    """drive-backup, which makes its target."""

    def test_absolute_paths_creates_the_target(self) -> None:
        sequence = self.run_job("drive-backup", job_id="j", device="s", target=self.target, sync="full")
        self.assertEqual(sequence[-5:], SUCCESS[-5:])
        self.assert_nothing_left(*self.opened)
        info = images.info(self.target)
        self.assertEqual((info["format"], info.get("backing-filename")), ("qcow2", None))
        self.daemon.quit()
        self.assert_content(self.target, self.data)

    def test_top_has_the_sources_backing_file(self) -> None:
        self.run_job("drive-backup", job_id="j", device="s", target=self.target, sync="top")
        info = images.info(self.target)
        self.assertEqual((info["backing-filename"], info["backing-filename-format"]), (self.base, "qcow2"))
        self.daemon.quit()
        self.assert_content(self.target, self.data)

    def test_format(self) -> None:
        self.run_job("drive-backup", job_id="j", device="s", target=self.target, sync="full", format="raw")
        self.assertEqual(Path(self.target).read_bytes(), self.data)

    def test_existing(self) -> None:
        images.create(self.target, SIZE, images.QCOW2_4K)
        self.run_job(
            "drive-backup", job_id="j", device="s", target=self.target, sync="full", mode="existing", format="qcow2"
        )
        self.assertEqual(images.info(self.target)["cluster-size"], 4096)
        self.daemon.quit()
        self.assert_content(self.target, self.data)

    def test_existing_that_is_missing(self) -> None:
        self.assert_qmp_error(
            f"Could not open '{self.target}': No such file or directory",
            "drive-backup",
            job_id="j",
            device="s",
            target=self.target,
            sync="full",
            mode="existing",
        )
        self.assert_nothing_left(*self.opened)

    def test_target_that_cannot_be_made(self) -> None:
        self.assert_qmp_error(
            "Could not create '/nosuch/dir/t': No such file or directory",
            "drive-backup",
            job_id="j",
            device="s",
            target="/nosuch/dir/t",
            sync="full",
        )
        self.assert_nothing_left(*self.opened)

    def test_unknown_format(self) -> None:
        self.assert_qmp_error(
            "Unknown file format 'nosuch'",
            "drive-backup",
            job_id="j",
            device="s",
            target=self.target,
            sync="full",
            format="nosuch",
        )
        self.assertFalse(os.path.exists(self.target))
        self.assert_nothing_left(*self.opened)


class Refusals(BackupCase):
    """What a backup refuses, with the texts of the reference; nothing is left behind."""

    def refuse(self, desc: str, **arguments: Any) -> None:
        """blockdev-backup of s to t, with changes, fails with this text."""
        full: dict[str, Any] = {"job_id": "j", "device": "s", "target": "t", "sync": "full", **arguments}
        before = set(self.nodes())
        self.assert_qmp_error(desc, "blockdev-backup", **full)
        self.assert_nothing_left(*before)

    def test_nodes(self) -> None:
        self.add_target()
        self.refuse("Cannot find device='zz' nor node-name='zz'", device="zz")
        self.refuse("Cannot find device='zz' nor node-name='zz'", target="zz")
        self.refuse("Source and target cannot be the same", target="s")

    def test_sizes(self) -> None:
        self.add_target(SIZE * 2)
        self.refuse("Source and target image have different sizes")

    def test_arguments(self) -> None:
        self.add_target()
        self.refuse("Parameter 'sync' does not accept value 'zz'", sync="zz")
        self.refuse("must provide a valid bitmap name for 'incremental' sync mode", sync="incremental")
        self.refuse("Bitmap 'zz' could not be found", bitmap="zz", bitmap_mode="never")
        self.refuse("Bitmap 'zz' could not be found", bitmap="zz")
        self.refuse("Cannot specify bitmap sync mode without a bitmap", bitmap_mode="never")
        self.refuse("max-workers must be between 1 and 2147483647", x_perf={"max-workers": 0})
        self.refuse("max-workers must be between 1 and 2147483647", x_perf={"max-workers": 1 << 31})
        self.refuse("max-chunk must be zero (which means no limit) or positive", x_perf={"max-chunk": -1})
        self.refuse("Required max-chunk (512) is less than backup cluster size (65536)", x_perf={"max-chunk": 512})

    def test_compression_into_raw(self) -> None:
        images.create(self.target, SIZE, images.RAW)
        self.add_node("t", self.target, "raw")
        self.refuse("Compression is not supported for this drive ", compress=True)

    def test_read_only_target(self) -> None:
        self.create_image("target.img", SIZE)
        self.add_node("t", self.target, read_only=True)
        self.refuse("Could not create node: Block node is read-only")

    def test_filter_name_taken(self) -> None:
        self.add_target()
        self.refuse("Could not create node: Duplicate nodes with node-name='s'", filter_node_name="s")


class Failures(QMPTestCase):
    """Errors while a backup runs."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(SIZE)
        self.source = self.filled_image("source.qcow2", self.data)
        self.target = self.filled_image("target.qcow2", self.random_bytes(SIZE, 1))

    def break_cluster(self, path: str, number: int) -> None:
        """Point the mapping of a cluster where none can be: requests there fail with EIO."""
        with open(path, "r+b") as file:
            file.seek(40)
            (l1_offset,) = struct.unpack(">Q", file.read(8))
            file.seek(l1_offset)
            l2_offset = struct.unpack(">Q", file.read(8))[0] & 0x00FFFFFFFFFFFE00
            file.seek(l2_offset + 8 * number)
            file.write(struct.pack(">Q", 1 << 63 | 0x7777200))

    def start(self, **more: Any) -> None:
        """Open both images and start the backup; the source is read-only, so that its errors last."""
        self.launch()
        self.add_node("s", self.source, read_only=True)
        self.add_node("t", self.target)
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="full", **more)

    def test_source_error_is_reported(self) -> None:
        self.break_cluster(self.source, 9)
        self.start(auto_dismiss=False)
        self.wait_status("j", "concluded")
        self.assert_job_sequence(
            "j", ("created", "running", "BLOCK_JOB_ERROR", "aborting", "BLOCK_JOB_COMPLETED", "concluded")
        )
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "read", "action": "report"})
        self.assertEqual(self.completed_event("j")["error"], "Input/output error")
        self.assertEqual(self.job("j")["error"], "Input/output error")
        self.qmp.cmd("job-dismiss", id="j")

    def test_target_error_is_reported(self) -> None:
        self.break_cluster(self.target, 9)
        self.start()
        self.wait_status("j", "null")
        self.assertEqual(
            tuple(one for one in self.job_sequence("j") if one not in ("paused", "BLOCK_JOB_ERROR"))[-4:], FAILED[-4:]
        )
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "write", "action": "report"})
        self.qmp.wait_event("BLOCK_IMAGE_CORRUPTED", {"node-name": "t"})

    def test_stop_pauses_the_job(self) -> None:
        self.break_cluster(self.source, 9)
        self.start(on_source_error="stop")
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "read", "action": "stop"})
        # The start may have shown a pause of its own before.
        self.qmp.wait_event("JOB_STATUS_CHANGE", lambda data: self.job("j")["status"] == "paused")
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual((job["io-status"], job["paused"], job["status"]), ("failed", True, "paused"))
        self.qmp.take_events()
        self.qmp.cmd("job-resume", id="j")
        self.qmp.wait_event("BLOCK_JOB_ERROR", {"action": "stop"})
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertEqual(self.job_sequence("j")[-3:], ("BLOCK_JOB_CANCELLED", "concluded", "null"))

    def test_failed_backup_leaves_the_nodes_usable(self) -> None:
        self.break_cluster(self.source, 9)
        self.start()
        self.wait_status("j", "null")
        self.qmp.cmd("blockdev-del", node_name="t")
        self.qmp.cmd("blockdev-del", node_name="s")
        self.assert_nothing_left()
