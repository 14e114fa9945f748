"""Images made by the daemon and put on top of others: blockdev-create, blockdev-snapshot, -snapshot-sync."""

from __future__ import annotations

import os
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB


class Create(QMPTestCase):
    """blockdev-create."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()

    def create_file(self, name: str = "new", size: int = 0, **more: Any) -> str:
        """blockdev-create of a file; its path."""
        path = self.path(name)
        self.assertEqual(self.run_create({"driver": "file", "filename": path, "size": size, **more}), "")
        return path

    def test_file(self) -> None:
        path = self.create_file(size=MiB)
        self.assertEqual(os.path.getsize(path), MiB)

    def test_file_preallocation(self) -> None:
        for mode in ("off", "falloc", "full"):
            path = self.create_file(mode, MiB, preallocation=mode)
            self.assertEqual(os.path.getsize(path), MiB)
            allocated = os.stat(path).st_blocks * 512
            self.assertTrue(allocated < 64 * KiB if mode == "off" else allocated >= MiB, (mode, allocated))

    def test_sequence_of_events(self) -> None:
        options = {"driver": "file", "filename": self.path("f"), "size": MiB}
        self.qmp.cmd("blockdev-create", job_id="c", options=options)
        self.wait_status("c", "concluded")
        self.assert_job_sequence("c", ("created", "running", "waiting", "pending", "concluded"), exact=True)
        job = self.job("c")
        self.assertEqual((job["type"], job["status"]), ("create", "concluded"))
        self.assertEqual((job["current-progress"], job["total-progress"]), (1, 1))
        self.assertEqual(self.qmp.cmd("query-block-jobs"), [])
        self.qmp.cmd("job-dismiss", id="c")
        self.assertEqual(self.job_sequence("c")[-1], "null")

    def test_drivers_that_create_nothing(self) -> None:
        for driver in ("raw", "null-co"):
            self.assert_qmp_error(
                "Driver does not support blockdev-create", "blockdev-create", job_id="c", options={"driver": driver}
            )

    def create_qcow2(self, **options: Any) -> str:
        """File node, format and header by the daemon; the path of a finished image."""
        path = self.create_file()
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=path)
        error = self.run_create({"driver": "qcow2", "file": "f", **options})
        self.assertEqual(error, "")
        self.qmp.cmd("blockdev-del", node_name="f")
        images.check(path)
        return path

    def test_qcow2_defaults(self) -> None:
        info = images.info(self.create_qcow2(size=64 * MiB))
        self.assertEqual((info["virtual-size"], info["cluster-size"]), (64 * MiB, 65536))
        self.assertEqual(info["format-specific"]["data"]["compat"], "1.1")

    def test_qcow2_cluster_sizes_and_versions(self) -> None:
        for cluster_size in (512, 4 * KiB, 64 * KiB, 2 * MiB):
            for version, compat in (("v2", "0.10"), ("v3", "1.1")):
                with self.subTest(cluster_size=cluster_size, version=version):
                    options = {"cluster-size": cluster_size, "version": version}
                    path = self.create_qcow2(size=8 * MiB, **options)
                    info = images.info(path)
                    self.assertEqual((info["cluster-size"], info["virtual-size"]), (cluster_size, 8 * MiB))
                    self.assertEqual(info["format-specific"]["data"]["compat"], compat)
                    images.qemu_io(path, "write -q -P 3 1M 3M", "read -q -P 3 1M 3M", driver="qcow2")
                    images.check(path)

    def test_qcow2_with_backing_file(self) -> None:
        base = self.filled_image("base.qcow2", self.random_bytes(MiB))
        path = self.create_qcow2(size=MiB, **{"backing-file": base, "backing-fmt": "qcow2"})
        info = images.info(path)
        self.assertEqual((info["backing-filename"], info["backing-filename-format"]), (base, "qcow2"))
        images.compare(path, base, "qcow2", "qcow2")

    def test_qcow2_errors_come_in_the_job(self) -> None:
        path = self.create_file()
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=path)
        refused: list[tuple[dict[str, Any], str]] = [
            ({"size": 1000}, "Image size must be a multiple of 512 bytes"),
            ({"size": MiB, "cluster-size": 1000}, "Cluster size must be a power of two between 512 and 2048k"),
            ({"size": MiB, "cluster-size": 4 * MiB}, "Cluster size must be a power of two between 512 and 2048k"),
            ({"size": MiB, "refcount-bits": 17}, "Refcount width must be a power of two and may not exceed 64 bits"),
            ({"size": MiB, "backing-fmt": "raw"}, "Backing format cannot be used without backing file"),
        ]
        for options, error in refused:
            with self.subTest(options=options):
                self.assertEqual(self.run_create({"driver": "qcow2", "file": "f", **options}), error)
        self.assertEqual(set(self.nodes()), {"f"})

    def test_create_over_a_file_that_cannot_be_made(self) -> None:
        options = {"driver": "file", "filename": "/nosuch/dir/f", "size": 512}
        self.assertIn("No such file or directory", self.run_create(options))

    def test_argument_errors(self) -> None:
        options = {"driver": "file", "filename": self.path("f"), "size": 512}
        self.assert_qmp_error("Parameter 'job-id' is missing", "blockdev-create", options=options)
        self.assert_qmp_error("Invalid job ID '1 bad'", "blockdev-create", job_id="1 bad", options=options)
        self.assert_qmp_error(
            "Parameter 'driver' does not accept value 'nosuch'",
            "blockdev-create",
            job_id="c",
            options={"driver": "nosuch"},
        )
        self.assert_qmp_error(
            "Parameter 'options.size' is missing",
            "blockdev-create",
            job_id="c",
            options={"driver": "file", "filename": self.path("f")},
        )
        self.assertFalse(os.path.exists(self.path("f")))
        self.assert_nothing_left()

    def test_failed_creation_keeps_the_old_content(self) -> None:
        image = self.filled_image("held.qcow2", self.random_bytes(MiB))
        self.add_node("n", image)
        error = self.run_create({"driver": "file", "filename": image, "size": 512})
        self.assertIn("lock", error)
        self.daemon.quit()
        images.check(image)


class Snapshot(QMPTestCase):
    """blockdev-snapshot."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(MiB)
        self.base = self.filled_image("base.qcow2", self.data)
        self.overlay = self.create_image("overlay.qcow2", MiB, backing=self.base)
        self.launch()
        self.add_node("base", self.base)

    def test_guest_writes_go_to_the_overlay(self) -> None:
        self.export("base")
        guest = self.guest("base")
        self.add_node("over", self.overlay, backing=None)
        self.assertEqual(self.qmp.cmd("blockdev-snapshot", node="base", overlay="over"), {})
        self.assert_chain("over", "base")
        guest.write(4096, b"N" * 4096)
        self.assertEqual(guest.read(0, MiB), self.data[:4096] + b"N" * 4096 + self.data[8192:])
        guest.close()
        self.assertEqual(self.qmp.cmd("query-block-exports")[0]["node-name"], "over")
        self.daemon.quit()
        self.assert_content(self.base, self.data)
        self.assert_content(self.overlay, self.data[:4096] + b"N" * 4096 + self.data[8192:])

    def test_old_top_becomes_read_only(self) -> None:
        self.export("base")
        self.add_node("over", self.overlay, backing=None)
        self.qmp.cmd("blockdev-snapshot", node="base", overlay="over")
        self.assertEqual((self.nodes()["base"]["ro"], self.nodes()["over"]["ro"]), (True, False))

    def test_filter_goes_on_below_the_overlay(self) -> None:
        self.add_node("over", self.overlay, backing=None)
        self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="cor", file="base")
        self.qmp.cmd("blockdev-snapshot", node="cor", overlay="over")
        self.assertEqual((self.nodes()["cor"]["ro"], self.nodes()["over"]["ro"]), (False, False))

    def test_errors(self) -> None:
        snapshot = "blockdev-snapshot"
        self.add_node("over", self.overlay, backing=None)
        self.assert_qmp_error("Cannot find device='zz' nor node-name='zz'", snapshot, node="zz", overlay="over")
        self.assert_qmp_error("Cannot find device='zz' nor node-name='zz'", snapshot, node="base", overlay="zz")
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="null", size=MiB)
        self.assert_qmp_error("The overlay does not support backing images", snapshot, node="base", overlay="null")
        other = self.create_image("other.qcow2", MiB)
        self.add_node("other", other)
        self.add_node("with", self.create_image("w.qcow2", MiB, backing=other), backing="other")
        self.assert_qmp_error("The overlay already has a backing image", snapshot, node="base", overlay="with")
        self.export("over")
        self.assert_qmp_error("The overlay is already in use", snapshot, node="base", overlay="over")
        self.assert_chain("over")


