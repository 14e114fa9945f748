"""A disk that is really full: a file system of a few MiB, which gets larger while jobs wait."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB, QCOW2, RAW

SIZE = 6 * MiB
NO_SPACE = "No space left on device"


class FullDisk(QMPTestCase):
    """A tmpfs, where the machine lets us have one."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = self.path("disk")
        subprocess.run(["mkdir", self.disk], check=True)
        self.data = self.random_bytes(SIZE)
        self.source = self.filled_image("source.img", self.data, RAW)

    def mounted(self, size: str = "4m") -> bool:
        """Whether there is such a file system now."""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.disk], capture_output=True, check=False)
        if done.returncode != 0:
            print(f"{self.id()}: no tmpfs can be mounted here: {done.stderr!r}")
            return False
        self.addCleanup(lambda: subprocess.run(["umount", "-l", self.disk], check=True))
        return True

    def enlarge(self) -> None:
        """There is room again."""
        subprocess.run(["mount", "-o", "remount,size=32m", self.disk], check=True)

    def job_on(self, driver: str, command: str, **options: Any) -> str:
        """Copy into an image on the disk, until the job stops for want of space."""
        target = images.create(f"{self.disk}/target", SIZE, QCOW2 if driver == "qcow2" else RAW)
        self.launch()
        self.add_node("s", self.source, "raw")
        self.add_node("t", target, driver)
        self.qmp.execute(
            command, {"job-id": "j", "device": "s", "target": "t", "sync": "full", "on-target-error": "enospc", **options}
        )
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "write", "action": "stop"})
        self.qmp.wait_event("JOB_STATUS_CHANGE", lambda _: self.job("j")["status"] == "paused")
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual(job["io-status"], "nospace")
        return target

    def test_backup_waits_for_room(self) -> None:
        for driver in ("raw", "qcow2"):
            with self.subTest(driver=driver):
                if not self.mounted():
                    return
                target = self.job_on(driver, "blockdev-backup")
                self.enlarge()
                self.qmp.cmd("block-job-resume", device="j")
                self.wait_status("j", "null")
                self.assertNotIn("error", self.completed_event("j"))
                self.daemon.quit()
                self.assert_content(target, self.data, driver)

    def test_mirror_waits_for_room(self) -> None:
        for driver in ("raw", "qcow2"):
            with self.subTest(driver=driver):
                if not self.mounted():
                    return
                target = self.job_on(driver, "blockdev-mirror")
                self.enlarge()
                self.qmp.cmd("block-job-resume", device="j")
                self.wait_status("j", "ready")
                self.qmp.cmd("block-job-complete", device="j")
                self.wait_status("j", "null")
                self.daemon.quit()
                self.assert_content(target, self.data, driver)

    def test_a_guest_goes_on_when_there_is_room(self) -> None:
        self.need_libnbd()
        for driver in ("raw", "qcow2"):
            with self.subTest(driver=driver):
                if not self.mounted():
                    return
                target = images.create(f"{self.disk}/target", SIZE, QCOW2 if driver == "qcow2" else RAW)
                Path(self.nbd_socket).unlink(missing_ok=True)
                self.launch()
                self.add_node("t", target, driver)
                self.export("t")
                guest = self.guest("t", strict=False)
                refused = 0
                for at in range(0, SIZE, MiB):
                    try:
                        guest.handle.pwrite(self.data[at : at + MiB], at)
                    except Exception as error:  # nbd.Error, which there is only with libnbd
                        self.assertIn(NO_SPACE, str(error))
                        refused += 1
                self.assertGreater(refused, 0)
                self.enlarge()
                for at in range(0, SIZE, MiB):
                    guest.handle.pwrite(self.data[at : at + MiB], at)
                guest.handle.flush()
                guest.close()
                self.daemon.quit()
                self.assert_content(target, self.data, driver)
