"""Filters as nodes: compress, preallocate, and fleecing by copy-before-write with snapshot-access."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.guest import nbd
from iotests.harness.images import KiB, MiB, QCOW2, RAW
from iotests.harness.markers import daemon_differs


class CopyOnRead(QMPTestCase):
    """Reads through copy-on-read leave what they read in the node below."""

    def test_zeroes_take_no_space(self) -> None:
        base, top = self.create_image("base", MiB, QCOW2), self.path("top")
        images.qemu_io(base, "write -P 0 0 64k", "write -P 7 64k 64k", driver="qcow2")
        self.assertTrue(images.allocation(base, "qcow2")[0]["data"])
        self.create_image("top", MiB, QCOW2, backing=base)
        self.launch()
        self.add_node("top", top)
        self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="cor", file="top")
        self.export("cor")
        guest = self.guest("cor")
        self.assertEqual(guest.read(0, 64 * KiB) + guest.read(64 * KiB, 64 * KiB), bytes(64 * KiB) + b"\7" * 64 * KiB)
        guest.close()
        self.daemon.quit()
        zeroes, data = images.allocation(top, "qcow2")[:2]
        self.assertEqual((zeroes["depth"], zeroes["data"], zeroes["zero"]), (0, False, True))
        self.assertEqual((data["depth"], data["data"], data["zero"]), (0, True, False))


class Compress(QMPTestCase):
    """Writes through compress are stored compressed."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def test_writes_are_compressed(self) -> None:
        image = self.create_image("a.qcow2", 4 * MiB)
        self.add_node("n", image)
        self.qmp.cmd("blockdev-add", driver="compress", node_name="c", file="n")
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file="c")
        self.export("r")
        guest = self.guest("r")
        data = bytearray(4 * MiB)
        for offset, length in ((0, 2 * MiB), (3 * MiB + 512, 100 * KiB)):
            data[offset : offset + length] = bytes(range(256)) * (length // 256)
            guest.write(offset, bytes(data[offset : offset + length]))
        self.assertEqual(guest.read(0, 4 * MiB), bytes(data))
        guest.close()
        self.daemon.quit()
        self.assert_content(image, bytes(data))
        check = json.loads(images.run_tool("qemu-img", "check", "--output=json", image))
        self.assertEqual(check["compressed-clusters"], check["allocated-clusters"])
        self.assertGreaterEqual(check["compressed-clusters"], 34)

    def test_refused_over_what_cannot_compress(self) -> None:
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.create_image("a.img", MiB, RAW))
        self.assert_qmp_error(
            "Compression is not supported for underlying format: file",
            "blockdev-add",
            driver="compress",
            node_name="c",
            file="f",
        )
        self.assert_nothing_left("f")

    def test_names(self) -> None:
        self.add_node("n", self.create_image("a.qcow2", MiB))
        self.qmp.cmd("blockdev-add", driver="compress", node_name="c", file="n")
        self.assertRegex(self.nodes()["c"]["image"]["filename"], r'^json:\{.*"driver": "compress".*\}$')


