"""blockdev-reopen: what options may change while a node is open, and what is said of the others."""

from __future__ import annotations

import copy
import json
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import MiB
from iotests.harness.markers import blockd_only, daemon_differs

Options = dict[str, Any]


class ReopenCase(QMPTestCase):
    """Images and the ways of reopening them that the tests of both modules share."""

    # Images of three regions of 1 MiB; each has one of its own. The second has the first as backing file.
    REGION = MiB
    MARKS = (b"\xa0", b"\xa1", b"\xa2")

    def setUp(self) -> None:
        super().setUp()
        self.files = [self.path(f"hd{number}.qcow2") for number in range(3)]
        for number, name in enumerate(("hd0.qcow2", "hd1.qcow2", "hd2.qcow2")):
            backing = self.files[0] if number == 1 else ""
            self.create_image(name, 3 * self.REGION, backing=backing)
            pattern = f"write -q -P {self.MARKS[number][0]:#x} {number}M 1M"
            images.qemu_io(self.files[number], pattern, driver="qcow2")
        self.launch()

    def options(self, number: int, **more: Any) -> Options:
        """The options of image `number` as node hdN over hdN-file."""
        file = {"driver": "file", "node-name": f"hd{number}-file", "filename": self.files[number]}
        return {"driver": "qcow2", "node-name": f"hd{number}", "file": file, **more}

    def add(self, options: Options) -> None:
        """blockdev-add."""
        self.qmp.execute("blockdev-add", copy.deepcopy(options))

    def reopen(self, *list_of_options: Options) -> None:
        """blockdev-reopen of a list."""
        self.qmp.cmd("blockdev-reopen", options=list(list_of_options))

    def refuse(self, text: str, *list_of_options: Options) -> None:
        """blockdev-reopen fails with this text, and nothing has changed."""
        before = self.picture()
        self.assert_qmp_error(text, "blockdev-reopen", options=list(list_of_options))
        self.assertEqual(self.picture(), before)

    def picture(self) -> str:
        """All that queries tell about nodes and edges, but for what a flush may change."""

        def settled(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: settled(member) for key, member in value.items() if key != "actual-size"}
            return [settled(member) for member in value] if isinstance(value, list) else value

        graph = self.qmp.cmd("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        edges = sorted(
            (names[e["parent"]], names[e["child"]], e["name"], e["perm"], e["shared-perm"]) for e in graph["edges"]
        )
        return json.dumps([settled(self.qmp.cmd("query-named-block-nodes")), edges], sort_keys=True)


def changed(options: Options, path: str, value: Any) -> Options:
    """A copy of options with the member at a path like "file.locking" set, or removed by ... (Ellipsis)."""
    result = copy.deepcopy(options)
    *parents, last = path.split(".")
    inner = result
    for name in parents:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return result


