"""Which requests give space back: discard, detect-zeroes, pass-discard-*.

After the same requests an image is allocated as qemu-io leaves one, and its file takes up as much.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.guest import nbd
from iotests.harness.images import KiB, MiB, ImageOptions

SIZE = 4 * MiB
CLUSTER = 64 * KiB

ALL = os.environ.get("BLOCKD_TEST_ALL") == "1"

# The options that decide, each with its values; None leaves it out.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "discard": ("unmap", "ignore"),
    "detect-zeroes": ("off", "on", "unmap"),
    "pass-discard-request": (None, True, False),
    "pass-discard-other": (False, True),
}

KINDS = (
    ImageOptions("plain", "qcow2", (), CLUSTER),
    ImageOptions("extended", "qcow2", ("extended_l2=on",), CLUSTER),
    ImageOptions("v2", "qcow2", ("compat=0.10",), CLUSTER),
)


def combinations() -> list[dict[str, Any]]:
    """All combinations of options, or some in which each value is."""
    every = [dict(zip(OPTIONS, values)) for values in itertools.product(*OPTIONS.values())]
    return [
        {name: value for name, value in options.items() if value is not None}
        for options in (every if ALL else every[::7])
        # Both refuse zeroes that unmap where nothing is unmapped.
        if not (options["detect-zeroes"] == "unmap" and options["discard"] == "ignore")
    ]


# What is freed is for others to take when that is durable; the rival does not wait.
FLUSHES = (("flush", 0, 0, 0), ("flush", 0, 0, 0))

# What is done: the kind, where, how much, and the byte.
REQUESTS = (
    ("write", 0, MiB, 0x11),
    ("flush", 0, 0, 0),
    ("discard", 64 * KiB, 192 * KiB, 0),
    ("zero", 256 * KiB, 128 * KiB, 0),
    ("zero-kept", 384 * KiB, 64 * KiB, 0),
    *FLUSHES,
    ("write", 512 * KiB, 128 * KiB, 0),
    ("write", 700 * KiB, 4 * KiB, 0),
    ("write", 2 * MiB, 128 * KiB, 0),
    ("discard", 3 * MiB, 128 * KiB, 0),
    *FLUSHES,
    ("write", 128 * KiB, 64 * KiB, 0x22),
    ("flush", 0, 0, 0),
)

# What of that may be unmapped before something else is written elsewhere.
UNMAPPED = (192 + 128) * KiB


class Discards(QMPTestCase):
    """One daemon has all images one after the other."""

    def image_opts(self, path: str, options: dict[str, Any]) -> str:
        """The image with these options, as the field's tools take it."""
        words = {True: "on", False: "off"}
        given = "".join(f",{name}={words.get(value, value)}" for name, value in options.items())
        return f"driver=qcow2{given},file.driver=file,file.filename={path}"

    def ours(self, path: str, options: dict[str, Any]) -> None:
        """The requests by the daemon."""
        self.add_node("n", path, "qcow2", **options)
        self.export("n")
        guest = self.guest("n")
        for kind, offset, length, value in REQUESTS:
            if kind == "write":
                guest.write(offset, bytes((value,)) * length)
            elif kind == "flush":
                guest.handle.flush()
            elif kind == "discard":
                guest.handle.trim(length, offset)
            else:
                guest.handle.zero(length, offset, nbd.CMD_FLAG_NO_HOLE if kind == "zero-kept" else 0)
        guest.close()
        self.unexport("exp-n", mode="hard")
        self.qmp.cmd("blockdev-del", node_name="n")

    def theirs(self, path: str, options: dict[str, Any]) -> None:
        """The requests by qemu-io."""
        script = []
        for kind, offset, length, value in REQUESTS:
            script.append(
                {
                    "write": f"write -q -P {value} {offset} {length}",
                    "flush": "flush",
                    "discard": f"discard -q {offset} {length}",
                    "zero": f"write -q -z -u {offset} {length}",
                    "zero-kept": f"write -q -z {offset} {length}",
                }[kind]
            )
        images.qemu_io("", *script, options=self.image_opts(path, options))

    def assert_alike(self, ours: str, theirs: str, reusable: int = 0) -> None:
        """
        Both images are allocated alike, and their files take up the same but for less than a cluster; ours may
        have free clusters that the rival has reused at once.
        """

        def extents(path: str) -> list[tuple[int, tuple[bool, bool, bool]]]:
            """Where each kind of extent begins; that its place goes on elsewhere makes no new one."""
            found: list[tuple[int, tuple[bool, bool, bool]]] = []
            for extent in images.allocation(path, "qcow2"):
                kind = (extent["present"], extent["zero"], extent["data"])
                if not found or found[-1][1] != kind:
                    found.append((extent["start"], kind))
            return found

        self.assertEqual(extents(ours), extents(theirs))
        sizes = [Path(path).stat().st_blocks * 512 for path in (ours, theirs)]
        self.assertIn(sizes[0] - sizes[1], range(1 - CLUSTER, CLUSTER + reusable), f"the files take up {sizes} bytes")
        images.check(ours)
        images.compare(ours, theirs, "qcow2", "qcow2")

    def test_requests(self) -> None:
        self.need_libnbd()
        self.launch()
        for kind in KINDS:
            for number, options in enumerate(combinations()):
                with self.subTest(kind=kind.label, options=options):
                    ours = self.create_image(f"{kind.label}-{number}", SIZE, kind)
                    theirs = self.create_image(f"{kind.label}-{number}-theirs", SIZE, kind)
                    self.ours(ours, options)
                    self.theirs(theirs, options)
                    passed = options.get("pass-discard-request", options["discard"] == "unmap")
                    self.assert_alike(ours, theirs, 0 if passed else UNMAPPED)

    def test_snapshots(self) -> None:
        self.launch()
        for number, (discard, passed) in enumerate(itertools.product(("unmap", "ignore"), (None, True, False))):
            options: dict[str, Any] = {"discard": discard, **({} if passed is None else {"pass-discard-snapshot": passed})}
            with self.subTest(options=options):
                paths = [self.create_image(f"{name}{number}", SIZE) for name in ("snap", "snap-theirs")]
                for path in paths:
                    images.qemu_io(path, f"write -q -P 1 0 {MiB}", driver="qcow2")
                    images.run_tool("qemu-img", "snapshot", "-c", "s", path)
                    images.qemu_io(path, f"write -q -P 2 0 {MiB // 2}", driver="qcow2")
                self.add_node("n", paths[0], "qcow2", **options)
                self.qmp.cmd("blockdev-snapshot-delete-internal-sync", device="n", name="s")
                self.qmp.cmd("blockdev-del", node_name="n")
                images.run_tool("qemu-img", "snapshot", "-d", "s", "--image-opts", self.image_opts(paths[1], options))
                self.assert_alike(paths[0], paths[1])
