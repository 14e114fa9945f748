"""NBD exports, as the clients of the field use them."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase, over_images
from iotests.harness.guest import Guest, nbd
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only, needs_tool

DATA, ZERO_HOLE = 0, 3  # base:allocation: flags HOLE 1, ZERO 2


class Server(QMPTestCase):
    """nbd-server-start/stop, block-export-add/del."""

    def setUp(self) -> None:
        super().setUp()
        self.launch("--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on")
        self.address = {"type": "unix", "data": {"path": self.nbd_socket}}

    def add(self, identity: str = "e", node: str = "n", **more: Any) -> dict[str, Any]:
        """The arguments of block-export-add."""
        return {"type": "nbd", "id": identity, "node-name": node, **more}

    def test_server_errors(self) -> None:
        self.assert_qmp_error("NBD server not running", "nbd-server-stop")
        self.assert_qmp_error("NBD server not running", "block-export-add", self.add())
        self.start_nbd()
        self.assert_qmp_error("NBD server already running", "nbd-server-start", addr=self.address)

    def test_export_errors(self) -> None:
        self.start_nbd()
        self.assert_qmp_error(
            "Cannot find device='' nor node-name='zz'", "block-export-add", self.add(node="zz")
        )
        self.assert_qmp_error("Invalid block export id", "block-export-add", self.add("1 bad"))
        self.qmp.execute("block-export-add", self.add())
        self.assert_qmp_error("Block export id 'e' is already in use", "block-export-add", self.add())
        self.assert_qmp_error("NBD server already has export named 'n'", "block-export-add", self.add("e2"))
        self.assert_qmp_error("Export 'zz' is not found", "block-export-del", id="zz")
        self.assert_qmp_error('iothread "zz" not found', "block-export-add", self.add("e3", name="x", iothread="zz"))
        self.assert_qmp_error(
            "Parameter 'type' does not accept value 'nosuch'", "block-export-add", self.add("e4", type="nosuch")
        )

    def test_export_name_too_long(self) -> None:
        self.start_nbd()
        long = "x" * 4097
        self.assert_qmp_error(f"export name '{long}' too long", "block-export-add", self.add(name=long))
        self.assert_qmp_error(f"description '{long}' too long", "block-export-add", self.add(description=long))
        self.assertEqual(self.qmp.cmd("query-block-exports"), [])

    def test_delete_and_its_event(self) -> None:
        self.export("n")
        self.qmp.cmd("block-export-del", id="exp-n")
        self.assertEqual(self.qmp.wait_event("BLOCK_EXPORT_DELETED")["data"], {"id": "exp-n"})
        self.assertEqual(self.qmp.cmd("query-block-exports"), [])
        self.qmp.cmd("blockdev-del", node_name="n")

    def test_export_in_use(self) -> None:
        self.export("n")
        guest = self.guest("n")
        guest.read(0, 512)
        self.assert_qmp_error("export 'exp-n' still in use", "block-export-del", id="exp-n")
        self.assertEqual(guest.read(0, 512), bytes(512))
        self.unexport("exp-n", mode="hard")
        with self.assertRaises(nbd.Error):
            guest.read(0, 512)

    def test_export_again_after_a_hard_delete(self) -> None:
        self.export("n")
        guest = self.guest("n")
        guest.read(0, 512)
        self.unexport("exp-n", mode="hard")
        guest.vanish()
        self.export("n")
        self.assertEqual(self.guest("n").read(0, 512), bytes(512))

    def test_deleted_export_takes_no_client(self) -> None:
        self.export("n")
        guest = self.guest("n")
        guest.read(0, 512)
        self.unexport("exp-n", mode="hard")
        with self.assertRaises(nbd.Error):
            self.guest("n")

    def test_server_stop_drops_exports_and_clients(self) -> None:
        self.export("n")
        guest = self.guest("n")
        guest.read(0, 512)
        self.qmp.cmd("nbd-server-stop")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", {"id": "exp-n"})
        with self.assertRaises(nbd.Error):
            guest.read(0, 512)
        self.assertFalse(os.path.lexists(self.nbd_socket))
        self.assertEqual(self.qmp.cmd("query-block-exports"), [])
        self.export("n")
        self.assertEqual(self.guest("n").read(0, 512), bytes(512))

    def test_members_of_query_block_exports(self) -> None:
        self.export("n")
        self.assertEqual(
            self.qmp.cmd("query-block-exports"),
            [{"id": "exp-n", "type": "nbd", "node-name": "n", "shutting-down": False}],
        )

    def test_several_exports_of_one_node(self) -> None:
        self.start_nbd()
        for name in ("a", "b", ""):
            self.qmp.execute("block-export-add", self.add(f"e{name}", name=name))
        for name in ("a", "b", ""):
            self.assertEqual(Guest(self.nbd_socket, name).size, MiB)

    def test_unknown_export_name(self) -> None:
        self.export("n")
        with self.assertRaisesRegex(nbd.Error, "export"):
            self.guest("nosuch")
        self.assertEqual(self.guest("n").size, MiB)

    def test_max_connections(self) -> None:
        self.qmp.cmd("nbd-server-start", addr=self.address, max_connections=1)
        self.export("n")
        first = self.guest("n")
        second = socket.socket(socket.AF_UNIX)
        second.connect(self.nbd_socket)
        second.setblocking(False)
        self.assertEqual(first.read(0, 512), bytes(512))
        with self.assertRaises(BlockingIOError):
            second.recv(1)
        first.close()
        second.settimeout(20)
        self.assertEqual(second.recv(8), b"NBDMAGIC")
        second.close()

    def test_tcp(self) -> None:
        address = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address["data"] = {"host": "127.0.0.1", "port": str(port)}
        self.qmp.cmd("nbd-server-start", addr=address)
        self.qmp.execute("block-export-add", self.add())
        handle = nbd.NBD()
        handle.set_export_name("n")
        handle.connect_tcp("127.0.0.1", str(port))
        self.assertEqual(handle.get_size(), MiB)
        handle.shutdown()

    def test_abstract_socket(self) -> None:
        name = f"iotests-{os.getpid()}-{id(self)}"
        address = {"type": "unix", "data": {"path": name, "abstract": True, "tight": True}}
        self.qmp.cmd("nbd-server-start", addr=address)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect("\0" + name)
            self.assertEqual(client.recv(8), b"NBDMAGIC")

    def test_socket_path_that_cannot_be_bound(self) -> None:
        self.assert_qmp_error(
            "Failed to bind socket to /nosuch/dir/s: No such file or directory",
            "nbd-server-start",
            addr={"type": "unix", "data": {"path": "/nosuch/dir/s"}},
        )

    def test_socket_path_too_long(self) -> None:
        path = "/tmp/" + "x" * 120
        self.assert_qmp_error(
            f"UNIX socket path '{path}' is too long", "nbd-server-start", addr={"type": "unix", "data": {"path": path}}
        )


class Requests(QMPTestCase):
    """What a client may ask, and what it may not."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(2 * MiB)
        self.image = self.filled_image("a.qcow2", self.data)
        self.launch()
        self.add_node("n", self.image, discard="unmap")

    def test_negotiated_features(self) -> None:
        self.export("n")
        handle = self.guest("n").handle
        self.assertEqual(handle.get_protocol(), "newstyle-fixed")
        self.assertTrue(handle.get_structured_replies_negotiated())
        for feature in ("flush", "fua", "trim", "zero", "df", "fast_zero", "cache", "multi_conn"):
            self.assertTrue(getattr(handle, f"can_{feature}")(), feature)
        self.assertTrue(handle.can_meta_context("base:allocation"))
        self.assertFalse(handle.is_rotational())
        self.assertEqual(handle.get_block_size(nbd.SIZE_MAXIMUM), 32 * MiB)
        self.assertLessEqual(handle.get_block_size(nbd.SIZE_MINIMUM), 512)

    def test_read_only_export(self) -> None:
        self.export("n", writable=False)
        guest = self.guest("n", strict=False)
        self.assertTrue(guest.handle.is_read_only())
        with self.assertRaises(nbd.Error) as caught:
            guest.write(0, b"x" * 512)
        self.assertIn(caught.exception.errnum, (errno.EPERM, errno.EINVAL))
        self.assertEqual(guest.read(0, 512), self.data[:512])

    def test_out_of_range(self) -> None:
        self.export("n")
        guest = self.guest("n", strict=False)
        size = guest.size
        # The protocol suggests ENOSPC for writes; the rival says EINVAL of everything. Clients cope with both.
        requests: tuple[tuple[Callable[[], object], set[int]], ...] = (
            (lambda: guest.read(size, 512), {errno.EINVAL}),
            (lambda: guest.read(size - 512, 1024), {errno.EINVAL}),
            (lambda: guest.read(1 << 62, 512), {errno.EINVAL}),
            (lambda: guest.write(size, b"x" * 512), {errno.EINVAL, errno.ENOSPC}),
            (lambda: guest.write(size - 1, b"xy"), {errno.EINVAL, errno.ENOSPC}),
            (lambda: guest.handle.zero(1024, size - 512), {errno.EINVAL, errno.ENOSPC}),
            (lambda: guest.handle.trim(1024, size - 512), {errno.EINVAL}),
            (lambda: guest.handle.block_status(1024, size, lambda *_: 0), {errno.EINVAL}),
        )
        for request, numbers in requests:
            with self.assertRaises(nbd.Error) as caught:
                request()
            self.assertIn(caught.exception.errnum, numbers, str(caught.exception))
        self.assertEqual(guest.read(0, size), self.data)

    def test_commands_and_flags_that_do_not_exist(self) -> None:
        self.export("n")
        guest = self.guest("n", strict=False)
        with self.assertRaises(nbd.Error):
            guest.handle.pread(512, 0, nbd.CMD_FLAG_NO_HOLE)
        with self.assertRaises(nbd.Error):
            guest.handle.flush(nbd.CMD_FLAG_NO_HOLE)
        self.assertEqual(guest.read(0, 512), self.data[:512])

    def test_every_length_and_alignment(self) -> None:
        self.export("n")
        guest = self.guest("n")
        model = bytearray(self.data)
        for number, (offset, length) in enumerate(
            [(0, 1), (1, 1), (511, 513), (512, 512), (65_535, 65_538), (MiB - 7, 15), (2 * MiB - 1, 1), (3, MiB)]
        ):
            piece = self.random_bytes(length, number + 1)
            guest.write(offset, piece)
            model[offset : offset + length] = piece
            start, end = max(0, offset - 5), min(offset + length + 5, 2 * MiB)
            self.assertEqual(guest.read(start, end - start), bytes(model[start:end]))
        self.assertEqual(guest.read(0, 2 * MiB), bytes(model))

    def test_zero_length_requests(self) -> None:
        self.export("n")
        guest = self.guest("n", strict=False)
        guest.handle.flush()
        try:
            guest.handle.pread(0, 0)
        except nbd.Error:
            pass  # The protocol leaves it open; the connection must live.
        self.assertEqual(guest.read(0, 512), self.data[:512])

    def test_fua_is_on_the_file_when_acknowledged(self) -> None:
        self.export("n")
        guest = self.guest("n")
        guest.write(MiB, b"F" * 4096, nbd.CMD_FLAG_FUA)
        self.daemon.kill()
        images.check(self.image, allow_leaks=True)
        images.qemu_io(self.image, f"read -q -P {ord('F')} 1M 4k", driver="qcow2")

    def test_flush_covers_other_connections(self) -> None:
        self.export("n")
        writer, flusher = self.guest("n"), self.guest("n")
        writer.write(MiB, b"G" * 4096)
        flusher.handle.flush()
        self.daemon.kill()
        images.check(self.image, allow_leaks=True)
        images.qemu_io(self.image, f"read -q -P {ord('G')} 1M 4k", driver="qcow2")

    def test_zero_and_trim(self) -> None:
        self.export("n")
        guest = self.guest("n")
        guest.handle.zero(256 * KiB, 64 * KiB)
        guest.handle.zero(1000, 600_001, nbd.CMD_FLAG_NO_HOLE)
        guest.handle.trim(512 * KiB, MiB)
        expected = bytearray(self.data)
        expected[64 * KiB : 320 * KiB] = bytes(256 * KiB)
        expected[600_001:601_001] = bytes(1000)
        expected[MiB : MiB + 512 * KiB] = bytes(512 * KiB)
        self.assertEqual(guest.read(0, 2 * MiB), bytes(expected))

    def test_block_status(self) -> None:
        path = self.create_image("sparse.qcow2", 4 * MiB)
        images.qemu_io(path, "write -q 1M 1M", "write -q -z 3M 512k", driver="qcow2")
        self.add_node("s", path)
        self.export("s")
        guest = self.guest("s")
        self.assertEqual(guest.extents(), [(MiB, ZERO_HOLE), (MiB, DATA), (2 * MiB, ZERO_HOLE)])
        self.assertEqual(guest.extents(MiB + 512, 1024), [(1024, DATA)])

    def test_many_in_flight(self) -> None:
        self.export("n")
        guest = self.guest("n")
        model = bytearray(self.data)
        cookies = []
        for number in range(256):
            offset = number * 8 * KiB
            piece = self.random_bytes(8 * KiB, number)
            model[offset : offset + 8 * KiB] = piece
            cookies.append(guest.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(piece)), offset))
        self.drain(guest, cookies)
        buffers = [nbd.Buffer(8 * KiB) for _ in range(256)]
        self.drain(guest, [guest.handle.aio_pread(one, number * 8 * KiB) for number, one in enumerate(buffers)])
        self.assertEqual(b"".join(bytes(one.to_bytearray()) for one in buffers), bytes(model))

    def drain(self, guest: Guest, cookies: list[int]) -> None:
        """Wait until every request is acknowledged."""
        waiting = set(cookies)
        while waiting:
            guest.handle.poll(20_000)
            waiting = {cookie for cookie in waiting if not guest.handle.aio_command_completed(cookie)}

    def test_client_that_vanishes_with_requests_in_flight(self) -> None:
        self.export("n")
        guest = self.guest("n")
        for number in range(64):
            guest.handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(64 * KiB)), (1 + number % 31) * 64 * KiB)
        guest.vanish()
        again = self.guest("n")
        # Not where a request of the other may still be on its way.
        again.write(0, self.data[: 64 * KiB])
        self.assertEqual(again.read(0, 64 * KiB), self.data[: 64 * KiB])
        again.close()
        self.unexport("exp-n", mode="hard")
        self.daemon.quit()
        images.check(self.image)

    @needs_tool("fio")
    def test_fio_verifies(self) -> None:
        self.export("n")
        job = [
            *("fio", "--name=t", "--ioengine=nbd", f"--uri={self.nbd_uri('n')}", "--rw=randwrite", "--bs=4k"),
            *("--size=2m", "--iodepth=16", "--verify=crc32c", "--do_verify=1", "--minimal"),
        ]
        done = subprocess.run(job, capture_output=True, text=True, cwd=self.directory, timeout=60, check=False)
        if "engine nbd not loadable" in done.stderr or "engine nbd not found" in done.stderr:
            self.skipTest("this fio has no nbd engine")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_qemu_io(self) -> None:
        self.export("n")
        commands = (
            *("write -q -P 7 100k 300k", "read -q -P 7 100k 300k"),
            *("write -q -z 0 64k", "read -q -P 0 0 64k", "flush"),
        )
        images.qemu_io(self.nbd_uri("n"), *commands, driver="raw")


