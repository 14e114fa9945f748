"""One run of one row on one side: a fresh folder, a fresh daemon, a timed window, and a verdict.

The window covers exactly the compared work. Whatever a run wrote is judged after the daemon has ended: by
`qemu-img check`, and by `qemu-img compare` with the model that the row names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Sequence

from iotests.harness import images
from iotests.harness.images import QCOW2, ImageOptions
from iotests.harness.qmp import QMPClient

from . import proc
from .side import BenchDaemon, Side

# How long one job or one load may take before the run counts as failed.
JOB_SECONDS = 300.0


@dataclasses.dataclass
class Window:
    """The timed part of a run. Times of the wall clock are for the tracer's log, the rest is monotonic."""

    started_at: float = 0.0
    ended_at: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    # When the daemon reported success, before the images were closed; 0 where nothing reports it.
    success_at: float = 0.0


@dataclasses.dataclass
class Sample:
    """What one run gave: the row's value (less is better), what it cost, and what else was measured."""

    value: float
    cpu_seconds: float
    peak_resident: int
    more: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Product:
    path: str
    driver: str
    model: str
    model_driver: str


class Trial:
    """
    The workbench that a row gets for one run. `thorough` asks for checks of what was read, too, which are
    too slow for every round; `brief` allows less work, in a run whose time does not matter; `wrapper` is a program, with its options, that executes the daemon.
    """

    def __init__(
        self, side: Side, parent: Path, *, thorough: bool = False, brief: bool = False, wrapper: Sequence[str] = ()
    ) -> None:
        self.side = side
        self.thorough = thorough
        self.brief = brief
        parent.mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="run", dir=parent))
        self.window = Window()
        self.more: dict[str, float] = {}
        self._wrapper = wrapper
        self._daemon: BenchDaemon | None = None
        self._products: list[_Product] = []
        self._folders = [self.directory]
        self._servers: list[subprocess.Popen[bytes]] = []
        self._beside: list[Trial] = []
        self.peak_resident = 0
        # Seconds that one job may take.
        self.patience = JOB_SECONDS
        self._nbd_started = False

    # The daemon.

    @property
    def daemon(self) -> BenchDaemon:
        """The daemon, started at its first use."""
        if self._daemon is None:
            self._daemon = self.side.launch(self.directory, wrapper=self._wrapper)
        return self._daemon

    @property
    def qmp(self) -> QMPClient:
        """A negotiated client of the daemon."""
        return self.daemon.qmp

    def adopt(self, daemon: BenchDaemon) -> None:
        """Use a daemon that the row started itself, as part of what it measures."""
        self._daemon = daemon

    def beside(self) -> Trial:
        """A second run of the same side with a daemon of its own, for what must not touch this one's."""
        other = Trial(self.side, self.directory, thorough=self.thorough)
        self._beside.append(other)
        return other

    @property
    def wrapper(self) -> Sequence[str]:
        """For a row that starts the daemon itself."""
        return self._wrapper

    # Files.

    def path(self, name: str) -> str:
        """The absolute path of a file of this run."""
        return str(self.directory / name)

    def folder_on(self, parent: Path) -> Path:
        """A further folder of this run, on another file system."""
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="run", dir=parent))
        self._folders.append(folder)
        return folder

    @property
    def folders(self) -> Sequence[Path]:
        """Where this run's own files are."""
        return self._folders

    def new_image(self, name: str, size: int, options: ImageOptions = QCOW2) -> str:
        """An empty image, made by qemu-img."""
        return images.create(self.path(name), size, options)

    def copy_of(self, pristine: str) -> str:
        """A copy that this run may write to, under the same name."""
        copy = self.path(Path(pristine).name)
        images.run_tool("cp", "--sparse=always", "--reflink=never", pristine, copy)
        return copy

    def produces(self, path: str, model: str, *, driver: str = "qcow2", model_driver: str = "raw") -> None:
        """This image must in the end check clean and hold what the model holds."""
        self._products.append(_Product(path, driver, model, model_driver))

    # Nodes, exports, servers.

    def node(self, name: str, path: str, driver: str = "qcow2", file: dict[str, Any] | None = None, **options: Any) -> None:
        """blockdev-add of a format over a file; `file` adds options of the file."""
        self.add(name, driver, file={"driver": "file", "filename": path, **(file or {})}, **options)

    def add(self, name: str, driver: str, **options: Any) -> None:
        """blockdev-add."""
        arguments = {key.replace("_", "-"): value for key, value in options.items()}
        self.qmp.execute("blockdev-add", {"driver": driver, "node-name": name, **arguments})

    def close_node(self, name: str) -> None:
        """blockdev-del: flushes and closes."""
        self.qmp.execute("blockdev-del", {"node-name": name}, seconds=JOB_SECONDS)

    def export(self, node: str, *, writable: bool = False) -> str:
        """Export a node over NBD; the URI is given back."""
        path = self.path("nbd")
        if not self._nbd_started:
            self.qmp.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": path}}, max_connections=0)
            self._nbd_started = True
        self.qmp.cmd("block-export-add", type="nbd", id=f"export-{node}", node_name=node, writable=writable)
        return f"nbd+unix:///{node}?socket={path}"

    def unexport(self, node: str) -> None:
        """End an export, and wait until it is gone."""
        self.qmp.cmd("block-export-del", id=f"export-{node}", mode="hard")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", {"id": f"export-{node}"})

    def slow_server(self, path: str, *, milliseconds: int) -> dict[str, Any]:
        """Serve a file over NBD with a latency for each read; the options of a node over it are given back."""
        name = self.path(f"slow{len(self._servers)}")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(name)
            listening.listen()
            number = listening.fileno()
            # The server inherits a socket that listens already, so there is nothing to wait for. The shell
            # is there because the variable must hold the id of the process that becomes the server.
            start = f'LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit "$@" 3<&{number}'
            server = subprocess.Popen(
                ["sh", "-c", start, "sh", "--filter=delay", "file", path, f"rdelay={milliseconds}ms"],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
            )
        self._servers.append(server)
        return {"driver": "nbd", "server": {"type": "unix", "path": name}}

    # Jobs.

    def start_job(self, command: str, **arguments: Any) -> None:
        """Start the job called "job"."""
        self.qmp.cmd(command, job_id="job", **arguments)

    def wait_ready(self) -> None:
        """Wait until the job is READY."""
        self.qmp.wait_event("BLOCK_JOB_READY", {"device": "job"}, seconds=JOB_SECONDS)

    def finish_job(self) -> None:
        """Wait until the job has succeeded and is gone."""
        event = self.qmp.wait_event(("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"), {"device": "job"}, seconds=self.patience)
        self.window.success_at = time.time()
        if event["event"] != "BLOCK_JOB_COMPLETED" or "error" in event["data"]:
            raise AssertionError(f"the job did not succeed: {event}")
        self.qmp.wait_event("JOB_STATUS_CHANGE", {"id": "job", "status": "null"})

    def run_job(self, command: str, **arguments: Any) -> None:
        """Start a job and see it through."""
        self.start_job(command, **arguments)
        self.finish_job()

    # Measuring.

    @contextlib.contextmanager
    def timed(self) -> Iterator[Window]:
        """Everything inside is the row's work."""
        window = self.window
        before = proc.usage(self.daemon.pid).cpu_seconds
        window.started_at, started = time.time(), time.monotonic()
        yield window
        window.seconds = time.monotonic() - started
        window.ended_at = time.time()
        window.cpu_seconds = proc.usage(self.daemon.pid).cpu_seconds - before

    def sample(self, value: float | None = None) -> Sample:
        """The result of this run: `value`, or by default the seconds of the window."""
        return Sample(
            value=self.window.seconds if value is None else value,
            cpu_seconds=self.window.cpu_seconds,
            peak_resident=self.peak_resident,
            more=dict(self.more),
        )

    # The end.

    def abandon(self) -> None:
        """
        End the daemon by force, after the window: for a row whose leftovers would take minutes to end, and
        which produces nothing.
        """
        self.peak_resident = proc.usage(self.daemon.pid).peak_resident
        os.kill(self.daemon.pid, signal.SIGKILL)
        self.daemon.kill()
        self._daemon = None

    def finish(self) -> None:
        """End the daemon, which must end cleanly, and judge what was produced."""
        if self._daemon is not None:
            self.peak_resident = proc.usage(self._daemon.pid).peak_resident
            self._daemon.quit()
        for product in self._products:
            images.check(product.path, product.driver)
            images.compare(product.path, product.model, product.driver, product.model_driver)

    def clean(self) -> None:
        """Leave nothing behind, also after a failure."""
        for other in self._beside:
            other.clean()
        if self._daemon is not None and self._daemon in BenchDaemon.running:
            with contextlib.suppress(OSError, ValueError):
                # Under a wrapper, the wrapper's end would not be the daemon's.
                os.kill(self._daemon.pid, signal.SIGKILL)
            self._daemon.kill()
        for server in self._servers:
            server.kill()
            server.wait()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
