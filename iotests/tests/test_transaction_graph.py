"""Transactions that open, close and reopen nodes: actions of blockd's own."""

from __future__ import annotations

from typing import Any

from iotests.harness import images
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only
from iotests.tests.test_reopen_options import ReopenCase

Action = dict[str, Any]


def action(name: str, **data: Any) -> Action:
    """One action of a transaction."""
    return {"type": name, "data": {key.replace("_", "-"): value for key, value in data.items()}}


@blockd_only("the actions are blockd's own")
class NodeActions(ReopenCase):
    """x-blockdev-add, x-blockdev-del and x-blockdev-reopen."""

    ABORT = {"type": "abort", "data": {}}

    def run_all(self, *actions: Action) -> None:
        """The transaction succeeds."""
        self.qmp.cmd("transaction", actions=list(actions))

    def refuse_all(self, text: str, *actions: Action) -> None:
        """The transaction fails with this text, and nothing has changed."""
        before = self.picture()
        self.assert_qmp_error(text, "transaction", actions=list(actions))
        self.assertEqual(self.picture(), before)

    def test_overlays_of_two_disks_at_once(self) -> None:
        """What takes a blockdev-add per disk and a transaction otherwise: one point in time, or nothing."""
        writers = []
        for number in (0, 2):
            self.add(self.options(number))
            self.export(f"hd{number}")
            model = bytearray(3 * MiB)
            model[number * MiB : (number + 1) * MiB] = self.MARKS[number] * MiB
            writers.append(self.guest_writer(f"hd{number}", bytes(model)))
        actions: list[Action] = []
        for number in (0, 2):
            path = self.create_image(f"over{number}.qcow2", 3 * MiB)
            file = {"driver": "file", "filename": path, "node-name": f"over{number}-file"}
            actions += [
                action("x-blockdev-add", driver="qcow2", node_name=f"over{number}", file=file, backing=None),
                action("blockdev-snapshot", node=f"hd{number}", overlay=f"over{number}"),
            ]
        edges, nodes = self.graph_edges(), set(self.nodes())
        self.assert_qmp_error(
            "Transaction aborted using Abort action", "transaction", actions=[*actions, self.ABORT]
        )
        self.assertEqual((self.graph_edges(), set(self.nodes())), (edges, nodes))
        self.run_all(*actions)
        for number, writer in zip((0, 2), writers):
            self.assert_chain(f"over{number}", f"hd{number}")
            writer.wait_writes(1)
            written = writer.stop()
            self.assertEqual(self.guest(f"hd{number}").read(0, 3 * MiB), written)

    def test_stream_down_to_an_image_that_the_same_change_put_there(self) -> None:
        self.add(self.options(0, backing=None))
        self.add_node("over", self.create_image("over.qcow2", 3 * MiB), backing=None)
        self.run_all(
            action("blockdev-snapshot", node="hd0", overlay="over"),
            action("x-block-stream", job_id="j", device="over", bottom="hd0", auto_finalize=False),
        )
        self.wait_status("j", "pending")
        self.qmp.cmd("job-finalize", id="j")
        self.wait_status("j", "null")
        self.assert_chain("over")

    def test_filter_gives_up_the_chain_in_the_change_that_deletes_it(self) -> None:
        self.add(self.options(0))
        self.add(self.options(1, backing="hd0"))
        self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="cor", file="hd1", bottom="hd0")
        frozen = "Cannot change frozen 'backing' link from 'hd1' to 'hd0'"
        delete = action("x-blockdev-del", node_name="cor")
        reopen = action("x-blockdev-reopen", options=[self.options(1, backing=None)])
        self.refuse_all(frozen, reopen)
        self.refuse_all("Transaction aborted using Abort action", delete, reopen, self.ABORT)
        self.refuse_all(frozen, reopen)
        self.run_all(delete, reopen)
        self.assert_chain("hd1")

    def test_each_sees_what_came_before(self) -> None:
        self.add(self.options(0, backing=None))
        self.add(self.options(2))
        self.run_all(
            action("x-blockdev-add", driver="null-co", node_name="null", size=3 * MiB, read_zeroes=True),
            action("x-blockdev-reopen", options=[self.options(0, backing="null")]),
            action("x-blockdev-del", node_name="hd2"),
        )
        self.assertEqual(set(self.nodes()), {"hd0", "hd0-file", "null"})
        self.assert_chain("hd0", "null")
        self.run_all(
            action("x-blockdev-reopen", options=[self.options(0, backing=None)]),
            action("x-blockdev-del", node_name="null"),
        )
        self.assertEqual(set(self.nodes()), {"hd0", "hd0-file"})

    def test_deleted_node_is_not_found_but_keeps_its_name(self) -> None:
        self.add(self.options(2))
        delete = action("x-blockdev-del", node_name="hd2")
        self.refuse_all(
            "Failed to find node with node-name='hd2'", delete, action("x-blockdev-reopen", options=[self.options(2)])
        )
        self.refuse_all("Failed to find node with node-name='hd2'", delete, delete)
        self.refuse_all(
            "Duplicate nodes with node-name='hd2'", delete,
            action("x-blockdev-add", driver="null-co", node_name="hd2"),
        )
        self.refuse_all(
            "Cannot find device='hd2' nor node-name='hd2'", delete,
            action("x-blockdev-add", driver="raw", node_name="r", file="hd2"),
        )
        self.run_all(delete)
        self.assert_nothing_left()

    def test_added_and_deleted(self) -> None:
        self.run_all(
            action("x-blockdev-add", driver="null-co", node_name="n"), action("x-blockdev-del", node_name="n")
        )
        self.assert_nothing_left()

    def test_errors_are_those_of_the_commands(self) -> None:
        self.add(self.options(0))
        self.export("hd0")
        first = action("x-blockdev-reopen", options=[self.options(0, **{"detect-zeroes": "on"})])
        add = {"driver": "null-co"}
        for text, bad in (
            ("Node hd0 is in use", action("x-blockdev-del", node_name="hd0")),
            ("Failed to find node with node-name='zz'", action("x-blockdev-del", node_name="zz")),
            ("Node hd0-file is not owned by the monitor", action("x-blockdev-del", node_name="hd0-file")),
            ("'node-name' must be specified for the root node", action("x-blockdev-add", **add)),
            ("Invalid node-name: '1bad'", action("x-blockdev-add", **add, node_name="1bad")),
            ("Duplicate nodes with node-name='hd0'", action("x-blockdev-add", **add, node_name="hd0")),
            (
                "Read-only block node 'hd0' cannot support read-write users",
                action("x-blockdev-reopen", options=[self.options(0, **{"read-only": True})]),
            ),
        ):
            with self.subTest(text=text):
                self.refuse_all(text, first, bad)
        self.run_all(first)
        self.assertEqual(self.nodes()["hd0"]["detect_zeroes"], "on")

    def test_grouped_is_for_jobs(self) -> None:
        self.assert_qmp_error(
            "Action 'x-blockdev-add' does not support Transaction property completion-mode = grouped",
            "transaction",
            actions=[action("x-blockdev-add", driver="null-co", node_name="n")],
            properties={"completion-mode": "grouped"},
        )

    def test_locks_of_a_failed_transaction_are_given_up(self) -> None:
        self.assert_qmp_error(
            "Transaction aborted using Abort action",
            "transaction",
            actions=[{"type": "x-blockdev-add", "data": self.options(0)}, self.ABORT],
        )
        images.qemu_io(self.files[0], "write -q 0 64k", driver="qcow2")
