"""The log: --log, --trace, and the commands that read it and say what is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import program, run_to_end
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
        self.assertEqual(lines[0], (1, "debug", "qmp", "qmp_command"))
        self.assertEqual([line[0] for line in lines], list(range(1, log["last"] + 1)))
        self.assertEqual([line[3] for line in lines[:4]], ["qmp_command", "qmp_done"] * 2)
        first, again = log["lines"][0], log["lines"][2]
        self.assertEqual(first["request"] + 1, again["request"])
        named = {a["name"]: a["value"] for a in log["lines"][3]["attributes"]}
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
            event = self.qmp.wait_event("LOG_LINE")
            self.assertEqual(event["data"], {"instance": start["instance"], "line": line})
        self.assertGreater(want[0]["number"], start["last"])
        self.qmp.cmd("x-log-subscribe", enable=False)
        self.assertEqual([e for e in other.take_events() if e["event"] == "LOG_LINE"], [])

    def test_request_follows_a_command_into_its_job(self) -> None:
        self.launch()
        self.trace("*", sink="memory")
        for name in "st":
            self.qmp.cmd("blockdev-add", driver="null-co", node_name=name, size=MiB, read_zeroes=True)
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="full", auto_dismiss=False)
        self.wait_status("j", "concluded")
        request = self.qmp.cmd("query-jobs")[0]["x-request"]
        seen = []
        for line in self.log(request=request)["lines"]:
            details = {a["name"]: a["value"] for a in line["attributes"]}
            seen.append((line["message"], details.get("command") or details.get("to") or details.get("change")))
        for want in (
            ("qmp_command", "blockdev-backup"),
            ("job_state", "created"),
            ("graph_step", "blockdev-backup"),
            ("qmp_done", "blockdev-backup"),
            ("job_state", "running"),
            ("graph_step", "job j"),
            ("job_state", "concluded"),
        ):
            self.assertIn(want, seen)
        steps = [s for s in self.qmp.cmd("x-query-graph-history")["steps"] if s["cause"].get("request") == request]
        self.assertEqual({s["cause"]["type"] for s in steps}, {"command", "job"})

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
        path = Path(self.path("log"))
        self.launch("--log", f"level=debug,subsystem=qmp,format=json,file={path}", "--log", "error,subsystem=jobs")
        self.qmp.cmd("query-version")
        self.daemon.quit()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ran = [line for line in lines if line["msg"] == "qmp_done" and line["command"] == "query-version"]
        self.assertEqual([(line["level"], line["subsystem"], line["error"]) for line in ran], [("DEBUG", "qmp", "")])
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_output_that_is_full_holds_nobody_up(self) -> None:
        self.launch("--log", "debug,file=/dev/full")
        while not self.qmp.cmd("x-query-log-levels")["failed"]:
            pass  # each round logs more

    def test_no_secret_is_logged(self) -> None:
        path = Path(self.path("log"))
        self.launch("--log", f"debug,file={path}", "--object", f"secret,id=s0,data={CANARY}")
        image = self.create_image("i.qcow2", MiB)
        self.qmp.cmd("object-add", qom_type="secret", id="s1", data=CANARY)
        named = 'json:{"driver":"qcow2","password":"%s","file.driver":"file","file.filename":"%s"}' % (CANARY, image)
        refused: list[tuple[str, dict[str, Any]]] = [
            ("object-add", {"qom-type": "secret", "id": "s1", "data": CANARY}),
            ("object-add", {"qom-type": "secret", "id": "s2", "data": CANARY, "format": "base64", "keyid": "s0"}),
            ("blockdev-add", {"driver": "qcow2", "file": named}),
            ("blockdev-add", {"driver": "file", "filename": named}),
            ("blockdev-add", {"driver": "nbd", "server": {"type": "unix", "path": "/nonexistent"}, "export": CANARY}),
            ("blockdev-snapshot-sync", {"node-name": "x", "snapshot-file": named}),
        ]
        for command, arguments in refused:
            answer = self.qmp.reply(self.qmp.send(command, arguments))
            self.assertIn("error", answer, arguments)
        self.assertNotIn(CANARY, json.dumps(self.log(limit=10000)))
        self.assertIn("qmp_done", self.messages())
        self.daemon.quit()
        self.assertNotIn(CANARY, path.read_text())


class Trace(QMPTestCase):
    """The option --trace, as in the field, with other events."""

    def warned(self, *arguments: str) -> str:
        """What stderr says, the program's name left out, when a wrong option behind these ends the daemon."""
        done = run_to_end([*arguments, "--blockdev", "driver=nosuch"], self.directory)
        self.assertEqual(done.returncode, 1)
        name = Path(program()).name
        lines = [line.removeprefix(name) for line in done.stderr.splitlines()]
        return "\n".join(line for line in lines if not line.startswith(": --blockdev"))

    def test_help_lists_the_events(self) -> None:
        for value in ("help", "enable=help", "?"):
            done = run_to_end(["-T", value], self.directory)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn(self.per_daemon(blockd="job_state", rival="job_state_transition"), done.stdout.splitlines())

    def test_patterns(self) -> None:
        self.assertEqual(self.warned("--trace", "qmp_*"), "")
        self.assertEqual(self.warned("--trace", "nothing_like_it*"), "")
        self.assertEqual(self.warned("-T", ""), "")
        for value in ("nosuch", "enable=nosuch"):
            self.assertEqual(
                self.warned("--trace", value), f": --trace {value}: warning: trace event 'nosuch' does not exist"
            )
        self.assertEqual(self.warned("--trace", "bogus=1"), ": --trace bogus=1: Invalid parameter 'bogus'")

    def test_file_of_patterns(self) -> None:
        path = self.path("events")
        Path(path).write_text("qmp_*\n-qmp_client*\n# nosuch\n\nnosuch\n")
        self.assertEqual(self.warned("-T", f"events={path}"), f":{path}:5: warning: trace event 'nosuch' does not exist")
        self.assertEqual(self.warned("-T", "events=/nonexistent"), ":/nonexistent: No such file or directory")

    @blockd_only("the events are blockd's")
    def test_events_are_logged(self) -> None:
        path = self.path("log")
        self.launch("-T", "node_*", "-T", f"-node_closed,file={path}", "--blockdev", "null-co,node-name=n")
        self.daemon.quit()
        lines = Path(path).read_text().splitlines()
        self.assertEqual([line.split(" ", 1)[1] for line in lines], ["level=DEBUG msg=node_opened subsystem=graph node=n driver=null-co"])
