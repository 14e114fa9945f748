"""A small QMP client, strict about the wire and with a full memory of it.

It checks what every client of the field relies on: each line ends in CRLF and is one JSON value, every
id comes back unchanged, in-band replies arrive in the order of their commands. Everything received stays
in `transcript`, in order, so that a test can ask what came before what.

One thread uses a client at a time. Several commands may be in flight: `send` returns at once, `reply`
waits. Events that arrive meanwhile are queued for `wait_event`.
"""

from __future__ import annotations

import array
import collections
import json
import select
import socket
from typing import Any, Callable, Iterable, Mapping, Union

from .deadline import DEFAULT_SECONDS, Deadline

Message = dict[str, Any]
Match = Union[Mapping[str, Any], Callable[[Message], bool], None]

_MAX_LINE = 64 << 20


class ProtocolError(AssertionError):
    """The daemon broke the wire protocol."""


class ConnectionClosed(Exception):
    """The daemon closed the connection."""


class QMPError(Exception):
    """An error reply."""

    def __init__(self, reply: Message, command: str = "") -> None:
        self.reply = reply
        self.error_class: str = reply["error"]["class"]
        self.desc: str = reply["error"]["desc"]
        super().__init__(f"{command}: {self.error_class}: {self.desc}" if command else self.desc)


class Pending:
    """A command that was sent and whose reply may still be on its way."""

    def __init__(self, command: str, identity: Any) -> None:
        self.command = command
        self.identity = identity
        self.answer: Message | None = None


def contains(actual: Any, expected: Any) -> bool:
    """Whether `actual` has every member of `expected`, nested objects included."""
    if isinstance(expected, Mapping):
        return isinstance(actual, Mapping) and all(
            key in actual and contains(actual[key], value) for key, value in expected.items()
        )
    return bool(actual == expected)


