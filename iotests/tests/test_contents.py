"""What guests read and write through every kind of image and through chains of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from iotests.harness import images
from iotests.harness.case import QMPTestCase, over_images
from iotests.harness.images import KiB, MiB


@over_images(*images.ALL_IMAGES)
class EveryImage(QMPTestCase):
    """What holds for every kind of image."""

    def test_reads_what_qemu_img_wrote(self) -> None:
        data = self.random_bytes(2 * MiB + 512 * 3)
        path = self.filled_image("a", data)
        self.launch()
        self.add_node("n", path, read_only=True)
        self.export("n", writable=False)
        self.assertEqual(self.guest("n").read(0, len(data)), data)

    def test_qemu_img_reads_what_a_guest_wrote(self) -> None:
        size = 2 * MiB + 512 * 3
        path = self.create_image("a", size)
        self.launch()
        self.add_node("n", path)
        self.export("n")
        guest = self.guest("n")
        model = bytearray(size)
        for number, (offset, length) in enumerate(
            [(0, 512), (511, 2), (1000, 100_000), (MiB - 1, 2), (MiB, MiB), (size - 1, 1), (70_000, 3), (0, 1)]
        ):
            data = self.random_bytes(length, number)
            guest.write(offset, data)
            model[offset : offset + length] = data
        guest.handle.zero(200_000, 300_000)
        model[300_000:500_000] = bytes(200_000)
        self.assertEqual(guest.read(0, size), bytes(model))
        guest.close()
        self.daemon.quit()
        self.assert_content(path, bytes(model))

    def test_trim_then_write_again(self) -> None:
        size = 4 * MiB
        path = self.filled_image("a", self.random_bytes(size))
        self.launch()
        self.add_node("n", path, discard="unmap")
        self.export("n")
        guest = self.guest("n")
        guest.handle.trim(2 * MiB, MiB)
        model = bytearray(guest.read(0, size))
        model[0:MiB] = guest.read(0, MiB)
        data = self.random_bytes(100_000, 9)
        guest.write(MiB + 123, data)
        model[MiB + 123 : MiB + 123 + len(data)] = data
        self.assertEqual(guest.read(0, size), bytes(model))
        guest.close()
        self.daemon.quit()
        self.assert_content(path, bytes(model))

    def test_resize(self) -> None:
        data = self.random_bytes(MiB)
        path = self.filled_image("a", data)
        self.launch()
        self.add_node("n", path)
        self.qmp.cmd("block_resize", node_name="n", size=3 * MiB)
        self.assertEqual(self.nodes()["n"]["image"]["virtual-size"], 3 * MiB)
        self.daemon.quit()
        self.assert_content(path, data + bytes(2 * MiB))

    def test_shrink(self) -> None:
        data = self.random_bytes(2 * MiB)
        path = self.filled_image("a", data)
        self.launch()
        self.add_node("n", path)
        self.qmp.cmd("block_resize", node_name="n", size=MiB)
        self.daemon.quit()
        self.assert_content(path, data[:MiB])


@over_images(*images.ALL_QCOW2)
class EveryQcow2(QMPTestCase):
    """Backing chains, copy-on-write and compressed clusters on every cluster size and version."""

    def test_copy_on_write_over_a_backing_file(self) -> None:
        data = self.random_bytes(2 * MiB)
        base = self.filled_image("base", data)
        top = self.create_image("top", 2 * MiB + 512, backing=base)
        self.launch()
        self.add_node("n", top)
        self.export("n")
        guest = self.guest("n")
        model = bytearray(data + bytes(512))
        for number, (offset, length) in enumerate([(100, 1), (65_535, 2), (500_000, 70_000), (2 * MiB - 1, 2)]):
            piece = self.random_bytes(length, number)
            guest.write(offset, piece)
            model[offset : offset + length] = piece
        self.assertEqual(guest.read(0, len(model)), bytes(model))
        guest.close()
        self.daemon.quit()
        self.assert_content(top, bytes(model))
        self.assert_content(base, data)

    def test_zeroes_hide_the_backing_file(self) -> None:
        data = self.random_bytes(MiB)
        base = self.filled_image("base", data)
        top = self.create_image("top", MiB, backing=base)
        self.launch()
        self.add_node("n", top)
        self.export("n")
        guest = self.guest("n")
        guest.handle.zero(MiB // 2, MiB // 4)
        guest.close()
        self.daemon.quit()
        self.assert_content(top, data[: MiB // 4] + bytes(MiB // 2) + data[3 * MiB // 4 :])

    def test_compressed_clusters(self) -> None:
        data = (b"compressible " * 100_000)[:MiB]
        raw = self.path("data.raw")
        Path(raw).write_bytes(data)
        path = self.path("c.qcow2")
        options = ",".join(self.image_options.create)
        images.run_tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
        self.launch()
        self.add_node("n", path)
        self.export("n")
        guest = self.guest("n")
        self.assertEqual(guest.read(0, MiB), data)
        guest.write(1000, b"z" * 5000)
        guest.close()
        self.daemon.quit()
        self.assert_content(path, data[:1000] + b"z" * 5000 + data[6000:])


class Chains(QMPTestCase):
    """How a backing chain comes to be."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(MiB)
        self.base = self.filled_image("base.qcow2", self.data)
        self.mid = self.create_image("mid.qcow2", MiB, backing=self.base)
        self.top = self.create_image("top.qcow2", MiB, backing=self.mid)
        self.launch()

    def assert_reads(self, node: str, expected: bytes) -> None:
        """The node holds these bytes."""
        self.export(node, writable=False)
        self.assertEqual(self.guest(node).read(0, len(expected)), expected)

    def test_from_the_headers(self) -> None:
        self.add_node("top", self.top)
        node = next(one for one in self.qmp.cmd("query-named-block-nodes") if one["node-name"] == "top")
        self.assertEqual((node["backing_file_depth"], node["backing_file"]), (2, self.mid))
        self.assert_reads("top", self.data)

    def test_by_reference(self) -> None:
        self.add_node("base", self.base)
        self.add_node("mid", self.mid, backing="base")
        self.add_node("top", self.top, backing="mid")
        self.assert_chain("top", "mid", "base")
        self.assertEqual(self.node_at("top/backing/backing/file"), "base-file")
        self.assert_reads("top", self.data)

    def test_by_inline_options(self) -> None:
        inline = {"driver": "qcow2", "node-name": "b", "file": {"driver": "file", "filename": self.base}}
        self.add_node("top", self.top, backing=inline)
        self.assert_chain("top", "b")
        self.assert_reads("top", self.data)

    def test_null_cuts_the_chain(self) -> None:
        self.add_node("top", self.top, backing=None)
        self.assert_chain("top")
        self.assert_reads("top", bytes(MiB))

    def test_relative_names_are_relative_to_the_overlay(self) -> None:
        folder = Path(self.path("sub"))
        folder.mkdir()
        shutil.copy(self.base, folder / "b.qcow2")
        images.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", str(folder / "t"))
        self.add_node("t", str(folder / "t"))
        self.assert_reads("t", self.data)

    def test_missing_backing_file(self) -> None:
        os.unlink(self.base)
        self.assert_qmp_error(
            f"Could not open backing file: Could not open '{self.base}': No such file or directory",
            "blockdev-add",
            driver="qcow2",
            node_name="mid",
            file={"driver": "file", "filename": self.mid},
        )
        self.assert_nothing_left()

    def test_backing_shorter_than_the_overlay(self) -> None:
        long = self.create_image("long.qcow2", 2 * MiB, backing=self.base)
        self.add_node("long", long)
        self.assert_reads("long", self.data + bytes(MiB))

    def test_raw_backing(self) -> None:
        raw = self.path("base.raw")
        Path(raw).write_bytes(self.data)
        top = self.create_image("t.qcow2", MiB, backing=raw, backing_format="raw")
        self.add_node("t", top)
        self.assert_reads("t", self.data)

    def test_backing_nodes_are_read_only(self) -> None:
        self.add_node("base", self.base, read_only=True)
        self.add_node("mid", self.mid, backing="base")
        nodes = self.nodes()
        self.assertEqual((nodes["base"]["ro"], nodes["mid"]["ro"]), (True, False))

    def test_raw_has_no_backing_option(self) -> None:
        self.assert_qmp_error(
            "Parameter 'backing' is unexpected",
            "blockdev-add",
            driver="raw",
            node_name="r",
            file={"driver": "file", "filename": self.base},
            backing=None,
        )


