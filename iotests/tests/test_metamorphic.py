"""The same random requests through everything: formats with all their options, chains, filters, NBD.

Whatever a disk is made of, its bytes are those of the model that the test keeps, while it is used and
afterwards by qemu-img; and they are what qemu-io leaves behind that does the same to an image of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterator

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.guest import Guest
from iotests.harness.images import ImageOptions, KiB, MiB, QCOW2, QCOW2_4K, RAW
from iotests.harness.markers import blockd_only
from iotests.tests.test_img import BLOCKD

# No whole number of clusters.
SIZE = 2 * MiB + 3 * 512

# How many requests: the long sample in `make test-all`.
REQUESTS = 250 if os.environ.get("BLOCKD_TEST_ALL") == "1" else 60


def qcow2(label: str, *create: str, cluster_size: int = 64 * KiB) -> ImageOptions:
    """One way to create an image."""
    return ImageOptions(label, "qcow2", (f"cluster_size={cluster_size}", *create), cluster_size)


# The image's path is filled in.
DATA_FILE = "data_file={}.data"

# The secret of the encrypted images, for the tools and for the daemon.
SECRET = ("--object", "secret,id=s,data=a password")

# Each way to encrypt an image, with what it takes to open it.
ENCRYPTED: tuple[tuple[ImageOptions, dict[str, Any]], ...] = tuple(
    (
        qcow2(f"encrypted-{method}", f"encrypt.format={method}", "encrypt.key-secret=s", *more),
        {"encrypt": {"format": method, "key-secret": "s"}},
    )
    for method, more in (("luks", ("encrypt.iter-time=10",)), ("aes", ("cluster_size=4k",)))
) + ((ImageOptions("luks", "luks", ("key-secret=s", "iter-time=10")), {"key-secret": "s"}),)

# Each way to create and to open an image; a new option of the format is a line here.
OPTION_SETS: tuple[tuple[ImageOptions, dict[str, Any]], ...] = (
    (RAW, {}),
    (qcow2("plain"), {}),
    (qcow2("c512", cluster_size=512), {}),
    (qcow2("c512-small", cluster_size=512), {"l2-cache-size": 512, "l2-cache-entry-size": 512}),
    (qcow2("c4k", cluster_size=4 * KiB), {"pass-discard-other": True}),
    (qcow2("c2m", cluster_size=2 * MiB), {}),
    (qcow2("v2", "compat=0.10"), {}),
    (qcow2("v2-512", "compat=0.10", cluster_size=512), {}),
    (qcow2("rc1", "refcount_bits=1", cluster_size=512), {}),
    (qcow2("rc4", "refcount_bits=4", cluster_size=KiB), {}),
    (qcow2("rc64", "refcount_bits=64", cluster_size=512), {}),
    (qcow2("lazy", "lazy_refcounts=on", cluster_size=4 * KiB), {}),
    (qcow2("zstd", "compression_type=zstd"), {}),
    (qcow2("metadata", "preallocation=metadata", cluster_size=4 * KiB), {}),
    (qcow2("extended", "extended_l2=on"), {}),
    (qcow2("extended-16k", "extended_l2=on", cluster_size=16 * KiB), {"l2-cache-size": 512}),
    (qcow2("no-unref", cluster_size=4 * KiB), {"discard-no-unref": True}),
    (qcow2("extended-no-unref", "extended_l2=on"), {"discard-no-unref": True}),
    (qcow2("data-file", DATA_FILE), {}),
    (qcow2("data-file-4k", DATA_FILE, cluster_size=4 * KiB), {"l2-cache-size": 512, "l2-cache-entry-size": 512}),
    (qcow2("data-file-raw", DATA_FILE, "data_file_raw=on"), {}),
    (qcow2("data-file-extended", DATA_FILE, "extended_l2=on"), {}),
    (qcow2("detect", cluster_size=4 * KiB), {"detect-zeroes": "unmap"}),
    (qcow2("no-discard", cluster_size=4 * KiB), {"discard": "ignore"}),
)


@dataclass
class Request:
    """A request: bytes of one value, zeroes, or a discard followed by zeroes."""

    kind: str
    offset: int
    length: int
    value: int

    def model(self, disk: bytearray) -> None:
        """What it does to a disk."""
        disk[self.offset : self.offset + self.length] = bytes((self.value,)) * self.length

    def guest(self, guest: Guest) -> None:
        """The same by NBD."""
        if self.kind == "write":
            guest.write(self.offset, bytes((self.value,)) * self.length)
        elif self.kind == "flush":
            guest.handle.flush()
        elif self.kind == "zero":
            guest.handle.zero(self.length, self.offset)
        else:
            # What a discard leaves is undefined: zeroes follow.
            guest.handle.trim(self.length, self.offset)
            guest.handle.zero(self.length, self.offset)

    def qemu_io(self) -> Iterator[str]:
        """The same by qemu-io."""
        if self.kind == "write":
            yield f"write -q -P {self.value} {self.offset} {self.length}"
        elif self.kind == "flush":
            yield "flush"
        else:
            if self.kind == "discard":
                yield f"discard -q {self.offset} {self.length}"
            yield f"write -q -z {self.offset} {self.length}"


def draw(rng: random.Random, count: int) -> list[Request]:
    """Random requests; one of five is no whole number of sectors."""
    requests = []
    for _ in range(count):
        kind = rng.choices(("write", "zero", "discard", "flush"), (8, 3, 3, 1))[0]
        unit = 1 if rng.randrange(5) == 0 else 512
        longest = rng.choice((4 * KiB, 40 * KiB, 300 * KiB))
        length = unit * rng.randrange(1, longest // unit)
        offset = unit * rng.randrange((SIZE - length) // unit + 1)
        value = rng.randrange(1, 256) if kind == "write" else 0
        if kind == "flush":
            offset = length = 0
        requests.append(Request(kind, offset, length, value))
    return requests


class Metamorphic(QMPTestCase):
    """One daemon has all disks at once."""

    def setUp(self) -> None:
        super().setUp()
        self.need_libnbd()
        self.rng = random.Random(zlib.crc32(self.id().encode()))
        self.start = bytearray(SIZE)
        for at in range(0, SIZE, 40 * KiB):
            self.start[at : at + 17 * KiB] = self.rng.randbytes(min(17 * KiB, SIZE - at))
        Path(self.path("start")).write_bytes(self.start)
        # The top image of each disk by its name: path and format.
        self.disks: dict[str, tuple[str, str]] = {}

    def new_image(self, name: str, options: ImageOptions) -> str:
        """An image with the content at the start."""
        path = self.path(name)
        words = tuple(word.format(path) for word in options.create)
        images.create(path, SIZE, replace(options, create=words))
        images.run_tool(
            "qemu-img", "convert", "-n", "-f", "raw", "-O", options.driver, self.path("start"), path
        )
        return path

    def new_disk(self, name: str, options: ImageOptions, **opening: Any) -> None:
        """A node with an image of its own."""
        path = self.new_image(name, options)
        self.add_node(name, path, options.driver, **{"discard": "unmap", **opening})
        self.disks[name] = (path, options.driver)

    def encrypted_opts(self, path: str, driver: str) -> str:
        """An encrypted image as the tools open it."""
        prefix = "" if driver == "luks" else "encrypt."
        return f"driver={driver},{prefix}key-secret=s,file.driver=file,file.filename={path}"

    def new_encrypted(self, options: ImageOptions) -> str:
        """An encrypted image with the content at the start."""
        path = self.path(options.label)
        whole = SIZE // 512 * 512
        words = ",".join(options.create)
        # qemu-img takes seconds to find out how fast the machine is, on a busy one minutes, or fails.
        images.run_tool(BLOCKD, "img", "create", "-q", *SECRET, "-f", options.driver, "-o", words, path, str(whole))
        fill = ("qemu-img", "convert", "-n", *SECRET, "-f", "raw", "--target-image-opts")
        images.run_tool(*fill, self.path("start"), self.encrypted_opts(path, options.driver))
        return path

    def new_encrypted_disk(self, options: ImageOptions, opening: dict[str, Any]) -> str:
        """A node with an encrypted image, whose path is given back."""
        path = self.new_encrypted(options)
        self.add_node(options.label, path, options.driver, discard="unmap", **opening)
        self.disks[options.label] = (path, f"encrypted {options.driver}")
        return path

    def assert_encrypted(self, path: str, driver: str, model: bytes) -> None:
        """assert_content for an encrypted image."""
        opened = self.encrypted_opts(path, driver)
        if driver == "qcow2":
            images.run_tool("qemu-img", "check", "-q", *SECRET, "--image-opts", opened)
        Path(self.path("plain")).write_bytes(model)
        plain = f"driver=raw,file.driver=file,file.filename={self.path('plain')}"
        images.run_tool("qemu-img", "compare", *SECRET, "--image-opts", opened, plain)

    def new_chain(self, name: str, depth: int) -> None:
        """An overlay over others, the lowest of which has the content."""
        base = path = self.new_image(f"{name}-0", QCOW2_4K)
        for level in range(1, depth + 1):
            path = self.create_image(f"{name}-{level}", SIZE, QCOW2 if level % 2 else QCOW2_4K, backing=base)
            base = path
        self.add_node(name, path, "qcow2", discard="unmap")
        self.disks[name] = (path, "qcow2")

    def new_filter(self, driver: str, make: Callable[[str], dict[str, Any]]) -> None:
        """A filter over a qcow2 node; `make` gives its options for the node's name."""
        under = f"{driver}-under"
        self.new_disk(under, QCOW2_4K)
        self.qmp.execute("blockdev-add", {"driver": driver, "node-name": driver, **make(under)})
        self.disks[driver] = self.disks.pop(under)

    def make_filters(self) -> None:
        """Each filter that data passes through."""
        self.qmp.cmd("object-add", **{"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 10**6}})
        self.new_filter("throttle", lambda under: {"throttle-group": "tg", "file": under})
        self.new_filter("blkdebug", lambda under: {"image": under})
        self.new_filter("copy-on-read", lambda under: {"file": under})
        log = self.create_image("log", MiB, RAW)
        self.qmp.cmd("blockdev-add", driver="file", node_name="log", filename=log)
        self.new_filter("blklogwrites", lambda under: {"file": under, "log": "log"})
        twin = self.new_image("twin", RAW)
        self.qmp.cmd("blockdev-add", driver="file", node_name="twin", filename=twin, discard="unmap")
        self.new_filter("blkverify", lambda under: {"test": under, "raw": "twin"})
        self.disks["blkverify-raw"] = (twin, "raw")
        target = self.create_image("target", SIZE, QCOW2)
        self.add_node("target", target, "qcow2")
        self.new_filter("copy-before-write", lambda under: {"file": under, "target": "target"})
        for number in range(2):
            self.new_disk(f"child{number}", QCOW2_4K)
        self.new_filter(
            "quorum", lambda under: {"children": [under, "child0", "child1"], "vote-threshold": 2}
        )
        self.new_disk("compress-under", QCOW2)
        self.qmp.cmd("blockdev-add", driver="compress", node_name="compress-filter", file="compress-under")
        self.qmp.cmd("blockdev-add", driver="raw", node_name="compress", file="compress-filter")
        self.disks["compress"] = self.disks.pop("compress-under")
        path = self.new_image("preallocate", QCOW2_4K)
        file = {"driver": "preallocate", "prealloc-size": MiB, "file": {"driver": "file", "filename": path}}
        self.qmp.execute(
            "blockdev-add", {"driver": "qcow2", "node-name": "preallocate", "file": file, "discard": "unmap"}
        )
        self.disks["preallocate"] = (path, "qcow2")

    def make_special(self) -> None:
        """Chains, a part of a raw file, NBD by our own client."""
        self.new_chain("chain1", 1)
        self.new_chain("chain4", 4)
        whole = self.path("whole")
        Path(whole).write_bytes(bytes(MiB) + self.start + bytes(MiB))
        file = {"driver": "file", "filename": whole, "discard": "unmap"}
        part = {"driver": "raw", "node-name": "part", "offset": MiB, "size": SIZE, "file": file, "discard": "unmap"}
        self.qmp.execute("blockdev-add", part)
        self.new_disk("remote", QCOW2_4K)
        self.export("remote")
        server = {"type": "unix", "path": self.nbd_socket}
        client = {"driver": "nbd", "node-name": "client", "server": server, "export": "remote", "discard": "unmap"}
        self.qmp.execute("blockdev-add", client)
        self.disks["client"] = self.disks.pop("remote")

    def exported(self) -> list[str]:
        """The nodes that the requests go to."""
        behind = {"child0", "child1", "blkverify-raw"}
        return [name for name in self.disks if name not in behind] + ["part"]

    @blockd_only("a zero write through blkverify ends the rival with a failed assertion")
    def test_same_bytes(self) -> None:
        self.launch(*SECRET)
        for options, opening in OPTION_SETS:
            self.new_disk(options.label, options, **opening)
        for options, opening in ENCRYPTED:
            self.new_encrypted_disk(options, opening)
        self.make_filters()
        self.make_special()
        guests = {}
        for name in self.exported():
            self.export(name)
            guests[name] = self.guest(name, strict=False)
        model = bytearray(self.start)
        for number, request in enumerate(draw(self.rng, REQUESTS)):
            request.model(model)
            at = self.rng.randrange(SIZE - 64 * KiB)
            for name, guest in guests.items():
                request.guest(guest)
                if guest.read(at, 64 * KiB) != model[at : at + 64 * KiB]:
                    self.fail(f"{name} differs near {at} after request {number}, {request}")
        for name, guest in guests.items():
            # In pieces: compress and others limit what one request may be.
            self.assertTrue(b"".join(guest.read(at, min(MiB, SIZE - at)) for at in range(0, SIZE, MiB)) == model, name)
            guest.close()
        self.daemon.quit()
        for name, (path, driver) in self.disks.items():
            with self.subTest(disk=name):
                _, encrypted, within = driver.partition("encrypted ")
                if encrypted:
                    self.assert_encrypted(path, within, bytes(model))
                else:
                    self.assert_content(path, bytes(model), driver)
        self.assertTrue(Path(self.path("whole")).read_bytes() == bytes(MiB) + bytes(model) + bytes(MiB))

    def send_and_delete(self, node: str, requests: list[Request]) -> None:
        """The requests of a guest of the node, which is deleted then."""
        self.export(node)
        guest = self.guest(node, strict=False)
        for request in requests:
            request.guest(guest)
        guest.close()
        self.unexport(f"exp-{node}", mode="hard")
        self.qmp.cmd("blockdev-del", node_name=node)

    def test_same_as_qemu_io(self) -> None:
        requests = draw(self.rng, REQUESTS)
        self.launch()
        model = bytearray(self.start)
        for request in requests:
            request.model(model)
        for options, opening in OPTION_SETS[:: 1 if REQUESTS > 100 else 5]:
            with self.subTest(options=options.label):
                self.new_disk(options.label, options, **opening)
                self.send_and_delete(options.label, requests)
                theirs = self.new_image(f"{options.label}-theirs", options)
                script = [line for request in requests for line in request.qemu_io()]
                images.qemu_io(theirs, *script, driver=options.driver)
                images.compare(self.disks[options.label][0], theirs, options.driver, options.driver)
                self.assert_content(theirs, bytes(model), options.driver)

    def test_same_as_qemu_io_encrypted(self) -> None:
        requests = draw(self.rng, REQUESTS)
        self.launch(*SECRET)
        model = bytearray(self.start)
        for request in requests:
            request.model(model)
        script = [line for request in requests for line in request.qemu_io()]
        for options, opening in ENCRYPTED:
            with self.subTest(options=options.label):
                path = self.new_encrypted_disk(options, opening)
                theirs = shutil.copy(path, f"{path}-theirs")  # with the same key
                self.send_and_delete(options.label, requests)
                images.qemu_io("", *script, options=self.encrypted_opts(theirs, options.driver), extra=SECRET)
                for one in (path, theirs):
                    self.assert_encrypted(one, options.driver, bytes(model))
