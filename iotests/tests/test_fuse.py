"""Exports of type fuse: a file of the host that shows a disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import subprocess
import sys
import tempfile
from typing import Any, Callable, Iterator

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPError

Test = Callable[..., None]

SIZE = 4 * MiB
# fallocate(2)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


@functools.cache
def can_mount() -> bool:
    """Whether this machine lets us mount, which root in a container cannot always."""
    libc = ctypes.CDLL(None)
    with tempfile.TemporaryDirectory() as directory:
        name = directory.encode()
        if libc.mount(b"none", name, b"tmpfs", 0, None) != 0:
            return False
        libc.umount(name)
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError:
        return False
    return True


def mounts(test: Test) -> Test:
    """A test that a machine without mounts says it cannot run."""

    @functools.wraps(test)
    def wrapper(self: QMPTestCase) -> None:
        if can_mount():
            return test(self)
        print(f"{self.id()}: this machine cannot mount", file=sys.stderr)
        return None

    return wrapper


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """The system call, with modes that os.posix_fallocate lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Fuse(QMPTestCase):
    """An image, and a file to show it in."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(2 * MiB) + bytes(2 * MiB)
        self.image = self.create_image("image", SIZE)
        self.fill(self.image, self.data[: 2 * MiB])
        self.file = self.path("file")
        with open(self.file, "w") as file:
            file.write("below")
        self.launch()
        self.add_node("n", self.image, discard="unmap")
        # Whatever happens, the temporary directory can be removed.
        self.addCleanup(lambda: ctypes.CDLL(None).umount2(self.file.encode(), 3))

    def show(self, identity: str = "e", **options: Any) -> None:
        """block-export-add."""
        more = {name.replace("_", "-"): value for name, value in options.items()}
        self.qmp.execute("block-export-add", {"type": "fuse", "id": identity, "node-name": "n", "mountpoint": self.file, **more})

    def hide(self, identity: str = "e") -> None:
        """block-export-del."""
        self.qmp.cmd("block-export-del", id=identity)
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", {"id": identity})

    @contextlib.contextmanager
    def opened(self, flags: int = os.O_RDWR) -> Iterator[int]:
        """The file, open."""
        fd = os.open(self.file, flags)
        try:
            yield fd
        finally:
            with contextlib.suppress(OSError):  # what an export's end has cut off
                os.close(fd)

    def assert_errno(self, number: int, call: Callable[..., Any], *arguments: Any) -> None:
        """A system call that fails so."""
        with self.assertRaises(OSError) as caught:
            call(*arguments)
        self.assertEqual(errno.errorcode[caught.exception.errno or 0], errno.errorcode[number])

    def test_errors(self) -> None:
        add = {"type": "fuse", "id": "e", "node-name": "n"}
        self.assert_qmp_error("Parameter 'mountpoint' is missing", "block-export-add", add)
        missing = self.path("missing")
        self.assert_qmp_error(f"Failed to stat '{missing}': No such file or directory", "block-export-add", {**add, "mountpoint": missing})
        folder = self.path("folder")
        os.mkdir(folder)
        self.assert_qmp_error(f"'{folder}' is not a regular file", "block-export-add", {**add, "mountpoint": folder})
        self.assert_qmp_error(
            "Parameter 'allow-other' does not accept value 'x'", "block-export-add", {**add, "mountpoint": self.file, "allow-other": "x"}
        )
        self.assertEqual(self.qmp.execute("query-block-exports"), [])

    @mounts
    def test_shows_the_disk(self) -> None:
        self.show()
        exports = self.qmp.execute("query-block-exports")
        self.assertEqual(exports, [{"id": "e", "type": "fuse", "node-name": "n", "shutting-down": False}])
        seen = os.stat(self.file)
        self.assertEqual((seen.st_size, stat.filemode(seen.st_mode), seen.st_nlink), (SIZE, "-r--------", 1))
        self.assertEqual(seen.st_blocks * 512, os.stat(self.image).st_blocks * 512)
        with open(self.file, "rb") as file:
            self.assertEqual(file.read(), self.data)
        images.compare(self.file, self.file, "raw", "raw")
        self.hide()
        with open(self.file) as below:
            self.assertEqual(below.read(), "below")

    @mounts
    def test_over_the_image_itself(self) -> None:
        self.file = self.image
        self.show()
        with open(self.image, "rb") as file:
            self.assertEqual(file.read(), self.data)
        self.hide()
        self.daemon.quit()
        self.assert_content(self.image, self.data)

    @mounts
    def test_one_for_each_file(self) -> None:
        self.show()
        again = {"type": "fuse", "id": "f", "node-name": "n", "mountpoint": self.file}
        self.assert_qmp_error(f"There already is a FUSE export on '{self.file}'", "block-export-add", again)
        self.hide()
        self.show("f")

    @blockd_only("the rival asks itself for the file and hangs")
    @mounts
    def test_one_for_each_file_by_whatever_name(self) -> None:
        self.show()
        link = self.path("link")
        os.symlink(self.file, link)
        again = {"type": "fuse", "id": "f", "node-name": "n", "mountpoint": link}
        self.assert_qmp_error(f"There already is a FUSE export on '{link}'", "block-export-add", again)

    @blockd_only("transactions with exports")
    @mounts
    def test_node_over_a_file_of_the_same_transaction(self) -> None:
        """It would wait for itself."""
        add = {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": self.file}
        node = {"driver": "file", "node-name": "o", "filename": self.file}
        actions = [{"type": "x-block-export-add", "data": add}, {"type": "x-blockdev-add", "data": node}]
        with self.assertRaises(QMPError) as caught:
            self.qmp.cmd("transaction", actions=actions)
        self.assertIn("Device or resource busy", caught.exception.desc)
        with open(self.file) as below:
            self.assertEqual(below.read(), "below")
        self.show()
        self.qmp.execute("blockdev-add", node)

    @blockd_only("the rival leaves the mount behind")
    @mounts
    def test_folder_is_renamed(self) -> None:
        folder = self.path("folder")
        os.mkdir(folder)
        self.file = os.path.join(folder, "file")
        with open(self.file, "w") as file:
            file.write("below")
        self.show()
        os.rename(folder, self.path("renamed"))
        self.file = self.path("renamed/file")
        self.hide()
        with open(self.file) as below:
            self.assertEqual(below.read(), "below")

    @blockd_only("the rival is older than inactive nodes")
    def test_inactive_nodes(self) -> None:
        add = {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": self.file, "allow-inactive": True}
        self.assert_qmp_error("Export type does not support inactive exports", "block-export-add", add)

    @mounts
    def test_written_bytes_are_on_the_disk(self) -> None:
        self.show(writable=True)
        new = self.random_bytes(300 * KiB, 1)
        with self.opened() as fd:
            # At odd places, and more than the kernel hands over at once.
            self.assertEqual(os.pwrite(fd, new, 1001), len(new))
            big = self.random_bytes(2 * MiB, 2)
            self.assertEqual(os.pwrite(fd, big, MiB + 333), len(big))
            os.fsync(fd)
            expected = bytearray(self.data)
            expected[1001 : 1001 + len(new)] = new
            expected[MiB + 333 : MiB + 333 + len(big)] = big
            self.assertEqual(os.pread(fd, SIZE, 0), bytes(expected))
        self.hide()
        self.daemon.quit()
        self.assert_content(self.image, bytes(expected))
        images.check(self.image)

    @mounts
    def test_ends_with_the_disk(self) -> None:
        self.show(writable=True)
        with self.opened() as fd:
            self.assertEqual(len(os.pread(fd, 100, SIZE - 10)), 10)
            self.assertEqual(os.pread(fd, 100, SIZE), b"")
            self.assertEqual(os.pread(fd, 100, SIZE + MiB), b"")
            self.assertEqual(os.pwrite(fd, b"x" * 100, SIZE - 10), 10)
            self.assert_errno(errno.EIO, os.pwrite, fd, b"x", SIZE)
        self.assertEqual(os.stat(self.file).st_size, SIZE)

    @mounts
    def test_grows(self) -> None:
        self.show(writable=True, growable=True)
        with self.opened() as fd:
            self.assertEqual(os.pwrite(fd, b"x" * KiB, SIZE + MiB), KiB)
            self.assertEqual(os.pread(fd, 2 * MiB, SIZE), bytes(MiB) + b"x" * KiB)
        self.assertEqual(os.stat(self.file).st_size, SIZE + MiB + KiB)
        self.assertEqual(self.nodes()["n"]["image"]["virtual-size"], SIZE + MiB + KiB)

    @mounts
    def test_length_is_changed(self) -> None:
        self.show(writable=True)
        with self.opened() as fd:
            os.ftruncate(fd, MiB)
            self.assertEqual(os.stat(self.file).st_size, MiB)
            fallocate(fd, 0, MiB, MiB)
            self.assertEqual(os.stat(self.file).st_size, 2 * MiB)
            # What was cut off does not come back.
            self.assertEqual(os.pread(fd, 2 * MiB, MiB), bytes(MiB))
            fallocate(fd, 0, 3 * MiB, MiB)
            self.assertEqual(os.stat(self.file).st_size, 4 * MiB)
            self.assert_errno(errno.EOPNOTSUPP, fallocate, fd, 0, 0, MiB)
        self.hide()
        self.daemon.quit()
        images.check(self.image)

    @mounts
    def test_holes(self) -> None:
        self.show(writable=True)
        with self.opened() as fd:
            self.assertEqual(os.lseek(fd, 0, os.SEEK_HOLE), 2 * MiB)
            self.assert_errno(errno.ENXIO, os.lseek, fd, 3 * MiB, os.SEEK_DATA)
            self.assertEqual(os.lseek(fd, 3 * MiB, os.SEEK_HOLE), 3 * MiB)
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, MiB)
            fallocate(fd, ZERO_RANGE, MiB + 64 * KiB, 64 * KiB)
            self.assertEqual(os.lseek(fd, 0, os.SEEK_DATA), MiB)
            self.assertEqual(os.lseek(fd, MiB, os.SEEK_HOLE), MiB + 64 * KiB)
            self.assertEqual(os.lseek(fd, MiB + 64 * KiB, os.SEEK_DATA), MiB + 128 * KiB)
            self.assertEqual(os.pread(fd, MiB + 64 * KiB, 0), bytes(MiB) + self.data[MiB : MiB + 64 * KiB])
            self.assertEqual(os.pread(fd, 64 * KiB, MiB + 64 * KiB), bytes(64 * KiB))
            fallocate(fd, ZERO_RANGE, SIZE - KiB, 2 * KiB)
        self.assertEqual(os.stat(self.file).st_size, SIZE + KiB)

    @mounts
    def test_read_only_cannot_be_written(self) -> None:
        self.show()
        with self.opened() as fd:  # root can open what it cannot write to
            self.assert_errno(errno.EACCES, os.pwrite, fd, b"x", 0)
            self.assert_errno(errno.EACCES, os.ftruncate, fd, 0)
            self.assert_errno(errno.EACCES, fallocate, fd, PUNCH_HOLE | KEEP_SIZE, 0, 1)
        self.assert_errno(errno.EROFS, os.chmod, self.file, 0o600)
        os.chmod(self.file, 0o500)
        self.assertEqual(stat.filemode(os.stat(self.file).st_mode), "-r-x------")

    @mounts
    def test_owner_and_mode(self) -> None:
        self.show(writable=True, allow_other="on")
        os.chmod(self.file, 0o664)
        os.chown(self.file, 7, 8)
        seen = os.stat(self.file)
        self.assertEqual((stat.filemode(seen.st_mode), seen.st_uid, seen.st_gid), ("-rw-rw-r--", 7, 8))
        self.assert_errno(errno.EOPNOTSUPP, os.utime, self.file, (1, 1))
        self.hide()
        self.show("f", allow_other="off")
        self.assert_errno(errno.EPERM, os.chmod, self.file, 0o440)
        self.assert_errno(errno.EOPNOTSUPP, os.chown, self.file, 7, 8)

    @mounts
    def test_end_cuts_off_who_has_it_open(self) -> None:
        self.show()
        with self.opened(os.O_RDONLY) as fd:
            os.pread(fd, 1, 0)
            self.hide()
            self.assert_errno(errno.ENOTCONN, os.pread, fd, 1, MiB)
        self.qmp.cmd("blockdev-del", **{"node-name": "n"})

    @mounts
    def test_end_of_the_daemon(self) -> None:
        self.show(writable=True)
        with self.opened() as fd:
            os.pwrite(fd, b"x" * KiB, 0)
            self.daemon.quit()
        with open(self.file) as below:
            self.assertEqual(below.read(), "below")
        self.assert_content(self.image, b"x" * KiB + self.data[KiB:])
        images.check(self.image)

    @mounts
    def test_somebody_else_unmounts(self) -> None:
        self.show(writable=True)
        subprocess.run(["umount", self.file], check=True)
        self.hide()
        self.show("f")
        with open(self.file, "rb") as file:
            self.assertEqual(file.read(), self.data)

    @blockd_only("7.2 keeps length and data in the host's cache")
    @mounts
    def test_what_others_do_is_seen(self) -> None:
        self.show()
        self.export("n")
        guest = self.guest("n")
        with self.opened(os.O_RDONLY) as fd:
            os.pread(fd, 64 * KiB, 0)
            guest.write(0, b"y" * KiB)
            self.assertEqual(os.pread(fd, 2 * KiB, 0), b"y" * KiB + self.data[KiB : 2 * KiB])
            guest.close()
            self.unexport("exp-n")
            self.qmp.cmd("block_resize", **{"node-name": "n", "size": 5 * MiB})
            self.assertEqual(os.fstat(fd).st_size, 5 * MiB)

    @blockd_only("transactions with exports")
    @mounts
    def test_failed_transaction_leaves_the_file(self) -> None:
        add = {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": self.file}
        actions = [{"type": "x-block-export-add", "data": add}, {"type": "abort", "data": {}}]
        self.assert_qmp_error("Transaction aborted using Abort action", "transaction", actions=actions)
        with open(self.file) as below:
            self.assertEqual(below.read(), "below")
        self.assertEqual(self.qmp.execute("query-block-exports"), [])
        self.show()

    @mounts
    def test_job_runs_meanwhile(self) -> None:
        """A job shares the disk with the file, whose writes after its start are not in the backup."""
        self.show(writable=True)
        target = self.create_image("target", SIZE)
        self.add_node("t", target)
        self.qmp.cmd("blockdev-backup", **{"job-id": "j", "device": "n", "target": "t", "sync": "full", "auto-dismiss": False})
        with self.opened() as fd:
            os.pwrite(fd, b"z" * MiB, 0)
        self.wait_status("j", "concluded")
        self.qmp.cmd("job-dismiss", id="j")
        self.hide()
        self.daemon.quit()
        self.assert_content(target, self.data)

    @blockd_only("--allow-path")
    @mounts
    def test_allowed_paths(self) -> None:
        daemon = self.launch("--allow-path", str(self.directory), "--blockdev", "null-co,node-name=n", name="policed")
        with tempfile.NamedTemporaryFile() as outside, self.assertRaises(QMPError) as caught:
            daemon.qmp.execute("block-export-add", {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": outside.name})
        self.assertEqual(caught.exception.desc, f"Failed to stat '{outside.name}': Permission denied")
        daemon.qmp.execute("block-export-add", {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": self.file})
