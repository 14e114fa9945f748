"""Options that nobody knows, in json: names: refused by `blockd img` as by qemu-img, at each depth."""

from __future__ import annotations

import json
from typing import Any

from iotests.tests.test_img import ImgCase

FILE = {"driver": "file", "filename": "top.qcow2"}
RAW = {"driver": "file", "filename": "plain.raw"}


class UnknownOptions(ImgCase):
    """What is left over when the drivers have taken theirs."""

    def setUp(self) -> None:
        super().setUp()
        self.chain()

    def text(self, *command: str, **options: Any) -> str:
        """What both say of a node with these options, without its name."""
        name = "json:" + json.dumps(options)
        status, output, errors = self.both(*command, name)
        self.assertEqual((status, output), (1, ""), options)
        return errors.removeprefix(f"Could not open '{name}': ")

    def test_of_the_node_itself(self) -> None:
        for option, value in (("x", 1), ("x.y", 1), ("cache.zz", True), ("backing.driver", "raw")):
            for driver, file in (("qcow2", FILE), ("raw", RAW)):
                self.assertEqual(
                    self.text("info", driver=driver, file=file, **{option: value}),
                    f"Block format '{driver}' does not support the option '{option}'",
                )
        members: list[dict[str, Any]] = [{"x": 1}, {"file": {"driver": "null-co"}}]
        for member in members:
            option = "x" if "x" in member else "file.driver"
            text = f"Block protocol 'file' doesn't support the option '{option}'"
            self.assertEqual(self.text("info", **RAW, **member), text)

    def test_of_a_probed_node(self) -> None:
        self.assertEqual(self.text("info", file=FILE, x=1), "Block format 'qcow2' does not support the option 'x'")

    def test_of_nodes_below(self) -> None:
        text = "Block protocol 'file' doesn't support the option 'x'"
        self.assertEqual(self.text("info", driver="qcow2", file=FILE | {"x": 1}), text)
        self.assertEqual(self.text("info", file=FILE | {"x": 1}), text)
        self.assertEqual(self.text("info", driver="blkdebug", image=RAW | {"x": 1}), text)
        quorum = {"driver": "quorum", "vote-threshold": 1}
        self.assertEqual(self.text("info", **quorum, children=[RAW | {"x": 1}]), text)
        raw = {"driver": "raw", "file": RAW, "x": {"y": 1}}
        self.assertEqual(
            self.text("info", **quorum, children=[raw]),
            "Block format 'raw' does not support the option 'x.y'",
        )

    def test_other_mistakes_come_first(self) -> None:
        missing = {"driver": "file", "filename": "missing", "x": 1}
        text = "Could not open 'missing': No such file or directory"
        self.assertEqual(self.text("info", **missing), text)
        self.assertEqual(self.text("info", driver="raw", x=1, file=missing), text)
        self.assertEqual(self.text("info", driver="qcow2", x=1, file=RAW), "Image is not in qcow2 format")

    def test_of_the_backing_file(self) -> None:
        self.text("map", driver="qcow2", file=FILE, backing={"x": 1})
        self.text("map", driver="qcow2", file=FILE, backing={"driver": "raw", "file": RAW, "x": 1})

    def test_no_backing_file_for_who_never_has_one(self) -> None:
        nodes: list[dict[str, Any]] = [{"driver": "raw", "file": RAW}, RAW, {"driver": "null-co"}]
        for options in nodes:
            self.good("map", "json:" + json.dumps(options | {"backing": None}))

    def test_nothing_is_changed(self) -> None:
        before = (self.images / "top.qcow2").read_bytes()
        for command in (("resize",), ("snapshot", "-c", "s")):
            size = ("8M",) if command == ("resize",) else ()
            name = "json:" + json.dumps({"driver": "qcow2", "file": FILE, "x": 1})
            self.assertEqual(self.both(*command, name, *size)[0], 1)
            self.assertEqual((self.ours / "top.qcow2").read_bytes(), before)
