"""`blockd img` beside qemu-img: the same arguments on copies of the same images."""

from __future__ import annotations

import json
import re
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


class ImgCase(QMPTestCase):
    """Images in a folder, with a copy for each of the two programs."""

    told: list[str]  # the lines of errors of the program that ran last

    def setUp(self) -> None:
        super().setUp()
        self.images = Path(self.path("images"))
        self.images.mkdir()
        self.ours, self.theirs = Path(self.path("ours")), Path(self.path("theirs"))

    def make(self, name: str, *arguments: str) -> str:
        """An image by qemu-img, in the folder; arguments follow its name."""
        options = [word for word in arguments if word.startswith("-") or "=" in word or word in ("qcow2", "raw")]
        rest = [word for word in arguments if word not in options]
        subprocess.run(["qemu-img", "create", "-q", *options, name, *rest], cwd=self.images, check=True)
        return name

    def write(self, name: str, *commands: str) -> None:
        """qemu-io on an image in the folder."""
        words = [word for command in commands for word in ("-c", command)]
        format_ = ["-f", "raw"] if name.endswith(".raw") else []
        subprocess.run(["qemu-io", *format_, *words, name], cwd=self.images, check=True, stdout=subprocess.DEVNULL)

    def chain(self) -> None:
        """base.qcow2 <- top.qcow2, with data, zeroes and holes in both, and a raw file."""
        self.make("base.qcow2", "-f", "qcow2", "4M")
        self.make("top.qcow2", "-f", "qcow2", "-obacking_file=base.qcow2,backing_fmt=qcow2")
        self.make("other.qcow2", "-f", "qcow2", "4M")
        self.make("plain.raw", "-f", "raw", "4M")
        self.write("base.qcow2", "write -P 1 0 1M", "write -P 2 2M 64k", "write -z 3M 64k")
        self.write("top.qcow2", "write -P 3 512k 256k", "write -z 1M 128k", "write -P 4 3M 4k")
        self.write("other.qcow2", "write -P 1 0 512k", "write -P 9 2M 128k")
        self.write("plain.raw", "write -P 5 1M 64k")

    def run_in(self, folder: Path, program: list[str], arguments: tuple[str, ...]) -> tuple[int, str, str]:
        """A program in a fresh copy of the folder: its exit code, output, and errors without its name."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.images, folder)
        done = subprocess.run(
            [*program, *arguments], cwd=folder, capture_output=True, text=True, env=environment(), timeout=60
        )
        errors = done.stderr
        self.told = [re.sub("^(qemu-img|blockd-test): ", "PROGRAM: ", line) for line in errors.splitlines()]
        for name in ("qemu-img: ", "blockd-test: "):
            errors = errors.replace(name, "")
        return done.returncode, done.stdout, errors.strip()

    def both(self, *arguments: str) -> tuple[int, str, str]:
        """The same of both, and what that is."""
        theirs = self.run_in(self.theirs, ["qemu-img"], arguments)
        ours = self.run_in(self.ours, [BLOCKD, "img"], arguments)
        self.assertEqual(ours, theirs, arguments)
        return ours

    def good(self, *arguments: str) -> str:
        """Both succeed, with the same output."""
        status, output, errors = self.both(*arguments)
        self.assertEqual((status, errors), (0, ""), arguments)
        return output

    def same_image(self, name: str) -> None:
        """What both have made of an image: the same content, the same information, and whole."""
        mine, other = str(self.ours / name), str(self.theirs / name)
        mine_info, other_info = images.info(mine), images.info(other)
        for member in ("virtual-size", "format", "format-specific", "backing-filename", "backing-filename-format"):
            self.assertEqual(mine_info.get(member), other_info.get(member), (name, member))
        images.compare(mine, other, mine_info["format"], other_info["format"])
        if mine_info["format"] == "qcow2":
            images.check(mine)


class Inspect(ImgCase):
    """info, map, compare."""

    def test_info(self) -> None:
        self.chain()
        for name in ("base.qcow2", "top.qcow2", "plain.raw"):
            self.good("info", name)
        self.good("info", "--backing-chain", "top.qcow2")
        self.good("info", "-f", "raw", "top.qcow2")
        self.good("info", "--image-opts", "driver=qcow2,file.driver=file,file.filename=top.qcow2")

    def test_info_of_every_kind(self) -> None:
        for options in ("compat=0.10", "cluster_size=4k,lazy_refcounts=on,refcount_bits=1", "compression_type=zstd"):
            with self.subTest(options=options):
                self.make("x.qcow2", "-f", "qcow2", "-o" + options, "1M")
                self.good("info", "x.qcow2")

    def test_info_as_json(self) -> None:
        self.chain()
        for arguments in (["top.qcow2"], ["--backing-chain", "top.qcow2"], ["plain.raw"]):
            theirs = json.loads(self.run_in(self.theirs, ["qemu-img"], ("info", "--output=json", *arguments))[1])
            ours = json.loads(self.run_in(self.ours, [BLOCKD, "img"], ("info", "--output=json", *arguments))[1])
            for info in ours if isinstance(ours, list) else [ours]:
                self.assertEqual([child["name"] for child in info.pop("children")], ["file"])  # since 8.0
            self.assertEqual(ours, theirs)

    def test_snapshots_and_bitmaps_are_shown(self) -> None:
        self.chain()
        subprocess.run(["qemu-img", "snapshot", "-c", "first", "base.qcow2"], cwd=self.images, check=True)
        subprocess.run(["qemu-img", "bitmap", "--add", "base.qcow2", "b0"], cwd=self.images, check=True)
        self.good("info", "base.qcow2")

    def test_map(self) -> None:
        self.chain()
        for name in ("base.qcow2", "top.qcow2", "plain.raw"):
            self.good("map", name)
        self.good("map", "-s", "768k", "-l", "2M", "top.qcow2")

    def test_map_as_json(self) -> None:
        self.chain()
        for arguments in (["top.qcow2"], ["plain.raw"], ["--start-offset=1M", "--max-length=1M", "top.qcow2"]):
            theirs = json.loads(self.run_in(self.theirs, ["qemu-img"], ("map", "--output=json", *arguments))[1])
            ours = json.loads(self.run_in(self.ours, [BLOCKD, "img"], ("map", "--output=json", *arguments))[1])
            for extent in ours:
                self.assertFalse(extent.pop("compressed"))  # since 8.2
            self.assertEqual(ours, theirs)

    def test_map_of_compressed_clusters(self) -> None:
        self.chain()
        subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", "base.qcow2", "c.qcow2"], cwd=self.images, check=True)
        self.both("map", "c.qcow2")

    def test_compare(self) -> None:
        self.chain()
        self.make("same.raw", "-f", "raw", "4M")
        subprocess.run(["qemu-img", "convert", "-O", "raw", "top.qcow2", "same.raw"], cwd=self.images, check=True)
        self.good("compare", "top.qcow2", "same.raw")
        self.good("compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "same.raw")
        self.assertEqual(self.both("compare", "top.qcow2", "base.qcow2")[0], 1)
        self.assertEqual(self.both("compare", "base.qcow2", "plain.raw")[0], 1)
        self.good("compare", "-s", "base.qcow2", "base.qcow2")
        self.assertEqual(self.both("compare", "-s", "other.qcow2", "base.qcow2")[0], 1)
        self.assertEqual(self.both("compare", "-q", "top.qcow2", "base.qcow2"), (1, "", ""))
        self.assertEqual(self.both("compare", "top.qcow2", "missing")[0], 2)

    def test_compare_of_other_lengths(self) -> None:
        self.make("short.qcow2", "-f", "qcow2", "1M")
        self.make("long.qcow2", "-f", "qcow2", "3M")
        self.good("compare", "short.qcow2", "long.qcow2")
        self.assertEqual(self.both("compare", "-s", "short.qcow2", "long.qcow2")[0], 1)
        self.write("long.qcow2", "write -P 1 2M 4k")
        self.assertEqual(self.both("compare", "short.qcow2", "long.qcow2")[0], 1)

    def test_mistakes(self) -> None:
        self.chain()
        for arguments in (
            ("info", "missing"),
            ("info", "-f", "nonsense", "base.qcow2"),
            ("info", "--output=xml", "base.qcow2"),
            ("map", "missing"),
            ("info", "-f", "qcow2", "plain.raw"),
        ):
            self.assertEqual(self.both(*arguments)[0], 1)


class Make(ImgCase):
    """create, convert, dd."""

    def test_create(self) -> None:
        self.chain()
        for arguments in (
            ("-f", "qcow2", "new.qcow2", "1M"),
            ("-f", "raw", "new.raw", "100k"),
            ("new.raw", "1000"),
            ("-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "new.qcow2"),
            ("-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "new.qcow2", "8M"),
            ("-f", "qcow2", "-u", "-b", "missing", "-F", "raw", "new.qcow2", "1M"),
            ("-f", "qcow2", "-o", "compat=0.10,cluster_size=4k,preallocation=metadata", "new.qcow2", "1M"),
            ("-f", "qcow2", "-o", "lazy_refcounts=on,refcount_bits=8", "-o", "compression_type=zstd", "new.qcow2", "1M"),
            ("-q", "-f", "raw", "-o", "preallocation=falloc", "new.raw", "1M"),
        ):
            with self.subTest(arguments=arguments):
                self.good("create", *arguments)
                name = "new.qcow2" if "new.qcow2" in arguments else "new.raw"
                if "missing" not in arguments:
                    self.same_image(name)

    def test_create_refused(self) -> None:
        self.chain()
        for arguments in (
            ("-f", "qcow2", "new.qcow2"),
            ("-f", "qcow2", "-b", "missing", "-F", "raw", "new.qcow2"),
            ("-f", "qcow2", "-b", "base.qcow2", "new.qcow2"),
            ("-f", "nonsense", "new.qcow2", "1M"),
            ("-f", "qcow2", "-o", "nonsense=1", "new.qcow2", "1M"),
            ("-f", "qcow2", "-o", "cluster_size=3", "new.qcow2", "1M"),
            ("-f", "qcow2", "-o", "compat=7", "new.qcow2", "1M"),
            ("-f", "qcow2", "-o", "refcount_bits=3", "new.qcow2", "1M"),
        ):
            with self.subTest(arguments=arguments):
                self.assertEqual(self.both("create", *arguments)[0], 1)
                self.assertEqual((self.ours / "new.qcow2").exists(), (self.theirs / "new.qcow2").exists())

    def test_create_refused_keeps_what_is_there(self) -> None:
        """Unlike the rival, which removes both files."""
        self.chain()
        for options, text in (
            ("cluster_size=3", "Cluster size must be a power of two between 512 and 2048k"),
            ("data_file=plain.raw,cluster_size=3", "Cluster size must be a power of two between 512 and 2048k"),
            ("preallocation=bogus", "Parameter 'preallocation' does not accept value 'bogus'"),
            ("data_file=./base.qcow2", "The data file './base.qcow2' is the image itself"),
        ):
            arguments = ("create", "-q", "-f", "qcow2", "-o", options, "base.qcow2", "1M")
            status, _, errors = self.run_in(self.ours, [BLOCKD, "img"], arguments)
            self.assertEqual((status, errors), (1, f"base.qcow2: {text}"), options)
            for name in ("base.qcow2", "plain.raw"):
                self.assertEqual((self.ours / name).read_bytes(), (self.images / name).read_bytes(), (options, name))
        missing = ("create", "-q", "-f", "qcow2", "-o", "data_file=n.qcow2", "./n.qcow2", "1M")
        self.assertEqual(self.run_in(self.ours, [BLOCKD, "img"], missing)[0], 1)
        self.assertFalse((self.ours / "n.qcow2").exists())

    def test_convert(self) -> None:
        self.chain()
        for arguments in (
            ("-O", "raw", "top.qcow2", "out.raw"),
            ("-O", "qcow2", "top.qcow2", "out.qcow2"),
            ("-O", "qcow2", "-c", "top.qcow2", "out.qcow2"),
            ("-O", "qcow2", "-o", "compat=0.10,cluster_size=4k", "plain.raw", "out.qcow2"),
            ("-f", "raw", "-O", "qcow2", "-W", "-m", "4", "-S", "64k", "plain.raw", "out.qcow2"),
            ("-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", "top.qcow2", "out.qcow2"),
            ("-n", "-O", "qcow2", "top.qcow2", "other.qcow2"),
        ):
            with self.subTest(arguments=arguments):
                self.good("convert", *arguments)
                self.same_image(arguments[-1])

    def test_convert_takes_bitmaps_along(self) -> None:
        self.chain()
        for command in (["--add", "base.qcow2", "b0"], ["--add", "--disable", "-g", "32k", "base.qcow2", "b1"]):
            subprocess.run(["qemu-img", "bitmap", *command], cwd=self.images, check=True)
        self.write("base.qcow2", "write -P 7 1M 64k")
        self.good("convert", "-O", "qcow2", "--bitmaps", "base.qcow2", "out.qcow2")
        self.same_image("out.qcow2")

    def test_convert_into_a_longer_target(self) -> None:
        self.chain()
        self.make("long.qcow2", "-f", "qcow2", "6M")
        self.write("long.qcow2", "write -P 8 5M 64k")
        self.good("convert", "-n", "-O", "qcow2", "base.qcow2", "long.qcow2")
        self.same_image("long.qcow2")

    def test_convert_refused(self) -> None:
        self.chain()
        self.make("short.qcow2", "-f", "qcow2", "1M")
        for arguments in (
            ("-O", "raw", "missing", "out.raw"),
            ("-O", "qcow2", "-o", "nonsense=1", "top.qcow2", "out.qcow2"),
            ("-n", "-O", "qcow2", "top.qcow2", "short.qcow2"),
        ):
            with self.subTest(arguments=arguments):
                self.assertEqual(self.both("convert", *arguments)[0], 1)

    def test_convert_spares_its_source(self) -> None:
        self.chain()
        before = (self.images / "base.qcow2").read_bytes()
        status, _, errors = self.run_in(self.ours, [BLOCKD, "img"], ("convert", "-O", "qcow2", "base.qcow2", "base.qcow2"))
        self.assertEqual((status, errors), (1, "base.qcow2 is the source"))
        self.assertEqual((self.ours / "base.qcow2").read_bytes(), before)

    def test_dd(self) -> None:
        self.chain()
        for arguments in (
            ("-O", "qcow2", "if=top.qcow2", "of=out.qcow2"),
            ("bs=64k", "count=40", "if=top.qcow2", "of=out.raw"),
            ("-f", "raw", "-O", "raw", "bs=1M", "skip=1", "if=plain.raw", "of=out.raw"),
        ):
            with self.subTest(arguments=arguments):
                self.good("dd", *arguments)
                self.same_image(arguments[-1].removeprefix("of="))
        # The rival compares where to begin with the length of the part, and copies nothing.
        self.run_in(self.ours, [BLOCKD, "img"], ("dd", "bs=64k", "count=3", "skip=6", "if=top.qcow2", "of=out.raw"))
        subprocess.run(["qemu-img", "convert", "-O", "raw", "top.qcow2", "whole.raw"], cwd=self.images, check=True)
        whole = (self.images / "whole.raw").read_bytes()
        self.assertEqual((self.ours / "out.raw").read_bytes(), whole[6 * 64 * KiB : 9 * 64 * KiB])
        self.assertEqual(self.both("dd", "if=top.qcow2")[0], 1)
        self.assertEqual(self.both("dd", "if=top.qcow2", "of=x", "nonsense=1")[0], 1)


class Change(ImgCase):
    """resize, commit, rebase, bitmap."""

    def test_resize(self) -> None:
        self.chain()
        for arguments in (
            ("base.qcow2", "+1M"),
            ("-q", "base.qcow2", "6M"),
            ("--preallocation=falloc", "other.qcow2", "5M"),
            ("--shrink", "other.qcow2", "1M"),
            ("--shrink", "-f", "raw", "plain.raw", "-1M"),
        ):
            with self.subTest(arguments=arguments):
                self.good("resize", *arguments)
                self.same_image(arguments[-2])

    def test_resize_refused(self) -> None:
        self.chain()
        status, output, errors = self.run_in(self.ours, [BLOCKD, "img"], ("resize", "base.qcow2", "1M"))
        self.assertEqual((status, output), (1, ""))
        self.assertTrue(errors.startswith("Use the --shrink option to perform a shrink operation."))
        self.assertEqual(images.info(str(self.ours / "base.qcow2"))["virtual-size"], 4 * MiB)
        self.assertEqual(self.both("resize", "base.qcow2", "-4M")[0], 1)

    def test_commit(self) -> None:
        self.chain()
        self.good("commit", "-d", "top.qcow2")
        self.same_image("base.qcow2")
        self.same_image("top.qcow2")

    def test_commit_over_several_images(self) -> None:
        self.chain()
        self.make("upper.qcow2", "-f", "qcow2", "-obacking_file=top.qcow2,backing_fmt=qcow2")
        self.write("upper.qcow2", "write -P 6 3M 256k")
        self.good("commit", "-b", "base.qcow2", "upper.qcow2")
        self.same_image("base.qcow2")
        self.good("commit", "-q", "-d", "upper.qcow2")
        self.same_image("top.qcow2")

    def test_commit_refused(self) -> None:
        self.chain()
        for arguments in (("base.qcow2",), ("missing",), ("-b", "missing", "top.qcow2")):
            self.assertEqual(self.both("commit", *arguments)[0], 1)

    def test_rebase_keeps_the_content(self) -> None:
        self.chain()
        self.make("short.qcow2", "-f", "qcow2", "1M")
        self.write("short.qcow2", "write -P 1 0 1M")
        for name in ("other.qcow2", "short.qcow2"):
            with self.subTest(backing=name):
                self.good("rebase", "-b", name, "-F", "qcow2", "top.qcow2")
                self.same_image("top.qcow2")
                images.compare(str(self.ours / "top.qcow2"), str(self.images / "top.qcow2"), "qcow2", "qcow2")

    def test_rebase_onto_nothing(self) -> None:
        self.chain()
        self.good("rebase", "-b", "", "top.qcow2")
        self.same_image("top.qcow2")
        images.compare(str(self.ours / "top.qcow2"), str(self.images / "top.qcow2"), "qcow2", "qcow2")

    def test_rebase_of_the_name_only(self) -> None:
        self.chain()
        self.good("rebase", "-u", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2")
        self.same_image("top.qcow2")

    def test_rebase_refused(self) -> None:
        self.chain()
        self.assertEqual(self.both("rebase", "-b", "missing", "-F", "qcow2", "top.qcow2")[0], 1)

    def test_bitmap(self) -> None:
        self.chain()
        for arguments in (
            ("--add", "base.qcow2", "b0"),
            ("--add", "--disable", "-g", "32k", "base.qcow2", "b0"),
        ):
            with self.subTest(arguments=arguments):
                self.good("bitmap", *arguments)
                self.same_image("base.qcow2")
        subprocess.run(["qemu-img", "bitmap", "--add", "base.qcow2", "b0"], cwd=self.images, check=True)
        self.write("base.qcow2", "write -P 7 1M 64k")
        subprocess.run(["qemu-img", "bitmap", "--add", "-g", "32k", "base.qcow2", "b1"], cwd=self.images, check=True)
        for arguments in (
            ("--remove", "base.qcow2", "b0"),
            ("--clear", "--disable", "base.qcow2", "b0"),
            ("--disable", "--merge", "b0", "base.qcow2", "b1"),
            ("--merge", "b0", "-b", "base.qcow2", "-F", "qcow2", "--add", "other.qcow2", "n0"),
        ):
            with self.subTest(arguments=arguments):
                if "--add" in arguments:
                    arguments = ("--add", "--merge", "b0", "-b", "base.qcow2", "-F", "qcow2", "other.qcow2", "n0")
                self.good("bitmap", *arguments)
                self.same_image(arguments[-2])

    def test_bitmap_refused(self) -> None:
        self.chain()
        for arguments in (
            ("base.qcow2", "b0"),
            ("--remove", "base.qcow2", "b0"),
            ("--merge", "nope", "base.qcow2", "b0"),
            ("--add", "-g", "3", "base.qcow2", "b0"),
        ):
            with self.subTest(arguments=arguments):
                self.assertEqual(self.both("bitmap", *arguments)[0], 1)


class Care(ImgCase):
    """check, snapshot, measure."""

    def damaged(self) -> None:
        """leak.qcow2 has a leak, bad.qcow2 an entry that leads beyond the file."""
        self.make("leak.qcow2", "-f", "qcow2", "1M")
        self.write("leak.qcow2", "write -P 1 0 256k")
        path = self.images / "leak.qcow2"
        data = bytearray(path.read_bytes())
        (l1,) = struct.unpack(">Q", data[40:48])
        l2 = struct.unpack(">Q", data[l1 : l1 + 8])[0] & ((1 << 56) - 1)
        (entry,) = struct.unpack(">Q", data[l2 : l2 + 8])
        (self.images / "bad.qcow2").write_bytes(data[:l2] + struct.pack(">Q", entry + MiB) + data[l2 + 8 :])
        path.write_bytes(data[:l2] + bytes(8) + data[l2 + 8 :])

    def checked(self, *arguments: str) -> tuple[int, str]:
        """What both say, but for the single findings on stderr, which have other words."""
        theirs = self.run_in(self.theirs, ["qemu-img"], ("check", *arguments))
        ours = self.run_in(self.ours, [BLOCKD, "img"], ("check", *arguments))
        self.assertEqual(ours[:2], theirs[:2])
        if "-r" not in arguments:  # what was repaired is only counted
            self.assertEqual(bool(ours[2]), bool(theirs[2]))
        return ours[:2]

    def test_check(self) -> None:
        self.chain()
        self.damaged()
        outputs: list[list[str]] = [[], ["--output=json"]]
        for output in outputs:
            self.assertEqual(self.checked(*output, "top.qcow2")[0], 0)
            self.assertEqual(self.checked(*output, "leak.qcow2")[0], 3)
            self.assertEqual(self.checked(*output, "bad.qcow2")[0], 2)
        self.assertEqual(self.checked("-q", "base.qcow2"), (0, ""))
        self.assertEqual(self.both("check", "-f", "raw", "plain.raw")[0], 63)
        self.assertEqual(self.both("check", "missing")[0], 1)

    def test_repair_of_leaks(self) -> None:
        self.damaged()
        self.assertEqual(self.checked("-r", "leaks", "leak.qcow2")[0], 0)
        self.same_image("leak.qcow2")

    def test_repair_of_lost_refcounts_and_of_marked_images(self) -> None:
        self.damaged()
        data = bytearray((self.images / "leak.qcow2").read_bytes())
        (table,) = struct.unpack(">Q", data[48:56])
        (block,) = struct.unpack(">Q", data[table : table + 8])
        lost = {"far": 1 << 30, "nowhere": 0, "unaligned": block + 512, "overlap": table}
        for name, entry in lost.items():
            (self.images / f"{name}.qcow2").write_bytes(data[:table] + struct.pack(">Q", entry) + data[table + 8 :])
        # The dirty bit and the corrupt bit: nobody but a repair opens it for writing.
        (self.images / "marked.qcow2").write_bytes(data[:79] + b"\3" + data[80:])
        (self.images / "none.qcow2").write_bytes(data[:56] + bytes(4) + data[60:])
        for name in (*lost, "marked", "none"):
            with self.subTest(name):
                theirs = self.run_in(self.theirs, ["qemu-img"], ("check", "-r", "all", f"{name}.qcow2"))
                ours = self.run_in(self.ours, [BLOCKD, "img"], ("check", "-r", "all", f"{name}.qcow2"))
                gives_up = name == "unaligned"
                self.assertEqual((ours[0], theirs[0]), (0, int(gives_up)))
                images.check(str(self.ours / f"{name}.qcow2"))
                if not gives_up:
                    self.same_image(f"{name}.qcow2")

    def test_snapshots(self) -> None:
        self.chain()
        self.good("snapshot", "-l", "base.qcow2")
        self.assertEqual(self.both("snapshot", "-d", "nope", "base.qcow2")[0], 1)
        blockd = [BLOCKD, "img", "snapshot"]
        path = str(self.images / "base.qcow2")
        subprocess.run([*blockd, "-c", "first", path], check=True, env=environment())
        before = self.images / "before.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, str(before)], check=True)
        self.write("base.qcow2", "write -P 9 0 2M")
        images.check(path)
        self.assertIn("first", self.good("snapshot", "-l", "base.qcow2"))
        subprocess.run([*blockd, "-a", "first", path], check=True, env=environment())
        images.compare(path, str(before), "qcow2", "raw")
        subprocess.run([*blockd, "-d", "first", path], check=True, env=environment())
        images.check(path)
        self.assertEqual(self.good("snapshot", "-l", "base.qcow2"), "")

    def test_measure(self) -> None:
        self.chain()
        subprocess.run(["qemu-img", "bitmap", "--add", "base.qcow2", "b0"], cwd=self.images, check=True)
        for arguments in (
            ("--size", "1G"),
            ("-O", "qcow2", "--size", "1000"),
            ("-O", "qcow2", "--size", "1T", "--output=json"),
            ("-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=1,compat=1.1", "--size", "10G"),
            ("-O", "qcow2", "-o", "preallocation=full", "--size", "1G"),
            ("-O", "qcow2", "-o", "extended_l2=on", "--size", "3G"),
            ("-O", "qcow2", "top.qcow2"),
            ("-O", "qcow2", "base.qcow2"),
            ("-O", "raw", "top.qcow2"),
            ("-O", "qcow2", "-f", "raw", "plain.raw"),
        ):
            self.good("measure", *arguments)
        for arguments in ((), ("-O", "nonsense", "--size", "1"), ("-O", "qcow2", "-o", "cluster_size=3", "--size", "1M")):
            self.assertEqual(self.both("measure", *arguments)[0], 1)


class Progress(ImgCase):
    """What only shows itself while something goes on."""

    def test_progress_ends_at_100(self) -> None:
        self.chain()
        status, output, _ = self.run_in(self.ours, [BLOCKD, "img"], ("convert", "-p", "-O", "raw", "top.qcow2", "out.raw"))
        self.assertEqual(status, 0)
        self.assertTrue(output.endswith("    (100.00/100%)\n"), output)

    def test_images_in_use_are_refused(self) -> None:
        path = self.create_image("used.qcow2", 64 * KiB)
        self.launch("--blockdev", f"qcow2,node-name=n,file.driver=file,file.filename={path}")
        done: Any = subprocess.run([BLOCKD, "img", "resize", path, "1M"], capture_output=True, text=True, env=environment())
        self.assertEqual(done.returncode, 1)
        self.assertIn('Failed to get "write" lock\nIs another process using the image', done.stderr)
        done = subprocess.run([BLOCKD, "img", "info", "-U", path], capture_output=True, text=True, env=environment())
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class Encryption(ImgCase):
    """Encrypted images, by a secret."""

    SECRET = ("--object", "secret,id=s,data=hunter")

    def options(self, name: str) -> str:
        """How qemu-img is told of an encrypted image."""
        if name.endswith(".luks"):
            return f"driver=luks,key-secret=s,file.filename={name}"
        return f"driver=qcow2,encrypt.key-secret=s,file.filename={name}"

    def test_convert_into(self) -> None:
        self.make("plain.raw", "-f", "raw", "1M")
        self.write("plain.raw", "write -P 7 64k 64k")
        for target, options in (
            ("t.luks", ("-O", "luks", "-o", "key-secret=s,iter-time=10")),
            ("t.qcow2", ("-O", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")),
        ):
            with self.subTest(target=target):
                folder = str(self.images)
                source, made = f"{folder}/plain.raw", f"{folder}/{target}"
                images.run_tool(BLOCKD, "img", "convert", *self.SECRET, "-f", "raw", *options, source, made)
                images.run_tool(
                    "qemu-img", "compare", *self.SECRET, "--image-opts",
                    self.options(made), f"driver=raw,file.filename={source}",
                )  # fmt: skip
