"""Deadlines: every wait of the harness has one, and none of them polls."""

from __future__ import annotations

import os
import time

# A daemon built with the race detector is several times slower.
SCALE = float(os.environ.get("IOTESTS_TIMEOUT_SCALE", "1"))
DEFAULT_SECONDS = 20.0


class DeadlineExceeded(AssertionError):
    """What a test waited for did not happen in time."""


class Deadline:
    """A point in time until which something must have happened."""

    def __init__(self, seconds: float = DEFAULT_SECONDS, *, doing: str = "") -> None:
        self._end = time.monotonic() + seconds * SCALE
        self._doing = doing

    def remaining(self) -> float:
        """The seconds left, raising DeadlineExceeded when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"deadline exceeded: {self._doing or 'waiting'}")
        return left
