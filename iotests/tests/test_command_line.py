"""The command line: options in both notations, worked off in order; mistakes; how a run begins and ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from pathlib import Path

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import environment, program, run_to_end
from iotests.harness.deadline import Deadline
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only, daemon_differs, rival_only
from iotests.harness.qmp import QMPClient


class Mistakes(QMPTestCase):
    """A mistake is one line on stderr and exit status 1."""

    def assert_mistake(self, message: str, *arguments: str) -> None:
        """The run ends with status 1 and one line that is `message` after the program's name."""
        done = run_to_end(arguments, self.directory)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        name, _, rest = done.stderr.rstrip("\n").partition(": ")
        self.assertIn(Path(name).name, {Path(program()).name, "blockd"})
        self.assertEqual(rest, message)

    def test_unknown_option(self) -> None:
        self.assert_mistake("unrecognized option '--nosuch'", "--nosuch")

    def test_option_without_its_argument(self) -> None:
        self.assert_mistake("option '--blockdev' requires an argument", "--blockdev")

    def test_stray_argument(self) -> None:
        self.assert_mistake("stray: Unexpected argument", "stray")

    def test_blockdev(self) -> None:
        for value, message in {
            "driver=nosuch,node-name=x": "Parameter 'driver' does not accept value 'nosuch'",
            "driver=null-co": "'node-name' must be specified for the root node",
            "null-co,node-name=1bad": "Invalid node-name: '1bad'",
            "node-name=x": "Parameter 'driver' is missing",
            "driver=file,filename=nosuch,node-name=x": "Could not open 'nosuch': No such file or directory",
            "null-co,node-name=x,foo=1": "Parameter 'foo' is unexpected",
            "null-co,node-name=x,size=abc": "Parameter 'size' expects integer",
            "null-co,node-name=x,read-only=maybe": "Parameter 'read-only' expects 'on' or 'off'",
            '{"driver":"file"': "JSON parse error, premature EOI",
            '{"driver":"null-co","node-name":5}': "Invalid parameter type for 'node-name', expected: string",
        }.items():
            with self.subTest(value=value):
                self.assert_mistake(f"--blockdev {value}: {message}", "--blockdev", value)

    @blockd_only("the rival has no web address")
    def test_web(self) -> None:
        for value, message in {
            "0.0.0.0:8080": "Address '0.0.0.0:8080' is refused: without TLS, and a token file or certificates of clients,"
            " only a loopback address or a unix socket is served",
            "localhost": "Parameter 'addr' expects IP:PORT or unix:PATH",
            "addr=unix:": "Parameter 'addr' expects a path after 'unix:'",
            "qmp=on": "Parameter 'addr' is missing",
            "unix:w,tls=on": "Parameter 'tls' is unexpected",
        }.items():
            with self.subTest(value=value):
                self.assert_mistake(f"--web {value}: {message}", "--web", value)

    @blockd_only("the rival prints names as they are")
    def test_message_stays_one_line(self) -> None:
        value = '{"driver":"file","node-name":"x","filename":"a\\nb\\u001b[2J"}'
        self.assert_mistake(
            rf"--blockdev {value}: Could not open 'a\nb\x1b[2J': No such file or directory", "--blockdev", value
        )

    def test_other_options(self) -> None:
        for option, value, message in (
            ("--monitor", "chardev=zz", 'chardev "zz" not found'),
            ("--chardev", "foo,id=x", "'foo' is not a valid char driver name"),
            ("--object", "nosuch,id=x", "Parameter 'qom-type' does not accept value 'nosuch'"),
            ("--export", "type=nbd,id=e,node-name=zz", "Cannot find device='' nor node-name='zz'"),
            ("--nbd-server", "addr.type=unix", "Parameter 'addr.path' is missing"),
        ):
            with self.subTest(option=option):
                self.assert_mistake(f"{option} {value}: {message}", option, value)

    def test_pidfile_that_cannot_be_made(self) -> None:
        self.assert_mistake(
            "cannot create PID file: Could not create '/nosuch/dir/p': No such file or directory",
            "--pidfile",
            "/nosuch/dir/p",
        )

    def test_options_are_worked_off_in_order(self) -> None:
        node = "null-co,node-name=n,size=1048576"
        export = "type=nbd,id=e,node-name=n"
        self.assert_mistake(
            f"--export {export}: Cannot find device='' nor node-name='n'", "--export", export, "--blockdev", node
        )

    def test_image_locked_by_another_process(self) -> None:
        path = self.create_image("a.qcow2", MiB)
        self.launch("--blockdev", f"qcow2,node-name=n,file.driver=file,file.filename={path}")
        value = f"qcow2,node-name=n,file.driver=file,file.filename={path}"
        done = run_to_end(["--blockdev", value], self.directory)
        self.assertEqual(done.returncode, 1)
        self.assertIn(': Failed to get "write" lock\n', done.stderr)
        self.assertIn(f"Is another process using the image [{path}]?\n", done.stderr)

    def test_failed_start_leaves_nothing(self) -> None:
        sock, pidfile = self.path("m.sock"), self.path("pid")
        done = run_to_end(
            [
                *("--pidfile", pidfile),
                *("--chardev", f"socket,id=m,path={sock},server=on,wait=off", "--monitor", "chardev=m"),
                *("--blockdev", "file,node-name=x,filename=nosuch"),
            ],
            self.directory,
        )
        self.assertEqual(done.returncode, 1)
        self.assertFalse(os.path.lexists(pidfile))