class SnapshotSync(QMPTestCase):
    """blockdev-snapshot-sync."""

    def setUp(self) -> None:
        super().setUp()
        self.data = self.random_bytes(MiB)
        self.base = self.filled_image("base.qcow2", self.data)
        self.new = self.path("new.qcow2")
        self.launch()
        self.add_node("base", self.base)

    def test_creates_the_overlay(self) -> None:
        self.export("base")
        guest = self.guest("base")
        self.qmp.cmd(
            "blockdev-snapshot-sync", node_name="base", snapshot_file=self.new, snapshot_node_name="over"
        )
        self.assert_chain("over", "base")
        guest.write(0, b"N" * 512)
        guest.close()
        self.daemon.quit()
        info = images.info(self.new)
        self.assertEqual((info["backing-filename"], info["backing-filename-format"]), (self.base, "qcow2"))
        self.assert_content(self.base, self.data)
        self.assert_content(self.new, b"N" * 512 + self.data[512:])

    def test_existing_overlay_is_taken_as_it_is(self) -> None:
        images.create(self.new, MiB, images.QCOW2_4K, self.base)
        self.export("base")
        self.qmp.cmd(
            "blockdev-snapshot-sync",
            node_name="base",
            snapshot_file=self.new,
            snapshot_node_name="over",
            mode="existing",
        )
        self.assertEqual(self.nodes()["over"]["image"]["cluster-size"], 4096)
        self.assert_chain("over", "base")

    def test_chain_of_ten(self) -> None:
        self.export("base")
        guest = self.guest("base")
        model = bytearray(self.data)
        node = "base"
        for number in range(10):
            name = f"s{number}"
            self.qmp.cmd(
                "blockdev-snapshot-sync", node_name=node, snapshot_file=self.path(name), snapshot_node_name=name
            )
            node = name
            guest.write(number * 1000, bytes([number + 1]) * 700)
            model[number * 1000 : number * 1000 + 700] = bytes([number + 1]) * 700
        self.assertEqual(guest.read(0, MiB), bytes(model))
        guest.close()
        self.daemon.quit()
        self.assert_content(self.path("s9"), bytes(model))
        self.assert_content(self.base, self.data)

    def test_errors(self) -> None:
        command = "blockdev-snapshot-sync"
        here = {"snapshot-file": self.new}
        self.assert_qmp_error("New overlay node-name missing", command, here, node_name="base")
        self.assert_qmp_error(
            "New overlay node-name already in use", command, here, node_name="base", snapshot_node_name="base"
        )
        self.assert_qmp_error(
            "Cannot find device='' nor node-name='zz'", command, here, node_name="zz", snapshot_node_name="o"
        )
        self.assert_qmp_error(
            "Unknown file format 'nosuch'",
            command,
            here,
            node_name="base",
            snapshot_node_name="o",
            format="nosuch",
        )
        self.assertFalse(os.path.exists(self.new))
        self.assert_nothing_left("base", "base-file")

    def test_existing_overlay_that_is_missing(self) -> None:
        self.assert_qmp_error(
            f"Could not open '{self.new}': No such file or directory",
            "blockdev-snapshot-sync",
            node_name="base",
            snapshot_file=self.new,
            snapshot_node_name="o",
            mode="existing",
        )
        self.assert_nothing_left("base", "base-file")

    def test_raw_cannot_be_an_overlay(self) -> None:
        self.assert_qmp_error(
            "Backing file not supported for file format 'raw'",
            "blockdev-snapshot-sync",
            node_name="base",
            snapshot_file=self.new,
            snapshot_node_name="o",
            format="raw",
        )
        self.assert_nothing_left("base", "base-file")
