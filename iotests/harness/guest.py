"""A guest: an NBD client with a model of what its disk must hold.

`Guest` is one libnbd connection. `GuestWriter` writes from a thread of its own while a job runs, and
keeps the model exact: one request at a time, recorded when acknowledged. Seeds are in every message, so
that a failure can be run again.
"""

from __future__ import annotations

import random
import threading
from typing import Any, Callable, Optional

from .deadline import DEFAULT_SECONDS, SCALE, DeadlineExceeded

try:
    import nbd as nbd  # "as nbd": the tests take it from here
except ImportError:  # pragma: no cover - the runner reports it once for every test that needs it
    nbd = None

# Whether the binding is installed.
LIBNBD = nbd is not None

# The largest single request of the random writer, in bytes.
_LARGEST_WRITE = 192 * 1024
_SECTOR = 512


def pattern(seed: int, length: int) -> bytes:
    """Bytes that tell writes, and places within one write, apart."""
    return random.Random(seed).randbytes(length)


class Guest:
    """A connection to one export."""

    def __init__(
        self,
        socket_path: str,
        export: str,
        *,
        strict: bool = True,
        prepare: Optional[Callable[[Any], None]] = None,
    ) -> None:
        self.handle = nbd.NBD()
        self.handle.set_export_name(export)
        self.handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        if not strict:
            self.handle.set_strict_mode(0)
        if prepare is not None:
            prepare(self.handle)
        self.handle.connect_unix(socket_path)

    @property
    def size(self) -> int:
        """The size of the export in bytes."""
        return int(self.handle.get_size())

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write, and wait for the acknowledgement."""
        self.handle.pwrite(data, offset, flags)

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes."""
        return bytes(self.handle.pread(length, offset))

    def extents(self, offset: int = 0, length: Optional[int] = None) -> list[tuple[int, int]]:
        """base:allocation as (length, flags) pairs covering the range, neighbours of one kind merged."""
        end = self.size if length is None else offset + length
        merged: list[tuple[int, int]] = []

        def collect(_context: str, _offset: int, entries: list[int], _error: Any) -> int:
            for size, flags in zip(entries[::2], entries[1::2]):
                if merged and merged[-1][1] == flags:
                    size += merged.pop()[0]
                merged.append((size, flags))
            return 0

        while offset < end:
            before = sum(size for size, _ in merged)
            self.handle.block_status(end - offset, offset, collect)
            gained = sum(size for size, _ in merged) - before
            if gained <= 0:
                raise AssertionError(f"block status at {offset} made no progress")
            offset += gained
        return merged

    def close(self) -> None:
        """Say goodbye as a client should."""
        self.handle.shutdown()

    def vanish(self) -> None:
        """Drop the connection without a word, as a client that was killed."""
        del self.handle


class GuestWriter(threading.Thread):
    """
    Writes to random places of an export until told to stop, and knows what the disk must hold. With
    `reach`, it stays below that offset (bytes). `writes` counts what was acknowledged.
    """

    def __init__(self, socket_path: str, export: str, seed: int, model: bytes, *, reach: Optional[int] = None) -> None:
        super().__init__(name=f"guest-{export}", daemon=True)
        self.seed = seed
        self.model = bytearray(model)
        self._reach = len(model) if reach is None else min(reach, len(model))
        self._guest = Guest(socket_path, export)
        self._random = random.Random(seed)
        self._stop_asked = threading.Event()
        self._progress = threading.Condition()
        self.writes = 0
        self._failure: Optional[BaseException] = None

    def run(self) -> None:
        """Write until stop() or the first failure."""
        try:
            while not self._stop_asked.is_set():
                self._write_once()
                with self._progress:
                    self.writes += 1
                    self._progress.notify_all()
            self._guest.close()
        except BaseException as error:  # pylint: disable=broad-except; handed to the test by check()
            with self._progress:
                self._failure = error
                self._progress.notify_all()

    def _write_once(self) -> None:
        sectors = self._random.randint(1, min(_LARGEST_WRITE, self._reach) // _SECTOR)
        length = sectors * _SECTOR
        offset = self._random.randrange(0, (self._reach - length) // _SECTOR + 1) * _SECTOR
        kind = self._random.random()
        if kind < 0.1:
            self._guest.handle.zero(length, offset)
            data = bytes(length)
        else:
            data = self._random.randbytes(length)
            self._guest.write(offset, data, nbd.CMD_FLAG_FUA if kind < 0.15 else 0)
        self.model[offset : offset + length] = data

    def wait_writes(self, count: int, seconds: float = DEFAULT_SECONDS) -> None:
        """Wait until `count` more writes are acknowledged than now."""
        with self._progress:
            goal = self.writes + count
            reached = self._progress.wait_for(lambda: self.writes >= goal or self._failure, seconds * SCALE)
        self.check()
        if not reached:
            raise DeadlineExceeded(f"the guest stands still after {self.writes} writes (seed {self.seed})")

    def stop(self) -> bytes:
        """Stop, and give back what the disk must hold now."""
        self._stop_asked.set()
        self.join(DEFAULT_SECONDS * SCALE)
        if self.is_alive():
            raise DeadlineExceeded(f"a write of the guest never came back (seed {self.seed})")
        self.check()
        return bytes(self.model)

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything."""
        if self._failure is not None:
            raise AssertionError(f"guest failed (seed {self.seed}): {self._failure}") from self._failure
