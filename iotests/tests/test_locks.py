"""The field's lock bytes: the daemon and qemu-img keep each other out, and so do nodes of one daemon."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB


class Locks(QMPTestCase):
    """The daemon and qemu-img keep each other out by the field's lock bytes."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a.qcow2", MiB)
        self.launch()

    def assert_locked_out(self, *command: str) -> None:
        """A tool cannot get its lock."""
        with self.assertRaisesRegex(images.ToolFailed, 'Failed to get (shared )?"(write|resize)" lock'):
            images.run_tool(*command)

    def test_writable_node_keeps_tools_out(self) -> None:
        self.add_node("n", self.image)
        self.assert_locked_out("qemu-img", "info", self.image)
        self.assert_locked_out("qemu-io", "-f", "qcow2", "-c", "write 0 512", self.image)
        images.run_tool("qemu-img", "info", "-U", self.image)

    def test_read_only_node_lets_readers_in(self) -> None:
        self.add_node("n", self.image, read_only=True)
        images.run_tool("qemu-img", "info", self.image)
        self.assert_locked_out("qemu-io", "-f", "qcow2", "-c", "write 0 512", self.image)

    def test_deleted_node_releases_its_locks(self) -> None:
        self.add_node("n", self.image)
        self.qmp.cmd("blockdev-del", node_name="n")
        images.qemu_io(self.image, "write -q 0 512", driver="qcow2")

    def test_raw_node_without_users_holds_nothing(self) -> None:
        raw = self.create_image("a.raw", MiB, images.RAW)
        self.add_node("r", raw, "raw")
        images.qemu_io(raw, "write -q 0 512", driver="raw")
        identity = self.export("r")
        guest = self.guest("r")
        guest.write(0, b"x" * 512)
        guest.close()
        self.assert_locked_out("qemu-img", "resize", "-f", "raw", raw, "2M")
        self.unexport(identity)
        images.run_tool("qemu-img", "resize", "-f", "raw", raw, "2M")

    def test_luks_node_without_users_opens_beside_a_writer(self) -> None:
        secret = ("--object", "secret,id=s,data=x")
        path = self.path("a.luks")
        options = ("-o", "key-secret=s,iter-time=10")
        images.run_tool("qemu-img", "create", "-q", "-f", "luks", *secret, *options, path, str(MiB))
        self.qmp.cmd("object-add", qom_type="secret", id="s", data="x")
        self.add_node("n", path, "luks", key_secret="s")
        self.export("n")
        other = self.launch(*secret, name="other")
        file = {"driver": "file", "filename": path}
        other.qmp.cmd("blockdev-add", driver="luks", node_name="n", key_secret="s", file=file)

    def test_tool_keeps_the_daemon_out(self) -> None:
        with subprocess.Popen(
            ["qemu-io", "-f", "qcow2", self.image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdin is not None and holder.stdout is not None
            holder.stdin.write(b"write 0 512\n")
            holder.stdin.flush()
            while b"wrote" not in holder.stdout.readline():
                pass  # The image is open, and locked, when the write is reported.
            add = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": self.image}}
            self.assert_qmp_error('Failed to get "write" lock', "blockdev-add", add)
            self.assert_nothing_left()
            holder.communicate(b"quit\n")
        self.qmp.execute("blockdev-add", add)

    def test_force_share_reads_beside_a_writer(self) -> None:
        other = self.launch(name="other")
        other.qmp.cmd(
            "blockdev-add", driver="qcow2", node_name="w", file={"driver": "file", "filename": self.image}
        )
        self.assert_qmp_error(
            'Failed to get shared "write" lock',
            "blockdev-add",
            driver="qcow2",
            node_name="n",
            read_only=True,
            file={"driver": "file", "filename": self.image},
        )
        self.add_node("n", self.image, read_only=True, force_share=True)

    def test_force_share_cannot_write(self) -> None:
        self.assert_qmp_error(
            "force-share=on can only be used with read-only images",
            "blockdev-add",
            {"driver": "qcow2", "node-name": "n", "force-share": True},
            file={"driver": "file", "filename": self.image},
        )

    def test_locking_off(self) -> None:
        file = {"driver": "file", "filename": self.image, "locking": "off"}
        self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file=file)
        images.run_tool("qemu-img", "info", self.image)

    def test_one_node_twice_in_one_daemon(self) -> None:
        self.add_node("n", self.image)
        self.assert_qmp_error(
            'Failed to get "write" lock',
            "blockdev-add",
            driver="qcow2",
            node_name="m",
            file={"driver": "file", "filename": self.image},
        )

    def test_permission_conflict_between_nodes(self) -> None:
        self.add_node("n", self.image)
        self.assert_qmp_error(
            "Permission conflict on node 'n-file': permissions 'write, resize' are both required by node 'n' "
            "(uses node 'n-file' as 'file' child) and unshared by node 'm' (uses node 'n-file' as 'file' child).",
            "blockdev-add",
            driver="qcow2",
            node_name="m",
            file="n-file",
        )
        self.assert_nothing_left("n", "n-file")

class Bytes(QMPTestCase):
    """
    Which bytes are locked in which state: 100 + i for a permission that is held, 200 + i for one that is
    not shared (i: consistent-read 0, write 1, write-unchanged 2, resize 3).
    """

    def setUp(self) -> None:
        super().setUp()
        self.raw = self.create_image("a.raw", MiB, images.RAW)
        self.launch()

    def assert_locked(self, path: str, *expected: int) -> None:
        """Exactly these bytes of the file are locked, and only shared."""
        found = set()
        descriptor = os.open(path, os.O_RDWR)
        try:
            for offset in range(90, 220):
                # struct flock: l_type, l_whence, l_start, l_len, l_pid
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
                kind = struct.unpack_from("h", fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
                if kind != fcntl.F_UNLCK:
                    self.assertEqual(kind, fcntl.F_RDLCK, f"byte {offset} is locked exclusively")
                    found.add(offset)
        finally:
            os.close(descriptor)
        self.assertEqual(found, set(expected))

    def test_raw_node_without_users(self) -> None:
        self.add_node("n", self.raw, "raw")
        self.assert_locked(self.raw)

    def test_read_only_export(self) -> None:
        self.add_node("n", self.raw, "raw")
        identity = self.export("n", writable=False)
        self.assert_locked(self.raw, 100, 203)
        self.unexport(identity)
        self.assert_locked(self.raw)

    def test_writable_export(self) -> None:
        self.add_node("n", self.raw, "raw")
        self.export("n")
        self.assert_locked(self.raw, 100, 101, 203)

    def test_writable_qcow2_node_without_users(self) -> None:
        image = self.create_image("a.qcow2", MiB)
        self.add_node("n", image)
        self.assert_locked(image, 100, 101, 103, 201, 203)

    def test_backing_file(self) -> None:
        base = self.create_image("base.qcow2", MiB)
        self.add_node("n", self.create_image("top.qcow2", MiB, backing=base))
        self.assert_locked(base, 100, 201, 203)

    def test_force_share_and_locking_off(self) -> None:
        image = self.create_image("a.qcow2", MiB)
        self.add_node("shared", image, read_only=True, force_share=True)
        # A reader says that it reads; that it shares everything locks nothing.
        self.assert_locked(image, 100)
        file = {"driver": "file", "filename": image, "locking": "off"}
        self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file=file)
        self.assert_locked(image, 100)

    def test_nothing_is_locked_after_quit(self) -> None:
        self.add_node("n", self.raw, "raw")
        self.export("n")
        self.daemon.quit()
        self.assert_locked(self.raw)
