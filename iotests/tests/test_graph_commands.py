"""Commands on the graph beside blockdev-reopen: headers, children and write thresholds."""

from __future__ import annotations

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB
from iotests.harness.markers import daemon_differs


class ChangeBackingFile(QMPTestCase):
    """change-backing-file writes a header and leaves the graph alone."""

    def setUp(self) -> None:
        super().setUp()
        self.base = self.create_image("base.qcow2", MiB)
        self.middle = self.create_image("mid.qcow2", MiB, backing=self.base)
        self.top = self.create_image("top.qcow2", MiB, backing=self.middle)
        self.launch()
        self.add_node("base", self.base, read_only=True)
        self.add_node("mid", self.middle, backing="base", read_only=True)
        self.add_node("top", self.top, backing="mid")

    def change(self, image: str, name: str) -> None:
        """change-backing-file of an image in the chain of top."""
        self.qmp.cmd("change-backing-file", device="top", image_node_name=image, backing_file=name)

    def header(self, path: str) -> tuple[str, str]:
        """What the header says, from outside; the daemon has the image open."""
        info = images.info_shared(path)
        return info["backing-filename"], info["backing-filename-format"]

    def test_header_of_the_top(self) -> None:
        edges = self.graph_edges()
        self.change("top", "elsewhere.qcow2")
        self.assertEqual(self.header(self.top), ("elsewhere.qcow2", "qcow2"))
        self.assertEqual(self.graph_edges(), edges)
        node = self.nodes()["top"]
        self.assertEqual(node["image"]["backing-filename"], "elsewhere.qcow2")
        self.change("top", self.middle)
        self.assertEqual(self.header(self.top), (self.middle, "qcow2"))
        self.assertEqual(self.nodes()["top"]["file"], self.top)

    def test_read_only_image_in_the_middle(self) -> None:
        self.change("mid", "elsewhere.qcow2")
        self.assertEqual(self.header(self.middle), ("elsewhere.qcow2", "qcow2"))
        self.assertTrue(self.nodes()["mid"]["ro"])

    def test_under_a_guest(self) -> None:
        self.export("top")
        writer = self.guest_writer("top", bytes(MiB))
        for number in range(20):
            self.change("top", f"name{number}.qcow2")
            writer.wait_writes(1)
        self.change("top", self.middle)
        model = writer.stop()
        self.assertEqual(self.guest("top").read(0, MiB), model)

    def test_errors(self) -> None:
        before = [self.header(path) for path in (self.top, self.middle)]
        self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="filter", file={"driver": "null-co"})
        self.add_node("other", self.create_image("other.qcow2", MiB, backing=self.base), backing="base")
        for text, device, image, name in (
            ("Cannot find device='zz' nor node-name='zz'", "zz", "top", "x"),
            ("Cannot find device='' nor node-name='zz'", "top", "zz", "x"),
            ("Need a root block node", "mid", "mid", "x"),
            ("not allowing backing file change on an image without a backing file", "top", "base", "x"),
            ("'top' and image file are not in the same chain", "top", "other", "x"),
            ("'top' and image file are not in the same chain", "top", "filter", "x"),
            ("Could not change backing file to 'x': Operation not supported", "filter", "filter", "x"),
            (f"Could not change backing file to '{'x' * 1024}': Invalid argument", "top", "top", "x" * 1024),
        ):
            with self.subTest(text=text):
                self.assert_qmp_error(
                    text, "change-backing-file", device=device, image_node_name=image, backing_file=name
                )
        self.assertEqual([self.header(path) for path in (self.top, self.middle)], before)
        self.assertTrue(self.nodes()["mid"]["ro"])

    @daemon_differs("the rival gives the backing file the format of the image over it")
    def test_format_is_that_of_the_backing_file(self) -> None:
        path = self.create_image("raw.raw", MiB, images.RAW)
        over = self.create_image("over.qcow2", MiB, backing=path, backing_format="raw")
        self.add_node("raw", path, driver="raw", read_only=True)
        self.add_node("over", over, backing="raw")
        self.qmp.cmd("change-backing-file", device="over", image_node_name="over", backing_file=path)
        self.assertEqual(self.header(over), (path, self.per_daemon(blockd="raw", rival="qcow2")))

    def test_busy(self) -> None:
        self.export("top")
        self.create_image("target.qcow2", MiB)
        self.add_node("target", self.path("target.qcow2"))
        self.qmp.cmd(
            "blockdev-backup", job_id="b", device="top", target="target", sync="full", auto_finalize=False
        )
        self.wait_status("b", "pending")
        self.assert_qmp_error(
            self.refusal(), "change-backing-file", device="top", image_node_name="top", backing_file="x"
        )
        self.qmp.cmd("job-finalize", id="b")
        self.wait_status("b", "null")

    def refusal(self) -> str:
        """top is below the backup's filter."""
        return "Need a root block node"