class Preallocate(QMPTestCase):
    """A file grows in large steps, and is cut to its size at the end."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a.qcow2", 16 * MiB)
        self.launch()
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.image)

    def add(self, **options: Any) -> None:
        """Add the filter over the file, and qcow2 over it."""
        self.qmp.cmd("blockdev-add", driver="preallocate", node_name="p", file="f", **options)
        self.qmp.cmd("blockdev-add", driver="qcow2", node_name="n", file="p")

    def length(self) -> int:
        """The length of the file."""
        return os.stat(self.image).st_size

    def test_grows_in_steps(self) -> None:
        self.add(prealloc_size=8 * MiB, prealloc_align=MiB)
        before = self.length()
        self.export("n")
        guest = self.guest("n")
        data = self.random_bytes(3 * MiB)
        guest.write(0, data[:MiB])
        guest.handle.flush()
        grown = self.length()
        self.assertEqual(grown % MiB, 0)
        self.assertGreaterEqual(grown, before + 8 * MiB)
        guest.write(MiB, data[MiB:])
        guest.handle.flush()
        self.assertEqual(self.length(), grown)
        self.assertEqual(guest.read(0, 4 * MiB), data + bytes(MiB))
        guest.close()
        self.qmp.cmd("nbd-server-stop")
        self.qmp.cmd("blockdev-del", node_name="n")
        self.assertLess(self.length(), before + 5 * MiB)
        self.qmp.cmd("blockdev-del", node_name="p")
        self.assert_content(self.image, data + bytes(13 * MiB))

    def test_cut_at_the_end_of_the_daemon(self) -> None:
        self.add()
        self.export("n")
        guest = self.guest("n")
        guest.write(0, b"x" * MiB)
        guest.handle.flush()
        self.assertGreater(self.length(), 128 * MiB)
        guest.close()
        self.daemon.quit()
        self.assertLess(self.length(), 3 * MiB)
        self.assert_content(self.image, b"x" * MiB + bytes(15 * MiB))

    def test_refused(self) -> None:
        refused: list[tuple[str, dict[str, Any]]] = [
            (
                "prealloc-align parameter of preallocate filter is not aligned to 512",
                {"prealloc_align": 1000},
            ),
            ("Parameter 'prealloc-size' expects a non-negative number below 2^64", {"prealloc_size": -1}),
        ]
        for desc, options in refused:
            self.assert_qmp_error(desc, "blockdev-add", driver="preallocate", node_name="p", file="f", **options)
        self.assert_nothing_left("f")

    def test_nobody_else_may_write(self) -> None:
        self.add()
        self.assert_qmp_error(
            "Permission conflict on node 'f': permissions 'write' are both required by node 'b' (uses node 'f' as "
            "'image' child) and unshared by node 'p' (uses node 'f' as 'file' child).",
            "blockdev-add",
            driver="blkdebug",
            node_name="b",
            image="f",
            take_child_perms=["write"],
        )


class Fleecing(QMPTestCase):
    """A guest writes through copy-before-write; a client reads the point in time."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(2 * MiB)
        self.image = self.filled_image("a.qcow2", self.data)
        self.launch()
        self.add_node("n", self.image, discard="unmap")
        self.add_node("t", self.create_image("t.qcow2", 2 * MiB, QCOW2), "qcow2", discard="unmap")

    def fleece(self, **options: Any) -> None:
        """Insert the filter and the node that shows what it keeps, and export both."""
        self.qmp.cmd("blockdev-add", driver="copy-before-write", node_name="cbw", file="n", target="t", **options)
        self.qmp.cmd("blockdev-add", driver="snapshot-access", node_name="s", file="cbw", discard="unmap")
        self.export("cbw")
        self.export("s")

    def test_point_in_time(self) -> None:
        self.fleece()
        client = self.guest("s")
        writer = self.guest_writer("cbw", self.data)
        writer.wait_writes(100)
        for offset in range(0, 2 * MiB, 96 * KiB):
            length = min(96 * KiB, 2 * MiB - offset)
            self.assertEqual(client.read(offset, length), self.data[offset : offset + length], offset)
        writer.wait_writes(200)
        self.assertEqual(client.read(0, 2 * MiB), self.data)
        model = writer.stop()
        client.close()
        self.daemon.quit()
        self.assert_content(self.image, bytes(model))

    def test_names_and_permissions(self) -> None:
        self.fleece()
        nodes = self.nodes()
        self.assertEqual(nodes["s"]["image"]["filename"], self.image)
        self.assertEqual(nodes["cbw"]["image"]["filename"], self.image)
        self.assertEqual(nodes["s"]["drv"], "snapshot-access")
        graph = self.qmp.cmd("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        [edge] = [edge for edge in graph["edges"] if names[edge["parent"]] == "s"]
        self.assertEqual(edge["perm"], [])
        self.assertEqual(len(edge["shared-perm"]), 4)

    def test_discard_gives_up(self) -> None:
        self.fleece()
        client = self.guest("s")
        client.handle.trim(256 * KiB, 128 * KiB)
        self.assertEqual(client.read(0, 128 * KiB), self.data[: 128 * KiB])
        self.assertEqual(client.read(384 * KiB, 64 * KiB), self.data[384 * KiB : 448 * KiB])
        for offset, length in ((128 * KiB, 512), (383 * KiB, 1024), (0, MiB)):
            with self.assertRaises(nbd.Error) as caught:
                client.read(offset, length)
            self.assertEqual(caught.exception.errnum, errno.EINVAL)

    def test_writes_are_refused(self) -> None:
        self.fleece()
        client = self.guest("s")
        with self.assertRaises(nbd.Error):
            client.write(0, b"x" * 512)
        self.assertEqual(client.read(0, 512), self.data[:512])

    def test_broken_snapshot(self) -> None:
        self.qmp.cmd(
            "blockdev-add",
            driver="blkdebug",
            node_name="bad",
            image="t",
            inject_error=[{"event": "none", "iotype": "write", "once": True}],
        )
        self.qmp.cmd(
            "blockdev-add",
            driver="copy-before-write",
            node_name="cbw",
            file="n",
            target="bad",
            on_cbw_error="break-snapshot",
        )
        self.qmp.cmd("blockdev-add", driver="snapshot-access", node_name="s", file="cbw")
        self.export("cbw")
        self.export("s")
        guest, client = self.guest("cbw"), self.guest("s")
        self.assertEqual(client.read(MiB, 512), self.data[MiB : MiB + 512])
        guest.write(0, b"x" * 512)
        with self.assertRaises(nbd.Error) as caught:
            client.read(MiB, 512)
        self.assertEqual(caught.exception.errnum, errno.EINVAL)

    @daemon_differs("the rival saves zeroes as data; blockd asks what is there, and saves zeroes")
    def test_extents(self) -> None:
        hole = self.create_image("hole.qcow2", 2 * MiB)
        self.fill(hole, b"x" * 64 * KiB, offset=MiB)
        self.add_node("h", hole)
        self.qmp.cmd("blockdev-add", driver="copy-before-write", node_name="cbw", file="h", target="t")
        self.qmp.cmd("blockdev-add", driver="snapshot-access", node_name="s", file="cbw")
        self.export("cbw")
        self.export("s")
        client = self.guest("s")
        expected = [(MiB, 3), (64 * KiB, 0), (960 * KiB, 3)]
        self.assertEqual(client.extents(), expected)
        self.guest("cbw").write(0, b"y" * 512)
        self.assertEqual(client.read(0, 64 * KiB), bytes(64 * KiB))
        copied = [(64 * KiB, 0), (960 * KiB, 3), *expected[1:]]
        self.assertEqual(client.extents(), self.per_daemon(blockd=expected, rival=copied))

    def test_over_another_node(self) -> None:
        self.qmp.cmd("blockdev-add", driver="snapshot-access", node_name="s", file="n")
        self.export("s")
        with self.assertRaises(nbd.Error):
            self.guest("s").read(0, 512)
