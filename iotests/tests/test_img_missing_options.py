"""Options that must be there and are not, and older ones for others, in json: names: as with qemu-img."""

from __future__ import annotations

import json
from typing import Any

from iotests.tests.test_img import ImgCase

NULL = {"driver": "null-co"}
RAW = {"driver": "file", "filename": "plain.raw"}
UNNAMED = "The 'file' block driver requires a file name"


def no_child(name: str) -> str:
    return f'A block device must be specified for "{name}"'


class MissingOptions(ImgCase):
    """Each driver asks for what it needs in its own words."""

    def setUp(self) -> None:
        super().setUp()
        self.chain()

    def refused(self, text: str, **options: Any) -> None:
        """Both refuse a node with these options, with this text."""
        name = "json:" + json.dumps(options)
        status, output, errors = self.both("map", name)
        self.assertEqual((status, output), (1, ""), options)
        self.assertEqual(errors.removeprefix(f"Could not open '{name}': "), text, options)

    def test_file_name(self) -> None:
        self.refused(UNNAMED, driver="file")
        self.refused("The 'host_device' block driver requires a file name", driver="host_device")
        self.refused(UNNAMED, **{"file.driver": "file"})
        self.refused(UNNAMED, driver="qcow2", file={"driver": "file"})
        self.refused(UNNAMED, driver="blkdebug", image={"driver": "file"})
        self.refused(UNNAMED, driver="quorum", **{"vote-threshold": 1, "children": [{"driver": "file"}]})
        self.refused(UNNAMED, driver="qcow2", file={"driver": "file", "filename": "top.qcow2"}, **{"data-file.driver": "file"})

    def test_file_name_comes_before_most_other_mistakes(self) -> None:
        for option in ("detect-zeroes", "discard", "locking", "foo"):
            self.refused(UNNAMED, driver="file", **{option: "bad"})
        self.refused("Parameter 'cache.direct' expects 'on' or 'off'", driver="file", **{"cache.direct": "bad"})

    def test_children(self) -> None:
        for driver in ("raw", "qcow2", "luks", "throttle", "copy-on-read", "compress", "preallocate", "blklogwrites"):
            self.refused(no_child("file"), driver=driver)
        self.refused(no_child("file"), **{"file.driver": "raw"})
        self.refused(no_child("file"), driver="blkdebug", image={"driver": "raw"})
        self.refused(no_child("image"), driver="blkdebug")
        self.refused(no_child("raw"), driver="blkverify")
        self.refused(no_child("raw"), driver="blkverify", test=NULL)
        self.refused(no_child("test"), driver="blkverify", raw=NULL)
        self.refused(no_child("log"), driver="blklogwrites", file=NULL)
        self.refused("Number of provided children must be 1 or more", driver="quorum")
        self.refused("Parameter 'vote-threshold' expects a value >= 1", driver="quorum", children=[NULL])
        self.refused("Please specify a throttle group", driver="throttle", file=NULL)

    def test_server(self) -> None:
        missing = "NBD server address missing"
        self.refused(missing, driver="nbd")
        self.refused(missing, driver="nbd", export="x")
        self.refused(missing, driver="nbd", port="5")
        self.refused("Parameter 'path' is missing", driver="nbd", server={"type": "unix"})
        self.refused("Parameter 'type' is missing", driver="nbd", server={"path": "x"})

    def test_older_options_of_a_server(self) -> None:
        both = "Cannot use 'server' and path/host/port at the same time"
        self.refused(both, driver="nbd", host="x", server={"type": "unix"})
        self.refused("path and host may not be used at the same time", driver="nbd", path="x", host="y")
        self.refused("port may not be used without host", driver="nbd", path="x", port="1")
        text = "Failed to connect to './missing': No such file or directory"
        self.refused(text, driver="nbd", path="./missing")
        self.refused(text, driver="blkdebug", image={"driver": "nbd", "path": "./missing"})
        self.refused("Failed to connect to '127.0.0.1:1': Connection refused", driver="nbd", host="127.0.0.1", port="1")

    def test_backing_file_of_who_cannot_have_one(self) -> None:
        text = "Driver doesn't support backing files"
        for backing in (NULL, {"driver": "foo"}, {"foo": 1}, "x"):
            self.refused(text, driver="raw", file=RAW, backing=backing)
            self.refused(text, **NULL, backing=backing)
        self.refused(text, driver="raw", file=NULL | {"backing": NULL})
        self.refused(text, driver="raw", file=RAW, backing=NULL, foo=1)
        # Who only asks for the header has no backing file, but for nodes below.
        name = "json:" + json.dumps({"driver": "qcow2", "file": RAW | {"backing": NULL}})
        self.assertEqual(self.both("info", name), (1, "", f"Could not open '{name}': {text}"))
