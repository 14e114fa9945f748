"""quorum: votes, failing children, events, and children that come and go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iotests.harness.case import QMPTestCase
from iotests.harness.guest import nbd
from iotests.harness.images import KiB, MiB, RAW

_ERROR = "Input/output error"


class Quorum(QMPTestCase):
    """Three raw images of 1 MiB."""

    def setUp(self) -> None:
        super().setUp()
        self.images = [self.create_image(f"{n}.img", MiB, RAW) for n in range(3)]
        self.launch()
        for number, image in enumerate(self.images):
            self.qmp.cmd("blockdev-add", driver="file", node_name=f"f{number}", filename=image)

    def add(self, *children: str, vote_threshold: int = 2, **options: Any) -> None:
        """Add a quorum over these children, by default all three files."""
        self.qmp.cmd(
            "blockdev-add",
            driver="quorum",
            node_name="q",
            children=list(children) or ["f0", "f1", "f2"],
            vote_threshold=vote_threshold,
            **options,
        )

    def failing(self, number: int, iotype: str, code: int = 5) -> str:
        """A node over a file whose requests of this kind fail."""
        self.qmp.cmd(
            "blockdev-add",
            driver="blkdebug",
            node_name=f"b{number}",
            image=f"f{number}",
            inject_error=[{"event": "none", "iotype": iotype, "errno": code}],
        )
        return f"b{number}"

    def corrupt(self, number: int, offset: int) -> None:
        """Change a byte of an image behind the daemon's back."""
        with open(self.images[number], "r+b") as image:
            image.seek(offset)
            image.write(b"!")

    def events(self, name: str) -> list[Any]:
        """The data of the events of this name so far."""
        self.qmp.cmd("query-version")
        return [message["data"] for message in self.qmp.transcript if message.get("event") == name]

    def bad(self, kind: str, node: str, sector: int, count: int, **more: str) -> dict[str, Any]:
        """The data of QUORUM_REPORT_BAD."""
        return {"type": kind, "node-name": node, "sector-num": sector, "sectors-count": count, **more}

    def test_writes_go_to_all(self) -> None:
        self.add()
        self.export("q")
        guest = self.guest("q")
        data = self.random_bytes(MiB)
        guest.write(0, data)
        guest.handle.flush()
        self.assertEqual(guest.read(0, MiB), data)
        for image in self.images:
            self.assertEqual(Path(image).read_bytes(), data)
        self.assertEqual(self.events("QUORUM_REPORT_BAD"), [])

    def test_most_decide(self) -> None:
        self.add()
        self.export("q")
        guest = self.guest("q")
        guest.write(0, b"a" * 4096)
        self.corrupt(1, 1000)
        self.assertEqual(guest.read(512, 1024), b"a" * 1024)
        self.assertEqual(self.events("QUORUM_REPORT_BAD"), [self.bad("read", "f1", 1, 2)])
        self.assertEqual(self.events("QUORUM_FAILURE"), [])
        self.assertEqual(Path(self.images[1]).read_bytes()[1000:1001], b"!")

    def test_nobody_agrees(self) -> None:
        self.add(vote_threshold=3)
        self.export("q")
        guest = self.guest("q")
        self.corrupt(1, 1000)
        with self.assertRaises(nbd.Error):
            guest.read(512, 1024)
        self.assertEqual(
            self.events("QUORUM_FAILURE"), [{"reference": "q", "sector-num": 1, "sectors-count": 2}]
        )

    def test_rewrite(self) -> None:
        self.add(rewrite_corrupted=True)
        self.export("q")
        guest = self.guest("q")
        guest.write(0, b"a" * 4096)
        self.corrupt(2, 1000)
        self.assertEqual(guest.read(0, 4096), b"a" * 4096)
        self.assertEqual(self.events("QUORUM_REPORT_BAD"), [self.bad("read", "f2", 0, 8)])
        self.assertEqual(Path(self.images[2]).read_bytes()[:4096], b"a" * 4096)

    def test_one_write_fails(self) -> None:
        self.add("f0", self.failing(1, "write", 28), "f2")
        self.export("q")
        guest = self.guest("q")
        guest.write(0, b"a" * 512)
        self.assertEqual(
            self.events("QUORUM_REPORT_BAD"), [self.bad("write", "b1", 0, 1, error="No space left on device")]
        )

    def test_too_many_writes_fail(self) -> None:
        self.add("f0", self.failing(1, "write"), self.failing(2, "write"))
        self.export("q")
        guest = self.guest("q")
        with self.assertRaises(nbd.Error):
            guest.write(0, b"a" * 512)
        reports = self.events("QUORUM_REPORT_BAD")
        self.assertIn(self.bad("write", "b1", 0, 1, error=_ERROR), reports)
        self.assertIn(self.bad("write", "b2", 0, 1, error=_ERROR), reports)
        self.assertEqual(
            self.events("QUORUM_FAILURE"), [{"reference": "q", "sector-num": 0, "sectors-count": 1}]
        )

    def test_flush_of_one_fails(self) -> None:
        self.add("f0", self.failing(1, "flush"), "f2")
        self.export("q")
        guest = self.guest("q")
        guest.write(0, b"a" * 512)
        guest.handle.flush()
        self.assertEqual(self.events("QUORUM_REPORT_BAD"), [self.bad("flush", "b1", 0, 0, error=_ERROR)])

    def test_fifo(self) -> None:
        self.add(self.failing(0, "read"), "f1", "f2", vote_threshold=1, read_pattern="fifo")
        self.export("q")
        guest = self.guest("q")
        guest.write(0, b"a" * 4096)
        self.corrupt(2, 100)
        self.assertEqual(guest.read(0, 4096), b"a" * 4096)
        self.assertEqual(self.events("QUORUM_REPORT_BAD"), [self.bad("read", "b0", 0, 8, error=_ERROR)])

    def test_change_of_children(self) -> None:
        self.add("f0", "f1", vote_threshold=1)
        self.qmp.cmd("x-blockdev-change", parent="q", node="f2")
        self.qmp.cmd("x-blockdev-change", parent="q", child="children.0")
        self.assertEqual(self.graph_edges(), {("q", "children.1", "f1"), ("q", "children.2", "f2")})
        self.qmp.cmd("x-blockdev-change", parent="q", node="f0")
        self.assertIn(("q", "children.3", "f0"), self.graph_edges())
        self.qmp.cmd("x-blockdev-change", parent="q", child="children.3")
        self.qmp.cmd("x-blockdev-change", parent="q", node="f0")
        self.assertIn(("q", "children.3", "f0"), self.graph_edges())
        self.qmp.cmd("x-blockdev-change", parent="q", child="children.2")
        self.qmp.cmd("x-blockdev-change", parent="q", child="children.1")
        self.assert_qmp_error(
            "The number of children cannot be lower than the vote threshold 1",
            "x-blockdev-change",
            parent="q",
            child="children.3",
        )

    def test_change_under_a_guest(self) -> None:
        self.add("f0", "f1", vote_threshold=1)
        self.export("q")
        writer = self.guest_writer("q", bytes(MiB))
        for _ in range(5):
            writer.wait_writes(20)
            self.qmp.cmd("x-blockdev-change", parent="q", child="children.1")
            writer.wait_writes(20)
            self.qmp.cmd("x-blockdev-change", parent="q", node="f1")
        model = writer.stop()
        self.daemon.quit()
        self.assertEqual(Path(self.images[0]).read_bytes(), bytes(model))

    def test_names_and_permissions(self) -> None:
        self.add(rewrite_corrupted=True, read_pattern="quorum")
        name = self.nodes()["q"]["image"]["filename"]
        self.assertEqual(
            json.loads(name.removeprefix("json:")),
            {
                "driver": "quorum",
                "children": [{"driver": "file", "filename": image} for image in self.images],
                "vote-threshold": 2,
                "rewrite-corrupted": True,
                "read-pattern": "quorum",
            },
        )
        for edge in self.qmp.cmd("x-debug-query-block-graph")["edges"]:
            self.assertEqual(edge["perm"], ["write"])
            self.assertEqual(set(edge["shared-perm"]), {"consistent-read", "write-unchanged"})

    def test_a_child_that_is_opened_to_share_shares_all(self) -> None:
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="shared", size=MiB, read_only=True, force_share=True)
        self.qmp.cmd("blockdev-add", driver="quorum", node_name="over", read_only=True, children=["shared"], vote_threshold=1)
        (edge,) = (edge for edge in self.qmp.cmd("x-debug-query-block-graph")["edges"] if edge["name"] == "children.0")
        self.assertEqual(set(edge["shared-perm"]), {"consistent-read", "write-unchanged", "write", "resize"})

    def test_extents(self) -> None:
        for number, (offset, length) in enumerate(((0, 64 * KiB), (64 * KiB, 64 * KiB), (0, 64 * KiB))):
            self.fill(self.images[number], b"x" * length, "raw", offset)
        self.add(vote_threshold=1)
        self.export("q")
        extents = self.guest("q").extents()
        self.assertEqual(extents, [(128 * KiB, 0), (896 * KiB, 3)])

    def test_refused(self) -> None:
        refused: list[tuple[str, dict[str, Any]]] = [
            ("Number of provided children must be 1 or more", {"children": [], "vote_threshold": 1}),
            ("Parameter 'vote-threshold' expects a value >= 1", {"children": ["f0"], "vote_threshold": 0}),
            ("threshold may not exceed children count", {"children": ["f0"], "vote_threshold": 2}),
            (
                "blkverify=on can only be set if there are exactly two files and vote-threshold is 2",
                {"children": ["f0", "f1", "f2"], "vote_threshold": 2, "blkverify": True},
            ),
            (
                "rewrite-corrupted=on cannot be used with blkverify=on",
                {"children": ["f0", "f1"], "vote_threshold": 2, "blkverify": True, "rewrite_corrupted": True},
            ),
        ]
        for desc, options in refused:
            self.assert_qmp_error(desc, "blockdev-add", driver="quorum", node_name="q", **options)
        self.assert_nothing_left("f0", "f1", "f2")
