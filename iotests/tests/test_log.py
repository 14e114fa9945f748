"""The log: --log, --trace, and the commands that read it and say what is logged."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import Message, QMPError

OWN = "the rival has no log for its clients"
CANARY = "CANARY-5ecre7"


@blockd_only(OWN)
class Log(QMPTestCase):
    """x-query-log and its kin."""

    def log(self, **arguments: Any) -> Message:
        """The answer of the query."""
        return self.qmp.cmd("x-query-log", **arguments)

    def messages(self, **arguments: Any) -> list[str]:
        """The messages of the lines."""
        return [line["message"] for line in self.log(**arguments)["lines"]]

    def trace(self, pattern: str, **arguments: Any) -> list[str]:
        """Turn events on or off."""
        return self.qmp.cmd("x-log-trace", pattern=pattern, **arguments)["events"]

    def test_nothing_is_logged_at_first(self) -> None:
        self.launch()
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n")
        log = self.log()
        self.assertEqual((log["first"], log["last"], log["complete"], log["lines"]), (1, 0, True, []))

    def test_lines_are_chosen_by_number_level_subsystem_and_request(self) -> None:
        self.launch()
        self.assertEqual(self.trace("qmp_*", sink="memory"), ["qmp_client", "qmp_client_gone", "qmp_command", "qmp_done"])
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n")
        with self.assertRaises(QMPError):
            self.qmp.cmd("blockdev-add", driver="null-co", node_name="n")
        self.trace("-qmp_*")
        log = self.log()
        lines = [(line["number"], line["level"], line["subsystem"], line["message"]) for line in log["lines"]]
        self.assertEqual(lines[0], (1, "debug", "qmp", "qmp_done"))  # of x-log-trace
        self.assertEqual([line[0] for line in lines], list(range(1, log["last"] + 1)))
        self.assertEqual([line[3] for line in lines[1:5]], ["qmp_command", "qmp_done"] * 2)
        first, again = log["lines"][1], log["lines"][3]
        self.assertEqual(first["request"] + 1, again["request"])
        named = {a["name"]: a["value"] for a in log["lines"][4]["attributes"]}
        self.assertEqual((named["command"], named["error"]), ("blockdev-add", "GenericError"))
        self.assertEqual(self.messages(request=again["request"]), ["qmp_command", "qmp_done"])
        self.assertEqual(self.messages(since=log["last"]), [])
        self.assertEqual(self.messages(level="info"), [])
        self.assertEqual(self.messages(subsystem="graph"), [])
        short = self.log(limit=1)
        self.assertEqual(([line["number"] for line in short["lines"]], short["complete"]), ([log["last"]], False))
        self.assertFalse(self.log(instance="another")["complete"])

    def test_subscriber_alone_gets_the_lines(self) -> None:
        daemon = self.launch(monitors=2)
        other = daemon.connect(1)
        start = self.qmp.cmd("x-log-subscribe")
        self.qmp.cmd("x-log-set-level", level="debug", subsystem="qmp", sink="memory")
        other.cmd("query-version")
        want = self.log()["lines"]
        for line in want:
            event = self.qmp.event("LOG_LINE")
            self.assertEqual(event["data"], {"instance": start["instance"], "line": line})
        self.assertGreater(want[0]["number"], start["last"])
        self.qmp.cmd("x-log-subscribe", enable=False)
        self.assertEqual([e for e in other.events() if e["event"] == "LOG_LINE"], [])

    def test_levels_and_events_are_told(self) -> None:
        self.launch()
        self.qmp.cmd("x-log-set-level", level="warning")
        self.qmp.cmd("x-log-set-level", level="debug", subsystem="jobs", sink="memory")
        self.trace("graph_step", sink="output")
        told = self.qmp.cmd("x-query-log-levels")
        of = {s["subsystem"]: (s["memory"], s["output"]) for s in told["subsystems"]}
        self.assertEqual((of["jobs"], of["graph"]), (("debug", "warning"), ("warning", "warning")))
        events = {e["name"]: (e["memory"], e["output"]) for e in told["events"]}
        self.assertEqual((events["job_state"], events["graph_step"], events["qmp_done"]), ((True, False), (False, True), (False, False)))
        self.assertEqual((told["lost"], told["failed"]), (0, 0))
        for pattern in ("nothing_like_it", "", "a["):
            with self.assertRaises(QMPError):
                self.trace(pattern)

    def test_log_goes_to_a_file_as_json(self) -> None:
        path = self.path("log")
        self.launch("--log", f"level=debug,subsystem=qmp,format=json,file={path}", "--log", "error,subsystem=jobs")
        self.qmp.cmd("query-version")
        self.daemon.quit()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ran = [line for line in lines if line["msg"] == "qmp_done" and line["command"] == "query-version"]
        self.assertEqual([(line["level"], line["subsystem"], line["error"]) for line in ran], [("DEBUG", "qmp", "")])
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_output_that_is_full_holds_nobody_up(self) -> None:
        self.launch("--log", "debug,file=/dev/full")
        for _ in range(50):
            self.qmp.cmd("query-version")
        self.assertGreater(self.qmp.cmd("x-query-log-levels")["failed"], 0)

    def test_no_secret_is_logged(self) -> None:
        path = self.path("log")
        self.launch("--log", f"debug,file={path}", "--object", f"secret,id=s0,data={CANARY}")
        image = self.create_image("i.qcow2", MiB)
        self.qmp.cmd("object-add", qom_type="secret", id="s1", data=CANARY)
        named = 'json:{"driver":"qcow2","password":"%s","file.driver":"file","file.filename":"%s"}' % (CANARY, image)
        for command, arguments in (
            ("object-add", {"qom-type": "secret", "id": "s1", "data": CANARY}),
            ("object-add", {"qom-type": "secret", "id": "s2", "data": CANARY, "format": "base64", "keyid": "s0"}),
            ("blockdev-add", {"driver": "qcow2", "file": named}),
            ("blockdev-add", {"driver": "file", "filename": named}),
            ("blockdev-add", {"driver": "nbd", "server": {"type": "unix", "path": "/nonexistent"}, "export": CANARY}),
            ("blockdev-snapshot-sync", {"node-name": "x", "snapshot-file": named}),
        ):
            with self.assertRaises(QMPError):
                self.qmp.reply(self.qmp.send(command, arguments))
        self.assertNotIn(CANARY, json.dumps(self.log(limit=10000)))
        self.assertIn("qmp_done", self.messages())
        self.daemon.quit()
        self.assertNotIn(CANARY, path.read_text())


class Trace(QMPTestCase):
    """The option --trace, as in the field."""

    def run_with(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Start a daemon whose options end it at once."""
        return subprocess.run([*self.command(), *arguments], capture_output=True, text=True, check=False, timeout=60)
