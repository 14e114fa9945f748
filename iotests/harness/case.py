"""The base class of the tests: a folder, daemons, images, jobs and what can be asserted of them."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import unittest
import zlib
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from . import guest as guest_module
from . import images
from .daemon import Daemon, daemon_kind
from .deadline import DEFAULT_SECONDS
from .guest import Guest, GuestWriter
from .images import QCOW2, ImageOptions
from .markers import RIVAL
from .qmp import Message, QMPClient, QMPError

Value = TypeVar("Value")
Case = TypeVar("Case", bound="type[QMPTestCase]")

# The members of every event of a block job, in one place.
BLOCK_JOB_EVENTS = (
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_READY",
    "BLOCK_JOB_PENDING",
    "BLOCK_JOB_ERROR",
)

# The event sequences of section 2.4 of the reference, as `job_sequence` shows them.
SUCCESS = ("created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null")
CANCELLED = ("created", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null")
FAILED = ("created", "running", "aborting", "BLOCK_JOB_COMPLETED", "concluded", "null")
REFUSED = ("created", "null")


class QMPTestCase(unittest.TestCase):
    """One test with a folder of its own; daemons started by `launch` are ended and judged at its end."""

    image_options: ImageOptions = QCOW2
    maxDiff = 4000

    directory: Path
    daemon: Daemon
    qmp: QMPClient

    def setUp(self) -> None:
        # Set here, before the setUp of a subclass makes its images.
        self.image_options = getattr(getattr(self, self._testMethodName), "image_options", self.image_options)
        # The path stays short: a unix socket's may have 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="iot"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.nbd_socket = self.path("nbd")

    # The daemon.

    def launch(
        self, *arguments: str, monitors: int = 1, name: str = "d", wrapper: Sequence[str] = ()
    ) -> Daemon:
        """
        Start the daemon. The one without a name of its own becomes self.daemon, and its client self.qmp;
        `wrapper` is a program, with its options, that executes the daemon.
        """
        daemon = Daemon(arguments, self.directory, name=name, monitors=monitors, wrapper=wrapper)
        self.addCleanup(daemon.quit)
        if name == "d":
            self.daemon = daemon
            self.qmp = daemon.qmp
        return daemon

    def per_daemon(self, *, blockd: Value, rival: Value) -> Value:
        """The expectation for the daemon that runs; the test says why by @daemon_differs."""
        return rival if daemon_kind() == RIVAL else blockd

    def path(self, name: str) -> str:
        """The absolute path of a file in the test's folder."""
        return str(self.directory / name)

    # Images.

    def create_image(
        self, name: str, size: int, options: ImageOptions | None = None, *, backing: str = "", backing_format: str = ""
    ) -> str:
        """Create an image in the test's folder; its path is given back."""
        options = options or self.image_options
        return images.create(self.path(name), size, options, backing, backing_format or options.driver)

    def fill(self, path: str, data: bytes, driver: str | None = None, offset: int = 0) -> None:
        """Write bytes into an image with qemu-img, from outside."""
        raw = self.path(f"fill{zlib.crc32(data):08x}")
        Path(raw).write_bytes(data)
        driver = driver or self.image_options.driver
        images.qemu_io(path, f"write -q -s {raw} {offset} {len(data)}", driver=driver)
        Path(raw).unlink()

    def filled_image(self, name: str, data: bytes, options: ImageOptions | None = None, **how: Any) -> str:
        """An image that holds `data`."""
        options = options or self.image_options
        path = self.create_image(name, len(data), options, **how)
        self.fill(path, data, options.driver)
        return path

    def assert_content(self, path: str, expected: bytes, driver: str | None = None) -> None:
        """The image at `path`, with its whole chain, holds exactly `expected`, and checks clean."""
        driver = driver or self.image_options.driver
        images.check(path, driver)
        model = self.path("model.raw")
        Path(model).write_bytes(expected)
        images.compare(path, model, driver, "raw")
        Path(model).unlink()

    # Nodes and exports.

    def add_node(self, node_name: str, path: str, driver: str | None = None, **options: Any) -> None:
        """blockdev-add of a format node over a file; the protocol node is called NAME-file."""
        protocol = {"driver": "file", "filename": path, "node-name": f"{node_name}-file"}
        arguments = {name.replace("_", "-"): value for name, value in options.items()}
        self.qmp.execute(
            "blockdev-add",
            {"driver": driver or self.image_options.driver, "node-name": node_name, "file": protocol, **arguments},
        )

    def start_nbd(self) -> None:
        """Start the NBD server on self.nbd_socket."""
        self.qmp.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": self.nbd_socket}})

    def export(self, node_name: str, *, writable: bool = True, **options: Any) -> str:
        """Export a node under its own name, starting the server with the first one; the id is given back."""
        if not Path(self.nbd_socket).exists():
            self.start_nbd()
        identity = f"exp-{node_name}"
        self.qmp.cmd(
            "block-export-add", type="nbd", id=identity, node_name=node_name, writable=writable, **options
        )
        return identity

    def unexport(self, identity: str, mode: str = "hard") -> None:
        """Remove an export and wait until it is gone. By default with its clients: that one has left shows late."""
        self.qmp.cmd("block-export-del", id=identity, mode=mode)
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", {"id": identity})

    def guest(self, export: str, **how: Any) -> Guest:
        """Connect a guest to an export."""
        self.need_libnbd()
        return Guest(self.nbd_socket, export, **how)

    def guest_writer(self, export: str, model: bytes) -> GuestWriter:
        """A guest that writes in the background; started. The seed comes from the test's name."""
        self.need_libnbd()
        seed = zlib.crc32(f"{self.id()}/{export}".encode())
        writer = GuestWriter(self.nbd_socket, export, seed, model)
        writer.start()
        self.addCleanup(writer.stop)
        return writer

    def need_libnbd(self) -> None:
        """Skip the test when the Python binding of libnbd is not installed."""
        if not guest_module.LIBNBD:
            raise unittest.SkipTest("needs python3-libnbd")

    def nbd_uri(self, export: str) -> str:
        """The URI of an export."""
        return f"nbd+unix:///{export}?socket={self.nbd_socket}"

    def random_bytes(self, size: int, salt: int = 0) -> bytes:
        """Random data that is the same on every run of this test."""
        return random.Random(zlib.crc32(self.id().encode()) + salt).randbytes(size)

    # The graph.

    def nodes(self) -> dict[str, Message]:
        """The named nodes by name, from query-named-block-nodes (flat)."""
        return {node["node-name"]: node for node in self.qmp.cmd("query-named-block-nodes", flat=True)}

    def graph_edges(self) -> set[tuple[str, str, str]]:
        """Every edge between nodes as (parent, child's name for it, child)."""
        graph = self.qmp.cmd("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        return {(names[edge["parent"]], edge["name"], names[edge["child"]]) for edge in graph["edges"]}

    def node_at(self, path: str) -> str:
        """The node at the end of a path of edges, like "top/backing/file"."""
        edges = self.graph_edges()
        node, *steps = path.split("/")
        for step in steps:
            found = [child for parent, name, child in edges if (parent, name) == (node, step)]
            self.assertEqual(len(found), 1, f"{path}: {node} has {len(found)} children called {step}: {edges}")
            node = found[0]
        return node

    def assert_chain(self, top: str, *backing: str) -> None:
        """The backing chain of `top` is exactly this."""
        edges = self.graph_edges()
        chain: list[str] = []
        node = top
        while True:
            below = [child for parent, name, child in edges if (parent, name) == (node, "backing")]
            if not below:
                break
            node = below[0]
            chain.append(node)
        self.assertEqual(chain, list(backing))

    def assert_nothing_left(self, *expected_nodes: str) -> None:
        """No job is left, and no node but these: nothing half-made stays behind an error."""
        self.assertEqual(self.qmp.cmd("query-jobs"), [])
        self.assertEqual(set(self.nodes()), set(expected_nodes))

    # Errors.

    def assert_qmp_error(
        self,
        desc: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        error_class: str = "GenericError",
        **more: Any,
    ) -> None:
        """The command fails with exactly this class and text."""
        full = {**(arguments or {}), **{name.replace("_", "-"): value for name, value in more.items()}}
        with self.assertRaises(QMPError, msg=f"{command} {full}") as caught:
            self.qmp.execute(command, full or None)
        self.assertEqual((caught.exception.error_class, caught.exception.desc), (error_class, desc))
        self.assertEqual(set(caught.exception.reply["error"]), {"class", "desc"})

    # Jobs.

    def job(self, identity: str) -> Message:
        """One entry of query-jobs."""
        found: list[Message] = [job for job in self.qmp.cmd("query-jobs") if job["id"] == identity]
        self.assertEqual(len(found), 1, f"query-jobs has no single {identity}")
        return found[0]

    @staticmethod
    def without_extensions(answer: Message) -> Message:
        """An answer as the field gives it: without the members of blockd's own, which no client of QEMU reads."""
        return {name: value for name, value in answer.items() if not name.startswith("x-")}

    def wait_status(self, identity: str, status: str, *, seconds: float = DEFAULT_SECONDS) -> Message:
        """Wait for the event that a job reached a status."""
        return self.qmp.wait_event("JOB_STATUS_CHANGE", {"id": identity, "status": status}, seconds=seconds)

    def run_job(self, command: str, *, wait_for: str = "null", **arguments: Any) -> tuple[str, ...]:
        """Start a job and wait until it reached a status; its sequence of events is given back."""
        self.qmp.cmd(command, **arguments)
        self.wait_status(arguments["job_id"], wait_for)
        return self.job_sequence(arguments["job_id"])

    def unthrottle(self, identity: str) -> None:
        """Lift the speed limit of a job, which may have come to its end meanwhile."""
        try:
            self.qmp.cmd("block-job-set-speed", device=identity, speed=0)
        except QMPError as error:
            if error.error_class != "DeviceNotActive" and "cannot accept command verb" not in error.desc:
                raise

    def run_create(self, options: Mapping[str, Any], job_id: str = "create") -> str:
        """blockdev-create to its end and dismissed; the job's error is given back, "" for none."""
        self.qmp.cmd("blockdev-create", job_id=job_id, options=options)
        self.wait_status(job_id, "concluded")
        error = str(self.job(job_id).get("error", ""))
        self.qmp.cmd("job-dismiss", id=job_id)
        return error

    def job_sequence(self, identity: str, client: QMPClient | None = None) -> tuple[str, ...]:
        """Everything a client was told about a job so far: statuses by name, other events by theirs."""
        steps: list[str] = []
        for message in (client or self.qmp).transcript:
            data = message.get("data", {})
            if message.get("event") == "JOB_STATUS_CHANGE" and data["id"] == identity:
                steps.append(data["status"])
            elif message.get("event") in BLOCK_JOB_EVENTS and data.get("device", data.get("id")) == identity:
                steps.append(message["event"])
        return tuple(steps)

    def assert_job_sequence(self, identity: str, expected: Sequence[str], *, exact: bool = False) -> None:
        """
        A job's events are this sequence. Unless `exact`, pairs of paused and running that a drain of
        another command shows are not counted: they depend on timing, in the field as well.
        """
        steps = self.job_sequence(identity)
        self.assertEqual(steps if exact else _without_drains(steps), tuple(expected))

    def completed_event(self, identity: str) -> Message:
        """The data of the BLOCK_JOB_COMPLETED that came for a job."""
        found: list[Message] = [
            message["data"]
            for message in self.qmp.transcript
            if message.get("event") == "BLOCK_JOB_COMPLETED" and message["data"]["device"] == identity
        ]
        self.assertEqual(len(found), 1, f"BLOCK_JOB_COMPLETED for {identity}")
        return found[0]

    # Order.

    def position(self, **wanted: Any) -> int:
        """Where in the first client's transcript the first message with these members stands."""
        for index, message in enumerate(self.qmp.transcript):
            if all(message.get(key) == value for key, value in wanted.items()):
                return index
        raise AssertionError(f"no message with {wanted}")


def _without_drains(steps: Sequence[str]) -> tuple[str, ...]:
    kept: list[str] = []
    for step in steps:
        if step == "running" and len(kept) >= 2 and kept[-2:] == ["running", "paused"]:
            kept.pop()
        else:
            kept.append(step)
    return tuple(kept)


def over_images(*kinds: ImageOptions) -> Callable[[Case], Case]:
    """
    Class decorator: run every test of the class once per kind of image, as test_NAME__LABEL; the test
    finds the kind in self.image_options.
    """

    def decorate(case: Case) -> Case:
        for name in _test_names(vars(case)):
            original = getattr(case, name)
            delattr(case, name)
            for kind in kinds:
                setattr(case, f"{name}__{kind.label}", _variant(original, kind))
        return case

    return decorate


def _test_names(members: Iterable[str]) -> list[str]:
    return [name for name in members if name.startswith("test_")]


def _variant(test: Callable[..., None], kind: ImageOptions) -> Callable[..., None]:
    @functools.wraps(test)
    def run(self: QMPTestCase) -> None:
        test(self)

    setattr(run, "image_options", kind)
    return run
