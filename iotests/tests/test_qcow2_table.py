"""qcow2 beside the rival, by tables: the same commands to both daemons over copies of the same image."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.daemon import environment
from iotests.harness.images import KiB, MiB

BLOCKD = str(Path(__file__).resolve().parents[2] / "bin" / "blockd-test")
RIVAL = "qemu-storage-daemon"

Row = dict[str, Any]

INCOMPATIBLE, COMPATIBLE, AUTOCLEAR, HEADER_LENGTH = 72, 80, 88, 100
FEATURE_NAMES, BITMAPS = 0x6803F857, 0x23852875


def parse_header(image: bytes) -> dict[str, Any]:
    """The feature bits, and the header extensions without the table of names of features."""
    version = struct.unpack_from(">I", image, 4)[0]
    length = struct.unpack_from(">I", image, HEADER_LENGTH)[0] if version >= 3 else 72
    extensions: list[tuple[int, bytes]] = []
    at = length
    while True:
        magic, size = struct.unpack_from(">II", image, at)
        if magic == 0:
            break
        if magic != FEATURE_NAMES:
            extensions.append((magic, image[at + 8 : at + 8 + size]))
        at += 8 + (size + 7) // 8 * 8
    bits = struct.unpack_from(">QQQ", image, INCOMPATIBLE) if version >= 3 else ()
    return {"version": version, "features": bits, "extensions": extensions}


def with_extensions(image: bytes, *more: tuple[int, bytes]) -> bytes:
    """The image with header extensions before those that it has. Its backing file has no name yet."""
    start = struct.unpack_from(">I", image, HEADER_LENGTH)[0]
    area = b"".join(
        struct.pack(">II", magic, len(data)) + data + bytes(-len(data) % 8) for magic, data in more
    )
    cluster = 1 << struct.unpack_from(">I", image, 20)[0]
    head = (image[:start] + area + image[start:cluster])[:cluster]
    return head + image[cluster:]


def shown(answers: list[Any]) -> list[Any]:
    """Answers without what differs by nature: times, and of query-named-block-nodes all that does not matter here."""

    def node(info: Row) -> Row:
        picked = {key: info.get(key) for key in ("drv", "ro", "encrypted", "backing_file", "backing_file_depth")}
        image = info["image"]
        specific = image.get("format-specific", {}).get("data")
        specific.get("encrypt", {}).pop("detached-header", None)  # since 9.2
        return {**picked, "size": image["virtual-size"], "dirty": image.get("dirty-flag"), "specific": specific}

    result: list[Any] = []
    for answer in answers:
        if isinstance(answer, list) and answer and "drv" in answer[0]:
            named = [info for info in answer if info["drv"] == "qcow2"]
            answer = sorted((node(info) for info in named), key=json.dumps)
        if isinstance(answer, dict) and "vm-clock-sec" in answer:
            answer = {key: answer[key] for key in ("id", "name", "vm-state-size")}
        result.append(answer)
    return result


class Case(QMPTestCase):
    """Conversations over standard input and output."""

    def setUp(self) -> None:
        super().setUp()
        self.images = Path(self.path("images"))
        self.images.mkdir()

    def make(self, name: str, size: str, *options: str, backing: str = "") -> str:
        """An image by qemu-img, in the folder."""
        command = ["qemu-img", "create", "-q", "-f", "qcow2"]
        for option in options:
            command += ["-o", option]
        if backing:
            command += ["-b", backing, "-F", "qcow2", "-u"]
        subprocess.run([*command, name, size], cwd=self.images, check=True)
        return name

    def talk(self, program: str, commands: list[Row]) -> list[Any]:
        """What a daemon in a fresh copy of the folder answers: what it returns, or the text of its error."""
        folder = Path(self.path(Path(program).name))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.images, folder)
        lines = [{"execute": "qmp_capabilities"}, *commands, {"execute": "quit"}]
        done = subprocess.run(
            [program, "--chardev", "stdio,id=q", "--monitor", "chardev=q"],
            input="".join(json.dumps(line) + "\n" for line in lines),
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
        self.assertEqual(done.returncode, 0, (program, commands, done.stderr))
        replies = [json.loads(line) for line in done.stdout.splitlines()]
        answers = [reply for reply in replies if "return" in reply or "error" in reply]
        self.assertEqual(len(answers), len(lines), (program, done.stdout, done.stderr))
        return shown([reply["error"]["desc"] if "error" in reply else reply["return"] for reply in answers[1:-1]])

    def both(self, *commands: Row) -> list[Any]:
        """The answers of both, which are the same."""
        theirs = self.talk(RIVAL, list(commands))
        ours = self.talk(BLOCKD, list(commands))
        for number, line in enumerate(commands):
            with self.subTest(number=number, command=line):
                self.assertEqual(ours[number], theirs[number])
        return ours

    def left(self, name: str) -> tuple[bytes, bytes]:
        """What both have left of an image: ours, theirs."""
        return Path(self.path("blockd-test"), name).read_bytes(), Path(self.path(RIVAL), name).read_bytes()


def command(execute: str, **arguments: Any) -> Row:
    """A command of QMP."""
    return {"execute": execute, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}


def add(image: str, node: str = "n", **options: Any) -> Row:
    """blockdev-add of a qcow2 image."""
    file = {"driver": "file", "filename": image}
    return {"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": node, "file": file, **options}}


class Options(Case):
    """Runtime options."""

    def setUp(self) -> None:
        super().setUp()
        self.make("v3", "64M")
        self.make("v2", "64M", "compat=0.10")
        self.make("small", "8M", "cluster_size=512")
        self.make("big", "1T", "cluster_size=2M")
        self.make("lazy", "1M", "lazy_refcounts=on")
        self.make("external", "1M", "data_file=external.data")
        self.make("spare", "64M")
        self.make("over", "64M", backing="v3")
        self.make("lost", "64M", backing="missing")
        (self.images / "other.data").write_bytes(bytes(MiB))
        (self.images / "password").write_text("123456")
        for format_ in ("aes", "luks"):
            secret = ["--object", "secret,id=s,file=password"]
            options = f"encrypt.format={format_},encrypt.key-secret=s"
            if format_ == "luks":
                options += ",encrypt.iter-time=10"
            subprocess.run(
                ["qemu-img", "create", "-q", *secret, "-f", "qcow2", "-o", options, format_, "1M"],
                cwd=self.images,
                check=True,
                stderr=subprocess.DEVNULL,
            )

    CACHES: tuple[Row, ...] = (
        {},
        *({"l2-cache-size": size} for size in (0, 1, 511, 512, 64 * KiB, 2**40, 2**47, 2**62, 2**63 - 1)),
        # What lies between is a matter of the rival's memory.
        *({"refcount-cache-size": size} for size in (0, 1, 511, 512, 64 * KiB, 2**62, 2**63 - 1)),
        *({"cache-size": size} for size in (0, 1, 511, 512, MiB, 2**62, 2**63 - 1)),
        *({"l2-cache-entry-size": size} for size in (0, 1, 256, 511, 512, 513, 4096, 4097, 65536, 65537)),
        *({"l2-cache-entry-size": size} for size in (2**21, 2**22, 2**32, 2**63 - 1)),
        *({"cache-clean-interval": seconds} for seconds in (0, 1, 600, 2**32 - 1, 2**32, 2**63 - 1)),
        {"cache-size": MiB, "l2-cache-size": MiB},
        {"cache-size": MiB, "l2-cache-size": MiB + 1},
        {"cache-size": MiB, "refcount-cache-size": MiB},
        {"cache-size": MiB, "refcount-cache-size": MiB + 1},
        {"cache-size": MiB, "l2-cache-size": 4096, "refcount-cache-size": 4096},
        {"cache-size": 0, "l2-cache-size": 0, "refcount-cache-size": 0},
        {"cache-size": 4096, "l2-cache-size": 8192, "refcount-cache-size": 8192},
        {"l2-cache-size": MiB, "refcount-cache-size": MiB},
        {"l2-cache-size": -1},
        {"refcount-cache-size": -1},
        {"cache-size": -1},
        {"l2-cache-entry-size": -1},
        {"cache-clean-interval": -1},
        {"cache-clean-interval": 2**32, "l2-cache-entry-size": 1000},
        {"cache-size": MiB, "l2-cache-size": MiB + 1, "l2-cache-entry-size": 1000},
        {"l2-cache-size": 2**62, "l2-cache-entry-size": 1000},
        {"cache-clean-interval": 2**32, "lazy-refcounts": True},
        {"cache-size": MiB, "l2-cache-size": MiB + 1, "overlap-check": "nonsense"},
    )

    def test_sizes_of_caches(self) -> None:
        for image in ("v3", "v2", "small", "big"):
            with self.subTest(image=image):
                rows = [row for options in self.CACHES for row in (add(image, **options), command("blockdev-del", node_name="n"))]
                self.both(*rows)

    def test_sizes_of_caches_when_reopened(self) -> None:
        file = command("blockdev-add", driver="file", node_name="f", filename="v3")
        for image in ("v3", "small"):
            with self.subTest(image=image):
                file["arguments"]["filename"] = image
                base = {"driver": "qcow2", "node-name": "n", "file": "f"}
                rows = [command("blockdev-reopen", options=[{**base, **options}]) for options in self.CACHES]
                self.both(file, command("blockdev-add", **base), *rows)

    def rows(self, *rows: tuple[str, Row]) -> None:
        """Each of these opens, or is refused; what is open is shown and closed."""
        show = command("query-named-block-nodes", flat=True)
        commands = [
            command("object-add", qom_type="secret", id="s", file="password"),
            command("blockdev-add", driver="file", node_name="other", filename="other.data"),
            add("spare", "spare", **{"read-only": True}),
        ]
        for image, options in rows:
            commands += [add(image, **options), show, command("blockdev-del", node_name="n")]
        self.both(*commands)

    def test_what_fits_the_version(self) -> None:
        self.rows(
            *((image, {"lazy-refcounts": on}) for image in ("v3", "v2", "lazy") for on in (True, False)),
            ("v2", {"lazy-refcounts": True, "l2-cache-entry-size": 1000}),
            ("v2", {"lazy-refcounts": True, "encrypt": {"format": "aes"}}),
            ("v2", {"lazy-refcounts": True, "overlap-check": {"template": "nonsense"}}),
            ("v2", {"pass-discard-request": True, "pass-discard-snapshot": False, "pass-discard-other": True}),
            ("v3", {"read-only": True, "lazy-refcounts": True}),
        )

    def test_data_files(self) -> None:
        other = {"driver": "file", "filename": "other.data"}
        self.rows(
            ("v3", {"data-file": "other"}),
            ("v3", {"data-file": other}),
            ("v3", {"data-file": "zz"}),
            ("v3", {"data-file": None}),
            ("v2", {"data-file": "other"}),
            ("external", {}),
            ("external", {"data-file": "other"}),
            ("external", {"data-file": other}),
            ("external", {"data-file": "zz"}),
            ("external", {"data-file": {"driver": "file", "filename": "missing"}}),
            ("external", {"data-file": None}),
            ("external", {"data-file": "other", "read-only": True}),
        )

    def test_backing_files(self) -> None:
        plain: Row = {}
        self.rows(
            *((image, {"backing": None}) for image in ("v3", "over", "lost")),
            *((image, plain) for image in ("v3", "over", "lost")),
            *((image, {"backing": "zz"}) for image in ("v3", "over", "lost")),
            *((image, {"backing": ""}) for image in ("v3", "over", "lost")),
            *((image, {"backing": "other"}) for image in ("v3", "over", "lost")),
            ("v2", {"backing": "spare"}),
            ("v3", {"backing": {"driver": "raw", "file": "other"}}),
            ("v2", {"backing": {"driver": "qcow2", "file": "zz"}}),
            ("v2", {"backing": 1}),
        )

    def test_encryption(self) -> None:
        for image in ("v3", "v2", "aes", "luks"):
            self.rows(
                (image, {}),
                (image, {"encrypt": {"format": "luks", "key-secret": "s"}}),
                (image, {"encrypt": {"format": "aes", "key-secret": "s"}}),
                (image, {"encrypt": {"format": "luks"}}),
                (image, {"encrypt": {"format": "aes"}}),
                (image, {"encrypt": {"format": "luks", "key-secret": "zz"}}),
                (image, {"encrypt": {"format": "nonsense"}}),
                (image, {"encrypt": {"key-secret": "s"}}),
                (image, {"encrypt": {"format": "aes", "key-secret": "zz"}, "lazy-refcounts": True}),
            )


Edit = Any


def bit(place: int, *numbers: int) -> Edit:
    """Sets feature bits."""

    def edit(image: bytes) -> bytes:
        value = struct.unpack_from(">Q", image, place)[0]
        for number in numbers:
            value |= 1 << number
        return image[:place] + struct.pack(">Q", value) + image[place + 8 :]

    return edit


def names(*features: tuple[int, int, bytes]) -> Edit:
    """Another table of names of features, before the present one."""
    table = b"".join(struct.pack(">BB", kind, number) + name.ljust(46, b"\0") for kind, number, name in features)
    return lambda image: with_extensions(image, (FEATURE_NAMES, table))


def extension(*more: tuple[int, bytes]) -> Edit:
    """Header extensions before the present ones."""
    return lambda image: with_extensions(image, *more)


def poke(place: int, data: bytes) -> Edit:
    """Other bytes at a place."""
    return lambda image: image[:place] + data + image[place + len(data) :]


def longer_header(length: int, fields: bytes = b"") -> Edit:
    """A header of another length, with fields that nobody knows."""

    def edit(image: bytes) -> bytes:
        start = struct.unpack_from(">I", image, HEADER_LENGTH)[0]
        head = image[:start].ljust(length, b"\0")[:length]
        head = head[:HEADER_LENGTH] + struct.pack(">I", length) + head[HEADER_LENGTH + 4 :]
        head = head[: length - len(fields)] + fields
        return (head + image[start : 65536 - max(length - start, 0)]).ljust(65536, b"\0") + image[65536:]

    return edit


UNKNOWN = ((0x12345678, b"nobody knows this"), (0x7FFFFFFF, b""), (0x12345678, bytes(range(24))))


class Headers(Case):
    """Feature bits and header extensions."""

    HEADERS: tuple[tuple[str, tuple[Edit, ...]], ...] = (
        ("compatible", (bit(COMPATIBLE, 42),)),
        ("compatible, next", (bit(COMPATIBLE, 1, 63),)),
        ("autoclear", (bit(AUTOCLEAR, 42),)),
        ("autoclear, all", (bit(AUTOCLEAR, *range(2, 64)),)),
        ("autoclear, raw", (bit(AUTOCLEAR, 1),)),
        ("autoclear, bitmaps", (bit(AUTOCLEAR, 0),)),
        ("unknown", (bit(INCOMPATIBLE, 60),)),
        ("unknown, two", (bit(INCOMPATIBLE, 5, 60),)),
        ("unknown, named", (names((0, 60, b"sixty")), bit(INCOMPATIBLE, 60))),
        ("unknown, one named", (names((0, 60, b"sixty")), bit(INCOMPATIBLE, 7, 60))),
        ("unknown, two named", (names((0, 60, b"sixty"), (0, 59, b"other")), bit(INCOMPATIBLE, 59, 60))),
        ("unknown, wrong kind", (names((1, 60, b"sixty")), bit(INCOMPATIBLE, 60))),
        ("unknown, long name", (names((0, 60, b"x" * 46)), bit(INCOMPATIBLE, 60))),
        ("unknown, no name", (names((0, 60, b""), (0, 61, b"later")), bit(INCOMPATIBLE, 60, 61))),
        ("unknown, number", (names((0, 124, b"sixty")), bit(INCOMPATIBLE, 60))),
        ("corrupt", (bit(INCOMPATIBLE, 1),)),
        ("dirty", (bit(INCOMPATIBLE, 0),)),
        ("dirty and corrupt", (bit(INCOMPATIBLE, 0, 1),)),
        ("compression type", (bit(INCOMPATIBLE, 3),)),
        ("compression type, other", (poke(104, b"\1"),)),
        ("compression type, unknown", (poke(104, b"\2"), bit(INCOMPATIBLE, 3))),
        ("unknown extensions", (extension(*UNKNOWN),)),
        ("too long an extension", (extension((0x12345678, b"x")), poke(116, b"\xff\xff\xff\xff"))),
        ("an extension to the end", (extension((0x12345678, b"x" * 65000)),)),
        ("a long format name", (extension((0xE2792ACA, b"x" * 16)),)),
        ("a format name", (extension((0xE2792ACA, b"x" * 15)),)),
        ("two format names", (extension((0xE2792ACA, b"raw"), (0xE2792ACA, b"qcow2")),)),
        ("a data file's name", (extension((0x44415441, b"data")),)),
        ("a bitmap extension", (extension((BITMAPS, bytes(24))),)),
        ("a short bitmap extension", (extension((BITMAPS, bytes(23))),)),
        ("no bitmaps", (extension((BITMAPS, bytes(24))), bit(AUTOCLEAR, 0))),
        ("an encryption header", (extension((0x0537BE77, bytes(16))),)),
        ("a short header", (longer_header(103),)),
        ("a header of 104 bytes", (longer_header(104),)),
        ("a header of 120 bytes", (longer_header(120, b"fields"),)),
        ("a header of 128 bytes", (longer_header(128, b"some unknown"),)),
        ("a header past the cluster", (poke(HEADER_LENGTH, struct.pack(">I", 65537)),)),
        ("refcount order", (poke(96, struct.pack(">I", 7)),)),
        ("encryption method", (poke(32, struct.pack(">I", 3)),)),
        ("backing offset", (poke(8, struct.pack(">QI", 65537, 1)),)),
        ("backing length", (poke(8, struct.pack(">QI", 1024, 1024)),)),
    )

    # Bit 0 says that the extension is there; here it is cleared where there is none. An extension that is out of
    # force, whose clusters are not known to be free, is left alone.
    OTHERS = ("autoclear, bitmaps", "a bitmap extension")

    def test_headers(self) -> None:
        fresh = (self.images / self.make("i", "1M")).read_bytes()
        rows: list[tuple[str, bool, bytes, str]] = []
        commands: list[Row] = []
        for name, edits in self.HEADERS:
            image = fresh
            for edit in edits:
                image = edit(image)
            for read_only in (False, True):
                path = f"i{len(rows)}"
                (self.images / path).write_bytes(image)
                rows.append((name, read_only, image, path))
                commands += [add(path, "n", **{"read-only": read_only}), command("blockdev-del", node_name="n")]
        answers = self.both(*commands)
        for (name, read_only, image, path), answer in zip(rows, answers[::2]):
            with self.subTest(name=name, read_only=read_only):
                ours, theirs = self.left(path)
                if answer != {} or read_only:
                    self.assertEqual(ours, image)
                elif name not in self.OTHERS:
                    self.assertEqual(parse_header(ours), parse_header(theirs))

    def test_what_is_unknown_stays(self) -> None:
        """Over everything that changes the header."""
        device = {"device": "n", "name": "s"}
        changes: list[tuple[str, list[Row]]] = [
            ("open", []),
            ("resize", [command("block_resize", node_name="n", size=2 * MiB)]),
            ("resize, with another table", [command("block_resize", node_name="n", size=2**40)]),
            ("snapshot", [command("blockdev-snapshot-internal-sync", **device)]),
            (
                "snapshot and back",
                [
                    command("blockdev-snapshot-internal-sync", **device),
                    command("blockdev-snapshot-delete-internal-sync", **device),
                ],
            ),
            ("bitmap", [command("block-dirty-bitmap-add", node="n", name="b", persistent=True)]),
            (
                "bitmap and back",
                [
                    command("block-dirty-bitmap-add", node="n", name="b", persistent=True),
                    command("blockdev-del", node_name="n"),
                    add("i"),
                    command("block-dirty-bitmap-remove", node="n", name="b"),
                ],
            ),
            ("backing file", [command("change-backing-file", device="n", image_node_name="n", backing_file="some")]),
        ]
        for name, commands in changes:
            with self.subTest(name=name):
                path = self.images / self.make("i", "1M")
                path.write_bytes(bit(COMPATIBLE, 42)(with_extensions(path.read_bytes(), *UNKNOWN)))
                before = parse_header(path.read_bytes())
                self.assertEqual(before["extensions"], list(UNKNOWN))
                self.both(add("i"), *commands, command("blockdev-del", node_name="n"))
                headers = [parse_header(image) for image in self.left("i")]
                self.assertEqual(headers[0]["features"], headers[1]["features"])
                # Where bitmaps lie is each one's own affair, and the rival turns the order round.
                ours, theirs = ([one for one in header["extensions"] if one[0] != BITMAPS] for header in headers)
                self.assertEqual(ours, list(UNKNOWN))
                self.assertEqual(sorted(theirs), sorted(UNKNOWN))


class Refcounts(Case):
    """Snapshots until a cluster has as many references as its refcount can tell."""

    def test_too_many_references(self) -> None:
        for bits, most in ((1, 1), (2, 3), (4, 15)):
            with self.subTest(bits=bits):
                self.make("i", "1M", f"refcount_bits={bits}", "cluster_size=4k")
                subprocess.run(["qemu-io", "-c", "write -q 0 64k", "i"], cwd=self.images, check=True)
                take = [command("blockdev-snapshot-internal-sync", device="n", name=f"s{i}") for i in range(most + 1)]
                answers = self.both(add("i"), *take, command("blockdev-del", node_name="n"))
                self.assertEqual([a for a in answers[1:most]], [{}] * (most - 1))
                self.assertNotEqual(answers[most], {})
                images.check(self.path("blockd-test/i"))
