"""Block nodes: how they come and go, what they are called, who may write, and their size."""

from __future__ import annotations

import json
import os
import subprocess
import unittest
from pathlib import Path

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB
from iotests.harness.markers import daemon_differs
from iotests.harness.qmp import QMPError


class AddAndDelete(QMPTestCase):
    """blockdev-add and blockdev-del."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def test_add_and_delete(self) -> None:
        path = self.create_image("a.qcow2", MiB)
        self.add_node("n", path)
        self.assertEqual(set(self.nodes()), {"n", "n-file"})
        self.qmp.cmd("blockdev-del", node_name="n")
        self.assert_nothing_left()
        images.qemu_io(path, "write -q 0 64k", driver="qcow2")

    def test_inline_children_get_generated_names(self) -> None:
        path = self.create_image("a.qcow2", MiB)
        self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file={"driver": "file", "filename": path})
        generated = set(self.nodes()) - {"n"}
        self.assertEqual(len(generated), 1)
        self.assertRegex(generated.pop(), r"^#block\d{3}$")

    def test_name_errors(self) -> None:
        add = {"driver": "null-co"}
        self.assert_qmp_error("'node-name' must be specified for the root node", "blockdev-add", add)
        self.assert_qmp_error("Invalid node-name: '1bad'", "blockdev-add", add, node_name="1bad")
        self.assert_qmp_error("Invalid node-name: 'a/b'", "blockdev-add", add, node_name="a/b")
        self.assert_qmp_error("Node name too long", "blockdev-add", add, node_name="x" * 32)
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="x" * 31)
        self.assert_qmp_error(
            f"Duplicate nodes with node-name='{'x' * 31}'", "blockdev-add", add, node_name="x" * 31
        )
        self.assert_nothing_left("x" * 31)

    def test_a_files_mistake_comes_before_that_of_what_is_over_it(self) -> None:
        over = {"driver": "qcow2", "node-name": "n", "detect-zeroes": "unmap"}
        own = "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
        path = self.create_image("a.qcow2", MiB)
        for file, text in (
            ({"driver": "file", "filename": ""}, "The 'file' block driver requires a file name"),
            ("nope", "Cannot find device='nope' nor node-name='nope'"),
            ({"driver": "file", "filename": path}, own),
        ):
            self.assert_qmp_error(text, "blockdev-add", over, file=file)
        self.assert_qmp_error(own, "blockdev-add", {**over, "node-name": "1bad"}, file={"driver": "file", "filename": path}, backing="nope")
        self.assert_nothing_left()

    def test_delete_errors(self) -> None:
        base = self.create_image("base.qcow2", MiB)
        top = self.create_image("top.qcow2", MiB, backing=base)
        self.add_node("base", base)
        self.add_node("top", top, backing="base")
        self.assert_qmp_error("Failed to find node with node-name='zz'", "blockdev-del", node_name="zz")
        self.assert_qmp_error(
            "Node 'base' is busy: node is used as backing hd of 'top'", "blockdev-del", node_name="base"
        )
        self.assert_qmp_error("Node top-file is not owned by the monitor", "blockdev-del", node_name="top-file")
        self.export("top")
        self.assert_qmp_error("Node top is in use", "blockdev-del", node_name="top")

    def test_failed_open_leaves_no_child(self) -> None:
        path = self.create_image("a.raw", MiB, images.RAW)
        self.assert_qmp_error(
            "Image is not in qcow2 format",
            "blockdev-add",
            driver="qcow2",
            node_name="n",
            file={"driver": "file", "filename": path, "node-name": "f"},
        )
        self.assert_nothing_left()

    def test_unknown_child(self) -> None:
        self.assert_qmp_error(
            "Cannot find device='zz' nor node-name='zz'", "blockdev-add", driver="raw", node_name="n", file="zz"
        )

    def test_empty_name_is_no_backing_file(self) -> None:
        base = self.create_image("base.qcow2", MiB, images.QCOW2)
        path = self.create_image("top.qcow2", MiB, images.QCOW2, backing=base, backing_format="qcow2")
        self.add_node("top", path, "qcow2", backing="")
        self.assertEqual(self.graph_edges(), {("top", "file", "top-file")})
        self.assert_qmp_error(
            "Cannot find device='' nor node-name=''",
            "blockdev-reopen",
            options=[{"driver": "qcow2", "node-name": "top", "file": "top-file", "backing": ""}],
        )

    def test_backing_file_without_a_format(self) -> None:
        for driver in ("null-co", "null-aio"):
            with self.subTest(driver=driver):
                path = self.path(f"{driver}.qcow2")
                backing = "json:" + json.dumps({"driver": driver, "size": MiB})
                subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", driver, path, str(MiB)], check=True)
                self.qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": driver, "file": {"driver": "file", "filename": path}})
                self.assertIn(driver, [node["drv"] for node in self.nodes().values()])

    def test_missing_file(self) -> None:
        self.assert_qmp_error(
            "Could not open 'nosuch': No such file or directory",
            "blockdev-add",
            driver="file",
            node_name="n",
            filename="nosuch",
        )

    def test_directory_is_no_image(self) -> None:
        self.assert_qmp_error(
            f"Could not open '{self.directory}': Is a directory",
            "blockdev-add",
            driver="file",
            node_name="n",
            filename=str(self.directory),
        )

    def test_many_nodes(self) -> None:
        for number in range(200):
            self.qmp.cmd("blockdev-add", driver="null-co", node_name=f"n{number}", size=MiB)
        self.assertEqual(len(self.nodes()), 200)
        for number in range(200):
            self.qmp.cmd("blockdev-del", node_name=f"n{number}")
        self.assert_nothing_left()

    def test_detect_zeroes_unmap_needs_discard_unmap(self) -> None:
        self.assert_qmp_error(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            "blockdev-add",
            {"driver": "null-co", "node-name": "n", "detect-zeroes": "unmap"},
        )

    def test_null_co(self) -> None:
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=MiB, read_zeroes=True)
        self.export("n")
        guest = self.guest("n")
        guest.write(0, b"x" * 512)
        self.assertEqual(guest.read(0, MiB), bytes(MiB))
        self.assertRegex(self.nodes()["n"]["image"]["filename"], r'^json:\{.*"driver": "null-co".*\}$')
        self.assertEqual(
            json.loads(self.nodes()["n"]["image"]["filename"].removeprefix("json:")),
            {"driver": "null-co", "size": MiB, "read-zeroes": True},
        )

    def test_default_size_of_null_co(self) -> None:
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n")
        self.assertEqual(self.nodes()["n"]["image"]["virtual-size"], 1 << 30)

    @unittest.skipUnless(os.geteuid() == 0 and os.path.exists("/dev/loop-control"), "needs root and loop devices")
    def test_host_device(self) -> None:
        path = self.create_image("disk.raw", MiB, images.RAW)
        attach = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True, check=False)
        if attach.returncode:
            self.skipTest(f"needs a loop device: {attach.stderr.strip()}")
        device = attach.stdout.strip()
        self.addCleanup(lambda: subprocess.run(["losetup", "-d", device], check=True))
        self.qmp.cmd("blockdev-add", driver="host_device", node_name="n", filename=device)
        self.addCleanup(self.daemon.quit)
        self.export("n")
        guest = self.guest("n")
        self.assertEqual(guest.size, MiB)
        guest.write(4096, b"y" * 4096)
        guest.handle.flush()
        guest.close()
        self.daemon.quit()
        self.assertEqual(Path(path).read_bytes()[4096:8192], b"y" * 4096)


class Sizes(QMPTestCase):
    """Lengths that storage may claim."""

    def test_largest(self) -> None:
        largest = 2**63 - 2**30
        self.launch()
        self.assert_qmp_error(
            "Could not refresh total sector count: File too large",
            "blockdev-add",
            driver="null-co",
            node_name="n",
            size=largest + 1,
        )
        self.assert_qmp_error(
            "Could not refresh total sector count: File too large",
            "blockdev-add",
            driver="null-co",
            node_name="n",
            size=2**63 - 1,
        )
        self.assertEqual(self.nodes(), {})
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=largest)


class ReadOnly(QMPTestCase):
    """read-only and auto-read-only."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a.qcow2", MiB)
        self.launch()

    def test_read_only_node(self) -> None:
        self.add_node("n", self.image, read_only=True)
        self.assertTrue(self.nodes()["n"]["ro"])
        self.start_nbd()
        self.assert_qmp_error(
            "Cannot export read-only node as writable",
            "block-export-add",
            type="nbd",
            id="e",
            node_name="n",
            writable=True,
        )
        self.assert_qmp_error("Image is read-only", "block_resize", node_name="n", size=2 * MiB)

    def test_file_without_write_permission(self) -> None:
        os.chmod(self.image, 0o444)
        # Root may write every file, unless it gives that up.
        wrapper = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
        self.qmp = self.launch(name="humble", wrapper=wrapper).qmp
        self.assert_qmp_error(
            f"Could not open '{self.image}': Permission denied",
            "blockdev-add",
            driver="file",
            node_name="f",
            filename=self.image,
        )
        self.qmp.execute(
            "blockdev-add",
            {"driver": "file", "node-name": "f", "filename": self.image, "read-only": False, "auto-read-only": True},
        )
        with self.assertRaisesRegex(QMPError, "Permission denied"):
            self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file="f")
        self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file="f", read_only=True)

    def test_inline_child_inherits_read_only(self) -> None:
        self.add_node("n", self.image, read_only=True)
        nodes = self.nodes()
        self.assertEqual((nodes["n"]["ro"], nodes["n-file"]["ro"]), (True, True))

    def test_read_only_node_over_a_referenced_writable_file(self) -> None:
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.image)
        self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file="f", read_only=True)
        nodes = self.nodes()
        self.assertEqual((nodes["n"]["ro"], nodes["f"]["ro"]), (True, False))

    def test_writable_node_over_read_only_file(self) -> None:
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.image, read_only=True)
        self.assert_qmp_error(
            "Block node is read-only", "blockdev-add", driver="qcow2", node_name="n", file="f"
        )
        self.assert_nothing_left("f")