class Wire(QMPTestCase):
    """The handshake byte by byte, well and badly behaved."""

    def setUp(self) -> None:
        super().setUp()
        self.launch("--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on")
        self.export("n")

    def handshake(self, flags: int = 3) -> socket.socket:
        """Connect and send the client's flags."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        self.addCleanup(client.close)
        client.connect(self.nbd_socket)
        magic, option_magic, server_flags = struct.unpack(">8s8sH", self.read(client, 18))
        self.assertEqual((magic, option_magic, server_flags & 3), (b"NBDMAGIC", b"IHAVEOPT", 3))
        client.sendall(struct.pack(">I", flags))
        return client

    def read(self, client: socket.socket, length: int) -> bytes:
        """Exactly that many bytes."""
        data = b""
        while len(data) < length:
            piece = client.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def option(self, client: socket.socket, number: int, payload: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; the replies up to the final one."""
        client.sendall(struct.pack(">8sII", b"IHAVEOPT", number, len(payload)) + payload)
        replies = []
        while True:
            magic, answered, kind, length = struct.unpack(">QIII", self.read(client, 20))
            self.assertEqual((magic, answered), (0x3E889045565A9, number))
            replies.append((kind, self.read(client, length)))
            if kind == 1 or kind & 1 << 31:
                return replies

    def test_export_name_option(self) -> None:
        client = self.handshake()
        client.sendall(struct.pack(">8sII", b"IHAVEOPT", 1, 1) + b"n")
        size, flags = struct.unpack(">QH", self.read(client, 10))
        self.assertEqual((size, flags & 1), (MiB, 1))
        client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 77, 0, 512))
        magic, error, cookie = struct.unpack(">IIQ", self.read(client, 16))
        self.assertEqual((magic, error, cookie), (0x67446698, 0, 77))
        self.assertEqual(self.read(client, 512), bytes(512))

    def test_list(self) -> None:
        replies = self.option(self.handshake(), 3)
        self.assertEqual([kind for kind, _ in replies], [2, 1])
        self.assertEqual(replies[0][1], struct.pack(">I", 1) + b"n")

    def test_unknown_option(self) -> None:
        client = self.handshake()
        self.assertEqual(self.option(client, 99, b"xyz")[0][0], 1 << 31 | 1)  # ERR_UNSUP
        self.assertEqual(self.option(client, 3)[-1][0], 1)

    def test_abort_is_acknowledged(self) -> None:
        client = self.handshake()
        self.assertEqual(self.option(client, 2), [(1, b"")])
        with self.assertRaises(EOFError):
            self.read(client, 1)

    def test_go_with_unknown_export(self) -> None:
        client = self.handshake()
        replies = self.option(client, 7, struct.pack(">I", 2) + b"zz" + struct.pack(">H", 0))
        self.assertEqual(replies[0][0], 1 << 31 | 6)  # ERR_UNKNOWN
        replies = self.option(client, 7, struct.pack(">I", 1) + b"n" + struct.pack(">H", 0))
        self.assertEqual(replies[-1][0], 1)

    def test_malformed_option_length(self) -> None:
        client = self.handshake()
        self.assertEqual(self.option(client, 7, struct.pack(">I", 1000) + b"n")[0][0], 1 << 31 | 3)  # ERR_INVALID

    def test_bad_magic_is_hung_up_on(self) -> None:
        for junk in (b"GET / HTTP/1.0\r\n\r\n" + b" " * 64, struct.pack(">8sII", b"IHAVEOPT", 7, 0xFFFFFFFF)):
            client = self.handshake()
            client.sendall(junk)
            with self.assertRaises((EOFError, ConnectionError)):
                while True:
                    self.read(client, 1)
        self.assertEqual(Guest(self.nbd_socket, "n").size, MiB)

    def test_request_longer_than_the_limit_is_hung_up_on(self) -> None:
        client = self.handshake()
        self.option(client, 7, struct.pack(">I", 1) + b"n" + struct.pack(">H", 0))
        client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 5, 0, 0xFFFFFFFF))
        with self.assertRaises((EOFError, ConnectionError)):
            while True:
                self.read(client, 1)
        self.assertEqual(Guest(self.nbd_socket, "n").size, MiB)

    @blockd_only("the rival has no bound on the memory of requests")
    def test_clients_that_stall_in_a_payload_do_not_stop_small_requests(self) -> None:
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="big", size=64 * MiB)
        self.export("big")
        stalled = []
        for _ in range(12):  # 32 MiB each: more than the daemon gives to requests
            client = self.handshake()
            self.option(client, 7, struct.pack(">I", 3) + b"big" + struct.pack(">H", 0))
            client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 5, 0, 32 * MiB) + b"x" * 4096)
            stalled.append(client)
        guest = self.guest("big")
        for offset in range(0, MiB, 64 * 1024):
            guest.write(offset, b"y" * 16384)
            self.assertEqual(len(guest.read(offset, 16384)), 16384)
        for client in stalled:
            client.setblocking(False)
            with self.assertRaises(BlockingIOError):  # nobody had to be disconnected for it
                client.recv(1)

    @blockd_only("handshake-max-seconds is of 10.0")
    def test_handshake_has_a_time_limit(self) -> None:
        self.qmp.cmd("nbd-server-stop")
        address = {"type": "unix", "data": {"path": self.nbd_socket}}
        self.qmp.cmd("nbd-server-start", addr=address, handshake_max_seconds=1)
        client = self.handshake()
        with self.assertRaises((EOFError, ConnectionError)):
            self.read(client, 1)


