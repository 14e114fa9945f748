"""qcow2 images with an external data file, and with extended L2 entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase, over_images
from iotests.harness.images import KiB, MiB, ImageOptions
from iotests.harness.markers import daemon_differs

SIZE = 4 * MiB


class DataFileCase(QMPTestCase):
    """What the tests of data files share."""

    def external(self, *extra: str) -> tuple[str, str]:
        """An image with a data file, by qemu-img; both paths."""
        data = self.path("disk.data")
        options = ImageOptions("external", "qcow2", (f"data_file={data}", *extra))
        return self.create_image("disk.qcow2", SIZE, options), data

    def specific(self, node: str) -> Any:
        """The format's part of what is told about a node."""
        return self.nodes()[node]["image"]["format-specific"]["data"]

    def edges(self) -> dict[str, tuple[list[str], list[str]]]:
        """Permissions used and shared by the name of the edge."""
        graph = self.qmp.cmd("x-debug-query-block-graph")
        return {e["name"]: (sorted(e["perm"]), sorted(e["shared-perm"])) for e in graph["edges"]}


class Open(DataFileCase):
    """Opening: who names the data file, and what is told."""

    def test_by_the_header(self) -> None:
        image, data = self.external()
        self.launch()
        self.add_node("n", image)
        self.assertEqual(self.specific("n")["data-file"], data)
        self.assertIs(self.specific("n")["data-file-raw"], False)
        self.assertIs(self.specific("n")["extended-l2"], False)
        self.assertEqual(self.nodes()["n"]["image"]["filename"], image)
        self.assertIn(data, [node["file"] for node in self.nodes().values()])
        self.qmp.cmd("blockdev-del", node_name="n")
        self.assert_nothing_left()

    def test_by_the_options(self) -> None:
        image, data = self.external()
        other = self.path("other.data")
        Path(data).rename(other)
        self.launch()
        self.assert_qmp_error(
            f"Could not open '{data}': No such file or directory",
            "blockdev-add",
            driver="qcow2",
            node_name="n",
            file={"driver": "file", "filename": image},
        )
        self.assert_nothing_left()
        self.qmp.cmd("blockdev-add", driver="file", node_name="data", filename=other)
        self.add_node("n", image, data_file="data")
        self.assertEqual(self.specific("n")["data-file"], data)
        self.assert_qmp_error("Block device data is in use", "blockdev-del", node_name="data")
        self.qmp.cmd("blockdev-del", node_name="n")
        self.assert_nothing_left("data")

    def test_errors(self) -> None:
        image, data = self.external()
        images.run_tool("qemu-img", "amend", "-f", "qcow2", "-o", "data_file=", image)
        plain = self.create_image("plain.qcow2", SIZE)
        self.launch()
        file = {"driver": "file", "filename": image}
        self.assert_qmp_error(
            "'data-file' is required for this image", "blockdev-add", driver="qcow2", node_name="n", file=file
        )
        self.assert_qmp_error(
            "'data-file' can only be set for images with an external data file",
            "blockdev-add",
            {"data-file": {"driver": "file", "filename": data}},
            driver="qcow2",
            node_name="n",
            file={"driver": "file", "filename": plain},
        )
        self.assert_nothing_left()
        self.add_node("n", image, data_file={"driver": "file", "filename": data})
        self.assertNotIn("data-file", self.specific("n"))

    def test_the_header_names_no_protocol(self) -> None:
        image, _ = self.external()
        name = "json:{}"
        images.run_tool("qemu-img", "amend", "-f", "qcow2", "-o", f"data_file={name}", image)
        self.launch()
        self.assert_qmp_error(
            f"Could not open '{name}': No such file or directory",
            "blockdev-add",
            driver="qcow2",
            node_name="n",
            file={"driver": "file", "filename": image},
        )

    def test_permissions(self) -> None:
        image, data = self.external()
        self.launch()
        self.qmp.cmd("blockdev-add", driver="file", node_name="data", filename=data)
        self.add_node("n", image, data_file="data")
        idle = self.edges()
        self.assertEqual(idle["data-file"][0], [])
        self.assertEqual(idle["file"], (["consistent-read", "resize", "write"], ["consistent-read", "write-unchanged"]))
        self.export("n")
        busy = self.edges()
        self.assertEqual(busy["data-file"][0], ["consistent-read", "resize", "write"])
        self.assertEqual(busy["file"], idle["file"])