class Refused(ReopenCase):
    """What may not change."""

    def test_image_without_backing_file(self) -> None:
        options = self.options(0)
        self.add(options)
        before = self.picture()
        self.reopen(options)
        self.reopen(changed(options, "file", "hd0-file"))
        for path, value, text in (
            ("node-name", "zz", "Failed to find node with node-name='zz'"),
            ("node-name", "", "Failed to find node with node-name=''"),
            ("node-name", None, "Invalid parameter type for 'options[0].node-name', expected: string"),
            ("node-name", ..., "node-name not specified"),
            ("driver", "raw", "Cannot change the option 'driver'"),
            ("driver", "", "Parameter 'driver' does not accept value ''"),
            ("driver", None, "Invalid parameter type for 'options[0].driver', expected: string"),
            ("file", "zz", "Cannot find device='' nor node-name='zz'"),
            ("file", "", "Cannot find device='' nor node-name=''"),
            ("file", None, "Invalid parameter type for 'file', expected: BlockdevRef"),
            ("file.node-name", "other", "Cannot change the option 'node-name'"),
            ("file.driver", "host_device", "Cannot change the option 'driver'"),
            ("file.filename", self.files[1], "Cannot change the option 'filename'"),
            ("file.aio", "native", "Cannot change the option 'aio'"),
            ("file.locking", "off", "Cannot change the option 'locking'"),
            ("file.filename", None, "Invalid parameter type for 'options[0].file.filename', expected: string"),
            ("force-share", True, "Cannot change the option 'force-share'"),
        ):
            with self.subTest(path=path, value=value):
                self.refuse(text, changed(options, path, value))
        self.assertEqual(self.picture(), before)
        self.qmp.cmd("blockdev-del", node_name="hd0")
        self.assert_nothing_left()

    def test_backing_file_from_the_header(self) -> None:
        options = self.options(1)
        self.add(options)
        before = self.picture()
        self.refuse("backing is missing for 'hd1'", options)
        self.reopen({**options, "backing": self.node_at("hd1/backing")})
        self.refuse("Cannot find device='' nor node-name='zz'", {**options, "backing": "zz"})
        self.refuse("Cannot find device='' nor node-name=''", {**options, "backing": ""})
        options["backing"] = {"driver": "qcow2", "file": {"driver": "file", "filename": self.files[0]}}
        self.reopen(options)
        for path, value, name in (
            ("backing.node-name", "other", "node-name"),
            ("backing.driver", "raw", "driver"),
            ("backing.file.node-name", "other", "node-name"),
            ("backing.file.driver", "host_device", "driver"),
        ):
            with self.subTest(path=path):
                self.refuse(f"Cannot change the option '{name}'", changed(options, path, value))
        self.assertEqual(self.picture(), before)
        self.qmp.cmd("blockdev-del", node_name="hd1")

    def test_options_of_protocols(self) -> None:
        self.add({"driver": "null-co", "node-name": "null", "size": 1024})
        self.refuse("Cannot change the option 'size'", {"driver": "null-co", "node-name": "null", "size": 1 << 30})
        self.refuse("Option 'size' cannot be reset to its default value", {"driver": "null-co", "node-name": "null"})
        options = self.options(0)
        options["file"]["locking"] = "on"
        self.add(options)
        for whole, path in ((options, "file.locking"), (options["file"], "locking")):
            self.reopen(whole)
            self.refuse("Cannot change the option 'locking'", changed(whole, path, "off"))
            self.refuse("Option 'locking' cannot be reset to its default value", changed(whole, path, ...))

    def test_drivers_that_cannot(self) -> None:
        self.add(self.options(0))
        self.add({"driver": "null-co", "node-name": "target", "size": 3 * MiB})
        cor = {"driver": "copy-on-read", "node-name": "cor", "file": "hd0"}
        self.add(cor)
        self.refuse("Block format 'copy-on-read' used by node 'cor' does not support reopening files", cor)

    def test_node_defined_by_itself_is_not_reached_from_above(self) -> None:
        self.add(self.options(2))
        self.add(self.options(0, backing="hd2"))
        self.refuse("Cannot change the option 'backing.driver'", self.options(0, backing=self.options(2)))

    def test_generated_name(self) -> None:
        options = self.options(0)
        del options["file"]["node-name"]
        self.add(options)
        name = self.node_at("hd0/file")
        self.refuse("Cannot change the option 'node-name'", {**options["file"], "node-name": name})


