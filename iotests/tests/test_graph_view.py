"""The graph as consoles see it: x-query-graph and x-query-graph-traffic."""

from __future__ import annotations

from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import Message

OWN = "the rival has no console"


@blockd_only(OWN)
class View(QMPTestCase):
    """What there is to see besides the history."""

    def node(self, name: str) -> Message:
        """One node of the picture."""
        (found,) = [node for node in self.qmp.cmd("x-query-graph")["nodes"] if node["node-name"] == name]
        return found

    def edge(self, command: str, **wanted: Any) -> Message:
        """The one edge of an answer that has these members."""
        edges = self.qmp.cmd(command)["edges"]
        (found,) = [edge for edge in edges if all(edge.get(key.replace("_", "-")) == value for key, value in wanted.items())]
        return found

    def test_picture_is_that_of_its_step(self) -> None:
        self.launch("--blockdev", "null-co,node-name=n,size=1048576")
        history = self.qmp.cmd("x-query-graph-history")
        graph = self.qmp.cmd("x-query-graph")
        self.assertEqual((graph["instance"], graph["last"]), (history["instance"], 1))
        self.assertEqual(graph["nodes"], [{
            "node-name": "n", "driver": "null-co", "read-only": False, "active": True, "implicit": False,
            "owned": True, "size": MiB, "blockers": [],
        }])
        self.assertEqual((graph["roots"], graph["edges"]), ([], []))

    def test_jobs_block_and_freeze(self) -> None:
        base = self.filled_image("base.qcow2", self.random_bytes(4 * MiB))
        top = self.create_image("top.qcow2", 4 * MiB)
        self.launch()
        self.add_node("base", base)
        self.add_node("top", top, backing="base")
        self.assertFalse(self.edge("x-query-graph", parent_node="top", name="backing")["frozen"])
        self.qmp.cmd("block-stream", job_id="j", device="top", speed=64 * KiB)
        self.assertTrue(self.edge("x-query-graph", parent_node="top", name="backing")["frozen"])
        (blocker,) = self.node("top")["blockers"]
        self.assertEqual(blocker["reason"], "block device is in use by block job: stream")
        jobs = {root["job"] for root in self.qmp.cmd("x-query-graph")["roots"] if "job" in root}
        self.assertEqual(jobs, {"j"})
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertEqual(self.node("top")["blockers"], [])

    def test_a_filter_with_a_bottom_freezes(self) -> None:
        base = self.filled_image("base.qcow2", self.random_bytes(MiB))
        self.launch()
        self.add_node("base", base)
        self.add_node("top", self.create_image("top.qcow2", MiB), backing="base")
        backing = {"parent_node": "top", "name": "backing"}
        for bottom, frozen in (("top", False), ("base", True)):
            self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="cor", file="top", bottom=bottom)
            self.assertTrue(self.edge("x-query-graph", parent_node="cor", name="file")["frozen"])
            self.assertEqual(self.edge("x-query-graph", **backing)["frozen"], frozen)
            self.qmp.cmd("blockdev-del", node_name="cor")
            self.assertFalse(self.edge("x-query-graph", **backing)["frozen"])

    def test_exports_have_clients_and_traffic(self) -> None:
        self.need_libnbd()
        self.launch()
        self.add_node("n", self.create_image("n.qcow2", MiB))
        self.start_nbd()
        export = self.export("n")
        (root,) = self.qmp.cmd("x-query-graph")["roots"]
        self.assertEqual(root["export"], {"id": export, "type": "nbd", "clients": 0, "shutting-down": False})
        self.assertEqual(root["label"], "export " + export)
        steps = self.qmp.cmd("x-query-graph-history")["steps"]
        (added,) = [change for change in steps[-1]["changes"] if change["type"] == "root-added"]
        self.assertEqual(added, {"type": "root-added", "root": root["root"], "label": "export " + export})

        first = self.edge("x-query-graph-traffic", parent_root=root["root"])
        self.assertEqual((first["read-bytes"], first["write-bytes"], first["operations"]), (0, 0, 0))
        guest = self.guest("n")
        guest.write(0, b"x" * 64 * KiB)
        guest.read(0, 4 * KiB)
        traffic = self.edge("x-query-graph-traffic", parent_root=root["root"])
        self.assertEqual((traffic["read-bytes"], traffic["write-bytes"]), (4 * KiB, 64 * KiB))
        self.assertGreaterEqual(self.edge("x-query-graph-traffic", parent_node="n", name="file")["write-bytes"], 64 * KiB)
        (now,) = self.qmp.cmd("x-query-graph-traffic")["roots"]
        self.assertEqual((now["root"], now["clients"]), (root["root"], 1))
        guest.close()
