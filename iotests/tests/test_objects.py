"""Objects and character devices by their commands: what is there, what it is like, and what is refused."""

from __future__ import annotations

from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.markers import blockd_only, daemon_differs
from iotests.harness.qmp import QMPError

TYPE = {"name": "type", "type": "string"}


class Objects(QMPTestCase):
    """The tree of objects: qom-list, qom-get, qom-set, qom-list-get and what is told of types."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()
        self.qmp.cmd("object-add", qom_type="throttle-group", id="tg", limits={"iops-total": 7})
        self.qmp.cmd("object-add", qom_type="iothread", id="io")

    def get(self, path: str, name: str) -> Any:
        return self.qmp.cmd("qom-get", path=path, property=name)

    def test_list(self) -> None:
        children = [{"name": "io", "type": "child<iothread>"}, {"name": "tg", "type": "child<throttle-group>"}]
        self.assertCountEqual(self.qmp.cmd("qom-list", path="/objects"), [TYPE, *children])
        root = self.qmp.cmd("qom-list", path="/")
        self.assertIn({"name": "objects", "type": "child<container>"}, root)
        self.qmp.cmd("object-del", id="io")
        self.assertCountEqual(self.qmp.cmd("qom-list", path="/objects"), [TYPE, children[1]])

    def test_a_part_of_a_path_will_do(self) -> None:
        whole = self.qmp.cmd("qom-list", path="/objects/tg")
        self.assertIn({"name": "limits", "type": "ThrottleLimits"}, whole)
        self.assertEqual(self.qmp.cmd("qom-list", path="tg"), whole)

    def test_properties_are_those_of_the_type(self) -> None:
        for name, kind in (("tg", "throttle-group"), ("io", "iothread")):
            of_type = self.qmp.cmd("qom-list-properties", typename=kind)
            self.assertCountEqual(self.qmp.cmd("qom-list", path=name), of_type)
            self.assertEqual(self.get(name, "type"), kind)

    def test_values(self) -> None:
        limits = self.get("/objects/tg", "limits")
        self.assertEqual({name: value for name, value in limits.items() if value > 1}, {"iops-total": 7})
        self.assertEqual(self.get("tg", "x-iops-total"), 7)
        self.assertEqual(self.get("io", "poll-max-ns"), 32768)
        self.qmp.cmd("qom-set", path="io", property="poll-max-ns", value=5000)
        self.assertEqual(self.get("io", "poll-max-ns"), 5000)

    def test_refused_values_change_nothing(self) -> None:
        for path, name, value, text in (
            ("io", "poll-max-ns", -1, "poll-max-ns value must be in range [0, 9223372036854775807]"),
            ("io", "poll-max-ns", "x", "Invalid parameter type for 'poll-max-ns', expected: integer"),
            ("io", "type", "x", "Property 'iothread.type' is not writable"),
            ("tg", "limits", {"iops-total": -7}, "bps/iops/max values must be within [0, 1000000000000000]"),
            ("tg", "x-iops-total", 8, "Property cannot be set after initialization"),
        ):
            before = self.get(path, name)
            self.assert_qmp_error(text, "qom-set", {"path": path, "property": name, "value": value})
            self.assertEqual(self.get(path, name), before)

    def test_what_is_not_there(self) -> None:
        lost = "Device '/zz' not found"
        here = {"path": "/zz", "property": "type"}
        self.assert_qmp_error(lost, "qom-list", path="/zz", error_class="DeviceNotFound")
        self.assert_qmp_error(lost, "qom-get", here, error_class="DeviceNotFound")
        self.assert_qmp_error(lost, "qom-set", here, value=1, error_class="DeviceNotFound")
        unknown = {"typename": "zz"}
        self.assert_qmp_error("Class 'zz' not found", "qom-list-properties", unknown, error_class="DeviceNotFound")
        self.assert_qmp_error("Property 'throttle-group.zz' not found", "qom-get", path="tg", property="zz")
        self.assertEqual(self.qmp.cmd("qom-list-types", implements="zz"), [])

    def test_types(self) -> None:
        group = {"name": "throttle-group", "parent": "object"}
        self.assertEqual(self.qmp.cmd("qom-list-types", implements="throttle-group"), [group])
        real = self.qmp.cmd("qom-list-types", implements="user-creatable")
        everything = self.qmp.cmd("qom-list-types", implements="user-creatable", abstract=True)
        self.assertIn(group, real)
        self.assertIn({"name": "secret", "parent": "secret_common"}, real)
        self.assertIn({"name": "iothread", "parent": "event-loop-base"}, real)
        self.assertIn({"name": "secret_common", "parent": "object", "abstract": True}, everything)
        self.assertCountEqual([one for one in everything if not one.get("abstract")], real)

    @blockd_only("qom-list-get came with 10.1")
    def test_values_of_several_at_once(self) -> None:
        group, thread = self.qmp.cmd("qom-list-get", paths=["/objects/tg", "io"])
        for name, answer in (("tg", group), ("io", thread)):
            shown = [{"name": one["name"], "type": one["type"]} for one in answer["properties"]]
            self.assertCountEqual(shown, self.qmp.cmd("qom-list", path=name))
            for one in answer["properties"]:
                self.assertEqual(one["value"], self.get(name, one["name"]))
        self.assert_qmp_error(
            "Device '/zz' not found", "qom-list-get", {"paths": ["/objects", "/zz"]}, error_class="DeviceNotFound"
        )


class Chardevs(QMPTestCase):
    """Character devices that come, change and go."""

    def setUp(self) -> None:
        super().setUp()
        self.launch()
        self.qmp.cmd("chardev-add", id="n", backend={"type": "null", "data": {}})

    def name(self) -> str | None:
        """What query-chardev calls the device's end; None when it is gone."""
        names: dict[str, str] = {one["label"]: one["filename"] for one in self.qmp.cmd("query-chardev")}
        return names.get("n")

    def to_file(self, path: str) -> None:
        self.qmp.cmd("chardev-change", id="n", backend={"type": "file", "data": {"out": path}})

    def test_backends(self) -> None:
        names = [one["name"] for one in self.qmp.cmd("query-chardev-backends")]
        self.assertLessEqual({"null", "stdio", "socket", "file"}, set(names))
        self.assertEqual(len(names), len(set(names)))

    def test_change(self) -> None:
        self.assertEqual(self.name(), "null")
        self.to_file(self.path("out"))
        self.assertEqual(self.name(), "file")
        self.qmp.cmd("chardev-remove", id="n")
        self.assertIsNone(self.name())

    @daemon_differs("the rival loses a device whose change has failed")
    def test_failed_change(self) -> None:
        path = self.path("no/out")
        with self.assertRaises(QMPError) as caught:
            self.to_file(path)
        self.assertEqual(
            caught.exception.desc, f"Failed to add chardev 'n': Could not open '{path}': No such file or directory"
        )
        self.assertEqual(self.name(), self.per_daemon(blockd="null", rival=None))

    def test_break(self) -> None:
        self.qmp.cmd("chardev-send-break", id="n")
        self.assertEqual(self.name(), "null")

    def test_refused(self) -> None:
        backend = {"type": "null", "data": {}}
        self.assert_qmp_error("Chardev 'zz' does not exist", "chardev-change", id="zz", backend=backend)
        self.assert_qmp_error("Chardev 'zz' not found", "chardev-send-break", id="zz")
        self.assert_qmp_error("Chardev 'zz' not found", "chardev-remove", id="zz")
        # A monitor holds its device.
        self.assert_qmp_error("Chardev 'm0' is busy", "chardev-remove", id="m0")
        self.assert_qmp_error(
            "Chardev user does not support chardev hotswap", "chardev-change", id="m0", backend=backend
        )
        self.assertEqual(self.name(), "null")