class QMPClient:
    """One connection to a monitor."""

    def __init__(self, sock: socket.socket, *, pretty: bool = False) -> None:
        self._sock = sock
        self._pretty = pretty
        self._buffer = bytearray()
        self._pending: collections.deque[Pending] = collections.deque()
        self._next_id = 0
        self.raw_lines: list[bytes] = []
        self.transcript: list[Message] = []
        self.events: list[Message] = []
        self.greeting: Message = {}

    @classmethod
    def connect(
        cls,
        path: str,
        *,
        negotiate: bool = True,
        oob: bool = False,
        pretty: bool = False,
        seconds: float = DEFAULT_SECONDS,
    ) -> "QMPClient":
        """Connect to a monitor's unix socket, read the greeting, and leave negotiation mode if asked."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(seconds)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        client = cls(sock, pretty=pretty)
        client.read_greeting(seconds)
        if negotiate:
            client.negotiate(oob=oob)
        return client

    def read_greeting(self, seconds: float = DEFAULT_SECONDS) -> Message:
        """Read the greeting, which is the first thing on every connection."""
        message = self._next_message(Deadline(seconds, doing="the greeting"))
        if "QMP" not in message:
            raise ProtocolError(f"expected a greeting, got {message}")
        self.greeting = message["QMP"]
        return self.greeting

    def negotiate(self, *, oob: bool = False) -> None:
        """Leave negotiation mode."""
        arguments = {"enable": ["oob"]} if oob else None
        self.execute("qmp_capabilities", arguments)

    # Sending.

    def send_bytes(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Put bytes on the wire as they are, with descriptors beside them."""
        descriptors = array.array("i", fds)
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors.tobytes())]
            sent = self._sock.sendmsg([data], ancillary)
            data = data[sent:]
        self._sock.sendall(data)

    def send(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        identity: Any = None,
        key: str = "execute",
        fds: Iterable[int] = (),
    ) -> Pending:
        """Send a command without waiting. `identity` is its id; one is made up by default."""
        if identity is None:
            identity = f"t#{self._next_id}"
            self._next_id += 1
        request: Message = {key: command, "id": identity}
        if arguments is not None:
            request["arguments"] = arguments
        pending = Pending(command, identity)
        self._pending.append(pending)
        self.send_bytes(json.dumps(request).encode() + b"\n", fds)
        return pending

    # Receiving.

    def reply(self, pending: Pending, seconds: float = DEFAULT_SECONDS) -> Message:
        """Wait for the reply to a command sent earlier: {"return": ...} or {"error": ...}."""
        deadline = Deadline(seconds, doing=f"the reply to {pending.command}")
        while pending.answer is None:
            self._receive(deadline)
        return pending.answer

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float = DEFAULT_SECONDS
    ) -> Any:
        """Run a command and give back its value; raises QMPError for an error reply."""
        message = self.reply(self.send(command, arguments), seconds)
        if "error" in message:
            raise QMPError(message, command)
        return message["return"]

    def cmd(self, command: str, /, **arguments: Any) -> Any:
        """`execute` with keyword arguments: node_name=... is sent as "node-name"."""
        return self.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()} or None)

    def exchange(self, data: bytes, seconds: float = DEFAULT_SECONDS) -> Message:
        """Send raw bytes and give back the next reply, whatever its id. Nothing else may be in flight."""
        assert not self._pending, "exchange() with commands in flight"
        self.send_bytes(data)
        return self.next_reply(seconds)

    def next_reply(self, seconds: float = DEFAULT_SECONDS) -> Message:
        """The next message that is not an event, for replies to raw bytes."""
        deadline = Deadline(seconds, doing="a reply")
        while True:
            message = self._next_message(deadline)
            if "event" not in message:
                return message
            self._queue_event(message)

    def wait_event(
        self, name: str | Iterable[str], match: Match = None, *, seconds: float = DEFAULT_SECONDS
    ) -> Message:
        """Take the first event of that name (or one of those names) whose data fits; wait if need be."""
        names = {name} if isinstance(name, str) else set(name)

        def fits(event: Message) -> bool:
            if event["event"] not in names:
                return False
            if match is None:
                return True
            data = event.get("data", {})
            return bool(match(data)) if callable(match) else contains(data, match)

        deadline = Deadline(seconds, doing=f"event {'/'.join(sorted(names))} {match if match else ''}")
        index = 0
        while True:
            while index < len(self.events):  # a match that runs a command may have more arrive
                if fits(self.events[index]):
                    return self.events.pop(index)
                index += 1
            self._receive(deadline)

    def next_event(self, seconds: float) -> Message | None:
        """Take the next event of any kind, waiting at most so long; None when there is none."""
        if not self.events and (self._buffer or select.select([self._sock], [], [], seconds)[0]):
            self._receive(Deadline(DEFAULT_SECONDS, doing="the rest of a line"))
        return self.events.pop(0) if self.events else None

    def take_events(self) -> list[Message]:
        """Everything queued so far, without waiting; the queue is empty afterwards."""
        while self._buffer or select.select([self._sock], [], [], 0)[0]:
            try:
                self._receive(Deadline(5, doing="the rest of a line"))
            except ConnectionClosed:
                break
        taken, self.events = self.events, []
        return taken

    def expect_close(self, seconds: float = DEFAULT_SECONDS) -> None:
        """Wait until the daemon closes the connection."""
        deadline = Deadline(seconds, doing="the connection to close")
        try:
            while True:
                self._receive(deadline)
        except ConnectionClosed:
            pass

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def shrink_receive_buffer(self, size: int) -> None:
        """Make the kernel buffer little for this client (bytes), for tests of clients that do not read."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def _receive(self, deadline: Deadline) -> None:
        message = self._next_message(deadline)
        if "event" in message:
            self._queue_event(message)
            return
        if not self._pending:
            raise ProtocolError(f"a reply that nobody asked for: {message}")
        pending = self._pending.popleft()
        if "id" not in message or not _same_json(message["id"], pending.identity):
            raise ProtocolError(f"expected the reply with id {pending.identity!r}, got {message}")
        pending.answer = message

    def _queue_event(self, message: Message) -> None:
        stamp = message.get("timestamp", {})
        if not isinstance(stamp.get("seconds"), int) or not 0 <= stamp.get("microseconds", -1) < 1_000_000:
            raise ProtocolError(f"event without a proper timestamp: {message}")
        self.events.append(message)

    def _next_message(self, deadline: Deadline) -> Message:
        text = b""
        while True:
            line = self._next_line(deadline)
            if not line.endswith(b"\r\n"):
                raise ProtocolError(f"line does not end in CRLF: {line[-40:]!r}")
            self.raw_lines.append(line)
            text += line
            try:
                message = json.loads(text)
                break
            except ValueError as error:
                if not self._pretty:
                    raise ProtocolError(f"not JSON: {text[:200]!r}") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"not an object: {message!r}")
        self.transcript.append(message)
        return message

    def _next_line(self, deadline: Deadline) -> bytes:
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[: end + 1])
                del self._buffer[: end + 1]
                return line
            searched = len(self._buffer)
            if searched > _MAX_LINE:
                raise ProtocolError("a line without end")
            self._sock.settimeout(deadline.remaining())
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                continue  # remaining() raises on the next turn, with what was waited for
            except ConnectionResetError as error:
                raise ConnectionClosed() from error
            if not data:
                if self._buffer:
                    raise ProtocolError(f"closed in the middle of a line: {bytes(self._buffer)[:200]!r}")
                raise ConnectionClosed()
            self._buffer += data


def _same_json(left: Any, right: Any) -> bool:
    """Equality that tells 1, 1.0 and true apart, as JSON does."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
