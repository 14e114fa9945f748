"""Descriptors over the monitor's socket: getfd, closefd, add-fd, remove-fd, query-fdsets, /dev/fdset/N."""

from __future__ import annotations

import os
import socket

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import Message, QMPError


@blockd_only("the rival's storage daemon lacks these commands; the emulator of the field has them")
class FileDescriptors(QMPTestCase):
    """Images that the daemon could not open by itself."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def send_with(self, path: str, flags: int, command: str, **arguments: object) -> Message:
        """Run a command with an open file beside it; the whole reply."""
        descriptor = os.open(path, flags)
        try:
            members = {name.replace("_", "-"): value for name, value in arguments.items()}
            return self.qmp.reply(self.qmp.send(command, members, fds=[descriptor]))
        finally:
            os.close(descriptor)

    def test_image_through_an_fdset(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        added = self.send_with(path, os.O_RDWR, "add-fd", fdset_id=3, opaque="mine")["return"]
        self.assertEqual((added["fdset-id"], set(added)), (3, {"fdset-id", "fd"}))
        self.assertEqual(
            self.qmp.cmd("query-fdsets"), [{"fdset-id": 3, "fds": [{"fd": added["fd"], "opaque": "mine"}]}]
        )
        os.unlink(path)
        self.add_node("n", "/dev/fdset/3", "raw")
        self.export("n")
        guest = self.guest("n")
        guest.write(0, b"x" * 512)
        self.assertEqual(guest.read(0, 512), b"x" * 512)

    def test_set_id_is_chosen(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        first = self.send_with(path, os.O_RDONLY, "add-fd")["return"]["fdset-id"]
        second = self.send_with(path, os.O_RDONLY, "add-fd")["return"]["fdset-id"]
        self.assertNotEqual(first, second)

    def test_access_mode_must_fit(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        self.send_with(path, os.O_RDONLY, "add-fd", fdset_id=1)
        file = {"driver": "file", "filename": "/dev/fdset/1"}
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file=file, read_only=True)
        identity = "e"
        self.start_nbd()
        with self.assertRaises(Exception):
            self.qmp.cmd("blockdev-add", driver="qcow2", node_name="w", file=file)
        self.qmp.cmd("block-export-add", type="nbd", id=identity, node_name="r")

    def test_remove(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        self.send_with(path, os.O_RDWR, "add-fd", fdset_id=1)
        self.assert_qmp_error("File descriptor named 'fdset-id:2' not found", "remove-fd", fdset_id=2)
        self.qmp.cmd("remove-fd", fdset_id=1)
        self.assertEqual(self.qmp.cmd("query-fdsets"), [])

    def test_set_in_use_goes_with_its_last_node(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        self.send_with(path, os.O_RDONLY, "add-fd", fdset_id=1)
        self.send_with(path, os.O_RDWR, "add-fd", fdset_id=1)
        for auto_read_only in (False, True):
            file = {"driver": "file", "filename": "/dev/fdset/1", "auto-read-only": auto_read_only}
            self.qmp.cmd("blockdev-add", driver="raw", node_name=f"n{auto_read_only}", file=file)
        self.export("nTrue")
        self.unexport("exp-nTrue")
        self.qmp.cmd("remove-fd", fdset_id=1)
        self.assertEqual(self.qmp.cmd("query-fdsets"), [{"fdset-id": 1, "fds": []}])
        self.qmp.cmd("blockdev-del", node_name="nTrue")
        self.assertEqual(self.qmp.cmd("query-fdsets"), [{"fdset-id": 1, "fds": []}])
        self.qmp.cmd("blockdev-del", node_name="nFalse")
        self.assertEqual(self.qmp.cmd("query-fdsets"), [])
        held = [os.readlink(f"/proc/{self.daemon.process.pid}/fd/{number}") for number in self.descriptors()]
        self.assertNotIn(path, held)

    def descriptors(self) -> list[str]:
        """The numbers of the daemon's open descriptors."""
        return os.listdir(f"/proc/{self.daemon.process.pid}/fd")

    def test_open_that_fails_gives_the_set_back(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        self.send_with(path, os.O_RDWR, "add-fd", fdset_id=1)
        file = {"driver": "file", "filename": "/dev/fdset/1"}
        with self.assertRaises(QMPError):
            self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file=file)
        with self.assertRaises(QMPError):
            self.qmp.cmd("blockdev-add", node_name="n", aio="native", **file)
        self.qmp.cmd("remove-fd", fdset_id=1)
        self.assertEqual(self.qmp.cmd("query-fdsets"), [])

    def test_nbd_server_on_a_passed_socket(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.nbd_socket)
            listener.listen(1)
            self.qmp.reply(self.qmp.send("getfd", {"fdname": "x"}, fds=[listener.fileno()]))
        address = {"type": "fd", "data": {"str": "y"}}
        self.assert_qmp_error("File descriptor named 'y' has not been found", "nbd-server-start", addr=address)
        address = {"type": "fd", "data": {"str": "x"}}
        self.qmp.cmd("nbd-server-start", addr=address)
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=MiB)
        self.export("n")
        self.assertEqual(self.guest("n").size, MiB)

    def test_nbd_node_on_a_passed_socket(self) -> None:
        self.start_nbd()
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=MiB, read_zeroes=True)
        self.export("n")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.nbd_socket)
            self.qmp.reply(self.qmp.send("getfd", {"fdname": "x"}, fds=[client.fileno()]))
            descriptors = set(self.descriptors())
            for name in descriptors:  # the daemon's own are nobody's to name
                self.assert_qmp_error(
                    f"File descriptor named '{name}' has not been found",
                    "blockdev-add",
                    driver="nbd",
                    node_name="c",
                    server={"type": "fd", "str": name},
                    export="n",
                )
            self.qmp.cmd("blockdev-add", driver="nbd", node_name="c", server={"type": "fd", "str": "x"}, export="n")
        self.export("c")
        self.assertEqual(self.guest("c").read(0, 4096), bytes(4096))

    def test_flood_of_descriptors_is_bounded(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        self.qmp.cmd("query-jobs")
        before = len(self.descriptors())
        flood = [os.open(path, os.O_RDONLY) for _ in range(250)]
        try:
            for _ in range(20):
                self.qmp.reply(self.qmp.send("query-jobs", fds=flood))
        finally:
            for number in flood:
                os.close(number)
        self.assertLessEqual(len(self.descriptors()) - before, 64)
        self.qmp.close()
        self.qmp = self.daemon.qmp = self.daemon.connect()
        self.qmp.cmd("query-jobs")
        self.assertLessEqual(len(self.descriptors()), before)

    def test_without_a_descriptor(self) -> None:
        self.assert_qmp_error("No file descriptor supplied via SCM_RIGHTS", "add-fd", fdset_id=1)
        self.assert_qmp_error("No file descriptor supplied via SCM_RIGHTS", "getfd", fdname="x")

    def test_getfd_and_closefd(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        self.assertEqual(self.send_with(path, os.O_RDWR, "getfd", fdname="x")["return"], {})
        self.qmp.cmd("closefd", fdname="x")
        self.assert_qmp_error("File descriptor named 'x' not found", "closefd", fdname="x")
        reply = self.send_with(path, os.O_RDWR, "getfd", fdname="1x")
        self.assertEqual(
            reply["error"]["desc"], "Parameter 'fdname' expects a name not starting with a digit"
        )
