"""Which iothread nodes belong to: connected ones to one, and no thread goes while it has nodes."""

from __future__ import annotations

from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPError
from iotests.tests.test_reopen_options import ReopenCase


class Iothreads(ReopenCase):
    """x-blockdev-set-iothread, and iothread and fixed-iothread of exports."""

    def setUp(self) -> None:
        super().setUp()
        for name in ("thread0", "thread1"):
            self.qmp.cmd("object-add", qom_type="iothread", id=name)
        self.add(self.options(0))
        self.add(self.options(2))

    def move(self, node: str, thread: str | None, **more: bool) -> None:
        """x-blockdev-set-iothread."""
        self.qmp.execute("x-blockdev-set-iothread", {"node-name": node, "iothread": thread, **more})

    def test_errors(self) -> None:
        command = "x-blockdev-set-iothread"
        self.assert_qmp_error("Failed to find node with node-name='zz'", command, {"node-name": "zz", "iothread": None})
        self.assert_qmp_error("Cannot find iothread zz", command, {"node-name": "hd0", "iothread": "zz"})
        self.export("hd0", iothread="thread0", fixed_iothread=True)
        text = "Node hd0 is associated with a BlockBackend and could be in use (use force=true to override this check)"
        self.assert_qmp_error(text, command, {"node-name": "hd0", "iothread": None})
        text = "Cannot change iothread of active block backend"
        self.assert_qmp_error(text, command, {"node-name": "hd0", "iothread": None, "force": True})
        self.assert_qmp_error(text, command, {"node-name": "hd0-file", "iothread": "thread1"})
        self.move("hd0", "thread0", force=True)
        self.assert_qmp_error(
            'iothread "zz" not found', "block-export-add", type="nbd", id="e", node_name="hd2", iothread="zz"
        )

    def test_two_users_that_insist(self) -> None:
        self.export("hd0", iothread="thread0", fixed_iothread=True)
        self.export("hd2", iothread="thread1", fixed_iothread=True)
        self.refuse("Cannot change iothread of active block backend", self.options(0, backing="hd2"))
        self.reopen(self.options(0, backing=None))
        self.assert_qmp_error(
            "Cannot change iothread of active block backend", "block-export-add",
            type="nbd", id="e", node_name="hd0", name="again", iothread="thread1", fixed_iothread=True,
        )
        # One that does not insist takes what it gets.
        self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="hd0", name="again", iothread="thread1")

    def test_users_of_one_thread(self) -> None:
        self.export("hd0", iothread="thread0", fixed_iothread=True)
        self.export("hd2", iothread="thread0", fixed_iothread=True)
        self.reopen(self.options(0, backing="hd2"))
        self.reopen(self.options(0, backing=None))

    def test_backing_file_or_overlay_moves(self) -> None:
        for overlay, backing in ((0, 2), (2, 0)):
            identity = self.export("hd0", iothread="thread0", fixed_iothread=True)
            self.reopen(self.options(overlay, backing=f"hd{backing}"))
            self.reopen(self.options(overlay, backing=None))
            self.unexport(identity)

    def test_below_a_throttle(self) -> None:
        self.qmp.cmd("object-add", qom_type="throttle-group", id="group0", limits={"iops-total": 1000})
        for number in (0, 2):
            options = {
                "driver": "throttle", "node-name": f"t{number}", "throttle-group": "group0", "file": f"hd{number}-file"
            }
            self.add(options)
            self.reopen({**self.options(number), "file": f"t{number}"})
            self.export(f"hd{number}", iothread="thread0", fixed_iothread=True)
        self.reopen({**self.options(0), "file": "t0", "backing": "hd2"})
        self.assert_chain("hd0", "hd2")

    @blockd_only("the rival deletes a thread under its nodes, and crashes afterwards")
    def test_thread_in_use_stays(self) -> None:
        def refused(thread: str) -> None:
            self.assert_qmp_error(f"object '{thread}' is in use, can not be deleted", "object-del", id=thread)

        self.move("hd0-file", "thread0")
        refused("thread0")
        identity = self.export("hd2", iothread="thread1")
        refused("thread1")
        self.reopen(self.options(0, backing="hd2"))  # hd2 follows its overlay
        refused("thread0")
        self.qmp.cmd("object-del", id="thread1")
        self.unexport(identity)
        refused("thread0")
        self.qmp.cmd("blockdev-del", node_name="hd0")
        refused("thread0")
        self.move("hd2", None)
        self.qmp.cmd("object-del", id="thread0")

    @blockd_only("the rival deletes a thread under its nodes, and crashes afterwards")
    def test_failed_command_leaves_no_thread_in_use(self) -> None:
        self.assert_qmp_error(
            "Cannot export read-only node as writable", "block-export-add", type="nbd", id="e",
            node_name=self.read_only_node(), writable=True, iothread="thread0",
        )
        self.assert_qmp_error(
            "NBD server not running", "block-export-add", type="nbd", id="e", node_name="hd0", iothread="thread0"
        )
        self.export("hd0", iothread="thread1", fixed_iothread=True)
        with self.assertRaises(QMPError):
            self.move("hd0", "thread0", force=True)
        self.qmp.cmd("object-del", id="thread0")

    def read_only_node(self) -> str:
        """A node that cannot be exported for writing."""
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="ro", size=MiB, read_only=True)
        return "ro"
