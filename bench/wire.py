"""A stopwatch on a monitor's socket: bytes out, lines back, nothing parsed while the clock runs.

The connection is the harness's client's, which has left negotiation mode and has nothing in flight. What
comes back is parsed afterwards; a reply that is an error fails the run.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any, Sequence

from iotests.harness.qmp import QMPClient


class Wire:
    """Raw access to a client's connection. The client must not be used meanwhile."""

    def __init__(self, client: QMPClient) -> None:
        self._socket = socket.socket(fileno=os.dup(client.fileno()))
        self._socket.setblocking(True)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def round_trips(self, request: bytes, count: int) -> list[float]:
        """Send the request and wait for its line, `count` times; the seconds of each."""
        connection, clock = self._socket, time.perf_counter
        times = []
        answer = b""
        for _ in range(count):
            start = clock()
            connection.sendall(request)
            answer = connection.recv(1 << 16)
            while not answer.endswith(b"\n"):
                answer += connection.recv(1 << 16)
            times.append(clock() - start)
            if answer.startswith(b'{"error"'):
                break
        check_replies(answer)
        return times

    def spaced(self, request: bytes, count: int, gap: float, until: float) -> list[float]:
        """
        `round_trips` with `gap` seconds before each, on a connection that may carry events as well; none
        begins after `until` on the monotonic clock, but for the first.
        """
        connection, clock = self._socket, time.perf_counter
        times: list[float] = []
        for _ in range(count):
            if times and time.monotonic() > until:
                break
            time.sleep(gap)
            start = clock()
            connection.sendall(request)
            answer = b""
            while b'"return"' not in answer or not answer.endswith(b"\n"):
                if b'{"error"' in answer:
                    raise AssertionError(f"not a success: {answer!r}")
                data = connection.recv(1 << 16)
                if not data:
                    raise ConnectionError("the daemon hung up")
                answer += data
            times.append(clock() - start)
        return times

    def pipeline(self, requests: Sequence[bytes]) -> tuple[float, list[Any]]:
        """Send all at once and wait for as many lines; the seconds that took, and the values."""
        writer = threading.Thread(target=self._socket.sendall, args=(b"".join(requests),))
        answers: list[bytes] = []
        missing = len(requests)
        start = time.perf_counter()
        writer.start()
        while missing > 0:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the daemon hung up")
            missing -= data.count(b"\n")
            answers.append(data)
        seconds = time.perf_counter() - start
        writer.join()
        return seconds, check_replies(b"".join(answers))


def check_replies(text: bytes) -> list[Any]:
    """The values of replies, one a line; an error or an event is a failure."""
    values = []
    for line in text.splitlines():
        message = json.loads(line)
        if "return" not in message:
            raise AssertionError(f"not a success: {message}")
        values.append(message["return"])
    return values


def request(command: str, arguments: dict[str, Any] | None = None) -> bytes:
    """One command as bytes."""
    message: dict[str, Any] = {"execute": command}
    if arguments is not None:
        message["arguments"] = arguments
    return json.dumps(message).encode() + b"\n"
