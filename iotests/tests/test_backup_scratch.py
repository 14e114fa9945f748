"""A backup whose target is slow: the guest does not feel it, and a cancel does not wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iotests.harness.case import SUCCESS, QMPTestCase
from iotests.harness.daemon import run_to_end
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only

SIZE = 8 * MiB
BEYOND = "the rival's guests wait for the target"


class SlowTarget(QMPTestCase):
    """
    A disk with data and a guest, and a target that takes a byte per second. The job has a speed, so that its
    own steps have not all read what they copy before the guest writes.
    """

    def start(self, *options: str, **arguments: Any) -> None:
        """Launch, add the nodes, and start the backup."""
        self.data = self.random_bytes(SIZE)
        self.launch(*options)
        self.add_node("disk", self.filled_image("disk", self.data))
        self.export("disk")
        self.qmp.cmd("object-add", **{"qom-type": "throttle-group", "id": "slow", "limits": {"bps-write": 1}})
        target = {"driver": "file", "filename": self.create_image("target", SIZE)}
        throttled = {"driver": "throttle", "throttle-group": "slow", "file": target}
        self.qmp.cmd("blockdev-add", **{"driver": "qcow2", "node-name": "target", "file": throttled})
        self.opened = set(self.nodes())
        backup = {"job-id": "j", "device": "disk", "target": "target", "sync": "full", "speed": 64 * KiB}
        self.qmp.cmd("blockdev-backup", **backup, **arguments)

    def overwrite(self) -> None:
        """A guest overwrites a part of every cluster of the disk."""
        guest = self.guest("disk")
        for offset in range(0, SIZE, 64 * KiB):
            guest.write(offset + 4 * KiB, b"new!" * KiB)

    def relieve(self) -> None:
        """The target is fast from now on."""
        self.qmp.cmd("qom-set", path="/objects/slow", property="limits", value={"bps-write": 0})
        self.unthrottle("j")

    @blockd_only(BEYOND)
    def test_guest_goes_on_and_the_backup_is_one_point_in_time(self) -> None:
        self.start()
        self.overwrite()
        scratch = self.job("j")["x-scratch"]
        self.assertGreater(scratch["memory"], SIZE // 2)
        self.assertEqual((scratch["spilled"], scratch["full"]), (0, 0))
        self.relieve()
        self.wait_status("j", "null")
        self.assert_job_sequence("j", SUCCESS)
        self.daemon.quit()
        self.assert_content(self.path("target"), self.data)

    @blockd_only(BEYOND)
    def test_spilled_to_a_file(self) -> None:
        directory = Path(self.path("scratch"))
        directory.mkdir()
        self.start("--scratch", f"directory={directory},memory=1048576")
        self.overwrite()
        scratch = self.job("j")["x-scratch"]
        self.assertGreater(scratch["spilled"], SIZE // 2)
        self.assertLessEqual(scratch["memory"], MiB)
        self.assertEqual(list(directory.iterdir()), [])
        self.relieve()
        self.wait_status("j", "null")
        self.daemon.quit()
        self.assert_content(self.path("target"), self.data)

    @blockd_only(BEYOND)
    def test_full_scratch_breaks_the_snapshot_on_request(self) -> None:
        self.start(**{"x-scratch": {"max-size": MiB, "when-full": "break-snapshot"}})
        self.overwrite()
        self.wait_status("j", "null")
        self.assertEqual(self.completed_event("j")["error"], "No space left on device")
        self.assert_nothing_left(*self.opened)

    @blockd_only(BEYOND)
    def test_cancel_does_not_wait_for_the_target(self) -> None:
        """The target would need months."""
        self.start()
        self.overwrite()
        self.qmp.cmd("block-job-cancel", device="j")
        self.wait_status("j", "null")
        self.assert_job_sequence("j", ("created", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"))
        self.assert_nothing_left(*self.opened)

    @blockd_only("the rival has no scratch")
    def test_directory_that_is_not_there(self) -> None:
        missing = self.path("missing")
        done = run_to_end(["--scratch", missing], self.directory)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"--scratch {missing}: open {missing}: no such file or directory", done.stderr)
