"""The harness itself, where a fault of its own would make other tests fail now and then."""

from __future__ import annotations

import json
import socket
import unittest
from typing import Any

from iotests.harness.qmp import QMPClient


class Events(unittest.TestCase):
    """What the client makes of messages that come in a given order."""

    def client(self, *messages: dict[str, Any]) -> QMPClient:
        """A client that finds these messages on its connection, and after them its end."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        client = QMPClient(ours)
        self.addCleanup(client.close)
        theirs.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))
        theirs.shutdown(socket.SHUT_WR)
        return client

    def test_an_event_that_comes_while_a_match_asks(self) -> None:
        first, second = ({"event": "CHANGED", "timestamp": {"seconds": s, "microseconds": 0}} for s in (1, 2))
        client = self.client(first, second, {"return": "running", "id": "t#0"}, {"return": "paused", "id": "t#1"})
        found = client.wait_event("CHANGED", lambda _: client.execute("query-state") == "paused")
        self.assertEqual(found, second)
        self.assertEqual(client.events, [first])
