"""The blkdebug filter: injected errors, states, limits, permissions and names."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.guest import nbd
from iotests.harness.images import KiB, MiB, RAW
from iotests.harness.markers import daemon_differs


class Blkdebug(QMPTestCase):
    """A raw image behind blkdebug."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.create_image("a.img", MiB, RAW)
        self.launch()
        self.qmp.cmd("blockdev-add", driver="file", node_name="f", filename=self.image)

    def add(self, node_name: str = "d", **options: Any) -> None:
        """Add blkdebug over the file."""
        self.qmp.cmd("blockdev-add", driver="blkdebug", node_name=node_name, image="f", **options)

    def refused(self, desc: str, **options: Any) -> None:
        """Adding blkdebug over the file fails with this text, and leaves nothing."""
        self.assert_qmp_error(desc, "blockdev-add", driver="blkdebug", node_name="d", image="f", **options)
        self.assert_nothing_left("f")

    def assert_write_fails(self, guest: Any, offset: int, number: int) -> None:
        """A write of a sector fails with this error."""
        with self.assertRaises(nbd.Error) as caught:
            guest.write(offset, b"x" * 512)
        self.assertEqual(caught.exception.errnum, number)

    def test_error_of_a_sector_once(self) -> None:
        self.add(inject_error=[{"event": "none", "sector": 3, "once": True, "errno": errno.ENOSPC, "iotype": "write"}])
        self.export("d")
        guest = self.guest("d")
        guest.write(0, b"a" * 512)
        self.assert_write_fails(guest, 3 * 512, errno.ENOSPC)
        guest.write(3 * 512, b"b" * 512)
        self.assertEqual(guest.read(0, 2048), b"a" * 512 + bytes(1024) + b"b" * 512)

    def test_error_of_an_export_is_its_client_s_alone(self) -> None:
        """No event tells of it: BLOCK_IO_ERROR is about an emulator's devices."""
        self.add(inject_error=[{"event": "none", "sector": 3, "errno": errno.EIO, "iotype": "write"}])
        self.export("d")
        self.assert_write_fails(self.guest("d"), 3 * 512, errno.EIO)
        self.qmp.cmd("query-version")
        self.assertEqual(self.qmp.take_events(), [])

    def test_states(self) -> None:
        """The second write comes in state 2, where an error waits for it; the third in state 3."""
        config = self.path("rules")
        Path(config).write_text(
            '# comment\n[set-state]\nstate = "1"\nevent = "pwritev"\nnew_state = "2"\n'
            '[inject-error]\nstate = "2"\nevent = "pwritev"\nerrno = "5"\nonce = "on"\n'
            '[set-state]\nstate = "2"\nevent = "pwritev"\nnew_state = "3"\n',
            encoding="ascii",
        )
        self.add(config=config)
        self.export("d")
        guest = self.guest("d")
        guest.write(0, b"a" * 512)
        self.assert_write_fails(guest, 512, errno.EIO)
        guest.write(512, b"b" * 512)

    def test_flush_fails_only_with_something_to_do(self) -> None:
        self.add(inject_error=[{"event": "none", "iotype": "flush"}])
        self.export("d")
        guest = self.guest("d")
        guest.handle.flush()
        guest.write(0, b"a" * 512)
        with self.assertRaises(nbd.Error):
            guest.handle.flush()

    def test_events_of_the_format_above(self) -> None:
        self.add(inject_error=[{"event": "read_aio", "iotype": "read", "errno": errno.EIO}])
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file="d")
        self.export("r")
        guest = self.guest("r")
        with self.assertRaises(nbd.Error):
            guest.read(0, 512)

    def test_unaligned_write_is_widened(self) -> None:
        """With `align`, an error between the read that precedes a small write and the write."""
        self.add(align=4096, inject_error=[{"event": "pwritev_rmw_after_head", "iotype": "write"}])
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file="d")
        self.export("r")
        guest = self.guest("r")
        guest.write(0, b"a" * 4096)
        self.assert_write_fails(guest, 512, errno.EIO)
        guest.handle.flush()
        self.assertEqual(guest.read(0, 4096), b"a" * 4096)

    @daemon_differs("the rival ignores a failing read before a small write, and writes what was in its buffer")
    def test_unaligned_write_fails_with_its_read(self) -> None:
        self.add(align=4096, inject_error=[{"event": "pwritev_rmw_head", "iotype": "read"}])
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file="d")
        self.export("r")
        guest = self.guest("r")
        if self.per_daemon(blockd=True, rival=False):
            self.assert_write_fails(guest, 512, errno.EIO)
        else:
            guest.write(512, b"x" * 512)

    def test_names(self) -> None:
        config = self.path("rules")
        Path(config).write_text("", encoding="ascii")
        self.add("plain")
        self.add("rules", config=config)
        self.add("align", align=512)
        self.add("lists", inject_error=[{"event": "none"}], set_state=[{"event": "none", "new_state": 2}])
        self.qmp.cmd("blockdev-add", driver="raw", node_name="r", file="plain")
        names = {name: node["image"]["filename"] for name, node in self.nodes().items()}
        self.assertEqual(names["plain"], f"blkdebug::{self.image}")
        self.assertEqual(names["r"], f"blkdebug::{self.image}")
        self.assertEqual(names["rules"], f"blkdebug:{config}:{self.image}")
        image = {"driver": "file", "filename": self.image}
        self.assertEqual(
            json.loads(names["align"].removeprefix("json:")), {"driver": "blkdebug", "align": 512, "image": image}
        )
        self.assertEqual(
            json.loads(names["lists"].removeprefix("json:")),
            {
                "driver": "blkdebug",
                "inject-error.0.event": "none",
                "set-state.0.event": "none",
                "set-state.0.new_state": 2,
                "image": image,
            },
        )

    def test_names_are_understood(self) -> None:
        """An overlay's header may name its backing file in blkdebug's syntax, or by json: and flat options."""
        data = self.random_bytes(64 * KiB)
        self.fill(self.image, data, "raw")
        config = self.path("rules")
        Path(config).write_text("", encoding="ascii")
        flat = {
            "driver": "raw",
            "file.driver": "blkdebug",
            "file.align": "512",
            "file.inject-error.0.event": "l2_load",
            "file.image.driver": "file",
            "file.image.filename": self.image,
        }
        for number, name in enumerate((f"blkdebug:{config}:{self.image}", "json:" + json.dumps(flat))):
            overlay = self.create_image(f"o{number}.qcow2", MiB, backing=name, backing_format="raw")
            self.add_node(f"o{number}", overlay)
            self.assertIn("blkdebug", {node["drv"] for node in self.nodes().values()})
            self.export(f"o{number}", writable=False)
            self.assertEqual(self.guest(f"o{number}").read(0, len(data)), data)
            self.unexport(f"exp-o{number}", mode="hard")
            self.qmp.cmd("blockdev-del", node_name=f"o{number}")

    def test_permissions(self) -> None:
        self.add(take_child_perms=["write"], unshare_child_perms=["write"])
        graph = self.qmp.cmd("x-debug-query-block-graph")
        [edge] = [edge for edge in graph["edges"] if edge["name"] == "image"]
        self.assertEqual(edge["perm"], ["write"])
        self.assertNotIn("write", edge["shared-perm"])
        self.assert_qmp_error(
            "Permission conflict on node 'f': permissions 'write' are both required by node 'd' (uses node 'f' as "
            "'image' child) and unshared by node 'e' (uses node 'f' as 'image' child).",
            "blockdev-add",
            driver="blkdebug",
            node_name="e",
            image="f",
            unshare_child_perms=["write"],
        )
        self.assert_nothing_left("f", "d")

    def test_refused(self) -> None:
        self.refused("Cannot meet constraints with align 3", align=3)
        self.refused("Parameter 'align' expects a non-negative number below 2^64", align=-1)
        self.refused("Cannot meet constraints with max-transfer 512", align=4096, max_transfer=512)
        self.refused("Cannot meet constraints with max-discard 4096", opt_discard=65536, max_discard=4096)
        self.refused("Parameter 'event' does not accept value 'foo'", inject_error=[{"event": "foo"}])
        self.refused("Could not read blkdebug config file: No such file or directory", config=self.path("no"))
        for text, desc in (
            ('[foo]\na = "b"\n', "There is no option group 'foo'"),
            ('a = "b"\n', "no group defined"),
            ("[inject-error]\n \n", "parse error"),
            ('[inject-error]\nfoo = "x"\n', "Invalid parameter 'foo'"),
            ('[inject-error]\nevent = "foo"\n', "invalid parameter value: foo"),
            ('[inject-error]\nstate = "1"\n', "Missing event name for rule"),
            ('[inject-error]\nevent = "none"\nstate = "x"\n', "Parameter 'state' expects a number"),
            ('[inject-error]\nevent = "none"\nonce = "x"\n', "Parameter 'once' expects 'on' or 'off'"),
            ('[inject-error "a"]\nevent = "none"\n[inject-error "a"]\n', "Duplicate ID 'a' for inject-error"),
            ('[inject-error "a b"]\nevent = "none"\n', "Parameter 'id' expects an identifier"),
        ):
            Path(self.path("rules")).write_text(text, encoding="ascii")
            self.refused(desc, config=self.path("rules"))
