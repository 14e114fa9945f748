"""A backup whose target fails: every policy, with its events, its state and its error."""

from __future__ import annotations

import errno
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB, QCOW2, RAW

SIZE = 2 * MiB
REPORTED = ("created", "running", "BLOCK_JOB_ERROR", "aborting", "BLOCK_JOB_COMPLETED", "concluded", "null")


class FailingTarget(QMPTestCase):
    """A full disk, and a raw target behind blkdebug."""

    def start(self, number: int, **options: Any) -> None:
        """Back up into a target that fails half way, one cluster at a time."""
        self.data = self.random_bytes(SIZE)
        self.source = self.filled_image("source.img", self.data, RAW)
        self.target = self.create_image("target.img", SIZE, RAW)
        self.launch()
        self.add_node("s", self.source, "raw")
        rule = {"event": "none", "iotype": "write", "sector": SIZE // 2 // 512, "errno": number, **options.pop("rule", {})}
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.target)
        self.qmp.cmd("blockdev-add", driver="blkdebug", node_name="t", image="f", inject_error=[rule])
        self.opened = set(self.nodes())
        self.qmp.cmd(
            "blockdev-backup",
            **{"job-id": "j", "device": "s", "target": "t", "sync": "full", "x-perf": {"max-workers": 1}},
            **options,
        )

    def expect_error(self, action: str) -> None:
        """The next BLOCK_JOB_ERROR, whole."""
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "write", "action": action})

    def expect_failed(self, text: str) -> None:
        """The job reports the error, and leaves nothing."""
        self.expect_error("report")
        self.wait_status("j", "null")
        self.assert_job_sequence("j", REPORTED)
        self.assertEqual(self.completed_event("j")["error"], text)
        self.assertLess(self.completed_event("j")["offset"], SIZE)
        self.assert_nothing_left(*self.opened)

    def expect_stopped(self, status: str) -> None:
        """The job has paused itself, and says why."""
        self.expect_error("stop")
        self.qmp.wait_event("JOB_STATUS_CHANGE", lambda _: self.job("j")["status"] == "paused")
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual((job["io-status"], job["paused"], job["status"]), (status, True, "paused"))

    def expect_success(self) -> None:
        """The job ends well, and the target is the source."""
        self.wait_status("j", "null")
        self.assertEqual(self.completed_event("j")["offset"], SIZE)
        self.assertNotIn("error", self.completed_event("j"))
        self.assert_nothing_left(*self.opened)
        self.daemon.quit()
        self.assert_content(self.target, self.data, "raw")

    def test_report(self) -> None:
        for number, text in ((errno.EIO, "Input/output error"), (errno.ENOSPC, "No space left on device")):
            with self.subTest(text=text):
                self.start(number)
                self.expect_failed(text)
                self.daemon.quit()

    def test_policies_that_report_what_is_no_lack_of_space(self) -> None:
        for policy in ("report", "enospc", "auto"):
            with self.subTest(policy=policy):
                self.start(errno.EIO, on_target_error=policy)
                self.expect_failed("Input/output error")
                self.daemon.quit()

    def test_lack_of_space_stops(self) -> None:
        for policy in ("stop", "enospc", "auto"):
            with self.subTest(policy=policy):
                self.start(errno.ENOSPC, on_target_error=policy, rule={"once": True})
                self.expect_stopped("nospace")
                self.qmp.cmd("block-job-resume", device="j")
                self.expect_success()

    def test_stop_at_any_error(self) -> None:
        self.start(errno.EIO, on_target_error="stop", rule={"once": True})
        self.expect_stopped("failed")
        self.qmp.cmd("job-resume", id="j")
        self.expect_success()

    def test_resume_without_space_stops_again(self) -> None:
        self.start(errno.ENOSPC, on_target_error="enospc")
        self.expect_stopped("nospace")
        self.qmp.take_events()
        self.qmp.cmd("block-job-resume", device="j")
        self.expect_stopped("nospace")
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertEqual(self.job_sequence("j")[-4:], ("aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"))
        self.assert_nothing_left(*self.opened)

    def test_ignore_tries_again(self) -> None:
        for number in (errno.EIO, errno.ENOSPC):
            with self.subTest(errno=number):
                self.start(number, on_target_error="ignore", rule={"once": True})
                self.expect_error("ignore")
                self.expect_success()


class SnapshotMeanwhile(QMPTestCase):
    """A snapshot of the source while sync=top copies it."""

    def test_top_keeps_what_the_old_top_had(self) -> None:
        data = bytearray(self.random_bytes(SIZE))
        base = self.filled_image("base.qcow2", bytes(data), QCOW2)
        source = self.create_image("source.qcow2", SIZE, QCOW2, backing=base)
        for offset in range(0, SIZE, 256 * KiB):  # with clusters of the base in between
            piece = self.random_bytes(128 * KiB, offset + 1)
            self.fill(source, piece, "qcow2", offset=offset)
            data[offset : offset + len(piece)] = piece
        target = self.create_image("target.qcow2", SIZE, QCOW2, backing=base)
        overlay = self.create_image("overlay.qcow2", SIZE, QCOW2, backing=source)
        self.launch()
        self.add_node("s", source, "qcow2")
        self.add_node("t", target, "qcow2")
        self.add_node("o", overlay, "qcow2", backing=None)
        backup = {"job-id": "j", "device": "s", "target": "t", "sync": "top", "speed": 64 * KiB}
        self.qmp.cmd("blockdev-backup", **backup)
        self.qmp.cmd("blockdev-snapshot", node="s", overlay="o")
        self.unthrottle("j")
        self.wait_status("j", "null")
        self.assertNotIn("error", self.completed_event("j"))
        self.daemon.quit()
        self.assert_content(target, bytes(data))