class Use(DataFileCase):
    """Guests and commands."""

    def use(self, *extra: str) -> None:
        """A guest writes, zeroes and discards; then the image and the data file are looked at."""
        image, data = self.external(*extra)
        self.launch()
        self.add_node("n", image, discard="unmap")
        self.export("n")
        guest = self.guest("n")
        model = bytearray(SIZE)
        piece = self.random_bytes(300_000)
        guest.write(1000, piece)
        model[1000 : 1000 + len(piece)] = piece
        guest.handle.zero(128 * KiB, 64 * KiB)
        model[64 * KiB : 192 * KiB] = bytes(128 * KiB)
        guest.handle.trim(64 * KiB, 192 * KiB)
        model[192 * KiB : 256 * KiB] = bytes(64 * KiB)
        guest.write(200 * KiB, b"x" * 1000)
        model[200 * KiB : 200 * KiB + 1000] = b"x" * 1000
        self.assertEqual(guest.read(0, SIZE), bytes(model))
        guest.handle.flush()
        guest.close()
        self.daemon.quit()
        self.assert_content(image, bytes(model))
        stored = Path(data).read_bytes()
        self.assertEqual(stored[: 64 * KiB], bytes(model[: 64 * KiB]))
        self.assertLess(Path(image).stat().st_size, MiB)
        if "data_file_raw=on" in extra:
            # The rival's discards may leave old data there; ours do not.
            self.assertEqual(stored[256 * KiB :], bytes(model[256 * KiB :]))
            if self.per_daemon(blockd=True, rival=False):
                self.assertEqual(stored, bytes(model))

    def test_use(self) -> None:
        self.use()

    def test_use_metadata_preallocated(self) -> None:
        self.use("preallocation=metadata")

    @daemon_differs("a raw data file is right by itself at every moment")
    def test_use_raw(self) -> None:
        self.use("data_file_raw=on")

    def test_use_with_subclusters(self) -> None:
        self.use("extended_l2=on")

    def test_resize(self) -> None:
        image, data = self.external()
        self.launch()
        self.add_node("n", image)
        self.qmp.cmd("block_resize", node_name="n", size=2 * SIZE)
        self.assertEqual(Path(data).stat().st_size, 2 * SIZE)
        self.qmp.cmd("block_resize", node_name="n", size=SIZE // 2)
        self.assertEqual(Path(data).stat().st_size, SIZE // 2)
        self.daemon.quit()
        self.assert_content(image, bytes(SIZE // 2))

    def test_reopen_keeps_the_data_file(self) -> None:
        image, data = self.external()
        self.launch()
        self.qmp.cmd("blockdev-add", driver="file", node_name="data", filename=data)
        self.qmp.cmd("blockdev-add", driver="file", node_name="meta", filename=image)
        options = {"driver": "qcow2", "node-name": "n", "file": "meta", "data-file": "data"}
        self.qmp.execute("blockdev-add", options)
        self.qmp.cmd("blockdev-reopen", options=[{**options, "l2-cache-size": 65536}])
        self.qmp.cmd("blockdev-reopen", options=[{**options, "read-only": True}])
        self.qmp.cmd("blockdev-reopen", options=[options])
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="null")
        self.assert_qmp_error(
            "Cannot change the option 'data-file'",
            "blockdev-reopen",
            options=[{**options, "data-file": "null"}],
        )
        self.export("n")
        guest = self.guest("n")
        guest.write(0, b"y" * KiB)
        guest.close()
        self.daemon.quit()
        self.assertEqual(Path(data).read_bytes()[:KiB], b"y" * KiB)


class Create(DataFileCase):
    """blockdev-create."""

    def new(self, *, data: bytes = b"", **more: Any) -> tuple[str, str, str]:
        """An image over two files; their paths and the job's error."""
        meta, disk = self.path("new.qcow2"), self.path("new.data")
        Path(meta).touch()
        Path(disk).write_bytes(data)
        self.qmp.cmd("blockdev-add", driver="file", node_name="meta", filename=meta)
        self.qmp.cmd("blockdev-add", driver="file", node_name="data", filename=disk)
        options = {"driver": "qcow2", "size": SIZE, "file": "meta", **{k.replace("_", "-"): v for k, v in more.items()}}
        error = self.run_create(options)
        self.qmp.cmd("blockdev-del", node_name="meta")
        self.qmp.cmd("blockdev-del", node_name="data")
        return meta, disk, error

    def test_data_file(self) -> None:
        self.launch()
        meta, disk, error = self.new(data_file="data")
        self.assertEqual(error, "")
        self.assertEqual(Path(disk).stat().st_size, SIZE)
        self.assertEqual(images.info(meta)["format-specific"]["data"]["data-file"], disk)
        self.assert_content(meta, bytes(SIZE))
        self.assertEqual([e for e in images.allocation(meta, "qcow2") if e["data"]], [])

    def test_raw_around_a_disk(self) -> None:
        self.launch()
        content = self.random_bytes(SIZE)
        meta, disk, error = self.new(data=content, data_file="data", data_file_raw=True)
        self.assertEqual(error, "")
        self.assertEqual(Path(disk).read_bytes(), content)
        self.assertIs(images.info(meta)["format-specific"]["data"]["data-file-raw"], True)
        self.assert_content(meta, content)

    def test_errors(self) -> None:
        self.launch()
        refused: list[tuple[str, dict[str, Any]]] = [
            ("data-file-raw requires data-file", {"data_file_raw": True}),
            (
                "Backing file and data-file-raw cannot be used at the same time",
                {"data_file": "data", "data_file_raw": True, "backing_file": "x", "backing_fmt": "raw"},
            ),
            (
                "External data files are only supported with compatibility level 1.1 and above"
                " (use version=v3 or greater)",
                {"data_file": "data", "version": "v2"},
            ),
            (
                "Extended L2 entries are only supported with compatibility level 1.1 and above"
                " (use version=v3 or greater)",
                {"extended_l2": True, "version": "v2"},
            ),
            (
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
                {"extended_l2": True, "cluster_size": 8192},
            ),
            (
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
                {"backing_file": "x", "backing_fmt": "raw", "preallocation": "metadata"},
            ),
        ]
        for text, more in refused:
            with self.subTest(text):
                self.assertEqual(self.new(**more)[2], text)

    def test_one_node_for_both(self) -> None:
        self.launch()
        path = self.path("both")
        Path(path).touch()
        self.qmp.cmd("blockdev-add", driver="file", node_name="both", filename=path)
        error = self.run_create({"driver": "qcow2", "file": "both", "data-file": "both", "size": MiB})
        self.assertRegex(
            error,
            r"^Permission conflict on node 'both': permissions 'resize' are both required by node '(#block\d+)' "
            r"\(uses node 'both' as 'file' child\) and unshared by node '\1' \(uses node 'both' as 'data-file' child\)\.$",
        )

    def test_extended(self) -> None:
        base = self.filled_image("base.raw", self.random_bytes(SIZE), images.RAW)
        self.launch()
        meta, _, error = self.new(
            extended_l2=True, backing_file=base, backing_fmt="raw", preallocation="metadata", cluster_size=16 * KiB
        )
        self.assertEqual(error, "")
        self.assertIs(images.info(meta)["format-specific"]["data"]["extended-l2"], True)
        self.assert_content(meta, Path(base).read_bytes())


EXTENDED = tuple(
    ImageOptions(f"extended_{size // KiB}k", "qcow2", (f"cluster_size={size}", "extended_l2=on"), size)
    for size in (16 * KiB, 64 * KiB, 2 * MiB)
)


@over_images(*EXTENDED)
class Subclusters(QMPTestCase):
    """Only what is touched is allocated and copied."""

    def test_only_touched_subclusters_are_allocated(self) -> None:
        below = self.random_bytes(SIZE)
        base = self.filled_image("base.raw", below, images.RAW)
        image = self.create_image("disk", SIZE, backing=base, backing_format="raw")
        cluster = self.image_options.cluster_size
        unit = cluster // 32
        self.launch()
        self.add_node("n", image, discard="unmap")
        self.export("n")
        guest = self.guest("n")
        model = bytearray(below)
        guest.write(unit + 100, b"a" * 200)
        model[unit + 100 : unit + 300] = b"a" * 200
        guest.handle.zero(2 * unit, 3 * unit)
        model[3 * unit : 5 * unit] = bytes(2 * unit)
        guest.write(4 * unit, b"b" * 100)
        model[4 * unit : 4 * unit + 100] = b"b" * 100
        guest.handle.trim(cluster, cluster)
        model[cluster : 2 * cluster] = bytes(cluster)
        self.assertEqual(guest.read(0, SIZE), bytes(model))
        guest.close()
        self.daemon.quit()
        top = [(e["start"], e["length"], e["data"]) for e in images.allocation(image, "qcow2") if e["depth"] == 0]
        self.assertEqual(
            top,
            [(unit, unit, True), (3 * unit, unit, False), (4 * unit, unit, True), (cluster, cluster, False)],
        )
        self.assert_content(image, bytes(model))