class Options(QMPTestCase):
    """What a good command line sets up."""

    def test_blockdev_as_json_and_as_pairs(self) -> None:
        path = self.create_image("a.qcow2", MiB)
        self.launch(
            *("--blockdev", f'{{"driver": "file", "node-name": "f", "filename": "{path}"}}'),
            *("--blockdev", "driver=qcow2,node-name=q,file=f"),
            *("--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on,read-only=on"),
        )
        nodes = self.nodes()
        self.assertEqual(set(nodes), {"f", "q", "n"})
        self.assertEqual((nodes["q"]["drv"], nodes["q"]["file"]), ("qcow2", path))
        self.assertTrue(nodes["n"]["ro"])
        self.assertEqual(nodes["n"]["image"]["virtual-size"], MiB)

    def test_dotted_keys_reach_nested_children(self) -> None:
        base = self.create_image("base.qcow2", MiB)
        top = self.create_image("top.qcow2", MiB, backing=base)
        self.launch(
            "--blockdev",
            f"qcow2,node-name=t,file.driver=file,file.filename={top},file.node-name=tf,"
            f"backing.driver=qcow2,backing.node-name=b,backing.file.driver=file,backing.file.filename={base},"
            "backing.file.node-name=bf",
        )
        self.assertEqual(self.node_at("t/backing/file"), "bf")

    def test_commas_are_doubled_in_pairs(self) -> None:
        path = self.create_image("a,b.raw", MiB, images.RAW)
        self.launch("--blockdev", f"file,node-name=f,filename={path.replace(',', ',,')}")
        self.assertEqual(self.nodes()["f"]["file"], path)

    def test_nbd_server_and_export(self) -> None:
        self.launch(
            *("--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on"),
            *("--nbd-server", f"addr.type=unix,addr.path={self.nbd_socket}"),
            *("--export", "type=nbd,id=e,node-name=n,name=disk,writable=on"),
        )
        self.assertEqual(self.guest("disk").size, MiB)
        self.assertEqual(
            self.qmp.cmd("query-block-exports"), [{"id": "e", "type": "nbd", "node-name": "n", "shutting-down": False}]
        )

    def test_nbd_server_on_an_inherited_socket(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.nbd_socket)
            listener.listen(1)
            command = [
                *(program(), "--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on"),
                *("--nbd-server", f"addr.type=fd,addr.str={listener.fileno()}"),
                *("--export", "type=nbd,id=e,node-name=n"),
            ]
            process = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=self.directory, env=environment())
        with process:
            try:
                self.assertEqual(self.guest("n").size, MiB)
            finally:
                process.terminate()
            self.assertEqual(process.wait(Deadline().remaining()), 0)
        self.assertTrue(os.path.lexists(self.nbd_socket), "the socket's file is another's")

    def test_option_and_value_joined_by_equals(self) -> None:
        self.launch("--blockdev=null-co,node-name=n,size=1048576")
        self.assertEqual(set(self.nodes()), {"n"})

    def test_secret_object(self) -> None:
        self.launch("--object", "secret,id=s,data=abc", "--object", '{"qom-type":"secret","id":"t","data":"x"}')
        self.assert_qmp_error(
            "attempt to add duplicate property 's' to object (type 'container')",
            "object-add",
            qom_type="secret",
            id="s",
            data="abc",
        )
        self.qmp.cmd("object-del", id="t")
        self.assert_qmp_error("object 't' not found", "object-del", id="t")

    def test_monitor_over_tcp(self) -> None:
        self.launch("--chardev", "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off", "--monitor", "chardev=t")
        label = {one["label"]: one["filename"] for one in self.qmp.cmd("query-chardev")}["t"]
        port = int(label.removeprefix("disconnected:tcp:127.0.0.1:").split(",")[0])
        client = QMPClient(socket.create_connection(("127.0.0.1", port), timeout=10))
        client.read_greeting()
        client.negotiate()
        self.assertEqual(client.cmd("query-jobs"), [])
        client.close()

    def test_monitor_that_connects_out(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("out.sock"))
            listener.listen(1)
            listener.settimeout(Deadline(doing="the daemon to connect").remaining())
            self.launch("--chardev", f"socket,id=o,path={self.path('out.sock')}", "--monitor", "chardev=o")
            connection, _ = listener.accept()
        client = QMPClient(connection)
        client.read_greeting()
        client.negotiate()
        self.assertEqual(client.cmd("query-jobs"), [])
        client.close()

    def test_monitor_on_stdio(self) -> None:
        with subprocess.Popen(
            [program(), "--chardev", "stdio,id=s", "--monitor", "chardev=s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env=environment(),
        ) as process:
            output, errors = process.communicate(
                b'{"execute":"qmp_capabilities"}{"execute":"query-jobs","id":1}{"execute":"quit","id":2}', timeout=30
            )
        self.assertEqual((process.returncode, errors), (0, b""))
        lines = output.split(b"\r\n")
        self.assertTrue(lines[0].startswith(b'{"QMP": '))
        self.assertEqual(lines[1:], [b'{"return": {}}', b'{"return": [], "id": 1}', b'{"return": {}, "id": 2}', b""])

    def test_pretty_monitor(self) -> None:
        path = self.path("pretty.sock")
        self.launch(
            *("--chardev", f"socket,id=p,path={path},server=on,wait=off"), *("--monitor", "chardev=p,pretty=on")
        )
        client = QMPClient.connect(path, pretty=True)
        del client.raw_lines[:]
        self.assertEqual(client.cmd("query-jobs"), [])
        self.assertEqual(client.raw_lines[0], b"{\r\n")
        self.assertIn(b'    "return": [\r\n', client.raw_lines)
        client.close()

    @blockd_only("the rival has no --allow-path")
    def test_allow_path_confines_what_commands_open(self) -> None:
        inside = Path(self.path("inside"))
        inside.mkdir()
        good = images.create(str(inside / "a.raw"), MiB, images.RAW)
        bad = self.create_image("b.raw", MiB, images.RAW)
        self.launch("--allow-path", str(inside))
        self.add_node("good", good, "raw")
        with self.assertRaisesRegex(Exception, "b.raw"):
            self.add_node("bad", bad, "raw")
        self.assertEqual(set(self.nodes()), {"good", "good-file"})

    @blockd_only("the rival has no --allow-path")
    def test_allow_path_confines_what_headers_name(self) -> None:
        inside = Path(self.path("inside"))
        inside.mkdir()
        outside = self.create_image("base.qcow2", MiB)
        top = images.create(str(inside / "top.qcow2"), MiB, images.QCOW2, outside)
        self.launch("--allow-path", str(inside))
        with self.assertRaisesRegex(Exception, "base.qcow2"):
            self.add_node("top", top)
        self.assert_nothing_left()


class Information(QMPTestCase):
    """--version and --help."""

    @daemon_differs("blockd names itself")
    def test_version(self) -> None:
        for option in ("--version", "-V"):
            done = run_to_end([option], self.directory)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertRegex(done.stdout, self.per_daemon(blockd=r"blockd", rival=r"^qemu-storage-daemon version 7"))

    def test_help_names_every_option(self) -> None:
        for option in ("--help", "-h"):
            done = run_to_end([option], self.directory)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            for name in "blockdev chardev daemonize export monitor nbd-server object pidfile version help".split():
                self.assertIn(f"--{name}", done.stdout)

    def test_version_ends_the_command_line(self) -> None:
        done = run_to_end(["--version", "--blockdev", "driver=nosuch"], self.directory)
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class Ends(QMPTestCase):
    """SIGTERM, SIGINT, SIGHUP and quit end the daemon cleanly."""

    def assert_clean_end_with_running_job(self, number: int) -> None:
        """A signal cancels a job, flushes images and releases locks."""
        source = self.filled_image("s.qcow2", self.random_bytes(2 * MiB))
        target = self.create_image("t.qcow2", 2 * MiB)
        self.launch()
        self.add_node("s", source)
        self.add_node("t", target)
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="full", speed=65536)
        self.wait_status("j", "running")
        self.daemon.terminate(number)
        images.check(source)
        images.check(target)
        images.qemu_io(source, "write -q 0 4k", driver="qcow2")

    def test_sigterm(self) -> None:
        self.assert_clean_end_with_running_job(signal.SIGTERM)

    def test_sigint(self) -> None:
        self.assert_clean_end_with_running_job(signal.SIGINT)

    def test_sighup(self) -> None:
        self.assert_clean_end_with_running_job(signal.SIGHUP)

    @blockd_only("the rival waits on for its client")
    def test_signal_ends_the_wait_for_the_first_client(self) -> None:
        sock, pidfile = self.path("w.sock"), self.path("pid")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with subprocess.Popen(
                [
                    *(program(), "--pidfile", pidfile),
                    *("--chardev", f"socket,id=w,path={sock},server=on,wait=on", "--monitor", "chardev=w"),
                ],
                stderr=subprocess.PIPE,
                cwd=self.directory,
                env=environment(),
            ) as process:
                assert process.stderr
                try:
                    self.assertIn(b"waiting for connection", process.stderr.readline())
                    process.send_signal(number)
                    self.assertEqual((process.wait(Deadline().remaining()), process.stderr.read()), (0, b""))
                finally:
                    process.kill()
            self.assertFalse(os.path.lexists(sock))
            self.assertFalse(os.path.lexists(pidfile))

    @blockd_only("the rival's chardev-add waits in the main loop")
    def test_signal_ends_a_command_that_waits_for_a_client(self) -> None:
        self.launch(monitors=2)
        waiting = self.daemon.connect(1)
        address = {"type": "unix", "data": {"path": self.path("w.sock")}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": True}}
        pending = waiting.send("chardev-add", {"id": "w", "backend": backend})
        # It listens, and the other monitor is served meanwhile.
        deadline = Deadline(doing="the new socket")
        while not os.path.lexists(self.path("w.sock")):
            self.assertEqual(self.qmp.cmd("query-jobs"), [])
            deadline.remaining()
        self.daemon.process.terminate()
        answer = waiting.reply(pending)
        self.assertTrue(answer["error"]["desc"].startswith("Failed to add chardev 'w': "), answer)
        self.daemon.wait()
        self.assertFalse(os.path.lexists(self.path("w.sock")))

    def test_quit_of_many_monitors_at_once(self) -> None:
        self.launch(monitors=6)
        clients = [self.daemon.connect(index) for index in range(1, 6)]
        answers: list[object] = []
        for client in clients:
            # The daemon may be gone before the last one has spoken.
            with contextlib.suppress(BrokenPipeError):
                client.send("quit")
        for client in clients:
            client.expect_close()
            answers += [message["return"] for message in client.transcript[2:]]
        self.assertIn({}, answers)
        self.assertFalse([answer for answer in answers if answer != {}])
        self.daemon.wait()

    def test_quit_answers_then_closes(self) -> None:
        self.launch(monitors=2)
        other = self.daemon.connect(1)
        self.assertEqual(self.qmp.cmd("quit"), {})
        self.qmp.expect_close()
        other.expect_close()
        self.daemon.wait()

    def test_quit_cancels_jobs_and_tells_before_its_return(self) -> None:
        source = self.filled_image("s.qcow2", self.random_bytes(2 * MiB))
        target = self.create_image("t.qcow2", 2 * MiB)
        self.launch()
        self.add_node("s", source)
        self.add_node("t", target)
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="full", speed=65536)
        self.qmp.cmd("quit")
        self.qmp.expect_close()
        self.daemon.wait()

    def test_quit_leaves_the_nbd_socket(self) -> None:
        self.launch("--blockdev", "null-co,node-name=n,size=1048576")
        self.export("n")
        self.daemon.quit()
        self.assertTrue(os.path.lexists(self.nbd_socket))

    def test_quit_with_a_connected_guest(self) -> None:
        self.launch("--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on")
        self.export("n")
        guest = self.guest("n")
        self.assertEqual(guest.read(0, 512), bytes(512))
        self.daemon.quit()