class Children(QMPTestCase):
    """x-blockdev-change, of drivers whose children are fixed."""

    def test_errors(self) -> None:
        self.launch()
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=MiB)
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="m", size=MiB)
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file="m")
        edges = self.graph_edges()
        change = "x-blockdev-change"
        self.assert_qmp_error("Cannot find device='zz' nor node-name='zz'", change, parent="zz")
        self.assert_qmp_error("Either child or node must be specified", change, parent="r")
        self.assert_qmp_error("The parameters child and node are in conflict", change, parent="r", child="a", node="b")
        self.assert_qmp_error("Node 'r' does not have child 'zz'", change, parent="r", child="zz")
        self.assert_qmp_error("Node 'zz' not found", change, parent="r", node="zz")
        self.assert_qmp_error("The node r does not support adding a child", change, parent="r", node="n")
        self.assert_qmp_error("The node r does not support removing a child", change, parent="r", child="file")
        self.assertEqual(self.graph_edges(), edges)


class WriteThreshold(QMPTestCase):
    """block-set-write-threshold: the first write beyond a place is told of, once."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()
        self.add_node("n", self.create_image("a.raw", MiB, images.RAW), driver="raw")
        self.export("n")
        self.disk = self.guest("n")

    def set(self, threshold: int, node: str = "n") -> None:
        """block-set-write-threshold."""
        self.qmp.cmd("block-set-write-threshold", node_name=node, write_threshold=threshold)

    def thresholds(self) -> list[dict[str, object]]:
        """The events so far."""
        return [m["data"] for m in self.qmp.transcript if m.get("event") == "BLOCK_WRITE_THRESHOLD"]

    def test_once(self) -> None:
        self.set(65536)
        self.assertEqual(self.nodes()["n"]["write_threshold"], 65536)
        self.disk.write(0, b"x" * 65536)
        self.assertEqual(self.nodes()["n"]["write_threshold"], 65536)
        self.disk.write(65536 - 512, b"x" * 4096)
        event = self.qmp.wait_event("BLOCK_WRITE_THRESHOLD")
        self.assertEqual(event["data"], {"node-name": "n", "amount-exceeded": 3584, "write-threshold": 65536})
        self.assertEqual(self.nodes()["n"]["write_threshold"], 0)
        self.disk.write(131072, b"x" * 4096)
        self.assertEqual(self.nodes()["n"]["write_threshold"], 0)
        self.assertEqual(len(self.thresholds()), 1)

    def test_zeroes_and_discards(self) -> None:
        self.set(4096)
        self.disk.handle.trim(65536, 65536)
        self.assertEqual(self.nodes()["n"]["write_threshold"], 4096)
        self.disk.handle.zero(65536, 65536)
        event = self.qmp.wait_event("BLOCK_WRITE_THRESHOLD")
        self.assertEqual(event["data"]["amount-exceeded"], 131072 - 4096)

    def test_set_again_and_off(self) -> None:
        self.set(4096)
        self.set(8192)
        self.disk.write(0, b"x" * 8192)
        self.assertEqual(self.nodes()["n"]["write_threshold"], 8192)
        self.set(0)
        self.disk.write(16384, b"x" * 512)
        self.set(512)
        self.disk.write(16384, b"x" * 512)
        event = self.qmp.wait_event("BLOCK_WRITE_THRESHOLD")
        self.assertEqual(event["data"]["write-threshold"], 512)
        self.assertEqual(len(self.thresholds()), 1)

    def test_of_the_file_below_an_image(self) -> None:
        """What an image writes to its file counts, with its metadata."""
        self.add_node("q", self.create_image("q.qcow2", MiB))
        self.export("q")
        self.set(5 * 65536, "q-file")
        self.guest("q").write(0, b"x" * 65536)
        self.guest("q").handle.flush()
        event = self.qmp.wait_event("BLOCK_WRITE_THRESHOLD")
        self.assertEqual(event["data"]["node-name"], "q-file")

    def test_unknown_node(self) -> None:
        self.assert_qmp_error(
            "Device 'zz' not found", "block-set-write-threshold", node_name="zz", write_threshold=1
        )

    def test_largest(self) -> None:
        self.set((1 << 63) - 1)
        self.disk.write(0, b"x" * 512)
        self.assertEqual(self.nodes()["n"]["write_threshold"], (1 << 63) - 1)
