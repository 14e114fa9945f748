"""Images made to hurt: each gets its error, the daemon lives, nothing is left behind."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import GiB, KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPError

# Offsets in the qcow2 header (docs/interop/qcow2 of the format's authors), all big-endian.
VERSION = 4
BACKING_OFFSET, BACKING_SIZE = 8, 16
CLUSTER_BITS = 20
SIZE = 24
CRYPT_METHOD = 32
L1_SIZE, L1_OFFSET = 36, 40
REFTABLE_OFFSET, REFTABLE_CLUSTERS = 48, 56
SNAPSHOTS = 60
INCOMPATIBLE = 72
REFCOUNT_ORDER, HEADER_LENGTH = 96, 100


class Hostile(QMPTestCase):
    """A good image with something broken in it."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.filled_image("a.qcow2", self.random_bytes(MiB))
        self.launch()

    def patch(self, offset: int, data: bytes) -> None:
        """Overwrite bytes of the image file."""
        with open(self.image, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def assert_refused(self, desc: str) -> None:
        """blockdev-add fails with exactly this text and leaves nothing behind."""
        file = {"driver": "file", "filename": self.image, "node-name": "f"}
        self.assert_qmp_error(desc, "blockdev-add", driver="qcow2", node_name="n", file=file)
        self.assert_nothing_left()
        # No lock is left either.
        os.truncate(self.image, 0)
        images.run_tool("qemu-img", "create", "-q", "-f", "qcow2", self.image, "1M")

    def test_bad_magic(self) -> None:
        self.patch(0, b"QFJ\xfb")
        self.assert_refused("Image is not in qcow2 format")

    def test_empty_file(self) -> None:
        os.truncate(self.image, 0)
        self.assert_refused("Image is not in qcow2 format")

    def test_version(self) -> None:
        self.patch(VERSION, struct.pack(">I", 4))
        self.assert_refused("Unsupported qcow2 version 4")

    def test_cluster_bits(self) -> None:
        for bits in (8, 22, 0xFFFFFFFF):
            self.patch(0, Path(self.create_image("fresh.qcow2", MiB)).read_bytes()[:512])
            self.patch(CLUSTER_BITS, struct.pack(">I", bits))
            self.assert_refused(f"Unsupported cluster size: 2^{bits}")

    def test_huge_l1(self) -> None:
        self.patch(L1_SIZE, struct.pack(">I", 0x7FFFFFFF))
        self.assert_refused("Active L1 table too large")

    def test_l1_too_small_for_the_size(self) -> None:
        self.patch(SIZE, struct.pack(">Q", 1 << 50))
        self.assert_refused("L1 table is too small")

    def test_l1_out_of_alignment(self) -> None:
        self.patch(L1_OFFSET, struct.pack(">Q", 0x30001))
        self.assert_refused("Active L1 table offset invalid")

    def test_huge_reference_table(self) -> None:
        self.patch(REFTABLE_CLUSTERS, struct.pack(">I", 0x7FFFFFFF))
        self.assert_refused("Reference count table too large")

    def test_no_reference_table(self) -> None:
        self.patch(REFTABLE_CLUSTERS, struct.pack(">I", 0))
        self.assert_refused("Image does not contain a reference count table")

    def test_reference_table_out_of_alignment(self) -> None:
        self.patch(REFTABLE_OFFSET, struct.pack(">Q", 0x10001))
        self.assert_refused("Reference count table offset invalid")

    def test_reference_count_width(self) -> None:
        self.patch(REFCOUNT_ORDER, struct.pack(">I", 7))
        self.assert_refused("Reference count entry width too large; may not exceed 64 bits")

    def test_header_length(self) -> None:
        self.patch(HEADER_LENGTH, struct.pack(">I", 8))
        self.assert_refused("qcow2 header too short")

    def test_header_larger_than_a_cluster(self) -> None:
        self.patch(HEADER_LENGTH, struct.pack(">I", 0x7FFFFFF8))
        self.assert_refused("qcow2 header exceeds cluster size")

    def test_backing_name_too_long(self) -> None:
        self.patch(BACKING_OFFSET, struct.pack(">QI", 512, 1024))
        self.assert_refused("Backing file name too long")

    def test_backing_name_offset(self) -> None:
        self.patch(BACKING_OFFSET, struct.pack(">QI", 1 << 60, 10))
        self.assert_refused("Invalid backing file offset")

    def test_encryption_method(self) -> None:
        self.patch(CRYPT_METHOD, struct.pack(">I", 9))
        self.assert_refused("Unsupported encryption method 9")

    def test_too_many_snapshots(self) -> None:
        self.patch(SNAPSHOTS, struct.pack(">I", 0x7FFFFFFF))
        self.assert_refused("Snapshot table too large")

    def test_unknown_incompatible_feature(self) -> None:
        self.patch(INCOMPATIBLE, struct.pack(">Q", 1 << 63))
        self.assert_refused("Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000")

    def test_header_extension_too_large(self) -> None:
        self.patch(112, struct.pack(">II", 0x12345678, 0x7FFFFFFF))
        self.assert_refused("Header extension too large")

    def test_corrupt_bit(self) -> None:
        self.patch(INCOMPATIBLE, struct.pack(">Q", 2))
        self.assert_refused("qcow2: Image is corrupt; cannot be opened read/write")

    def test_corrupt_bit_read_only(self) -> None:
        self.patch(INCOMPATIBLE, struct.pack(">Q", 2))
        self.add_node("n", self.image, read_only=True)
        self.assertTrue(self.nodes()["n"]["image"]["format-specific"]["data"]["corrupt"])

    def test_truncated_at_every_structure(self) -> None:
        whole = Path(self.image).read_bytes()
        for length in (1, 71, 103, 512, 64 * KiB, 128 * KiB, 192 * KiB, 256 * KiB, len(whole) - 1):
            with self.subTest(length=length):
                path = self.path(f"t{length}.qcow2")
                Path(path).write_bytes(whole[:length])
                try:
                    self.add_node("n", path)
                except QMPError as error:
                    self.assertEqual(error.error_class, "GenericError")
                else:
                    self.qmp.cmd("blockdev-del", node_name="n")
                self.assert_nothing_left()


class HostileTables(QMPTestCase):
    """An image that opens, and whose tables point to nowhere."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.filled_image("a.qcow2", self.random_bytes(MiB))
        with open(self.image, "rb") as file:
            header = file.read(104)
            self.l1_offset = struct.unpack_from(">Q", header, L1_OFFSET)[0]
            file.seek(self.l1_offset)
            self.l2_offset = struct.unpack(">Q", file.read(8))[0] & 0x00FFFFFFFFFFFE00
        self.launch()

    def put(self, offset: int, entry: int) -> None:
        """Overwrite one table entry."""
        with open(self.image, "r+b") as file:
            file.seek(offset)
            file.write(struct.pack(">Q", entry))

    def assert_requests_fail(self, *, reads: bool) -> None:
        """A guest gets errors, not a dead daemon; the connection serves on."""
        self.add_node("n", self.image)
        self.export("n")
        guest = self.guest("n")
        if reads:
            with self.assertRaises(Exception):
                guest.read(0, 4096)
        with self.assertRaises(Exception):
            guest.write(0, b"x" * 4096)
        guest.vanish()
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_l2_out_of_alignment(self) -> None:
        self.put(self.l1_offset, 1 << 63 | (self.l2_offset + 512))
        self.assert_requests_fail(reads=True)
        event = self.qmp.wait_event("BLOCK_IMAGE_CORRUPTED", {"node-name": "n"})
        self.assertEqual((event["data"]["device"], event["data"]["fatal"]), ("", True))

    def test_cluster_out_of_alignment(self) -> None:
        self.put(self.l2_offset, 1 << 63 | 0x50200)
        self.assert_requests_fail(reads=True)
        self.qmp.wait_event("BLOCK_IMAGE_CORRUPTED", {"node-name": "n"})

    def test_data_cluster_over_the_l1_table(self) -> None:
        self.put(self.l2_offset, 1 << 63 | self.l1_offset)
        self.assert_requests_fail(reads=False)

    def test_l2_past_the_end_of_the_file(self) -> None:
        self.put(self.l1_offset, 1 << 63 | 1 << 40)
        self.add_node("n", self.image, read_only=True)
        self.export("n", writable=False)
        guest = self.guest("n")
        try:
            self.assertEqual(guest.read(0, 4096), bytes(4096))
        except Exception as error:  # pylint: disable=broad-except; an error is as good as zeroes
            self.assertIn("error", str(error).lower())
        self.assertIn("n", self.nodes())


class HostileChains(QMPTestCase):
    """Backing files that go in circles or lead out of the files."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def rebase(self, image: str, backing: str, backing_format: str = "qcow2") -> None:
        """Write a backing name into a header without opening it."""
        images.run_tool("qemu-img", "rebase", "-u", "-b", backing, "-F", backing_format, image)

    def refusal(self, path: str) -> str:
        """The text with which blockdev-add refuses the image; nothing is left behind."""
        with self.assertRaises(QMPError) as caught:
            self.add_node("n", path)
        self.assert_nothing_left()
        return caught.exception.desc

    @blockd_only("the rival opens a circle until its descriptors run out")
    def test_image_that_backs_itself(self) -> None:
        one = self.create_image("one.qcow2", MiB)
        self.rebase(one, one)
        self.assertIn("one.qcow2", self.refusal(one))

    @blockd_only("the rival opens a circle until its descriptors run out")
    def test_circle_of_two(self) -> None:
        one, two = self.create_image("one.qcow2", MiB), self.create_image("two.qcow2", MiB)
        self.rebase(one, two)
        self.rebase(two, one)
        self.refusal(one)

    @blockd_only("the rival waits for a writer of the fifo for ever; blockd opens only files and block devices")
    def test_fifo_as_backing_file(self) -> None:
        fifo = self.path("fifo")
        os.mkfifo(fifo)
        one = self.create_image("one.qcow2", MiB)
        self.rebase(one, fifo, "raw")
        self.assertIn(fifo, self.refusal(one))

    @blockd_only("the rival opens character devices; blockd opens only files and block devices from headers")
    def test_character_device_as_backing_file(self) -> None:
        one = self.create_image("one.qcow2", MiB)
        self.rebase(one, "/dev/zero", "raw")
        self.refusal(one)

    def test_directory_as_backing_file(self) -> None:
        one = self.create_image("one.qcow2", MiB)
        self.rebase(one, str(self.directory), "raw")
        self.assertEqual(
            self.refusal(one),
            f"Could not open backing file: 'file' driver requires '{self.directory}' to be a regular file",
        )

    def test_unknown_backing_format(self) -> None:
        one = self.create_image("one.qcow2", MiB)
        image = Path(one).read_bytes()
        self.rebase(one, self.create_image("base.raw", MiB, images.RAW), "raw")
        patched = Path(one).read_bytes().replace(b"\xe2\x79\x2a\xca\0\0\0\x03raw", b"\xe2\x79\x2a\xca\0\0\0\x03zzz")
        self.assertNotEqual(patched, image)
        Path(one).write_bytes(patched)
        self.assertEqual(self.refusal(one), "Could not open backing file: Unknown driver 'zzz'")

    def test_protocol_that_is_not_there(self) -> None:
        one = self.create_image("one.qcow2", MiB)
        self.rebase(one, "nosuch:thing", "raw")
        self.assertEqual(self.refusal(one), "Could not open backing file: Unknown protocol 'nosuch'")

    def test_deep_chain(self) -> None:
        path = self.filled_image("0.qcow2", b"d" * 64 * KiB)
        for number in range(1, 60):
            path = self.create_image(f"{number}.qcow2", 64 * KiB, backing=path)
        self.add_node("n", path)
        depths = {one["node-name"]: one["backing_file_depth"] for one in self.qmp.cmd("query-named-block-nodes")}
        self.assertEqual(depths["n"], 59)
        self.export("n", writable=False)
        self.assertEqual(self.guest("n").read(0, 64 * KiB), b"d" * 64 * KiB)

    def test_huge_virtual_size(self) -> None:
        path = self.create_image("huge.qcow2", 2**20 * GiB // 256, images.QCOW2_2M)
        self.add_node("n", path)
        self.assertEqual(self.nodes()["n"]["image"]["virtual-size"], 2**20 * GiB // 256)
        self.qmp.cmd("blockdev-del", node_name="n")
