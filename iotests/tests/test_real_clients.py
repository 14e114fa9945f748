"""
Programs that others wrote, as they are: a Go library for QMP, an emulator whose guest boots from an export,
the same emulator's jobs, nbdkit, nbdsh, qemu-nbd.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import unittest
from pathlib import Path

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.deadline import DEFAULT_SECONDS, SCALE
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import daemon_differs, needs_tool
from iotests.harness.qmp import QMPClient

# Where the distribution keeps the sources of Go packages.
_GOPATH = Path("/usr/share/gocode")
_CLIENT = Path(__file__).resolve().parents[1] / "clients" / "goqemu.go"

# Hands a listening socket to nbdkit, by the protocol of systemd.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp("nbdkit", ["nbdkit", "-f", *sys.argv[2:]])
"""

# The first sector of a disk of 1 MiB, for a PC in real mode. By the BIOS (int 13h, extended) it reads the disk,
# 64 sectors at a time, to 8000h; of each doubleword it makes sum = (sum rotated left by one) + doubleword. The sum
# goes to the debugging port E9h as 8 digits. Then it fills the last 64 sectors with A5h, says W, or F when the
# BIOS has failed, and has the emulator exit with that letter, doubled, plus one.
BOOT = bytes.fromhex(
    "fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc"  # no stack but below 7C00h, all segments 0
    "8816967c"  # drive = dl
    "b442 e85b00"  # next: read
    "668b1e907c be0080 b90020"  # ebx = sum, si = 8000h, cx = 8192
    "66ad 66d1c3 6601c3 e2f6"  # lodsd, rol ebx, add ebx and eax, loop
    "66891e907c 668306887c40 ff0e947c 75d5"  # sum = ebx, sector += 64, rounds -= 1, next
    "b90800 66c1c304 88d8 240f 0430 3c39 7602 0427 e6e9 e2ec"  # the digits
    "66832e887c40 bf0080 b8a5a5 b90040 f3ab b80043 e80700"  # the last 64 sectors: fill, write
    "b057 e6e9 e6f4 f4"  # 'W'; exit
    "be807c 8a16967c cd13 b046 72ee c3"  # int 13h with the packet; 'F' on errors
    "10004000 0080 0000 0000000000000000 00000000 2000 00"  # packet: 64 sectors, 0:8000h, sector; sum; rounds; drive
)


def boot_sum(disk: bytes) -> str:
    """The sum that the boot sector prints."""
    total = 0
    for (word,) in struct.iter_unpack("<I", disk):
        total = ((total << 1 | total >> 31) + word) & 0xFFFFFFFF
    return f"{total:08x}"


class GoQEMU(QMPTestCase):
    """github.com/digitalocean/go-qemu/qmp, which reads the greeting's numbers and sends no newlines."""

    @needs_tool("go")
    def test_backup(self) -> None:
        if not (_GOPATH / "src/github.com/digitalocean/go-qemu/qmp").is_dir():
            raise unittest.SkipTest("needs golang-github-digitalocean-go-qemu-dev")
        data = self.random_bytes(MiB, 1)
        disk, target = self.filled_image("disk", data), self.create_image("target", MiB)
        client = self.path("goqemu")
        mode = {"GO111MODULE": "off", "GOPATH": str(_GOPATH), "GOFLAGS": "", "CGO_ENABLED": "0"}
        subprocess.run(["go", "build", "-o", client, str(_CLIENT)], check=True, env={**os.environ, **mode}, timeout=300 * SCALE)
        monitor = self.path("qmp")
        self.launch("--chardev", f"socket,id=own,path={monitor},server=on,wait=off", "--monitor", "chardev=own")
        # One client after the other: the monitor is free again, and the second reads no rest of the first's.
        for number in range(2):
            lines = [json.loads(line) for line in images.run_tool(client, monitor, disk, target).splitlines()]
            version = self.qmp.cmd("query-version")["qemu"]
            self.assertEqual(
                lines[0], {"version": f"{version['major']}.{version['minor']}.{version['micro']}", "capabilities": ["oob"]}
            )
            self.assertEqual(lines[1], {"commands": len(self.qmp.cmd("query-commands"))})
            self.assertEqual(lines[2:], [
                {"error": "Failed to find node with node-name='nosuch'"},
                {"event": "BLOCK_JOB_COMPLETED", "device": "j", "stamped": True},
                {"jobs": 0},
            ])
            for name in ("disk", "target"):
                self.qmp.cmd("blockdev-del", node_name=name)
        self.daemon.quit()
        self.assert_content(target, data)