class Resize(QMPTestCase):
    """block_resize."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a.qcow2", MiB)
        self.launch()
        self.add_node("n", self.image)

    def test_errors(self) -> None:
        self.assert_qmp_error("Parameter 'size' expects a >0 size", "block_resize", node_name="n", size=-1)
        self.assert_qmp_error(
            "Cannot find device='' nor node-name='zz'", "block_resize", node_name="zz", size=MiB
        )
        self.assert_qmp_error("The new size must be a multiple of 512", "block_resize", node_name="n", size=1000)

    def test_grown_over_a_longer_backing_file_reads_zeroes(self) -> None:
        base = self.filled_image("base.qcow2", self.random_bytes(2 * MiB))
        top = self.create_image("top.qcow2", MiB, backing=base)
        self.add_node("t", top)
        self.qmp.cmd("block_resize", node_name="t", size=2 * MiB)
        self.export("t", writable=False)
        self.assertEqual(self.guest("t").read(MiB, MiB), bytes(MiB))

    @daemon_differs("the rival's text names no node (mended in QEMU 9.0); blockd gives the mended one")
    def test_while_a_stream_runs(self) -> None:
        base = self.filled_image("base.qcow2", self.random_bytes(MiB))
        self.add_node("t", self.create_image("top.qcow2", MiB, backing=base))
        self.qmp.cmd("block-stream", job_id="j", device="t", speed=65536)
        self.assert_qmp_error(
            self.per_daemon(
                blockd="Node 't' is busy: block device is in use by block job: stream",
                rival="Device '(null)' is in use",
            ),
            "block_resize",
            node_name="t",
            size=2 * MiB,
        )
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.qmp.cmd("block_resize", node_name="t", size=2 * MiB)

    def test_while_a_backup_runs(self) -> None:
        self.add_node("b", self.filled_image("b.qcow2", self.random_bytes(4 * MiB)))
        self.add_node("t", self.create_image("t.qcow2", 4 * MiB))
        self.qmp.cmd(
            "blockdev-backup", job_id="j", device="b", target="t", sync="full", speed=65536, filter_node_name="cbw"
        )
        self.assert_qmp_error(
            "Permission conflict on node 'b': permissions 'resize' are both required by an unnamed block device "
            "(uses node 'b' as 'root' child) and unshared by node 'cbw' (uses node 'b' as 'file' child).",
            "block_resize",
            node_name="b",
            size=8 * MiB,
        )
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.qmp.cmd("block_resize", node_name="b", size=8 * MiB)

    def test_while_exported(self) -> None:
        identity = self.export("n")
        self.assert_qmp_error(
            "Permission conflict on node 'n': permissions 'resize' are both required by an unnamed block device "
            "(uses node 'n' as 'root' child) and unshared by an unnamed block device (uses node 'n' as 'root' child).",
            "block_resize",
            node_name="n",
            size=2 * MiB,
        )
        self.unexport(identity)
        self.qmp.cmd("block_resize", node_name="n", size=2 * MiB)
        self.export("n")
        self.assertEqual(self.guest("n").size, 2 * MiB)
