"""A disk that is really full: a file system of a few MiB, which gets larger while jobs wait."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB, QCOW2, QCOW2_4K, QCOW2_512, QCOW2_EXTENDED, QCOW2_V2, RAW
from iotests.harness.markers import blockd_only
from iotests.tests.test_img import BLOCKD

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


class FullQcow2(FullDisk):
    """What lacks room fails, and nothing else; what is left is clean, though there is no room yet."""

    def full(self, options: images.ImageOptions) -> dict[int, bytes]:
        """A guest writes here and there until the disk is full, and flushes: what it wrote."""
        target = images.create(f"{self.disk}/target", SIZE, options)
        self.daemon_on(target)
        guest = self.guest("t", strict=False)
        wrote: dict[int, bytes] = {}
        failed = 0
        piece = 16 * KiB
        for i in range(SIZE // piece):
            at = i * 37 % (SIZE // piece) * piece
            try:
                guest.handle.pwrite(self.data[at : at + piece], at)
                wrote[at] = self.data[at : at + piece]
            except Exception as error:  # nbd.Error, which there is only with libnbd
                self.assertIn(NO_SPACE, str(error))
                failed += 1
                guest.handle.flush()
            if failed == 3:
                break
        self.assertEqual(failed, 3)
        guest.handle.flush()
        for at in wrote:
            guest.handle.pwrite(wrote[at], at)  # it has its room
        guest.handle.flush()
        guest.close()
        return wrote

    def daemon_on(self, target: str) -> None:
        Path(self.nbd_socket).unlink(missing_ok=True)
        self.launch()
        self.add_node("t", target, "qcow2")
        self.export("t")

    def holds(self, wrote: dict[int, bytes]) -> None:
        """The image is clean, holds what was written, and takes the rest when there is room."""
        target = f"{self.disk}/target"
        images.check(target)
        self.enlarge()
        self.daemon_on(target)
        guest = self.guest("t", strict=False)
        for at, data in wrote.items():
            self.assertEqual(guest.handle.pread(len(data), at), data, at)
        guest.handle.pwrite(self.data, 0)
        guest.close()
        self.daemon.quit()
        self.assert_content(target, self.data, "qcow2")

    def test_guest(self) -> None:
        self.need_libnbd()
        for options in (QCOW2, QCOW2_4K, QCOW2_512, QCOW2_EXTENDED, QCOW2_V2):
            with self.subTest(options=options.label):
                if not self.mounted():
                    return
                wrote = self.full(options)
                self.daemon.quit()
                self.holds(wrote)

    def test_snapshot(self) -> None:
        self.need_libnbd()
        if not self.mounted():
            return
        wrote = self.full(QCOW2_4K)
        self.assert_qmp_error(
            f"Failed to create snapshot 's' on device 't': {NO_SPACE}",
            "blockdev-snapshot-internal-sync",
            {"device": "t", "name": "s"},
        )
        self.daemon.quit()
        self.holds(wrote)

    @blockd_only("the rival stores bitmaps when the image is closed, and loses what finds no room")
    def test_bitmap(self) -> None:
        self.need_libnbd()
        if not self.mounted():
            return
        wrote = self.full(QCOW2_4K)
        self.assert_qmp_error(NO_SPACE, "block-dirty-bitmap-add", {"node": "t", "name": "b", "persistent": True})
        (node,) = self.qmp.cmd("query-named-block-nodes", flat=True)[:1]
        self.assertNotIn("dirty-bitmaps", node)
        self.daemon.quit()
        self.holds(wrote)

    def test_convert(self) -> None:
        for tool in (["qemu-img"], [BLOCKD, "img"]):
            for more in ((), ("-c",), ("-o", "cluster_size=4k"), ("-o", "cluster_size=512"), ("-W", "-m", "8")):
                with self.subTest(tool=tool, more=more):
                    if not self.mounted():
                        return
                    command = [*tool, "convert", "-f", "raw", "-O", "qcow2", *more, self.source, f"{self.disk}/target"]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    self.assertEqual(done.returncode, 1, done)
                    self.assertIn(NO_SPACE, done.stderr)
                    images.check(f"{self.disk}/target")
                    self.enlarge()
                    images.run_tool(*command)
                    self.assert_content(f"{self.disk}/target", self.data, "qcow2")