class Emulator(QMPTestCase):
    """qemu-system-x86_64, in software."""

    def emulate(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The emulator with nothing but what is asked for."""
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "16", "-no-reboot", *arguments]
        with open(self.path("emulator"), "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def end() -> None:
            process.kill()
            process.wait()

        self.addCleanup(end)
        return process

    @needs_tool("qemu-system-x86_64")
    def test_a_guest_boots_from_an_export(self) -> None:
        code = BOOT.ljust(510, b"\0") + b"\x55\xaa"
        data = code + self.random_bytes(MiB - 512, 2)
        disk = self.filled_image("disk", data)
        self.launch()
        self.add_node("n", disk)
        self.export("n")
        said = self.path("said")
        guest = self.emulate(
            "-machine", "pc,accel=tcg",
            "-blockdev", f"driver=nbd,node-name=d,export=n,server.type=unix,server.path={self.nbd_socket}",
            "-device", "virtio-blk-pci,drive=d",
            "-chardev", f"file,id=said,path={said}", "-device", "isa-debugcon,iobase=0xe9,chardev=said",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        )  # fmt: skip
        status = guest.wait(6 * DEFAULT_SECONDS * SCALE)
        self.assertEqual(Path(said).read_text(), boot_sum(data) + "W", Path(self.path("emulator")).read_text())
        self.assertEqual(status, 2 * ord("W") + 1)
        self.daemon.quit()
        self.assert_content(disk, data[: -32 * KiB] + b"\xa5" * (32 * KiB))

    @needs_tool("qemu-system-x86_64")
    def test_its_jobs_read_and_write_exports(self) -> None:
        data = self.random_bytes(MiB, 3)
        source, target = self.filled_image("source", data), self.create_image("target", MiB)
        self.launch()
        for name, path in (("source", source), ("target", target)):
            self.add_node(name, path)
            self.export(name)
        ours, theirs = socket.socketpair()
        with theirs:
            command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "none"]
            for name in ("source", "target"):
                command += ["-blockdev", f"driver=nbd,node-name={name},export={name},server.type=unix,server.path={self.nbd_socket}"]
            command += ["-chardev", f"socket,id=m,fd={theirs.fileno()}", "-mon", "chardev=m,mode=control"]
            emulator = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self.addCleanup(emulator.wait)
        self.addCleanup(emulator.kill)
        emulated = QMPClient(ours)
        self.addCleanup(emulated.close)
        emulated.read_greeting()
        emulated.negotiate()
        emulated.cmd("blockdev-mirror", job_id="j", device="source", target="target", sync="full")
        emulated.wait_event("BLOCK_JOB_READY")
        emulated.cmd("job-complete", id="j")
        emulated.wait_event("BLOCK_JOB_COMPLETED", lambda data: "error" not in data)
        emulated.cmd("blockdev-del", node_name="source")
        emulated.cmd("quit")
        self.assertEqual(emulator.wait(DEFAULT_SECONDS * SCALE), 0)
        self.daemon.quit()
        self.assert_content(target, data)


class Servers(QMPTestCase):
    """nbdkit, for the driver nbd."""

    def serve(self, *arguments: str) -> None:
        """nbdkit at self.path("kit"), a socket that it is handed, so that it can be connected to at once."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("kit"))
            listener.listen()
            command = [sys.executable, "-c", _ACTIVATE, str(listener.fileno()), *arguments]
            with open(self.path("nbdkit"), "wb") as log:
                kit = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, pass_fds=[listener.fileno()])
        self.addCleanup(kit.wait, DEFAULT_SECONDS * SCALE)
        self.addCleanup(kit.terminate)

    def add_kit(self, **options: object) -> None:
        """The node n over it."""
        self.qmp.cmd("blockdev-add", driver="nbd", node_name="n", server={"type": "unix", "path": self.path("kit")}, **options)

    @needs_tool("nbdkit")
    def test_reads_writes_and_maps(self) -> None:
        self.serve("memory", "4M")
        self.launch()
        self.add_kit()
        self.export("n")
        guest = self.guest("n")
        data = self.random_bytes(MiB, 4)
        guest.write(MiB, data)
        guest.handle.zero(64 * KiB, MiB)
        self.assertEqual(guest.read(0, 4 * MiB), bytes(MiB + 64 * KiB) + data[64 * KiB :] + bytes(2 * MiB))
        # What nbdkit has not allocated is a hole that reads as zeroes, through both of them.
        self.assertEqual(guest.extents()[0][1], 3)
        self.assertEqual(guest.extents()[-1], (2 * MiB, 3))

    @daemon_differs("the rival ends the connection on which a read has failed")
    @needs_tool("nbdkit")
    def test_errors_come_through(self) -> None:
        self.serve("--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%")
        self.launch()
        self.add_kit()
        self.export("n")
        guest = self.guest("n")
        guest.write(0, b"x" * 512)
        with self.assertRaisesRegex(Exception, self.per_daemon(blockd="EIO", rival="ENOTCONN")):
            guest.read(0, 512)

    @needs_tool("nbdkit")
    def test_a_server_that_cannot_write(self) -> None:
        self.serve("-r", "pattern", "1M")
        self.launch()
        self.add_kit(read_only=True)
        self.export("n", writable=False)
        expected = b"".join(struct.pack(">Q", offset) for offset in range(0, 4096, 8))
        self.assertEqual(self.guest("n").read(0, 4096), expected)


class Clients(QMPTestCase):
    """nbdsh, and qemu-nbd as a client that serves on."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(MiB, 5)
        self.disk = self.filled_image("disk", self.data)
        self.launch()
        self.add_node("n", self.disk)
        self.export("n")

    @needs_tool("nbdsh")
    def test_nbdsh(self) -> None:
        # It takes the first python3 there is, and the bindings are the distribution's.
        script = "h.pwrite(b'shell' * 100, 1000); h.flush(); print(h.get_size(), h.can_multi_conn(), h.pread(500, 1000) == b'shell' * 100)"
        self.assertEqual(images.run_tool("env", "PATH=/usr/bin:/bin", "nbdsh", "-u", self.nbd_uri("n"), "-c", script).split(), [str(MiB), "True", "True"])
        self.daemon.quit()
        self.assert_content(self.disk, self.data[:1000] + b"shell" * 100 + self.data[1500:])

    @needs_tool("qemu-nbd", "nbdcopy")
    def test_qemu_nbd_serves_on(self) -> None:
        second, process = self.path("second"), self.path("pid")
        options = f"driver=nbd,export=n,server.type=unix,server.path={self.nbd_socket}"
        images.run_tool("qemu-nbd", "-k", second, "-x", "again", "--image-opts", options, "--fork", "--pid-file", process)
        self.addCleanup(os.kill, int(Path(process).read_text()), 15)
        copy = self.path("copy")
        images.run_tool("nbdcopy", f"nbd+unix:///again?socket={second}", copy)
        self.assertEqual(Path(copy).read_bytes(), self.data)
