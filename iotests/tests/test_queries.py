"""What query-named-block-nodes, query-block and query-blockstats tell."""

from __future__ import annotations

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import daemon_differs


class Queries(QMPTestCase):
    """query-named-block-nodes, query-block, query-blockstats."""

    def setUp(self) -> None:
        super().setUp()
        self.base = self.create_image("base.qcow2", MiB)
        self.top = self.create_image("top.qcow2", MiB, backing=self.base)
        self.launch()
        self.add_node("base", self.base)
        self.add_node("top", self.top, backing="base")

    @daemon_differs("10.1 added children, 10.0 active, 10.2 image.limits (host-dependent, optional)")
    def test_members_of_a_node(self) -> None:
        node = self.nodes()["top"]
        members = {
            *("file", "node-name", "ro", "drv", "backing_file", "backing_file_depth", "encrypted", "detect_zeroes"),
            *("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr", "image", "cache", "write_threshold"),
        }
        self.assertEqual(set(node), members | self.per_daemon(blockd={"children", "active"}, rival=set()))
        self.assertEqual(node["cache"], {"writeback": True, "direct": False, "no-flush": False})
        # The flat form does not walk the chain, not even to count it.
        self.assertEqual((node["backing_file"], node["backing_file_depth"]), (self.base, 0))
        self.assertEqual((node["detect_zeroes"], node["encrypted"], node["write_threshold"]), ("off", False, 0))

    @daemon_differs("10.1 added children")
    def test_children_of_a_node(self) -> None:
        expected = [{"child": "file", "node-name": "top-file"}, {"child": "backing", "node-name": "base"}]
        children = self.nodes()["top"].get("children", [])
        self.assertCountEqual(children, self.per_daemon(blockd=expected, rival=[]))

    def test_clusters_below_several_filters(self) -> None:
        self.qmp.cmd("object-add", qom_type="throttle-group", id="group")
        self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="cor", file="top")
        self.qmp.cmd("blockdev-add", driver="raw", node_name="raw", file="cor")
        self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="upper", file="raw")
        self.qmp.cmd("blockdev-add", driver="throttle", node_name="slow", throttle_group="group", file="upper")
        nodes = self.nodes()
        self.assertEqual([nodes[name]["image"]["cluster-size"] for name in ("cor", "raw", "slow")], [65536] * 3)

    def test_image_of_a_node(self) -> None:
        image = self.nodes()["top"]["image"]
        self.assertEqual((image["filename"], image["format"]), (self.top, "qcow2"))
        self.assertEqual((image["virtual-size"], image["cluster-size"], image["dirty-flag"]), (MiB, 65536, False))
        self.assertEqual((image["backing-filename"], image["full-backing-filename"]), (self.base, self.base))
        self.assertEqual(image["backing-filename-format"], "qcow2")
        self.assertEqual(
            image["format-specific"],
            {
                "type": "qcow2",
                "data": {
                    "compat": "1.1",
                    "compression-type": "zlib",
                    "lazy-refcounts": False,
                    "refcount-bits": 16,
                    "corrupt": False,
                    "extended-l2": False,
                },
            },
        )

    def test_format_specific_of_version_2(self) -> None:
        self.add_node("v2", self.create_image("v2.qcow2", MiB, images.QCOW2_V2))
        data = self.nodes()["v2"]["image"]["format-specific"]["data"]
        self.assertEqual(data, {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16})

    def test_flat_leaves_out_backing_images(self) -> None:
        self.assertNotIn("backing-image", self.nodes()["top"]["image"])
        deep = {one["node-name"]: one for one in self.qmp.cmd("query-named-block-nodes")}
        self.assertEqual(deep["top"]["image"]["backing-image"]["filename"], self.base)
        self.assertNotIn("backing-image", deep["base"]["image"])

    def test_cache_options(self) -> None:
        self.add_node("c", self.create_image("c.qcow2", MiB), cache={"direct": True, "no-flush": True})
        self.assertEqual(self.nodes()["c"]["cache"], {"writeback": True, "direct": True, "no-flush": True})

    def test_query_block_has_named_drives_only(self) -> None:
        self.assertEqual(self.qmp.cmd("query-block"), [])

    def test_statistics_count_what_a_guest_does(self) -> None:
        self.export("top")
        guest = self.guest("top")
        guest.write(128 * KiB, b"x" * 4096)
        guest.close()
        by_name = {one["node-name"]: one for one in self.qmp.cmd("query-blockstats", query_nodes=True)}
        self.assertEqual(by_name["top"]["stats"]["wr_highest_offset"], 128 * KiB + 4096)
        self.assertEqual(by_name["top"]["parent"]["node-name"], "top-file")
        self.assertNotIn("backing", by_name["top"])
        self.assertGreater(by_name["top-file"]["stats"]["wr_highest_offset"], 0)

    def test_statistics_of_drives_are_empty_without_drives(self) -> None:
        self.assertEqual(self.qmp.cmd("query-blockstats"), [])