@over_images(images.RAW, images.QCOW2, images.QCOW2_512)
class Tools(QMPTestCase):
    """nbdinfo, nbdcopy and qemu-img against an export."""

    def setUp(self) -> None:
        super().setUp()
        self.data = bytes(MiB) + self.random_bytes(MiB) + bytes(MiB)
        self.sent = self.path("sent.raw")
        Path(self.sent).write_bytes(self.data)

    def serve(self, name: str = "a") -> str:
        """An empty image, exported; the path is given back."""
        path = self.create_image(name, len(self.data))
        if self.image_options is images.RAW:
            os.truncate(path, 0)  # qemu-img writes the first block of a raw image.
            os.truncate(path, len(self.data))
        self.launch()
        self.add_node("n", path)
        self.export("n")
        return path

    @needs_tool("nbdcopy")
    def test_nbdcopy_both_ways(self) -> None:
        path = self.serve()
        images.run_tool("nbdcopy", self.sent, self.nbd_uri("n"))
        back = self.path("back.raw")
        images.run_tool("nbdcopy", self.nbd_uri("n"), back)
        self.assertEqual(Path(back).read_bytes(), self.data)
        self.daemon.quit()
        self.assert_content(path, self.data)

    @needs_tool("nbdinfo")
    def test_nbdinfo(self) -> None:
        self.serve()
        listed = json.loads(images.run_tool("nbdinfo", "--json", "--list", f"nbd+unix:///?socket={self.nbd_socket}"))
        self.assertEqual([one["export-name"] for one in listed["exports"]], ["n"])
        one = json.loads(images.run_tool("nbdinfo", "--json", self.nbd_uri("n")))["exports"][0]
        self.assertEqual((one["export-size"], one["is_read_only"]), (3 * MiB, False))
        self.assertIn("base:allocation", one["contexts"])

    @needs_tool("nbdinfo")
    def test_nbdinfo_map(self) -> None:
        self.serve()
        images.qemu_io(self.nbd_uri("n"), "write -q -P 1 1M 1M", driver="raw")
        extents = json.loads(images.run_tool("nbdinfo", "--json", "--map", self.nbd_uri("n")))
        merged: list[tuple[int, int]] = []
        for one in extents:
            if merged and merged[-1][1] == one["type"]:
                merged[-1] = (merged[-1][0] + one["length"], one["type"])
            else:
                merged.append((one["length"], one["type"]))
        self.assertEqual(merged, [(MiB, ZERO_HOLE), (MiB, DATA), (MiB, ZERO_HOLE)])

    def test_qemu_img_convert_both_ways(self) -> None:
        path = self.serve()
        images.run_tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", self.sent, self.nbd_uri("n"))
        back = self.path("back.raw")
        images.run_tool("qemu-img", "convert", "-f", "raw", "-O", "raw", self.nbd_uri("n"), back)
        self.assertEqual(Path(back).read_bytes(), self.data)
        images.compare(self.nbd_uri("n"), self.sent, "raw", "raw")
        self.daemon.quit()
        self.assert_content(path, self.data)
