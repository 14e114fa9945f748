"""What a daemon has, read from its schema."""

from __future__ import annotations

import unittest
from typing import Any

from bench.schema import Schema, argument, command, driver, object_type

ENTRIES: list[dict[str, Any]] = [
    {"name": "blockdev-add", "meta-type": "command", "arg-type": "1", "ret-type": "0"},
    {"name": "1", "meta-type": "object", "members": [{"name": "driver", "type": "2"}], "tag": "driver",
     "variants": [{"case": "null-co", "type": "3"}]},
    {"name": "2", "meta-type": "enum", "members": [{"name": "null-co"}], "values": ["null-co"]},
    {"name": "3", "meta-type": "object", "members": [{"name": "size", "type": "int"}]},
]  # fmt: skip


class Needs(unittest.TestCase):
    schema = Schema(["blockdev-add"], ENTRIES)

    def test_commands(self) -> None:
        self.assertTrue(command("blockdev-add").present(self.schema))
        self.assertFalse(command("blockdev-mirror").present(self.schema))

    def test_arguments_of_variants(self) -> None:
        self.assertTrue(argument("blockdev-add", "size").present(self.schema))
        self.assertFalse(argument("blockdev-add", "nothing").present(self.schema))
        self.assertFalse(argument("blockdev-mirror", "size").present(self.schema))

    def test_drivers_and_objects(self) -> None:
        self.assertTrue(driver("null-co").present(self.schema))
        self.assertFalse(driver("nbd").present(self.schema))
        self.assertFalse(object_type("throttle-group").present(self.schema))
