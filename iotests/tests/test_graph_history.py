"""The history of the block graph: steps, their causes, their replay, and the events of those who subscribe."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import Message, QMPClient, QMPError

OWN = "the rival keeps no history of its graph"


def permissions(change: Message, prefix: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What an edge uses and shares."""
    return tuple(change[prefix + "perm"]), tuple(change[prefix + "shared-perm"])


class Picture(Counter[tuple[Any, ...]]):
    """The graph as x-debug-query-block-graph shows it, without the numbers in it."""

    @classmethod
    def of(cls, qmp: QMPClient) -> Picture:
        """The graph as it is now."""
        graph = qmp.cmd("x-debug-query-block-graph")
        names = {node["id"]: (node["type"], node["name"]) for node in graph["nodes"]}
        picture = cls(names[node["id"]] for node in graph["nodes"] if node["type"] != "block-job")
        for edge in graph["edges"]:
            parent = names[edge["parent"]]
            if parent[0] == "block-job":
                picture[parent] += 1  # a step tells of each of a job's roots
            picture[(*parent, edge["name"], names[edge["child"]][1], *permissions(edge))] += 1
        return picture

    def step(self, step: Message, by: int = 1) -> None:
        """Make what the step says, or take it back."""
        for change in step["changes"]:
            if "node-name" in change:
                self.add(("block-driver", change["node-name"]), by if change["type"] == "node-added" else -by)
                continue
            user = ("block-job", change["job"]) if "job" in change else ("block-backend", "")
            if "root" in change:
                self.add(user, by if change["type"] == "root-added" else -by)
                continue
            if "parent-node" in change:
                user = ("block-driver", change["parent-node"])
            if "old-perm" in change:
                child = change.get("old-child", change["child"])
                self.add((*user, change["name"], child, *permissions(change, "old-")), -by)
            if "perm" in change:
                self.add((*user, change["name"], change["child"], *permissions(change)), by)

    def add(self, what: tuple[Any, ...], by: int) -> None:
        """Count one up or down."""
        self[what] += by
        assert self[what] >= 0, what
        if not self[what]:
            del self[what]