class Daemonize(QMPTestCase):
    """--daemonize: the parent speaks for the child."""

    def test_parent_returns_when_the_child_serves(self) -> None:
        sock, pidfile = self.path("m.sock"), self.path("pid")
        done = run_to_end(
            [
                *("--daemonize", "--pidfile", pidfile),
                *("--chardev", f"socket,id=m,path={sock},server=on,wait=off", "--monitor", "chardev=m"),
            ],
            self.directory,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        pid = int(Path(pidfile).read_text())
        process = os.pidfd_open(pid)
        try:
            client = QMPClient.connect(sock)
            self.assertEqual(client.cmd("query-jobs"), [])
            client.cmd("quit")
            client.expect_close()
            client.close()
            readable, _, _ = select.select([process], [], [], Deadline().remaining())
            self.assertTrue(readable, "the child did not end")
        finally:
            os.close(process)
        self.assertFalse(os.path.lexists(sock))
        self.assertFalse(os.path.lexists(pidfile))

    def test_error_of_the_child_is_the_parents(self) -> None:
        value = "file,filename=nosuch,node-name=x"
        done = run_to_end(["--daemonize", "--blockdev", value], self.directory)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f": --blockdev {value}: Could not open 'nosuch': No such file or directory\n", done.stderr)

    def test_descriptors_are_inherited(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            subprocess.run(
                [
                    *(program(), "--daemonize"),
                    *("--chardev", f"socket,id=m,fd={theirs.fileno()}", "--monitor", "chardev=m"),
                ],
                pass_fds=[theirs.fileno()],
                cwd=self.directory,
                env=environment(),
                timeout=30,
                check=True,
            )
        client = QMPClient(ours)
        client.read_greeting()
        client.negotiate()
        client.cmd("quit")
        client.expect_close()
        client.close()


    @blockd_only("the rival, which is in another folder by then, leaves them all")
    def test_of_relative_sockets_that_of_nbd_is_left(self) -> None:
        done = run_to_end(
            [
                *("--daemonize", "--pidfile", "pid", "--nbd-server", "addr.type=unix,addr.path=nbd"),
                *("--chardev", "socket,id=m,path=m.sock,server=on,wait=off", "--monitor", "chardev=m"),
            ],
            self.directory,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        process = os.pidfd_open(int(Path(self.path("pid")).read_text()))
        try:
            client = QMPClient.connect(self.path("m.sock"))
            client.cmd("quit")
            client.expect_close()
            client.close()
            self.assertTrue(select.select([process], [], [], Deadline().remaining())[0], "the child did not end")
        finally:
            os.close(process)
        self.assertEqual(os.listdir(self.directory), ["nbd"])


class Pidfile(QMPTestCase):
    """--pidfile."""

    @blockd_only("of 8.0")
    def test_file_of_another_is_not_removed(self) -> None:
        self.launch()
        path = self.path("moved")
        os.rename(self.daemon.pidfile, path)
        self.daemon.pidfile.write_text("another's")
        self.qmp.cmd("quit")
        self.assertEqual(self.daemon.process.wait(Deadline().remaining()), 0)
        self.assertEqual(self.daemon.pidfile.read_text(), "another's")
        self.daemon.pidfile.unlink()

    @blockd_only("the rival waits for somebody to read the FIFO")
    def test_fifo_is_not_waited_for(self) -> None:
        path = self.path("fifo")
        os.mkfifo(path)
        done = run_to_end(["--pidfile", path], self.directory)
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot create PID file: Failed to truncate pid file: Invalid argument\n", done.stderr)

    def test_holds_the_process_id(self) -> None:
        self.launch()
        self.assertEqual(int(self.daemon.pidfile.read_text()), self.daemon.process.pid)

    def test_is_held_against_a_second_daemon(self) -> None:
        self.launch()
        done = run_to_end(["--pidfile", str(self.daemon.pidfile)], self.directory)
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot create PID file", done.stderr)
        self.assertEqual(int(self.daemon.pidfile.read_text()), self.daemon.process.pid)


class ByteExactEnds(QMPTestCase):
    """The rival's own habits that blockd does not take over."""

    @rival_only("a startup failure leaves the listening socket's file behind; blockd removes it")
    def test_failed_start_leaves_the_socket(self) -> None:
        sock = self.path("m.sock")
        run_to_end(
            [
                *("--chardev", f"socket,id=m,path={sock},server=on,wait=off"),
                *("--blockdev", "file,node-name=x,filename=nosuch"),
            ],
            self.directory,
        )
        self.assertTrue(os.path.lexists(sock))