class Changed(ReopenCase):
    """What may change, and what comes back when it is left out."""

    def test_read_only_and_back(self) -> None:
        options = self.options(1, backing=self.options(0))
        self.add(options)
        before = self.picture()
        self.reopen(options)
        self.assertFalse(self.nodes()["hd1"]["ro"])
        self.reopen({**options, "read-only": True})
        self.assertEqual({name: node["ro"] for name, node in self.nodes().items()},
                         {"hd1": True, "hd1-file": True, "hd0": True, "hd0-file": True})
        self.reopen(options)
        self.assertFalse(self.nodes()["hd1"]["ro"])
        self.assertEqual(self.picture(), before)

    def test_read_only_needs_no_writer(self) -> None:
        options = self.options(0)
        self.add(options)
        identity = self.export("hd0")
        self.refuse("Read-only block node 'hd0' cannot support read-write users", {**options, "read-only": True})
        self.unexport(identity)
        self.reopen({**options, "read-only": True})
        self.assert_qmp_error(
            "Cannot export read-only node as writable", "block-export-add",
            type="nbd", id="e", node_name="hd0", writable=True,
        )
        self.reopen(options)
        self.export("hd0")

    def test_file_is_open_as_it_must_be(self) -> None:
        options = self.options(0)
        self.add(options)
        self.reopen({**options, "read-only": True})
        # A reader shares with everybody who does not write.
        images.qemu_io(self.files[0], "read -q 0 64k", driver="qcow2", extra=("-r",))
        self.reopen(options)
        guest = self.guest(self.export("hd0").removeprefix("exp-"))
        guest.write(0, b"x" * 4096)
        self.assertEqual(guest.read(0, 4096), b"x" * 4096)

    def test_cache(self) -> None:
        options = self.options(1, backing=self.options(0))
        self.add(options)
        before = self.picture()
        cache = {"direct": images.supports_direct(self.files[0]), "no-flush": True}
        self.reopen({**options, "cache": cache})
        for name in ("hd1", "hd1-file", "hd0", "hd0-file"):
            self.assertEqual(self.nodes()[name]["cache"], {"writeback": True, **cache})
        self.reopen(options)
        self.assertEqual(self.picture(), before)

    def test_direct_under_load(self) -> None:
        if not images.supports_direct(self.files[0]):
            self.skipTest("needs O_DIRECT")
        options = self.options(0)
        self.add(options)
        self.export("hd0")
        model = self.MARKS[0] * MiB + bytes(2 * MiB)
        writer = self.guest_writer("hd0", model)
        for _ in range(10):
            self.reopen({**options, "cache": {"direct": True}})
            writer.wait_writes(3)
            self.reopen(options)
            writer.wait_writes(3)
        model = writer.stop()
        self.assertEqual(self.guest("hd0").read(0, 3 * MiB), model)

    def test_detect_zeroes_and_discard(self) -> None:
        options = self.options(0)
        self.add(options)

        def present() -> str:
            return str(self.nodes()["hd0"]["detect_zeroes"])

        self.assertEqual(present(), "off")
        self.reopen({**options, "detect-zeroes": "on"})
        self.assertEqual(present(), "on")
        self.refuse(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            {**options, "detect-zeroes": "unmap"},
        )
        self.reopen({**options, "detect-zeroes": "unmap", "discard": "unmap"})
        self.assertEqual(present(), "unmap")
        self.reopen(options)
        self.assertEqual(present(), "off")

    @daemon_differs("the rival keeps discard=unmap when the option is left out, against its documentation")
    def test_discard_left_out_is_ignore(self) -> None:
        options = self.options(0)
        self.add({**options, "discard": "unmap"})
        self.reopen(options)
        again = {**options, "detect-zeroes": "unmap"}
        if self.per_daemon(blockd=True, rival=False):
            self.refuse(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap", again
            )
        else:
            self.reopen(again)

    def test_qcow2_options(self) -> None:
        options = self.options(0)
        self.add(options)
        before = self.picture()
        self.refuse(
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
            {**options, "l2-cache-entry-size": 128 << 10},
        )
        self.refuse(
            "l2-cache-size may not exceed cache-size", {**options, "l2-cache-size": 1 << 20, "cache-size": 512 << 10}
        )
        changes: list[dict[str, Any]] = [
            {"l2-cache-size": 4 << 20, "refcount-cache-size": 4 << 20, "l2-cache-entry-size": 32 << 10},
            {"pass-discard-request": True, "pass-discard-snapshot": False, "pass-discard-other": True},
            {"overlap-check": "all"},
            {"overlap-check": {"template": "none", "main-header": True}},
            {"lazy-refcounts": True, "cache-clean-interval": 1},
        ]
        for more in changes:
            self.reopen({**options, **more})
        self.reopen(options)
        self.assertEqual(self.picture(), before)

    def test_slices_change_under_load(self) -> None:
        options = self.options(0)
        self.add(options)
        self.export("hd0")
        model = self.MARKS[0] * MiB + bytes(2 * MiB)
        writer = self.guest_writer("hd0", model)
        for size in (512, 65536, 4096) * 4:
            self.reopen({**options, "l2-cache-entry-size": size, "l2-cache-size": 2 * 65536})
            writer.wait_writes(3)
        model = writer.stop()
        guest = self.guest("hd0")
        self.assertEqual(guest.read(0, 3 * MiB), model)
        guest.close()
        self.unexport("exp-hd0", mode="hard")
        self.qmp.cmd("blockdev-del", node_name="hd0")
        self.assert_content(self.files[0], model)

    def test_names_below_may_be_left_out(self) -> None:
        options = self.options(1, backing=self.options(0))
        self.add(options)
        before = self.picture()
        for path in ("file.node-name", "backing.node-name", "backing.file.node-name"):
            options = changed(options, path, ...)
        self.reopen(options)
        self.assertEqual(self.picture(), before)

    def test_reference_keeps_the_options_of_a_child(self) -> None:
        options = self.options(
            0, **{"detect-zeroes": "on"},
            backing=self.options(1, **{"detect-zeroes": "on"}, backing=self.options(2, **{"detect-zeroes": "on"})),
        )
        self.add(options)
        self.reopen({"driver": "qcow2", "node-name": "hd0", "file": "hd0-file", "backing": "hd1"})
        zeroes = {name: node["detect_zeroes"] for name, node in self.nodes().items() if not name.endswith("-file")}
        self.assertEqual(zeroes, {"hd0": "off", "hd1": "on", "hd2": "on"})

    def test_raw_offset_and_size(self) -> None:
        path = self.create_image("a.raw", 2 * MiB, images.RAW)
        images.qemu_io(path, "write -q -P 0xa0 0 1M", driver="raw")
        images.qemu_io(path, "write -q -P 0xa1 1M 1M", driver="raw")
        file = {"driver": "file", "filename": path, "node-name": "raw-file"}
        options = {"driver": "raw", "node-name": "raw", "file": file}
        self.add(options)
        self.export("raw", writable=False)
        guest = self.guest("raw")
        self.assertEqual(guest.read(0, MiB), b"\xa0" * MiB)
        self.reopen({**options, "offset": MiB})
        self.assertEqual(guest.read(0, MiB), b"\xa1" * MiB)
        self.assertEqual(self.nodes()["raw"]["image"]["virtual-size"], MiB)
        self.refuse(
            f"The sum of offset ({MiB}) and size ({2 * MiB}) has to be smaller or equal to the  actual size of the "
            f"containing file ({2 * MiB})",
            {**options, "offset": MiB, "size": 2 * MiB},
        )
        self.reopen(options)
        self.assertEqual(guest.read(0, MiB), b"\xa0" * MiB)
        self.assertEqual(self.nodes()["raw"]["image"]["virtual-size"], 2 * MiB)

    def test_throttle_group(self) -> None:
        for name in ("group0", "group1"):
            self.qmp.cmd("object-add", qom_type="throttle-group", id=name, limits={"iops-total": 1000})
        options = {"driver": "throttle", "node-name": "t", "throttle-group": "group0", "file": self.options(0)}
        self.add(options)
        self.reopen(options)
        self.reopen({**options, "file": "hd0"})
        self.refuse("Throttle group 'zz' does not exist", {**options, "throttle-group": "zz"})
        self.reopen({**options, "throttle-group": "group1"})
        self.assert_qmp_error("object 'group1' is in use, can not be deleted", "object-del", id="group1")
        self.reopen(options)
        self.assert_qmp_error("object 'group0' is in use, can not be deleted", "object-del", id="group0")
        self.qmp.cmd("object-del", id="group1")
        self.qmp.cmd("blockdev-del", node_name="t")
        self.qmp.cmd("object-del", id="group0")

    def test_blkdebug_keeps_its_options(self) -> None:
        options = {"driver": "blkdebug", "node-name": "bd", "align": 4096, "image": self.options(0)}
        self.add(options)
        self.reopen(options)
        self.add(self.options(2))
        self.refuse("Cannot change the option 'image'", {**options, "image": "hd2"})
        self.refuse("Cannot change the option 'align'", {**options, "align": 33554432})
        self.refuse("Option 'align' cannot be reset to its default value", changed(options, "align", ...))


