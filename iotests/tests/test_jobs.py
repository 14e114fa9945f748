"""The lifecycle of jobs: states, verbs, events to the letter, queries, errors."""

from __future__ import annotations

from typing import Any

from iotests.harness.case import CANCELLED, REFUSED, SUCCESS, QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only, daemon_differs

SIZE = 2 * MiB
SLOW = 64 * KiB  # bytes per second: such a job runs for longer than any test


class JobCase(QMPTestCase):
    """A source with data, a target, and backups between them."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(SIZE)
        self.source = self.filled_image("source.qcow2", self.data)
        self.target = self.create_image("target.qcow2", SIZE)
        self.launch()
        self.add_node("s", self.source)
        self.add_node("t", self.target)

    def backup(self, job_id: str = "j", **more: Any) -> None:
        """Start a full backup from s to t."""
        arguments = {"device": "s", "target": "t", "sync": "full", **more}
        self.qmp.cmd("blockdev-backup", job_id=job_id, **arguments)

    def pause(self, command: str = "job-pause", **arguments: str) -> None:
        """Pause the job, and wait for it: not for the pause that its start may have shown."""
        self.qmp.take_events()
        self.qmp.cmd(command, **(arguments or {"id": "j"}))
        self.wait_status("j", "paused")

    def cancel_all(self) -> None:
        """Cancel what runs, and wait for its end."""
        for job in self.qmp.cmd("query-jobs"):
            self.qmp.cmd("job-cancel", id=job["id"])
            self.wait_status(job["id"], "null")


class Sequences(JobCase):
    """The event sequences of the reference."""

    def test_success(self) -> None:
        self.backup()
        self.wait_status("j", "null")
        self.assert_job_sequence("j", SUCCESS)
        self.assertEqual(
            self.completed_event("j"), {"type": "backup", "device": "j", "len": SIZE, "offset": SIZE, "speed": 0}
        )
        self.assert_nothing_left("s", "s-file", "t", "t-file")

    def test_created_and_running_precede_the_return(self) -> None:
        pending = self.qmp.send(
            "blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": "full", "speed": SLOW}
        )
        self.qmp.reply(pending)
        returned = self.position(id=pending.identity)
        self.assertLess(self.position(event="JOB_STATUS_CHANGE", data={"id": "j", "status": "created"}), returned)
        self.assertLess(self.position(event="JOB_STATUS_CHANGE", data={"id": "j", "status": "running"}), returned)
        self.cancel_all()

    def test_cancel_while_running(self) -> None:
        for verb, member in (("job-cancel", "id"), ("block-job-cancel", "device")):
            with self.subTest(verb=verb):
                self.backup(verb, speed=SLOW)
                self.assertEqual(self.qmp.execute(verb, {member: verb}), {})
                self.wait_status(verb, "null")
                self.assert_job_sequence(verb, CANCELLED)
                event = self.qmp.wait_event("BLOCK_JOB_CANCELLED")["data"]
                self.assertEqual((event["type"], event["device"], event["len"]), ("backup", verb, SIZE))
                self.assertLess(event["offset"], SIZE)

    def test_manual_finalize_and_dismiss(self) -> None:
        self.backup(auto_finalize=False, auto_dismiss=False)
        event = self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.assertEqual(event["data"], {"type": "backup", "id": "j"})
        self.assertEqual(self.job("j")["status"], "pending")
        self.assertEqual(self.qmp.cmd("job-finalize", id="j"), {})
        self.wait_status("j", "concluded")
        job = self.job("j")
        self.assertEqual((job["status"], job["current-progress"], job["total-progress"]), ("concluded", SIZE, SIZE))
        self.qmp.cmd("job-dismiss", id="j")
        self.wait_status("j", "null")
        self.assert_job_sequence(
            "j",
            (
                *("created", "running", "waiting", "pending", "BLOCK_JOB_PENDING"),
                *("BLOCK_JOB_COMPLETED", "concluded", "null"),
            ),
        )

    def test_finalize_and_dismiss_by_the_old_verbs(self) -> None:
        self.backup(auto_finalize=False, auto_dismiss=False)
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.qmp.cmd("block-job-finalize", id="j")
        self.wait_status("j", "concluded")
        self.qmp.cmd("block-job-dismiss", id="j")
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_cancel_while_pending(self) -> None:
        self.backup(auto_finalize=False)
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assert_job_sequence(
            "j",
            (
                *("created", "running", "waiting", "pending", "BLOCK_JOB_PENDING"),
                *("aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"),
            ),
        )

    def test_pause_and_resume(self) -> None:
        self.backup(speed=SLOW)
        self.pause()
        before = self.job("j")["current-progress"]
        self.assertEqual(self.qmp.cmd("query-block-jobs")[0]["paused"], True)
        self.assertEqual(self.job("j")["current-progress"], before)
        self.qmp.cmd("block-job-set-speed", device="j", speed=0)
        self.qmp.cmd("job-resume", id="j")
        self.wait_status("j", "null")
        self.assertEqual(
            self.job_sequence("j")[-7:],
            ("paused", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"),
        )
        self.daemon.quit()
        self.assert_content(self.target, self.data)

    def test_cancel_while_paused(self) -> None:
        self.backup(speed=SLOW)
        self.pause()
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertEqual(
            self.job_sequence("j")[-6:],
            ("paused", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"),
        )

    def test_failed_setup_shows_created_and_null(self) -> None:
        self.assert_qmp_error(
            "Parameter 'speed' expects a non-negative value",
            "blockdev-backup",
            job_id="j",
            device="s",
            target="t",
            sync="full",
            speed=-1,
        )
        self.assertIn(self.job_sequence("j"), (REFUSED, ()))
        self.assert_nothing_left("s", "s-file", "t", "t-file")

    def test_stays_concluded_until_dismissed(self) -> None:
        self.backup(auto_dismiss=False)
        self.wait_status("j", "concluded")
        self.assert_qmp_error(
            "Job ID 'j' already in use",
            "blockdev-backup",
            job_id="j",
            device="s",
            target="t",
            sync="full",
        )
        self.qmp.cmd("job-dismiss", id="j")
        self.backup()
        self.wait_status("j", "null")


class Verbs(JobCase):
    """Every verb in every state that a test can hold a job in."""

    def assert_refused(self, state: str, *verbs: str) -> None:
        """job-VERB is refused with the text of the reference, and changes nothing."""
        self.assertEqual(self.job("j")["status"], state)
        for verb in verbs:
            self.assert_qmp_error(
                f"Job 'j' in state '{state}' cannot accept command verb '{verb}'", f"job-{verb}", id="j"
            )
        self.assertEqual(self.job("j")["status"], state)

    def test_refused_while_running(self) -> None:
        self.backup(speed=SLOW)
        self.assert_refused("running", "complete", "finalize", "dismiss")
        self.assert_qmp_error("Can't resume a job that was not paused", "job-resume", id="j")
        self.cancel_all()

    def test_refused_while_paused(self) -> None:
        self.backup(speed=SLOW)
        self.pause()
        self.assert_refused("paused", "complete", "finalize", "dismiss")
        self.assert_qmp_error("Job is already paused", "job-pause", id="j")
        self.cancel_all()

    def test_refused_while_pending(self) -> None:
        self.backup(auto_finalize=False)
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.assert_refused("pending", "pause", "complete", "dismiss")
        self.assert_qmp_error("Can't resume a job that was not paused", "job-resume", id="j")
        self.assert_qmp_error(
            "Job 'j' in state 'pending' cannot accept command verb 'set-speed'",
            "block-job-set-speed",
            device="j",
            speed=1,
        )
        self.cancel_all()

    def test_refused_when_concluded(self) -> None:
        self.backup(auto_dismiss=False)
        self.wait_status("j", "concluded")
        self.assert_refused("concluded", "cancel", "pause", "complete", "finalize")
        self.assert_qmp_error("Can't resume a job that was not paused", "job-resume", id="j")
        self.qmp.cmd("job-dismiss", id="j")

    def test_old_verbs(self) -> None:
        self.backup(speed=SLOW)
        self.pause("block-job-pause", device="j")
        self.assert_qmp_error("Job is already paused", "block-job-pause", device="j")
        self.qmp.cmd("block-job-resume", device="j")
        self.assert_qmp_error("Can't resume a job that was not paused", "block-job-resume", device="j")
        self.assert_qmp_error(
            "Job 'j' in state 'running' cannot accept command verb 'complete'", "block-job-complete", device="j"
        )
        self.cancel_all()

    def test_unknown_job(self) -> None:
        for verb in ("pause", "resume", "cancel", "complete", "finalize", "dismiss"):
            self.assert_qmp_error("Job not found", f"job-{verb}", id="zz")
        for verb in ("pause", "resume", "cancel", "complete"):
            self.assert_qmp_error(
                "Block job 'zz' not found", f"block-job-{verb}", device="zz", error_class="DeviceNotActive"
            )
        for verb in ("finalize", "dismiss"):
            self.assert_qmp_error(
                "Block job 'zz' not found", f"block-job-{verb}", id="zz", error_class="DeviceNotActive"
            )
        self.assert_qmp_error(
            "Block job 'zz' not found", "block-job-set-speed", device="zz", speed=1, error_class="DeviceNotActive"
        )

    def test_job_id_errors(self) -> None:
        arguments = {"device": "s", "target": "t", "sync": "full"}
        self.assert_qmp_error("Invalid job ID ''", "blockdev-backup", arguments)
        self.assert_qmp_error("Invalid job ID '1 bad'", "blockdev-backup", arguments, job_id="1 bad")
        self.backup(speed=SLOW)
        self.assert_qmp_error(
            "Node 't' is busy: block device is in use by block job: backup", "blockdev-backup", arguments, job_id="k"
        )
        self.add_node("t2", self.create_image("t2.qcow2", SIZE))
        self.assert_qmp_error(
            "Job ID 'j' already in use", "blockdev-backup", job_id="j", device="s", target="t2", sync="full"
        )
        self.cancel_all()


class Speed(JobCase):
    """speed and block-job-set-speed."""

    def test_speed_shows_in_the_query(self) -> None:
        self.backup(speed=SLOW)
        self.assertEqual(self.qmp.cmd("query-block-jobs")[0]["speed"], SLOW)
        self.qmp.cmd("block-job-set-speed", device="j", speed=2 * SLOW)
        self.assertEqual(self.qmp.cmd("query-block-jobs")[0]["speed"], 2 * SLOW)
        self.assert_qmp_error(
            "Parameter 'speed' expects a non-negative value", "block-job-set-speed", device="j", speed=-1
        )
        self.cancel_all()

    def test_lifted_limit_takes_effect_at_once(self) -> None:
        self.backup(speed=1)
        self.qmp.cmd("block-job-set-speed", device="j", speed=0)
        self.wait_status("j", "null")
        self.assertEqual(self.completed_event("j")["speed"], 0)

    def test_slow_job_copies_little(self) -> None:
        self.backup(speed=SLOW)
        for _ in range(50):
            self.assertLess(self.job("j")["current-progress"], SIZE)
        self.cancel_all()


class Queries(JobCase):
    """query-jobs and query-block-jobs."""

    def test_members_of_query_jobs(self) -> None:
        self.backup(speed=SLOW)
        job = self.without_extensions(self.job("j"))
        self.assertEqual(set(job), {"id", "type", "status", "current-progress", "total-progress"})
        self.assertEqual((job["type"], job["status"], job["total-progress"]), ("backup", "running", SIZE))
        self.cancel_all()

    def test_members_of_query_block_jobs(self) -> None:
        self.backup(speed=SLOW, auto_dismiss=False, auto_finalize=False)
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertLessEqual(job.pop("offset"), SIZE)
        self.assertIn(job.pop("busy"), (True, False))
        self.assertEqual(
            job,
            {
                **{"type": "backup", "device": "j", "len": SIZE, "paused": False, "speed": SLOW, "io-status": "ok"},
                **{"ready": False, "status": "running", "auto-finalize": False, "auto-dismiss": False},
            },
        )
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "concluded")
        job = self.job("j")
        self.assertEqual(job["status"], "concluded")
        self.qmp.cmd("job-dismiss", id="j")

    @daemon_differs("the rival lists its newest job first; 10.2 the same, blockd follows")
    def test_several_jobs(self) -> None:
        for number in range(3):
            path = self.create_image(f"t{number}.qcow2", SIZE)
            self.add_node(f"t{number}", path)
            self.backup(f"j{number}", target=f"t{number}", speed=SLOW)
        self.assertEqual([job["id"] for job in self.qmp.cmd("query-jobs")], ["j2", "j1", "j0"])
        self.assertEqual([job["device"] for job in self.qmp.cmd("query-block-jobs")], ["j2", "j1", "j0"])
        self.cancel_all()


@blockd_only("the rival keeps nothing of jobs that are gone")
class History(JobCase):
    """What is kept of jobs for who comes later than their events."""

    def test_states_are_those_of_the_events(self) -> None:
        self.backup(speed=SLOW)
        self.pause()
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.qmp.take_events()
        self.backup(auto_dismiss=False)
        self.wait_status("j", "concluded")
        told = [m["data"]["status"] for m in self.qmp.transcript if m.get("event") == "JOB_STATUS_CHANGE"]
        gone, there = self.qmp.cmd("x-query-job-history")
        self.assertEqual([state["status"] for job in (gone, there) for state in job["states"]], told)
        self.assertEqual((gone["states"][-1]["status"], there["states"][-1]["status"]), ("null", "concluded"))
        for job in (gone, there):
            self.assertEqual((job["id"], job["type"], job["dropped"]), ("j", "backup", 0))
            times = [(s["timestamp"]["seconds"], s["timestamp"]["microseconds"]) for s in job["states"]]
            self.assertEqual(times, sorted(times))


class NodesInUse(JobCase):
    """What a running job keeps others from doing."""

    def test_nodes_of_a_job_cannot_be_deleted(self) -> None:
        self.backup(speed=SLOW)
        self.assert_qmp_error("Block device s is in use", "blockdev-del", node_name="s")
        self.assert_qmp_error(
            "Node 't' is busy: block device is in use by block job: backup", "blockdev-del", node_name="t"
        )
        self.cancel_all()
        self.qmp.cmd("blockdev-del", node_name="t")

    def test_filter_node_is_there_while_the_job_runs(self) -> None:
        self.backup(speed=SLOW, filter_node_name="cbw")
        self.assertEqual(self.nodes()["cbw"]["drv"], "copy-before-write")
        self.assertEqual(self.node_at("cbw/file"), "s")
        self.assertEqual(self.node_at("cbw/target"), "t")
        self.cancel_all()
        self.assertNotIn("cbw", self.nodes())
