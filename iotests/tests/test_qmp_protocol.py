"""The wire: greeting, negotiation, ids, hostile text, several clients, several monitors."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only, daemon_differs
from iotests.harness.qmp import Message, QMPClient


def error(desc: str, error_class: str = "GenericError") -> Message:
    """An error reply without id."""
    return {"error": {"class": error_class, "desc": desc}}


class Negotiation(QMPTestCase):
    """From the greeting to the first command."""

    def setUp(self) -> None:
        super().setUp()
        self.launch(monitors=2)
        self.fresh = self.daemon.connect(1, negotiate=False)

    @daemon_differs("blockd announces 10.2, whose commands it has, and names itself in package")
    def test_greeting(self) -> None:
        greeting = self.fresh.greeting
        self.assertEqual(set(greeting), {"version", "capabilities"})
        self.assertEqual(greeting["capabilities"], ["oob"])
        version = greeting["version"]
        self.assertEqual(set(version["qemu"]), {"major", "minor", "micro"})
        numbers = (version["qemu"]["major"], version["qemu"]["minor"])
        self.assertEqual(numbers, self.per_daemon(blockd=(10, 2), rival=(7, 2)))
        self.assertIn(self.per_daemon(blockd="blockd", rival="Debian"), version["package"])
        self.assertEqual(self.qmp.cmd("query-version"), version)

    def test_commands_before_negotiation(self) -> None:
        for command in ("query-version", "no-such-command", "quit"):
            reply = self.fresh.reply(self.fresh.send(command))
            desc = "Expecting capabilities negotiation with 'qmp_capabilities'"
            self.assertEqual(reply["error"], {"class": "CommandNotFound", "desc": desc})
        self.fresh.negotiate()

    def test_negotiation_twice(self) -> None:
        self.assert_qmp_error(
            "Capabilities negotiation is already complete, command ignored",
            "qmp_capabilities",
            error_class="CommandNotFound",
        )

    def test_unknown_capability(self) -> None:
        reply = self.fresh.reply(self.fresh.send("qmp_capabilities", {"enable": ["nosuch"]}))
        self.assertEqual(reply["error"]["desc"], "Parameter 'null' does not accept value 'nosuch'")
        self.fresh.negotiate()

    def test_no_events_before_negotiation(self) -> None:
        self.qmp.cmd("blockdev-create", job_id="c", options={"driver": "file", "filename": self.path("f"), "size": 512})
        self.wait_status("c", "concluded")
        self.fresh.negotiate()
        self.assertEqual([one for one in self.fresh.transcript if "event" in one], [])

    def test_oob_must_be_enabled(self) -> None:
        reply = self.qmp.reply(self.qmp.send("query-version", key="exec-oob"))
        self.assertEqual(reply["error"]["desc"], "QMP input member 'exec-oob' is unexpected")

    def test_oob_enabled_but_no_command_has_it(self) -> None:
        self.fresh.negotiate(oob=True)
        reply = self.fresh.reply(self.fresh.send("query-version", key="exec-oob"))
        self.assertEqual(reply["error"]["desc"], "The command query-version does not support OOB")


class Requests(QMPTestCase):
    """Requests well and badly formed; each gets its answer, and the next one works."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def assert_answers(self, request: str | bytes, expected: Message) -> None:
        """The request gets that reply, and the monitor still works."""
        data = request if isinstance(request, bytes) else request.encode()
        self.assertEqual(self.qmp.exchange(data + b"\n"), expected, data[:100])
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_any_json_value_as_id(self) -> None:
        for identity in (0, -1, 2**63 - 1, 1.5, "", "ü\u0001\"\\", True, False, [1, [2, {"a": None}]], {"b": {}}):
            with self.subTest(id=identity):
                self.assertEqual(self.qmp.reply(self.qmp.send("query-jobs", identity=identity))["return"], [])

    def test_null_id(self) -> None:
        self.assert_answers('{"execute": "query-jobs", "id": null}', {"return": [], "id": None})

    def test_id_of_a_large_unsigned_integer(self) -> None:
        self.assert_answers(
            '{"execute": "query-jobs", "id": 18446744073709551615}', {"return": [], "id": 18446744073709551615}
        )

    def test_errors_keep_the_id(self) -> None:
        self.assert_answers(
            '{"execute": "foo-bar", "id": [1]}',
            {"id": [1], **error("The command foo-bar has not been found", "CommandNotFound")},
        )
        self.assert_answers('{"arguments": {}, "id": 7}', {"id": 7, **error("QMP input lacks member 'execute'")})

    def test_top_level_mistakes(self) -> None:
        for request, desc in {
            "{}": "QMP input lacks member 'execute'",
            "[1]": "QMP input must be a JSON object",
            '"x"': "QMP input must be a JSON object",
            "5": "QMP input must be a JSON object",
            '{"execute": "query-jobs", "bar": 1}': "QMP input member 'bar' is unexpected",
            '{"execute": 5}': "QMP input member 'execute' must be a string",
            '{"execute": "query-jobs", "arguments": 5}': "QMP input member 'arguments' must be an object",
        }.items():
            with self.subTest(request=request):
                self.assert_answers(request, error(desc))

    def test_argument_mistakes(self) -> None:
        add = "blockdev-add"
        refused: list[tuple[str, dict[str, Any], str]] = [
            (add, {"driver": "nosuch", "node-name": "x"}, "Parameter 'driver' does not accept value 'nosuch'"),
            (add, {"node-name": "x"}, "Parameter 'driver' is missing"),
            (add, {"driver": 5, "node-name": "x"}, "Invalid parameter type for 'driver', expected: string"),
            (
                add,
                {"driver": "null-co", "node-name": 5},
                "Invalid parameter type for 'node-name', expected: string",
            ),
            (
                add,
                {"driver": "raw", "node-name": "x", "file": 5},
                "Invalid parameter type for 'file', expected: BlockdevRef",
            ),
            (add, {"driver": "null-co", "node-name": "x", "foo": 1}, "Parameter 'foo' is unexpected"),
            (
                add,
                {"driver": "null-co", "node-name": "x", "read-only": "yes"},
                "Invalid parameter type for 'read-only', expected: boolean",
            ),
            (
                add,
                {"driver": "null-co", "node-name": "x", "cache": {"direct": 1}},
                "Invalid parameter type for 'cache.direct', expected: boolean",
            ),
            ("blockdev-del", {}, "Parameter 'node-name' is missing"),
            ("blockdev-del", {"node-name": "x", "foo": 1}, "Parameter 'foo' is unexpected"),
            ("query-jobs", {"foo": 1}, "Parameter 'foo' is unexpected"),
            ("transaction", {"actions": 5}, "Invalid parameter type for 'actions', expected: array"),
            (
                "transaction",
                {"actions": [{"type": "nosuch", "data": {}}]},
                "Parameter 'type' does not accept value 'nosuch'",
            ),
        ]
        for command, arguments, desc in refused:
            with self.subTest(command=command, arguments=arguments):
                self.assert_qmp_error(desc, command, arguments)

    def test_json_syntax_errors(self) -> None:
        for request, desc in {
            "}": "JSON parse error, expecting value",
            "nope ": "JSON parse error, invalid keyword 'nope'",
            '{"execute": "query-jobs", "execute": "x"}': "JSON parse error, duplicate key",
            "{'a' 5}": "JSON parse error, missing : in object pair",
            "{5: 1}": "JSON parse error, key is not a string in object",
            '{"a": 1 "b": 2}': "JSON parse error, expected separator in dict",
            "[1 2]": "JSON parse error, expected separator in list",
        }.items():
            with self.subTest(request=request):
                self.assert_answers(request, error(desc))

    def test_nesting_limit(self) -> None:
        # Python's own parser counts its depth against the recursion limit.
        self.addCleanup(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(5000)
        deepest = '{"execute": "query-jobs", "id": ' + "[" * 1023 + "]" * 1023 + "}"
        reply = self.qmp.exchange(deepest.encode() + b"\n")
        self.assertEqual(reply["return"], [])
        self.assertEqual(
            self.qmp.exchange(b"[" * 1025 + b"\n"), error("JSON nesting depth limit exceeded")
        )
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_single_quotes(self) -> None:
        self.assert_answers("{'execute': 'query-jobs', 'id': 'it\\'s \"so\"'}", {"return": [], "id": "it's \"so\""})

    def test_no_newline_needed(self) -> None:
        self.assertEqual(self.qmp.exchange(b'{"execute": "query-jobs", "id": 1}'), {"return": [], "id": 1})

    def test_several_requests_in_one_write(self) -> None:
        self.qmp.send_bytes(
            b'{"execute":"query-jobs","id":1}{"execute":"nosuch","id":2} {"execute":"query-jobs","id":3}'
        )
        self.assertEqual([self.qmp.next_reply()["id"] for _ in range(3)], [1, 2, 3])

    def test_request_in_single_bytes_and_over_lines(self) -> None:
        for byte in b'{ "execute"\n:\r\n "query-jobs",\t"id": 9 }':
            self.qmp.send_bytes(bytes([byte]))
        self.assertEqual(self.qmp.next_reply(), {"return": [], "id": 9})

    def test_many_in_flight(self) -> None:
        pending = [self.qmp.send("query-version") for _ in range(200)]
        for one in pending:
            self.assertIn("return", self.qmp.reply(one))

    def test_bad_utf8_and_control_characters(self) -> None:
        for data in (b'{"execute": "\xff\xfe"}', b"\x01", b'{"execute": "query-jobs\x00"}', b'{"execute": "a\\ud800"}'):
            with self.subTest(data=data):
                self.assertIn("error", self.qmp.exchange(data + b"\n"))
                # The rest of a broken line may earn further errors: the reply with our id is the sign of life.
                self.qmp.send_bytes(b'{"execute": "query-jobs", "id": "alive"}\n')
                while self.qmp.next_reply() != {"return": [], "id": "alive"}:
                    pass

    def test_unicode_survives(self) -> None:
        self.assert_answers(
            '{"execute": "query-jobs", "id": "\\u00fc\\ud83d\\ude00 ü"}',
            {"return": [], "id": "\u00fc\U0001f600 \u00fc"},
        )

    @daemon_differs("blockd takes an id as it is; the rival's parser turns integers past 64 bits into doubles")
    def test_integers_past_64_bits(self) -> None:
        reply = self.qmp.exchange(b'{"execute":"blockdev-add","arguments":{"driver":"null-co","node-name":"n",'
                                  b'"size":18446744073709551616}}\n')
        self.assertEqual(reply, error("Invalid parameter type for 'size', expected: integer"))

    def test_key_order_and_spacing_on_the_wire(self) -> None:
        del self.qmp.raw_lines[:]
        self.qmp.exchange(b'{"execute": "nosuch", "id": 1}')
        self.assertEqual(
            self.qmp.raw_lines[0],
            b'{"id": 1, "error": {"class": "CommandNotFound", "desc": "The command nosuch has not been found"}}\r\n',
        )


class Introspection(QMPTestCase):
    """query-commands and query-qmp-schema."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def test_commands_are_those_of_the_schema(self) -> None:
        listed = {one["name"] for one in self.qmp.cmd("query-commands")}
        schema = self.qmp.cmd("query-qmp-schema")
        commands = {one["name"] for one in schema if one["meta-type"] == "command"}
        self.assertEqual(listed - {"qmp_capabilities"}, commands - {"qmp_capabilities"})

    def test_schema_is_closed(self) -> None:
        schema = {one["name"]: one for one in self.qmp.cmd("query-qmp-schema")}
        for entry in schema.values():
            for name in _referenced_types(entry):
                self.assertIn(name, schema)

    def test_every_listed_command_is_known(self) -> None:
        for one in self.qmp.cmd("query-commands"):
            if one["name"] == "quit":
                continue
            reply = self.qmp.reply(self.qmp.send(one["name"], {"no-such-argument-": 1}))
            self.assertIn("error", reply, one)
            if one["name"] != "qmp_capabilities":
                self.assertNotEqual(reply["error"]["class"], "CommandNotFound", one)


def _referenced_types(entry: Message) -> set[str]:
    names: set[str] = set()
    for key in ("arg-type", "ret-type", "element-type"):
        if key in entry:
            names.add(entry[key])
    for member in [*entry.get("members", []), *entry.get("variants", [])]:
        if isinstance(member, dict) and "type" in member:
            names.add(member["type"])
    return names


class Clients(QMPTestCase):
    """One client at a time per monitor, several monitors."""

    def make_event(self, client: QMPClient, job_id: str) -> None:
        """Run a job that raises events, and dismiss it."""
        options = {"driver": "file", "filename": self.path(job_id), "size": 512}
        client.cmd("blockdev-create", job_id=job_id, options=options)
        client.wait_event("JOB_STATUS_CHANGE", {"id": job_id, "status": "concluded"})
        client.cmd("job-dismiss", id=job_id)

    def test_one_client_after_the_other(self) -> None:
        self.launch(monitors=2)
        for round_number in range(3):
            client = self.daemon.connect(1)
            self.assertEqual(client.cmd("query-jobs"), [])
            self.make_event(client, f"c{round_number}")
            client.close()

    def test_second_client_waits_for_the_first_to_leave(self) -> None:
        self.launch(monitors=2)
        first = self.daemon.connect(1)
        second = socket.socket(socket.AF_UNIX)
        second.connect(self.daemon.monitor_paths[1])
        self.assertEqual(first.cmd("query-jobs"), [])
        # Nothing has come for the second client while the first was served.
        second.setblocking(False)
        with self.assertRaises(BlockingIOError):
            second.recv(1)
        first.close()
        second.settimeout(20)
        client = QMPClient(second)
        client.read_greeting()
        client.negotiate()
        client.close()

    def test_never_the_previous_clients_replies(self) -> None:
        self.launch(monitors=2)
        client = self.daemon.connect(1)
        for _ in range(100):
            client.send("query-qmp-schema")
        client.close()
        client = self.daemon.connect(1)
        self.assertEqual([set(one) for one in client.transcript], [{"QMP"}, {"return", "id"}])
        client.close()

    def test_client_vanishes_in_the_middle_of_a_request(self) -> None:
        self.launch(monitors=2)
        client = self.daemon.connect(1)
        client.send_bytes(b'{"execute": "query-jo')
        client.close()
        client = self.daemon.connect(1)
        self.assertEqual(client.cmd("query-jobs"), [])
        client.close()

    def test_client_vanishes_in_the_middle_of_a_command(self) -> None:
        self.launch(monitors=2)
        client = self.daemon.connect(1)
        options = {"driver": "file", "filename": self.path("f"), "size": MiB}
        client.send("blockdev-create", {"job-id": "c", "options": options})
        client.send("query-jobs")
        client.close()
        self.daemon.connect(1).close()
        self.assertEqual(self.qmp.cmd("query-version")["qemu"].keys(), {"major", "minor", "micro"})

    def test_negotiation_starts_anew_for_every_client(self) -> None:
        self.launch(monitors=2)
        self.daemon.connect(1, oob=True).close()
        client = self.daemon.connect(1, negotiate=False)
        reply = client.reply(client.send("query-jobs"))
        self.assertEqual(reply["error"]["class"], "CommandNotFound")
        client.close()

    def test_events_reach_every_negotiated_client(self) -> None:
        self.launch(monitors=3)
        others = [self.daemon.connect(1), self.daemon.connect(2)]
        self.make_event(self.qmp, "c")
        for client in others:
            client.wait_event("JOB_STATUS_CHANGE", {"id": "c", "status": "null"})
            self.assertEqual(self.job_sequence("c", client), self.job_sequence("c"))

    def test_events_of_a_command_precede_its_return(self) -> None:
        self.launch()
        options = {"driver": "file", "filename": self.path("f"), "size": 512}
        pending = self.qmp.send("blockdev-create", {"job-id": "c", "options": options})
        self.qmp.reply(pending)
        created = self.qmp.transcript.index(
            next(one for one in self.qmp.transcript if one.get("data") == {"id": "c", "status": "created"})
        )
        self.assertLess(created, self.position(id=pending.identity))

    def test_event_timestamps_never_go_back(self) -> None:
        self.launch()
        for number in range(3):
            self.make_event(self.qmp, f"c{number}")
        stamps: list[tuple[Any, Any]] = [
            (one["timestamp"]["seconds"], one["timestamp"]["microseconds"])
            for one in self.qmp.transcript
            if "event" in one
        ]
        self.assertGreater(len(stamps), 15)
        self.assertEqual(stamps, sorted(stamps))

    @blockd_only("the rival stops reading requests and keeps the client")
    def test_client_that_does_not_read_is_disconnected(self) -> None:
        self.launch(monitors=2)
        client = self.daemon.connect(1)
        client.shrink_receive_buffer(4096)
        request = json.dumps({"execute": "query-qmp-schema"}).encode()
        with self.assertRaises(OSError):
            for _ in range(100_000):
                client.send_bytes(request)
        self.assertEqual(self.qmp.cmd("query-jobs"), [])
        self.assertEqual(self.daemon.connect(1).cmd("query-jobs"), [])


class Chardevs(QMPTestCase):
    """chardev-add, chardev-remove, query-chardev."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def add_socket(self, identity: str) -> str:
        """Add a listening socket chardev; its path is given back."""
        path = self.path(f"{identity}.sock")
        address = {"type": "unix", "data": {"path": path}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        self.assertEqual(self.qmp.cmd("chardev-add", id=identity, backend=backend), {})
        return path

    def test_add_query_remove(self) -> None:
        path = self.add_socket("c")
        listed = {one["label"]: one for one in self.qmp.cmd("query-chardev")}
        self.assertEqual(
            listed["c"], {"label": "c", "filename": f"disconnected:unix:{path},server=on", "frontend-open": False}
        )
        self.qmp.cmd("chardev-remove", id="c")
        self.assertNotIn("c", {one["label"] for one in self.qmp.cmd("query-chardev")})

    def test_members_of_the_monitors_chardev(self) -> None:
        listed = {one["label"]: one for one in self.qmp.cmd("query-chardev")}
        self.assertTrue(listed["m0"]["frontend-open"])
        self.assertIn(f"unix:{self.daemon.monitor_paths[0]},server=on", listed["m0"]["filename"])

    def test_errors(self) -> None:
        self.assert_qmp_error("Chardev 'zz' not found", "chardev-remove", id="zz")
        self.assert_qmp_error("Chardev 'm0' is busy", "chardev-remove", id="m0")
        self.add_socket("c")
        null = {"type": "null", "data": {}}
        self.assert_qmp_error("Chardev with id 'c' already exists", "chardev-add", id="c", backend=null)
