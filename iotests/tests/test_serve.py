"""`blockd serve`: who may use its sockets, its configuration file, what a failed start leaves behind."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import environment, program
from iotests.harness.deadline import Deadline
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPClient, QMPError

OWN = "the rival has no subcommands"
SECONDS = 60

CONTROL, READER = "control-token-0123456789", "reader-token-0123456789"

# Run as another user: says what a connection brings, "" for its end.
KNOCK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
try:
    s.connect(sys.argv[1])
    print(s.recv(5).decode(errors="replace"))
except ConnectionResetError:
    print()
except PermissionError:
    print("not by the file")
"""


@blockd_only(OWN)
class Serve(QMPTestCase):
    """A daemon that serve has started in the background, in a folder that others may enter."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o711)
        self.pid: int | None = None

    def at(self, name: str) -> str:
        return str(self.folder / name)

    def serve(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Starts the daemon, without any umask, and waits until it serves or has failed."""
        return subprocess.run(
            [program(), "serve", "--daemonize", "--pidfile", self.at("pid"), *arguments],
            cwd=self.folder, env=environment(), umask=0, text=True, timeout=SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def started(self, *arguments: str) -> None:
        done = self.serve(*arguments)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        self.pid = int(Path(self.at("pid")).read_text(encoding="ascii"))
        handle = os.pidfd_open(self.pid)

        def kill() -> None:
            if not self.ended(handle, 0):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)

        self.addCleanup(kill)
        self.handle = handle

    def ended(self, handle: int, seconds: float) -> bool:
        return bool(select.select([handle], [], [], seconds)[0])

    def stop(self) -> None:
        """Ends the daemon by SIGTERM; nothing is left of its files."""
        signal.pidfd_send_signal(self.handle, signal.SIGTERM)
        self.assertTrue(self.ended(self.handle, SECONDS), "the daemon goes on")
        self.assertEqual([p.name for p in self.folder.iterdir() if p.is_socket() or p.name == "pid"], [])

    def client(self, name: str = "q") -> QMPClient:
        client = QMPClient.connect(self.at(name))
        self.addCleanup(client.close)
        return client

    def image(self, name: str) -> None:
        shutil.copy(self.create_image("image.qcow2", MiB), self.at(name))

    def mode(self, name: str) -> tuple[int, int]:
        status = os.stat(self.at(name))
        self.assertTrue(stat.S_ISSOCK(status.st_mode))
        return stat.S_IMODE(status.st_mode), status.st_gid

    def knock(self, name: str, user: int, group: int) -> str:
        done = subprocess.run(
            ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", sys.executable, "-c", KNOCK, self.at(name)],
            capture_output=True, text=True, timeout=SECONDS, check=True, cwd="/",
        )  # fmt: skip
        return done.stdout.strip()

    def test_sockets_are_private_whatever_the_umask(self) -> None:
        self.started("--qmp", "q", "--nbd", "unix:n", "--web", "unix:w")
        for name in "qnw":
            self.assertEqual(self.mode(name)[0], 0o600, name)
        backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": self.at("c")}}, "wait": False}}
        client = self.client()
        client.cmd("chardev-add", id="c", backend=backend)
        self.assertEqual(self.mode("c")[0], 0o600)
        client.cmd("chardev-remove", id="c")
        client.cmd("nbd-server-stop")
        client.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": self.at("n2")}})
        self.assertEqual(self.mode("n2")[0], 0o600)
        self.stop()

    def test_group_may_use_sockets(self) -> None:
        if os.geteuid() != 0:
            print("only root may give files to groups that it is not in")
            return
        self.started("--qmp", "q", "--nbd", "unix:n", "--web", "unix:w", "--socket-group", "12345")
        for name in "qnw":
            self.assertEqual(self.mode(name), (0o660, 12345), name)
        self.assertEqual(self.knock("q", 12346, 12346), "not by the file")
        self.assertEqual(self.knock("q", 12346, 12345), '{"QMP')
        self.stop()

    def test_other_users_are_refused(self) -> None:
        if os.geteuid() != 0:
            print("only root may be other users")
            return
        self.started("--qmp", "q", "--qmp", "q2", "--nbd", "unix:n", "--web", "unix:w", "--allow-uid", "12345")
        for name in ("q", "n", "w"):
            self.assertEqual(self.mode(name)[0], 0o666, name)
            if name != "w":  # where the client speaks first
                self.assertEqual(self.knock(name, 12345, 12345), {"q": '{"QMP', "n": "NBDMA"}[name])
            self.assertEqual(self.knock(name, 12346, 12345), "", name)
        self.assertEqual(self.knock("q2", 0, 0), '{"QMP')
        info = self.client().cmd("x-query-session")
        self.assertEqual((info["role"], info["uid"], info["transport"]), ("control", 0, "monitor"))
        self.stop()

    def test_failed_start_leaves_nothing(self) -> None:
        self.image("d.qcow2")
        Path(self.at("c.yaml")).write_text(
            f"""
dir: {self.folder}
qmp: q
nbd: "unix:n"
web: "unix:w"
nodes:
  - driver: qcow2
    node-name: disk
    file: {{driver: file, filename: d.qcow2}}
exports:
  - type: nbd
    id: e0
    node-name: disk
    writeable: true
""",
            encoding="utf-8",
        )
        done = self.serve("--config", "c.yaml")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn(": c.yaml:14: exports[0].writeable: Parameter 'writeable' is unexpected\n", done.stderr)
        # Nor when what fails comes last, with everything else in place.
        text = Path(self.at("c.yaml")).read_text(encoding="utf-8").replace("writeable", "writable").replace('"unix:w"', "{addr: 1.2.3.4:80}")
        Path(self.at("c.yaml")).write_text(text, encoding="utf-8")
        done = self.serve("--config", "c.yaml")
        self.assertEqual(done.returncode, 1)
        self.assertIn(": c.yaml:5: web: Address '1.2.3.4:80' is refused", done.stderr)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["c.yaml", "d.qcow2"])

    def test_configuration_is_served(self) -> None:
        self.image("d.qcow2")
        configuration: dict[str, Any] = {
            "dir": str(self.folder),
            "qmp": ["q"],
            "nbd": {"addr": {"type": "unix", "path": "n"}},
            "objects": [{"qom-type": "throttle-group", "id": "slow"}],
            "nodes": [{"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": "d.qcow2"}}],
            "exports": [{"type": "nbd", "id": "e0", "node-name": "disk", "writable": True}],
        }
        Path(self.at("c.json")).write_text(json.dumps(configuration, indent="\t"), encoding="utf-8")
        self.started("--config", "c.json")
        client = self.client()
        self.assertEqual([e["id"] for e in client.cmd("query-block-exports")], ["e0"])
        self.stop()

    def test_directory_holds_the_images(self) -> None:
        (self.folder / "inside").mkdir()
        self.image("inside/d.qcow2")
        self.image("outside.qcow2")
        (self.folder / "inside/link.qcow2").symlink_to(self.at("outside.qcow2"))
        self.started("--dir", "inside", "--qmp", "../q")
        client = self.client()
        client.cmd("blockdev-add", driver="qcow2", **{"node-name": "d"}, file={"driver": "file", "filename": "d.qcow2"})
        for name in ("../outside.qcow2", self.at("outside.qcow2"), "link.qcow2"):
            with self.assertRaises(QMPError) as refused:
                client.cmd("blockdev-add", driver="file", **{"node-name": "o"}, filename=name)
            self.assertIn("Permission denied", str(refused.exception))
        signal.pidfd_send_signal(self.handle, signal.SIGTERM)
        self.assertTrue(self.ended(self.handle, SECONDS))
        self.assertFalse(os.path.exists(self.at("q")))
        self.assertFalse(os.path.exists(self.at("pid")))

    def test_stale_socket_makes_way(self) -> None:
        left = socket.socket(socket.AF_UNIX)
        left.bind(self.at("q"))
        left.close()
        self.started("--qmp", "q")
        self.client().cmd("query-version")
        self.stop()

    def test_socket_in_use_is_not_taken(self) -> None:
        living = socket.socket(socket.AF_UNIX)
        self.addCleanup(living.close)
        living.bind(self.at("q"))
        living.listen()
        done = self.serve("--qmp", "q")
        self.assertEqual(done.returncode, 1)
        self.assertIn(": --qmp q: Failed to bind socket to q: somebody listens there\n", done.stderr)
        self.assertTrue(Path(self.at("q")).is_socket())
        Path(self.at("f")).write_text("", encoding="utf-8")
        done = self.serve("--qmp", "f")
        self.assertEqual(done.returncode, 1)
        self.assertIn("something else than a socket is there", done.stderr)
        self.assertTrue(Path(self.at("f")).is_file())
        self.assertFalse(Path(self.at("pid")).exists())

    def ask(self, token: str) -> int:
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(SECONDS)
        connection.sock.connect(self.at("w"))
        try:
            connection.request("GET", "/session", headers={"Authorization": "Bearer " + token})
            return connection.getresponse().status
        finally:
            connection.close()

    def test_hangup_opens_the_log_anew(self) -> None:
        self.started("--qmp", "q", "--log", "level=info", "--log", "file=log", "--trace", "qmp_command")
        client = self.client()
        client.cmd("query-version")
        log = Path(self.at("log"))
        moved = log.rename(self.at("log.1"))
        client.cmd("query-chardev")
        signal.pidfd_send_signal(self.handle, signal.SIGHUP)
        deadline = Deadline(SECONDS, doing="the log's new file")
        while not log.exists() or "opened anew" not in log.read_text():
            time.sleep(min(0.02, deadline.remaining()))
        client.cmd("query-fdsets")
        self.stop()  # all is written then
        self.assertEqual([name in moved.read_text() for name in ("query-version", "query-chardev", "query-fdsets")], [True, True, False])
        self.assertEqual([name in log.read_text() for name in ("query-version", "query-chardev", "query-fdsets")], [False, False, True])

    def await_line(self, client: QMPClient, message: str) -> None:
        """Wait for a line of the log."""
        deadline = Deadline(SECONDS, doing=f"the log's line {message!r}")
        while not any(line["message"] == message for line in client.cmd("x-query-log")["lines"]):
            time.sleep(min(0.02, deadline.remaining()))

    def test_hangup_does_not_wait_for_who_reads_the_log(self) -> None:
        fifo = self.at("log")
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self.started("--qmp", "q", "--log", "level=info", "--log", "file=log")
        finally:
            os.close(reader)
        signal.pidfd_send_signal(self.handle, signal.SIGHUP)
        client = self.client()
        self.await_line(client, "the log keeps its file")
        client.cmd("query-version")
        self.stop()

    def test_hangup_reads_tokens_again(self) -> None:
        tokens = Path(self.at("tokens"))
        tokens.write_text(f"control {CONTROL}\n", encoding="ascii")
        tokens.chmod(0o600)
        self.started("--qmp", "q", "--web", "unix:w,token-file=tokens", "--log", "level=info")
        self.assertEqual((self.ask(CONTROL), self.ask(READER)), (200, 401))
        Path(self.at("token")).write_text(CONTROL, encoding="ascii")
        os.chmod(self.at("token"), 0o600)
        done = subprocess.run(
            [program(), "qmp", "--token-file", self.at("token"), "ws+unix:" + self.at("w"), "x-query-session"],
            env=environment(), capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(done.stdout)["role"], "control")
        tokens.write_text(f"read-only {READER}\n", encoding="ascii")
        signal.pidfd_send_signal(self.handle, signal.SIGHUP)
        client = self.client()
        self.await_line(client, "SIGHUP: log, tokens and credentials are read anew")
        self.assertEqual((self.ask(READER), self.ask(CONTROL)), (200, 401))
        client.cmd("query-version")  # it goes on
        self.stop()
