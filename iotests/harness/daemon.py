"""The daemon under test as a process: started, waited for, ended, and judged by what it leaves behind.

`$DAEMON` names the program; by default it is bin/blockd-test (built for tests) or else bin/blockd.

Readiness is an event, not a guess: the harness gives the daemon one end of a socketpair as its last
monitor, so the greeting on it says that everything before it on the command line is in place.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import IO, Sequence

from .deadline import DEFAULT_SECONDS, SCALE, Deadline, DeadlineExceeded
from .markers import BLOCKD, RIVAL
from .qmp import ConnectionClosed, QMPClient

ROOT = Path(__file__).resolve().parents[2]

# What in a daemon's stderr means a bug, whatever the exit status says.
_BUGS = ("DATA RACE", "panic: ", "fatal error: ", "Assertion ", "goroutine 1 [")


@functools.cache
def program() -> str:
    """The absolute path of the daemon under test."""
    named = os.environ.get("DAEMON")
    candidates = [named] if named else [str(ROOT / "bin/blockd-test"), str(ROOT / "bin/blockd")]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return str(Path(found).absolute())
    raise FileNotFoundError(f"no daemon to test: {' or '.join(candidates)} (make build-test, or set DAEMON)")


@functools.cache
def daemon_kind() -> str:
    """BLOCKD or RIVAL, by what the program says about its version."""
    answer = subprocess.run([program(), "--version"], capture_output=True, text=True, timeout=30, check=True)
    return BLOCKD if "blockd" in answer.stdout else RIVAL


def environment() -> dict[str, str]:
    """
    The environment that a daemon gets: a crash shows every goroutine, and one built with the race detector
    does not sleep for a second before it exits.
    """
    return {**os.environ, "GOTRACEBACK": "all", "GORACE": "atexit_sleep_ms=0", "LC_ALL": "C"}


class Daemon:
    """One run of the daemon. Use `QMPTestCase.launch`, which also ends it."""

    # Those that run now, for the guard of a test that hangs.
    running: "set[Daemon]" = set()

    def __init__(
        self,
        arguments: Sequence[str],
        directory: Path,
        *,
        name: str = "d",
        monitors: int = 1,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.pidfile = directory / f"{name}.pid"
        self.monitor_paths = [str(directory / f"{name}{index}.qmp") for index in range(monitors)]
        self._stderr_path = directory / f"{name}.stderr"
        self._clients: list[QMPClient] = []
        self._ended = False
        self._command = [*wrapper, *self._command_line(arguments)]
        ready, theirs = socket.socketpair()
        self._command += ["--chardev", f"socket,id=ready,fd={theirs.fileno()}", "--monitor", "chardev=ready"]
        with theirs, open(self._stderr_path, "wb") as stderr:
            self.process = self._spawn(theirs, stderr)
        Daemon.running.add(self)
        self._ready = QMPClient(ready)
        try:
            self._ready.read_greeting()
            # The rival greets twice who connects while it still moves its monitors to their thread: an
            # answer, be it an error, says that its main loop runs.
            self._ready.exchange(b'{"execute": "query-version"}')
        except ConnectionClosed as error:
            self._forget()
            raise AssertionError(f"daemon did not start: {self.stderr().strip()}") from error
        self.qmp = self.connect() if monitors else self._ready
        if not monitors:
            self._ready.negotiate()

    def _command_line(self, arguments: Sequence[str]) -> list[str]:
        command = [program(), "--pidfile", str(self.pidfile)]
        for index, path in enumerate(self.monitor_paths):
            command += ["--chardev", f"socket,id=m{index},path={path},server=on,wait=off"]
            command += ["--monitor", f"chardev=m{index}"]
        return command + list(arguments)

    def _spawn(self, theirs: socket.socket, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=self.directory,
            env=environment(),
            pass_fds=[theirs.fileno()],
        )

    def connect(self, monitor: int = 0, *, negotiate: bool = True, oob: bool = False) -> QMPClient:
        """A new client on one of the monitors (one client at a time each)."""
        client = QMPClient.connect(self.monitor_paths[monitor], negotiate=negotiate, oob=oob)
        self._clients.append(client)
        return client

    def stderr(self) -> str:
        """What the daemon wrote to stderr so far."""
        return self._stderr_path.read_text(errors="replace")

    def quit(self) -> None:
        """End the daemon by QMP, and judge how it ended."""
        if self._ended:
            return
        try:
            if self.process.poll() is None:
                self.qmp.execute("quit")
        except (OSError, ConnectionClosed):
            pass  # A test may have hung up, or the daemon may be dead: wait() tells.
        self.wait()

    def terminate(self, number: int = signal.SIGTERM) -> None:
        """End the daemon by a signal, and judge how it ended."""
        self.process.send_signal(number)
        self.wait()

    def wait(self, seconds: float = DEFAULT_SECONDS) -> None:
        """Wait for a clean end: exit status 0, no socket or pidfile left, nothing alarming on stderr."""
        try:
            status = self.process.wait(seconds * SCALE)
        except subprocess.TimeoutExpired as error:
            self.process.send_signal(signal.SIGQUIT)  # Go prints all goroutines
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self._forget()
            raise DeadlineExceeded(f"daemon did not end; stderr:\n{self.stderr()[-8000:]}") from error
        self._forget()
        text = self.stderr()
        found = [bug for bug in _BUGS if bug in text]
        if found or status != 0:
            raise AssertionError(f"daemon ended with status {status} {found or ''}; stderr:\n{text[-8000:]}")
        left = [path for path in [*self.monitor_paths, str(self.pidfile)] if os.path.lexists(path)]
        if left:
            raise AssertionError(f"daemon left behind: {left}")

    def kill(self) -> None:
        """SIGKILL, as a crash; what it leaves behind is the test's business."""
        self.process.kill()
        self.process.wait()
        self._forget()

    def _forget(self) -> None:
        self._ended = True
        Daemon.running.discard(self)
        for client in [*self._clients, self._ready]:
            client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def run_to_end(arguments: Sequence[str], directory: Path, *, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    """Run the daemon with a command line that makes it exit by itself."""
    return subprocess.run(
        [program(), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment(),
        timeout=Deadline(seconds).remaining(),
        check=False,
    )
