"""One of the two daemons that are compared: its program, its name, and how it is started."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Sequence

from iotests.harness.daemon import Daemon

from .schema import Schema

LEFT = "left"
RIGHT = "right"

# Programs below this path do not change under a run, and may need what lies beside them.
_INSTALLED = "/usr/"


class BenchDaemon(Daemon):
    """The harness's daemon, of a program that is told rather than found."""

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        directory: Path,
        *,
        monitors: int = 1,
        wrapper: Sequence[str] = (),
    ) -> None:
        self._program = program
        super().__init__(arguments, directory, monitors=monitors, wrapper=wrapper)

    def _command_line(self, arguments: Sequence[str]) -> list[str]:
        # The first word is the program that the harness would have taken.
        return [self._program, *super()._command_line(arguments)[1:]]

    @property
    def pid(self) -> int:
        """The daemon's process id, also when a wrapper started it."""
        return int(self.pidfile.read_text())


class Side:
    """A program under measurement. One that is not installed is copied first, into `copies`."""

    def __init__(self, position: str, program: str, copies: Path) -> None:
        found = shutil.which(program)
        if not found:
            raise FileNotFoundError(f"{position} side: no program {program}")
        self.position = position
        self.program = str(Path(found).absolute())
        self.label = Path(found).name
        if not self.program.startswith(_INSTALLED):
            # A build during the run must not change what is measured, nor what a profile's addresses mean.
            (copies / position).mkdir(parents=True, exist_ok=True)
            self.program = shutil.copy2(self.program, copies / position / self.label)

    @functools.cached_property
    def version(self) -> str:
        """The first line of what the program says about itself."""
        answer = subprocess.run([self.program, "--version"], capture_output=True, text=True, timeout=30, check=True)
        return answer.stdout.splitlines()[0].strip()

    @functools.cached_property
    def schema(self) -> Schema:
        """What the program can do, asked of a running one."""
        with tempfile.TemporaryDirectory(prefix="bench") as directory:
            daemon = self.launch(Path(directory))
            try:
                return Schema.ask(daemon.qmp)
            finally:
                daemon.quit()

    def launch(
        self, directory: Path, arguments: Sequence[str] = (), *, monitors: int = 1, wrapper: Sequence[str] = ()
    ) -> BenchDaemon:
        """Start the program; it is ready when this returns."""
        return BenchDaemon(self.program, arguments, directory, monitors=monitors, wrapper=wrapper)