class Lists(ReopenCase):
    """Several nodes at once: all or none."""

    def test_one_bad_member_leaves_the_others(self) -> None:
        self.add(self.options(0))
        self.add(self.options(2))
        self.refuse(
            "Cannot change the option 'filename'",
            self.options(0, **{"read-only": True, "detect-zeroes": "on"}),
            changed(self.options(2), "file.filename", self.files[0]),
        )
        self.refuse(
            "Failed to find node with node-name='zz'",
            self.options(0, **{"detect-zeroes": "on"}), self.options(2, **{"node-name": "zz"}),
        )

    def test_permissions_are_those_of_the_whole(self) -> None:
        self.add(self.options(2))
        self.add(self.options(0))
        # hd2's file must not be written by two.
        self.refuse(
            "Permission conflict on node 'hd2-file': permissions 'write, resize' are both required by node 'hd2' "
            "(uses node 'hd2-file' as 'file' child) and unshared by node 'hd0' (uses node 'hd2-file' as 'file' child).",
            {**self.options(0), "file": "hd2-file"}, self.options(2, **{"detect-zeroes": "on"}),
        )

    def test_the_same_node_twice(self) -> None:
        self.add(self.options(0))
        # What comes later completes, and overrides, what came earlier.
        self.reopen(self.options(0, **{"detect-zeroes": "on"}), self.options(0, **{"read-only": True}))
        node = self.nodes()["hd0"]
        self.assertEqual((node["detect_zeroes"], node["ro"]), ("on", True))
        self.reopen(self.options(0, **{"detect-zeroes": "on"}), self.options(0, **{"detect-zeroes": "off"}))
        node = self.nodes()["hd0"]
        self.assertEqual((node["detect_zeroes"], node["ro"]), ("off", False))

    def test_contradictory_children(self) -> None:
        self.add(self.options(0, backing=None))
        self.add(self.options(2))
        self.refuse(
            "Making 'hd0' a backing child of 'hd2' would create a cycle",
            self.options(0, backing="hd2"), self.options(2, backing="hd0"),
        )

    @blockd_only("an empty list ends the rival with an assertion")
    def test_nothing(self) -> None:
        self.add(self.options(0))
        before = self.picture()
        self.qmp.cmd("blockdev-reopen", options=[])
        self.assertEqual(self.picture(), before)