class Raw(QMPTestCase):
    """The raw format with offset and size."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(MiB)
        self.file = self.path("disk.raw")
        Path(self.file).write_bytes(self.data)
        self.launch()

    def test_slice(self) -> None:
        self.add_node("n", self.file, "raw", offset=64 * KiB, size=128 * KiB)
        self.export("n")
        guest = self.guest("n")
        self.assertEqual(guest.size, 128 * KiB)
        self.assertEqual(guest.read(0, guest.size), self.data[64 * KiB : 192 * KiB])
        guest.write(128 * KiB - 512, b"e" * 512)
        guest.close()
        self.daemon.quit()
        self.assertEqual(
            Path(self.file).read_bytes(), self.data[: 192 * KiB - 512] + b"e" * 512 + self.data[192 * KiB :]
        )

    def test_offset_without_size_reaches_to_the_end(self) -> None:
        self.add_node("n", self.file, "raw", offset=MiB - 1024)
        self.assertEqual(self.nodes()["n"]["image"]["virtual-size"], 1024)

    def test_slice_errors(self) -> None:
        for options, desc in (
            ({"offset": 2 * MiB}, "Offset (2097152) cannot be greater than size of the containing file (1048576)"),
            ({"size": 2 * MiB}, "The sum of offset ("),
            ({"size": 100}, "Specified size is not multiple of 512"),
        ):
            with self.subTest(options=options):
                with self.assertRaises(Exception) as caught:
                    self.add_node("n", self.file, "raw", **options)
                self.assertIn(desc, str(caught.exception))
                self.assert_nothing_left()

    def test_slice_cannot_be_resized(self) -> None:
        self.add_node("n", self.file, "raw", size=64 * KiB)
        self.assert_qmp_error("Cannot resize fixed-size raw disks", "block_resize", node_name="n", size=MiB)

    def test_never_becomes_another_format(self) -> None:
        header = Path(self.create_image("q.qcow2", MiB)).read_bytes()[:512]
        self.add_node("n", self.file, "raw")
        self.export("n")
        guest = self.guest("n")
        guest.write(0, header)
        guest.close()
        self.assertEqual(self.nodes()["n"]["drv"], "raw")
        self.assertEqual(self.nodes()["n"]["image"]["virtual-size"], MiB)
