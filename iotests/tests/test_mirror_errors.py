"""Errors of mirrors: each policy, and the last copy, which is made when the job is about to pivot."""

from __future__ import annotations


from iotests.harness.case import FAILED
from iotests.harness.guest import Guest
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.tests.test_mirror import ENDED, READY, MirrorCase


class Errors(MirrorCase):
    """What a target's errors do."""

    def error_events(self) -> list[tuple[str, str]]:
        """The BLOCK_JOB_ERRORs so far."""
        return [
            (message["data"]["operation"], message["data"]["action"])
            for message in self.qmp.transcript
            if message.get("event") == "BLOCK_JOB_ERROR"
        ]

    def test_report(self) -> None:
        self.add_failing_target({"event": "none", "iotype": "write", "errno": 5, "once": True, "sector": 2048})
        self.mirror()
        self.wait_status("m", "null")
        self.assertEqual(self.completed_event("m")["error"], "Input/output error")
        self.assert_job_sequence("m", ("created", "running", "BLOCK_JOB_ERROR", "aborting", *FAILED[3:]))
        self.assertEqual(self.error_events(), [("write", "report")])

    def test_no_space_stops_the_job_until_it_is_resumed(self) -> None:
        self.add_failing_target({"event": "none", "iotype": "write", "errno": 28, "once": True, "sector": 2048})
        self.mirror(on_target_error="enospc")
        self.qmp.wait_event("BLOCK_JOB_ERROR", {"device": "m"})
        self.wait_status("m", "paused")
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual((job["io-status"], job["paused"]), ("nospace", True))
        self.qmp.cmd("job-resume", id="m")
        self.wait_ready()
        self.complete()
        self.assertEqual(self.error_events(), [("write", "stop")])
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def test_ignored_errors_are_made_up_for(self) -> None:
        self.add_failing_target({"event": "none", "iotype": "write", "errno": 5, "once": True, "sector": 2048})
        self.mirror(on_target_error="ignore")
        self.wait_ready()
        self.complete()
        self.assertEqual(self.error_events(), [("write", "ignore")])
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def test_read_error(self) -> None:
        self.add_target()
        self.qmp.cmd(
            "blockdev-add",
            driver="blkdebug",
            node_name="d",
            image="s",
            inject_error=[{"event": "none", "iotype": "read", "errno": 5, "once": True, "sector": 4096}],
        )
        self.mirror(device="d", on_source_error="stop")
        self.wait_status("m", "paused")
        self.assertEqual(self.error_events(), [("read", "stop")])
        self.qmp.cmd("job-resume", id="m")
        self.wait_ready()
        self.cancel()

    def test_a_guests_write_does_not_fail(self) -> None:
        self.add_failing_target({"event": "none", "iotype": "write-zeroes", "errno": 5, "once": True})
        self.export("s")
        guest = self.guest("s")
        self.mirror(copy_mode="write-blocking", on_target_error="ignore")
        self.wait_ready()
        guest.handle.zero(64 * KiB, 2 * MiB)
        self.qmp.wait_event("BLOCK_JOB_ERROR", {"device": "m"})
        self.assertEqual(self.error_events(), [("write", "ignore")])
        self.data[2 * MiB : 2 * MiB + 64 * KiB] = bytes(64 * KiB)
        guest.close()
        self.complete()
        self.unexport("exp-s")
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def last_copy_fails(self, policy: str) -> Guest:
        """A pending mirror whose guest's write fails on the target, and again when the job is finalized."""
        self.opened = {*self.nodes(), "t", "t-file"}
        hole = {"event": "none", "iotype": "write", "errno": 5, "once": True, "sector": 2 * MiB // 512}
        self.add_failing_target(hole, hole)
        self.export("s")
        guest = self.guest("s")
        guest.handle.zero(64 * KiB, 2 * MiB)  # so that the job itself writes no data there
        self.mirror(auto_finalize=False, on_target_error=policy)
        self.wait_ready()
        self.qmp.cmd("job-complete", id="m")
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        piece = self.random_bytes(64 * KiB, 3)
        self.data[2 * MiB : 2 * MiB + 64 * KiB] = piece
        guest.handle.pwrite(piece, 2 * MiB)
        self.assertEqual(self.error_events(), [])
        self.qmp.cmd("job-finalize", id="m")
        self.qmp.wait_event("BLOCK_JOB_ERROR", {"device": "m"})
        return guest

    def finalize_again(self, guest: Guest, *gone_back: str) -> None:
        """The job is pending once more, and pivots."""
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.qmp.cmd("job-finalize", id="m")
        self.wait_status("m", "null")
        pending = ("waiting", "pending", "BLOCK_JOB_PENDING")
        self.assert_job_sequence("m", (*READY, *pending, "BLOCK_JOB_ERROR", *gone_back, *pending, *ENDED[2:]))
        self.assertNotIn("error", self.completed_event("m"))
        self.assertEqual(bytes(guest.handle.pread(64 * KiB, 2 * MiB)), bytes(self.data[2 * MiB : 2 * MiB + 64 * KiB]))
        guest.close()
        self.unexport("exp-s")
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    @blockd_only("the field holds guests up while a mirror is pending, so nothing is left to copy")
    def test_last_copy_stops_the_job_until_it_is_resumed(self) -> None:
        guest = self.last_copy_fails("stop")
        self.wait_status("m", "standby")
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual(
            {key: job[key] for key in ("status", "paused", "ready", "io-status")},
            {"status": "standby", "paused": True, "ready": True, "io-status": "failed"},
        )
        self.assert_qmp_error("Job 'm' in state 'standby' cannot accept command verb 'finalize'", "job-finalize", id="m")
        self.qmp.cmd("job-resume", id="m")
        self.finalize_again(guest, "ready", "standby", "ready")

    @blockd_only("the field holds guests up while a mirror is pending, so nothing is left to copy")
    def test_last_copy_is_made_up_for(self) -> None:
        guest = self.last_copy_fails("ignore")
        self.finalize_again(guest, "ready")

    @blockd_only("the field holds guests up while a mirror is pending, so nothing is left to copy")
    def test_last_copy_reports(self) -> None:
        guest = self.last_copy_fails("report")
        self.wait_status("m", "null")
        self.assertEqual(self.error_events(), [("write", "report")])
        self.assertEqual(self.completed_event("m")["error"], "Input/output error")
        guest.close()
        self.unexport("exp-s")
        self.assert_nothing_left(*self.opened)
        self.daemon.quit()
        self.assert_content(self.source, bytes(self.data), "qcow2")
