"""blockd's subcommands, which are clients of a monitor: of this daemon, or of the rival."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Callable

from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import environment
from iotests.harness.deadline import DEFAULT_SECONDS
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only

# The subcommands are blockd's, whichever daemon they talk to.
BLOCKD = str(Path(__file__).resolve().parents[2] / "bin" / "blockd-test")

Done = subprocess.CompletedProcess[str]


class SubcommandCase(QMPTestCase):
    """A daemon with a monitor for the test and another for the subcommand."""

    def setUp(self) -> None:
        super().setUp()
        self.monitor = self.path("second.sock")
        self.launch("--chardev", f"socket,id=second,path={self.monitor},server=on,wait=off", "--monitor", "second")
        image = self.create_image("disk.qcow2", 4 * MiB)
        self.data = self.random_bytes(4 * MiB)
        self.fill(image, self.data)
        self.image = image
        self.add_node("disk", image)

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        """A subcommand that goes on."""
        process = subprocess.Popen(
            [BLOCKD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), **how
        )
        assert process.stdout is not None and process.stderr is not None
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def blockd(self, *arguments: str, status: int = 0, **how: Any) -> Done:
        """A subcommand, seen to its end."""
        done = subprocess.run(
            [BLOCKD, *arguments], capture_output=True, text=True, env=environment(), timeout=DEFAULT_SECONDS * 4, **how
        )
        self.assertEqual(done.returncode, status, done.stderr + done.stdout)
        return done

    def line(self, process: subprocess.Popen[str]) -> str:
        """The next line that a subcommand prints."""
        assert process.stdout is not None
        return process.stdout.readline()

    def complaint(self, process: subprocess.Popen[str]) -> str:
        """What a subcommand that has ended said on stderr."""
        assert process.stderr is not None
        return process.stderr.read()

    def repeat_until_heard(self, process: subprocess.Popen[str], something: Callable[[], None]) -> None:
        """Do something again and again until a subcommand has printed: nothing says when it listens."""
        while not select.select([process.stdout], [], [], 0.05)[0]:
            self.assertIsNone(process.poll())
            something()


class OneCommand(SubcommandCase):
    """blockd qmp."""

    def test_words_become_arguments(self) -> None:
        self.blockd("qmp", self.monitor, "blockdev-add", "driver=null-co", "node-name=n12", "size=64k", "read-only=on")
        node = self.nodes()["n12"]
        self.assertEqual((node["drv"], node["ro"], node["image"]["virtual-size"]), ("null-co", True, 65536))

    def test_members_of_members_and_references(self) -> None:
        self.blockd("qmp", self.monitor, "blockdev-add", "driver=raw", "node-name=r", "file.driver=null-co", "file.size=512")
        self.blockd("qmp", self.monitor, "blockdev-add", "driver=raw", "node-name=r2", "file=r")
        self.assertEqual(self.node_at("r2/file"), "r")

    def test_a_whole_object(self) -> None:
        self.blockd("qmp", self.monitor, "blockdev-add", '{"driver": "null-co", "node-name": "n"}')
        self.assertIn("n", self.nodes())

    def test_the_return_is_a_line_of_json(self) -> None:
        done = self.blockd("qmp", self.monitor, "query-named-block-nodes", "flat=true")
        self.assertEqual(done.stdout.count("\n"), 1)
        self.assertEqual({node["node-name"] for node in json.loads(done.stdout)} & {"disk"}, {"disk"})

    def test_what_the_server_refuses(self) -> None:
        done = self.blockd("qmp", self.monitor, "blockdev-del", "node-name=nope", status=1)
        self.assertEqual(done.stderr, "blockd-test: Failed to find node with node-name='nope'\n")
        done = self.blockd("qmp", self.monitor, "nope", status=1)
        self.assertEqual(done.stderr, "blockd-test: CommandNotFound: The command nope has not been found\n")

    def test_words_that_are_none(self) -> None:
        done = self.blockd("qmp", self.monitor, "blockdev-del", "disk", status=1)
        self.assertEqual(done.stderr, "blockd-test: disk: expected KEY=VALUE\n")
        self.assertIn("disk", self.nodes())

    def test_no_server(self) -> None:
        done = self.blockd("qmp", self.path("nothing"), "query-version", status=1)
        self.assertEqual(
            done.stderr, f"blockd-test: cannot connect to {self.path('nothing')}: connect: no such file or directory\n"
        )


class Jobs(SubcommandCase):
    """Jobs that are waited for, and those that are looked at."""

    def test_backup_to_a_file(self) -> None:
        target = self.path("copy.qcow2")
        self.blockd("backup", self.monitor, "disk", target)
        self.assert_content(target, self.data)
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_backup_to_a_node(self) -> None:
        target = self.create_image("copy.qcow2", 4 * MiB)
        self.add_node("copy", target)
        self.blockd("backup", self.monitor, "disk", "copy", "--job-id", "mine")
        self.qmp.cmd("blockdev-del", node_name="copy")
        self.assert_content(target, self.data)

    def test_backup_spares_a_file_that_is_there(self) -> None:
        target = Path(self.path("copy.qcow2"))
        target.write_text("precious")
        done = self.blockd("backup", self.monitor, "disk", str(target), status=1)
        self.assertEqual(done.stderr, f"blockd-test: {target} exists already\n")
        self.assertEqual(target.read_text(), "precious")

    def test_mirror_to_a_file(self) -> None:
        target = self.path("moved.qcow2")
        self.blockd("mirror", self.monitor, "disk", target)
        self.daemon.quit()
        self.assert_content(target, self.data)

    def test_stream_makes_a_node_stand_alone(self) -> None:
        top = self.create_image("top.qcow2", 4 * MiB, backing=self.image)
        self.qmp.cmd("blockdev-del", node_name="disk")
        self.add_node("top", top)
        self.blockd("stream", self.monitor, "top")
        self.assert_chain("top")
        self.qmp.cmd("blockdev-del", node_name="top")
        os.unlink(self.image)
        self.assert_content(top, self.data)

    def test_commit_of_the_active_layer(self) -> None:
        top = self.create_image("top.qcow2", 4 * MiB, backing=self.image)
        self.qmp.cmd("blockdev-del", node_name="disk")
        new = self.random_bytes(MiB, 1)
        self.fill(top, new, offset=MiB)
        self.add_node("top", top)
        self.blockd("commit", self.monitor, "top")
        self.daemon.quit()
        self.assert_content(self.image, self.data[:MiB] + new + self.data[2 * MiB :])

    def test_a_job_that_fails(self) -> None:
        small = self.create_image("small.qcow2", 4 * MiB)
        self.add_node("small", small)
        self.qmp.cmd("blockdev-add", driver="blkdebug", node_name="bad", image="small", inject_error=[{"event": "none"}])
        self.qmp.cmd(
            "blockdev-add", driver="blkdebug", node_name="worse", image="bad", inject_error=[{"event": "none", "iotype": "write"}]
        )
        done = self.blockd("backup", self.monitor, "disk", "worse", "--job-id", "b", status=2)
        self.assertEqual(done.stderr, "blockd-test: job b failed: Input/output error\n")
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_an_interrupt_cancels(self) -> None:
        process = self.start("backup", self.monitor, "disk", self.path("copy.qcow2"), "--job-id", "b", "--speed", "1")
        self.wait_status("b", "running")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(DEFAULT_SECONDS * 4), 3)
        self.assertEqual(self.complaint(process), "blockd-test: job b was cancelled\n")
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_cancelled_by_somebody_else(self) -> None:
        process = self.start("backup", self.monitor, "disk", self.path("copy.qcow2"), "--job-id", "b", "--speed", "1")
        self.wait_status("b", "running")
        self.qmp.cmd("job-cancel", id="b")
        self.assertEqual(process.wait(DEFAULT_SECONDS * 4), 3)

    def test_what_the_server_refuses(self) -> None:
        done = self.blockd("stream", self.monitor, "nope", status=1)
        self.assertEqual(done.stderr, "blockd-test: Cannot find device='nope' nor node-name='nope'\n")

    def test_table(self) -> None:
        self.qmp.cmd("blockdev-create", job_id="c", options={"driver": "file", "filename": self.path("new"), "size": 0})
        self.wait_status("c", "concluded")
        lines = self.blockd("jobs", self.monitor).stdout.splitlines()
        self.assertEqual(lines[0].split(), ["ID", "TYPE", "STATUS", "PROGRESS", "DONE", "TOTAL", "ERROR"])
        self.assertEqual(lines[1].split()[:3], ["c", "create", "concluded"])
        self.assertEqual(json.loads(self.blockd("jobs", self.monitor, "--json").stdout)[0]["id"], "c")
        self.qmp.cmd("job-dismiss", id="c")

    def test_watched_on_a_pipe(self) -> None:
        process = self.start("jobs", self.monitor, "--watch")
        self.assertEqual(self.line(process), "[]\n")
        self.qmp.cmd("blockdev-create", job_id="c", options={"driver": "file", "filename": self.path("new"), "size": 0})
        self.assertEqual([job["id"] for job in json.loads(self.line(process))], ["c"])
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(DEFAULT_SECONDS), 0)


class Events(SubcommandCase):
    """blockd events."""

    def test_named_events_as_lines_of_json(self) -> None:
        process = self.start("events", self.monitor, "JOB_STATUS_CHANGE")
        self.repeat_until_heard(process, self.create_file)
        statuses = [json.loads(self.line(process))["data"]["status"] for _ in range(2)]
        self.assertIn(statuses, (["created", "running"], ["running", "waiting"], ["waiting", "pending"], ["pending", "concluded"], ["concluded", "null"]))
        self.daemon.quit()
        self.assertEqual(process.wait(DEFAULT_SECONDS), 0)

    def create_file(self) -> None:
        """Something with events."""
        self.qmp.cmd("blockdev-create", job_id="c", options={"driver": "file", "filename": self.path("new"), "size": 0})
        self.wait_status("c", "concluded")
        self.qmp.cmd("job-dismiss", id="c")


class Graph(SubcommandCase):
    """blockd graph."""

    def test_tree(self) -> None:
        self.start_nbd()
        self.export("disk")
        lines = self.blockd("graph", self.monitor).stdout.splitlines()
        self.assertEqual(lines[1], "`- root: disk  (qcow2, 4 MiB)")
        self.assertRegex(lines[0], r"^\S+  \(nbd export\)$")
        self.assertRegex(lines[2], r"^   `- file: disk-file  \(file, .*\)$")

    def test_pictures(self) -> None:
        svg = self.blockd("graph", self.monitor, "--svg").stdout
        self.assertIn("disk", "".join(ElementTree.fromstring(svg).itertext()))
        self.assertTrue(self.blockd("graph", self.monitor, "--dot").stdout.startswith("digraph"))
        self.assertIn("edges", json.loads(self.blockd("graph", self.monitor, "--json").stdout))

    def test_forms_exclude_each_other(self) -> None:
        self.blockd("graph", self.monitor, "--svg", "--dot", status=1)
        self.blockd("graph", self.monitor, "--svg", "--watch", status=1)

    @blockd_only("the rival does not tell of changes of its graph")
    def test_changes_with_their_causes(self) -> None:
        process = self.start("graph", self.monitor, "--watch", "--json")
        self.repeat_until_heard(process, self.add_and_delete)
        step = json.loads(self.line(process))
        added = step["cause"]["command"] == "blockdev-add"
        wanted = {"type": "node-added" if added else "node-removed", "node-name": "n", "driver": "null-co"}
        self.assertEqual(step["changes"], [wanted])
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(DEFAULT_SECONDS), 0)

    def add_and_delete(self) -> None:
        """Two changes of the graph."""
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n")
        self.qmp.cmd("blockdev-del", node_name="n")


class Shell(SubcommandCase):
    """blockd shell, from a pipe and on a terminal."""

    def test_script(self) -> None:
        done = self.blockd("shell", self.monitor, input='# a comment\n\nquery-jobs\n{"execute": "query-block-exports"}\n')
        self.assertEqual(done.stdout, "[]\n[]\n")

    def test_script_ends_at_the_first_failure(self) -> None:
        script = "blockdev-del node-name=nope\nblockdev-del node-name=disk\n"
        done = self.blockd("shell", self.monitor, input=script, status=1)
        self.assertEqual(
            done.stderr, "blockd-test: blockdev-del node-name=nope: Failed to find node with node-name='nope'\n"
        )
        self.assertIn("disk", self.nodes())

    def test_help(self) -> None:
        self.assertIn("blockdev-add\n", self.blockd("shell", self.monitor, input="help\n").stdout)
        self.assertIn("  id=<string>\n", self.blockd("shell", self.monitor, input="help job-cancel\n").stdout)

    def test_terminal_completes_and_remembers(self) -> None:
        state = self.path("state")
        self.assertIn(b"[\r\n]\r\n", self.converse(state, b"query-block-exp\t\r", b"qmp> "))
        # The line is there again, two keys away.
        self.assertIn(b"query-block-exports", self.converse(state, b"\x1b[A", b"query-block-exports"))

    def converse(self, state: str, keys: bytes, until: bytes) -> bytes:
        """What a shell on a terminal shows after some keys; it is left by Ctrl-D."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        process = subprocess.Popen(
            [BLOCKD, "shell", self.monitor],
            stdin=slave, stdout=slave, stderr=slave, env={**environment(), "XDG_STATE_HOME": state, "TERM": "xterm"},
        )
        os.close(slave)
        self.read_until(master, b"qmp> ")
        os.write(master, keys)
        shown = self.read_until(master, until)
        os.write(master, b"\x15\x04")  # clear the line, end of input
        while self.read_some(master):
            pass
        self.assertEqual(process.wait(DEFAULT_SECONDS), 0)
        return shown

    def read_until(self, master: int, text: bytes) -> bytes:
        """What comes up to a text."""
        shown = b""
        while text not in shown:
            more = self.read_some(master)
            self.assertTrue(more, shown)
            shown += more
        return shown

    @staticmethod
    def read_some(master: int) -> bytes:
        """What comes next; nothing at the end."""
        ready, _, _ = select.select([master], [], [], DEFAULT_SECONDS * 4)
        try:
            return os.read(master, 65536) if ready else b""
        except OSError:  # nobody has the other end any more
            return b""


class Program(QMPTestCase):
    """What is a subcommand, and what is the daemon's."""

    def test_help_and_completion(self) -> None:
        for arguments in (["help"], ["help", "backup"], ["completion", "bash"]):
            done = subprocess.run([BLOCKD, *arguments], capture_output=True, text=True, env=environment())
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("blockd", done.stdout)

    def test_other_words_are_the_daemons(self) -> None:
        done = subprocess.run([BLOCKD, "nonsense"], capture_output=True, text=True, env=environment())
        self.assertEqual((done.returncode, done.stderr), (1, "blockd-test: nonsense: Unexpected argument\n"))

    def test_a_terminal_is_told_how_to_begin(self) -> None:
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        with subprocess.Popen([BLOCKD], stdin=slave, stdout=slave, stderr=slave, env={**environment(), "TERM": "xterm"}) as process:
            os.close(slave)
            self.assertEqual(process.wait(DEFAULT_SECONDS), 0)
        self.assertIn(b"blockd --help lists", os.read(master, 65536))