@blockd_only(OWN)
class History(QMPTestCase):
    """x-query-graph-history and GRAPH_CHANGED."""

    def history(self, **arguments: Any) -> Message:
        """The answer of the query."""
        return self.qmp.cmd("x-query-graph-history", **arguments)

    def test_steps_lead_from_picture_to_picture(self) -> None:
        source = self.filled_image("s.qcow2", self.random_bytes(MiB))
        target = self.create_image("t.qcow2", MiB)
        overlay = self.create_image("o.qcow2", MiB)
        self.launch()
        pictures = []

        def look() -> None:
            pictures.append((self.history()["last"], Picture.of(self.qmp)))

        look()
        self.add_node("s", source)
        self.add_node("t", target)
        self.add_node("o", overlay, backing=None)
        look()
        self.qmp.cmd("blockdev-backup", job_id="j", device="s", target="t", sync="full", speed=64 * KiB)
        look()
        self.qmp.cmd("blockdev-snapshot", node="s", overlay="o")
        look()
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        look()
        self.qmp.cmd("blockdev-del", node_name="o")
        look()
        history = self.history()
        self.assertTrue(history["complete"])
        self.assertEqual([step["number"] for step in history["steps"]], list(range(1, history["last"] + 1)))
        for number, picture in pictures:
            for other, want in pictures:
                replayed = Picture(picture)
                for step in history["steps"][number:other]:
                    replayed.step(step)
                for step in reversed(history["steps"][other:number]):
                    replayed.step(step, -1)
                self.assertEqual(replayed, want, (number, other))

    def test_each_step_has_its_cause(self) -> None:
        self.launch("--blockdev", "null-co,node-name=n0,size=1048576,read-zeroes=on")
        pending = self.qmp.send("blockdev-add", {"driver": "null-co", "node-name": "n1", "size": MiB}, identity=["a", 1])
        self.qmp.reply(pending)
        self.qmp.cmd("blockdev-backup", job_id="j", device="n0", target="n1", sync="full")
        self.wait_status("j", "null")
        steps = self.history()["steps"]
        self.assertEqual(steps[0]["cause"], {"type": "option", "option": "blockdev"})
        request = steps[1]["cause"]["request"]
        self.assertEqual(
            steps[1]["cause"], {"type": "command", "command": "blockdev-add", "id": ["a", 1], "request": request}
        )
        self.assertEqual(steps[1]["changes"], [{"type": "node-added", "node-name": "n1", "driver": "null-co"}])
        self.assertEqual(steps[2]["cause"]["command"], "blockdev-backup")
        self.assertEqual(steps[2]["cause"]["request"], request + 1)
        self.assertEqual(steps[-1]["cause"], {"type": "job", "job": "j", "request": request + 1})
        times = [(step["timestamp"]["seconds"], step["timestamp"]["microseconds"]) for step in steps]
        self.assertEqual(times, sorted(times))

    def test_long_id_is_left_out(self) -> None:
        self.launch()
        node = {"driver": "null-co", "node-name": "n"}
        self.qmp.reply(self.qmp.send("blockdev-add", node, identity="x" * 2000))
        cause = self.history()["steps"][0]["cause"]
        self.assertEqual((cause["command"], "id" in cause), ("blockdev-add", False))

    def test_failed_command_has_no_step(self) -> None:
        self.launch("--blockdev", "null-co,node-name=n")
        with self.assertRaises(QMPError):
            self.qmp.cmd("blockdev-add", driver="null-co", node_name="n")
        self.assertEqual(self.history()["last"], 1)

    def test_ring_tells_what_it_no_longer_holds(self) -> None:
        self.launch("--graph-history", "3")
        for k in range(5):
            self.qmp.cmd("blockdev-add", driver="null-co", node_name=f"n{k}")
        history = self.history()
        self.assertEqual((history["first"], history["last"], history["complete"]), (3, 5, False))
        self.assertEqual([step["number"] for step in history["steps"]], [3, 4, 5])
        self.assertTrue(self.history(since=2)["complete"])
        self.assertEqual([step["number"] for step in self.history(since=4)["steps"]], [5])
        self.assertEqual(self.history(since=5)["steps"], [])
        other = self.history(since=4, instance="another")
        self.assertEqual((other["complete"], len(other["steps"])), (False, 3))
        self.assertTrue(self.history(since=4, instance=history["instance"])["complete"])

    def test_instance_is_of_one_run(self) -> None:
        self.launch()
        first = self.history()["instance"]
        self.assertRegex(first, "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
        self.assertEqual(self.history()["instance"], first)
        self.assertNotEqual(self.launch(name="second").qmp.cmd("x-query-graph-history")["instance"], first)

    def test_subscriber_alone_gets_the_steps(self) -> None:
        daemon = self.launch(monitors=2)
        other = daemon.connect(1)
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="before")
        start = self.qmp.cmd("x-graph-subscribe")
        self.assertEqual(start, {"instance": self.history()["instance"], "last": 1})
        other.cmd("blockdev-add", driver="null-co", node_name="n")
        event = self.qmp.wait_event("GRAPH_CHANGED")
        self.assertEqual(event["data"], {"instance": start["instance"], "step": self.history(since=1)["steps"][0]})
        self.qmp.cmd("blockdev-del", node_name="n")
        self.assertEqual(self.qmp.wait_event("GRAPH_CHANGED")["data"]["step"]["number"], 3)
        self.qmp.cmd("x-graph-subscribe", enable=False)
        self.qmp.cmd("blockdev-del", node_name="before")
        for client in (self.qmp, other):
            client.cmd("query-version")
            self.assertEqual([event["event"] for event in client.take_events()], [])

    def test_shutdown_is_a_cause(self) -> None:
        daemon = self.launch("--blockdev", "null-co,node-name=n", monitors=2)
        self.qmp.cmd("x-graph-subscribe")
        daemon.process.send_signal(signal.SIGTERM)
        step = self.qmp.wait_event("GRAPH_CHANGED")["data"]["step"]
        self.assertEqual(step["cause"], {"type": "shutdown"})
        self.assertEqual(step["changes"], [{"type": "node-removed", "node-name": "n", "driver": "null-co"}])
        daemon.wait()
