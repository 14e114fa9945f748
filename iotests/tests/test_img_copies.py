"""`blockd img` beside qemu-img: the ways of converting, emptying commits, and encrypted images."""

from __future__ import annotations

import json
import subprocess

from iotests.harness import images
from iotests.harness.images import KiB, MiB
from iotests.tests.test_img import BLOCKD, ImgCase


class CopyCase(ImgCase):
    """What copies have in common beyond their content."""

    def same_words(self, *arguments: str) -> None:
        """Both fail, with the same words, wherever the lines end."""
        theirs = self.run_in(self.theirs, ["qemu-img"], arguments)
        ours = self.run_in(self.ours, [BLOCKD, "img"], arguments)
        self.assertEqual((ours[0], ours[2].split()), (theirs[0], theirs[2].split()), arguments)
        self.assertEqual(ours[0], 1)

    def allocation(self, path: str, file_format: str) -> list[list[int]]:
        """Where an image holds data, as runs of first and last byte."""
        text = images.run_tool("qemu-img", "map", "--output=json", "-f", file_format, path)
        runs: list[list[int]] = []
        for e in json.loads(text):
            if e["data"]:  # within clusters of qcow2 the file may have holes
                if runs and runs[-1][1] == e["start"]:
                    runs[-1][1] += e["length"]
                else:
                    runs.append([e["start"], e["start"] + e["length"]])
        return runs

    def same_allocation(self, name: str, file_format: str) -> int:
        """Both images hold data in the same places; how much."""
        ours = self.allocation(str(self.ours / name), file_format)
        self.assertEqual(ours, self.allocation(str(self.theirs / name), file_format))
        return sum(end - start for start, end in ours)


class Convert(CopyCase):
    """convert."""

    def test_several_sources(self) -> None:
        self.chain()
        self.make("odd.raw", "-f", "raw", "1000")
        self.write("odd.raw", "write -P 9 0 1000")
        for arguments in (
            ("-O", "raw", "top.qcow2", "base.qcow2", "out.raw"),
            ("-O", "qcow2", "odd.raw", "plain.raw", "out.qcow2"),
            ("-O", "qcow2", "-c", "odd.raw", "plain.raw", "odd.raw", "out.qcow2"),
            ("-n", "-f", "raw", "-O", "qcow2", "odd.raw", "odd.raw", "other.qcow2"),
        ):
            with self.subTest(arguments=arguments):
                self.good("convert", *arguments)
                self.same_image(arguments[-1])

    def test_zeroes_are_found_in_data(self) -> None:
        self.make("zeroes.raw", "-f", "raw", "4M")
        self.write("zeroes.raw", "write -P 0 0 4M", "write -P 7 1M 4k", "write -P 7 1032k 4k", "write -P 7 2M 512k", "write -P 8 3584k 512")
        for file_format in ("raw", "qcow2"):
            for sparse in ((), ("-S", "64k"), ("-S", "512"), ("-S", "1M"), ("-S", "0")):
                with self.subTest(file_format=file_format, sparse=sparse):
                    self.good("convert", *sparse, "-f", "raw", "-O", file_format, "zeroes.raw", "out")
                    data = self.same_allocation("out", file_format)
                    images.compare(str(self.ours / "out"), str(self.images / "zeroes.raw"), file_format, "raw")
                    if sparse == ("-S", "0"):
                        self.assertEqual(data, 4 * MiB)
                    elif sparse != ("-S", "1M"):
                        self.assertLess(data, MiB)

    def test_zeroes_hide_what_is_below(self) -> None:
        self.chain()
        self.write("top.qcow2", "write -P 0 0 64k", "write -z 2M 64k")
        below = ("-B", "base.qcow2", "-F", "qcow2")
        for options in (
            below,
            ("-o", "backing_file=base.qcow2,backing_fmt=qcow2"),
            (*below, "-o", "compat=0.10"),  # which has no zeroes but data
            (*below, "-c", "-o", "compat=0.10"),
        ):
            with self.subTest(options=options):
                self.good("convert", "-O", "qcow2", *options, "top.qcow2", "out.qcow2")
                self.same_image("out.qcow2")
                self.same_allocation("out.qcow2", "qcow2")
                images.compare(str(self.ours / "out.qcow2"), str(self.images / "top.qcow2"), "qcow2", "qcow2")

    def test_a_source_without_a_backing_file_is_copied_whole(self) -> None:
        self.chain()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "long.qcow2", "8M"], cwd=self.images, check=True)
        self.write("long.qcow2", "write -P 7 0 8M")
        for backing in ("base.qcow2", "long.qcow2"):
            for sparse in ("4k", "0"):
                with self.subTest(backing=backing, sparse=sparse):
                    below = ("-B", backing, "-F", "qcow2", "-S", sparse)
                    self.good("convert", "-O", "qcow2", *below, "other.qcow2", "out.qcow2")
                    self.same_image("out.qcow2")
                    images.compare(str(self.ours / "out.qcow2"), str(self.images / "other.qcow2"), "qcow2", "qcow2")
        self.good("convert", "-n", "-O", "qcow2", "-B", "base.qcow2", "other.qcow2", "top.qcow2")
        self.same_image("top.qcow2")

    def test_what_lies_beyond_the_backing_file_of_the_source_is_zeroes(self) -> None:
        # The field looks at the end of the short one only where an extent begins there.
        for name, size in (("short.raw", "1000k"), ("long.raw", "3M")):
            self.make(name, "-f", "raw", size)
            self.write(name, f"write -P 7 0 {size}")
        self.make("source.qcow2", "-f", "qcow2", "-obacking_file=short.raw,backing_fmt=raw", "2M")
        self.write("source.qcow2", "write -P 9 1088k 4k", "write -P 9 1536k 4k")
        for options in ((), ("-c",), ("-S", "0"), ("-o", "compat=0.10")):
            with self.subTest(options=options):
                self.good("convert", "-O", "qcow2", "-B", "long.raw", "-F", "raw", *options, "source.qcow2", "out.qcow2")
                out = str(self.ours / "out.qcow2")
                images.compare(out, str(self.images / "source.qcow2"), "qcow2", "qcow2")
                images.check(out)

    def test_compressed_into_a_target_that_is_longer(self) -> None:
        self.make("long.qcow2", "-f", "qcow2", "6M")
        self.write("long.qcow2", "write -P 6 5M 64k")
        for sparse in ("4k", "0"):
            with self.subTest(sparse=sparse):
                self.make("whole.raw", "-f", "raw", "3M")
                self.write("whole.raw", "write -P 5 1M 64k")
                self.good("convert", "-n", "-c", "-S", sparse, "-f", "raw", "-O", "qcow2", "whole.raw", "long.qcow2")
                self.same_image("long.qcow2")
        # Which ends within a cluster; the field refuses that.
        self.make("odd.raw", "-f", "raw", "100k")
        self.write("odd.raw", "write -P 5 0 100k")
        words = ("convert", "-n", "-c", "-f", "raw", "-O", "qcow2", "odd.raw", "long.qcow2")
        self.assertEqual(self.run_in(self.ours, [BLOCKD, "img"], words), (0, "", ""))
        out = str(self.ours / "long.qcow2")
        images.check(out)
        plain = str(self.images / "plain.raw")
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(self.images / "long.qcow2"), plain], check=True)
        self.write("plain.raw", "write -P 5 0 100k")
        images.compare(out, plain, "qcow2", "raw")

    def test_into_a_target_that_is_zero(self) -> None:
        self.chain()
        self.make("blank.qcow2", "-f", "qcow2", "4M")
        self.good("convert", "-n", "--target-is-zero", "-O", "qcow2", "plain.raw", "blank.qcow2")
        self.same_image("blank.qcow2")
        self.same_allocation("blank.qcow2", "qcow2")
        # The user's word is believed: what is there stays where the source has zeroes.
        self.good("convert", "-n", "--target-is-zero", "-O", "qcow2", "plain.raw", "other.qcow2")
        self.same_image("other.qcow2")

    def test_a_snapshot(self) -> None:
        self.chain()
        for command in (["-c", "one"], ["-c", "two"]):
            subprocess.run(["qemu-img", "snapshot", *command, "base.qcow2"], cwd=self.images, check=True)
            self.write("base.qcow2", "write -P 8 1536k 1M")
        subprocess.run(["qemu-img", "resize", "-q", "base.qcow2", "6M"], cwd=self.images, check=True)
        for snapshot in ("one", "2", "snapshot.id=1", "snapshot.name=two", "snapshot.id=1,snapshot.name=one"):
            with self.subTest(snapshot=snapshot):
                self.good("convert", "-l", snapshot, "-O", "qcow2", "base.qcow2", "out.qcow2")
                self.same_image("out.qcow2")
        self.good("measure", "-l", "one", "-O", "qcow2", "base.qcow2")
        self.same_words("convert", "-l", "three", "-O", "raw", "base.qcow2", "out.raw")
        self.same_words("convert", "-l", "snapshot.id=1,snapshot.name=two", "-O", "raw", "base.qcow2", "out.raw")
        self.same_words("convert", "-l", "one", "-O", "raw", "base.qcow2", "base.qcow2", "out.raw")
        self.same_words("convert", "-l", "", "-O", "raw", "base.qcow2", "out.raw")
        self.same_words("measure", "-l", "", "-O", "raw", "base.qcow2")

    def test_salvage(self) -> None:
        self.chain()
        broken = (
            "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=plain.raw,"
            "file.inject-error.0.event=read_aio,file.inject-error.0.sector={}"
        )
        for sector in (2048, 2050, 2175):
            with self.subTest(sector=sector):
                source = broken.format(sector)
                status, _, errors = self.run_in(
                    self.ours, [BLOCKD, "img"], ("convert", "--salvage", "--image-opts", "-O", "raw", source, "out.raw")
                )
                self.assertEqual((status, errors), (0, f"warning: error while reading offset {sector * 512}: Input/output error"))
                want = bytearray((self.images / "plain.raw").read_bytes())
                want[sector * 512 : (sector + 1) * 512] = bytes(512)
                self.assertEqual((self.ours / "out.raw").read_bytes(), want)
                self.assertEqual(
                    self.run_in(self.ours, [BLOCKD, "img"], ("convert", "--image-opts", "-O", "raw", source, "out.raw"))[0], 1
                )

    def test_accepted(self) -> None:
        self.chain()
        for arguments in (("-C",), ("-W", "-m", "16"), ("-r", "100M"), ("-t", "none"), ("-T", "none"), ("-U",)):
            with self.subTest(arguments=arguments):
                self.good("convert", *arguments, "-O", "qcow2", "top.qcow2", "out.qcow2")
                self.same_image("out.qcow2")

    def test_refused(self) -> None:
        self.chain()
        qcow2 = ("-O", "qcow2", "top.qcow2", "out.qcow2")
        for arguments in (
            ("-S", "1000", *qcow2),
            ("-S", "32M", *qcow2),
            ("-S", "x", *qcow2),
            ("-m", "0", *qcow2),
            ("-m", "17", *qcow2),
            ("-r", "x", *qcow2),
            ("-r", "", *qcow2),
            ("-O", "", "top.qcow2", "out.raw"),
            ("-C", "-c", *qcow2),
            ("-C", "-S", "4k", *qcow2),
            ("-C", "--salvage", *qcow2),
            ("--skip-broken-bitmaps", *qcow2),
            ("--target-image-opts", *qcow2),
            ("--target-is-zero", *qcow2),
            ("-n", "-o", "compat=1.1", *qcow2),
            ("-B", "base.qcow2", "-F", "qcow2", "-O", "qcow2", "top.qcow2", "other.qcow2", "out.qcow2"),
            ("--bitmaps", "-O", "qcow2", "top.qcow2", "other.qcow2", "out.qcow2"),
            ("--bitmaps", "-O", "raw", "top.qcow2", "out.raw"),
            ("-o", "backing_file=base.qcow2", *qcow2),
            ("-c", "-O", "raw", "top.qcow2", "out.raw"),
            ("-c", "-o", "preallocation=full", *qcow2),
            ("-c", "-o", "encrypt.format=luks", *qcow2),
            ("top.qcow2",),
            (),
        ):
            with self.subTest(arguments=arguments):
                self.same_words("convert", *arguments)


    def test_a_zero_target_without_a_backing_file(self) -> None:
        self.chain()
        arguments = ("convert", "--target-is-zero", "-n", "-B", "base.qcow2", "-O", "qcow2", "top.qcow2", "other.qcow2")
        _, _, theirs = self.run_in(self.theirs, ["qemu-img"], arguments)  # which does nothing, and exits with 0
        self.assertEqual(self.run_in(self.ours, [BLOCKD, "img"], arguments), (1, "", theirs))


class Commit(CopyCase):
    """commit without -d."""

    def test_an_empty_base_is_none_of_the_chain(self) -> None:
        self.chain()
        self.same_words("commit", "-b", "", "top.qcow2")
        for name in ("base.qcow2", "top.qcow2"):
            self.same_image(name)

    def test_the_image_is_emptied(self) -> None:
        for options in ("compat=1.1", "compat=0.10", "extended_l2=on", "cluster_size=4k"):
            with self.subTest(options=options):
                self.chain()
                self.make("top.qcow2", "-f", "qcow2", "-obacking_file=base.qcow2,backing_fmt=qcow2", f"-o{options}")
                self.write("top.qcow2", "write -P 3 512k 256k", "write -P 4 3M 4k", "write -z 1M 128k")
                subprocess.run(["qemu-img", "bitmap", "--add", "base.qcow2", "b0"], cwd=self.images, check=True)
                self.good("commit", "top.qcow2")
                for name in ("base.qcow2", "top.qcow2"):
                    self.same_image(name)
                runs = json.loads(images.run_tool("qemu-img", "map", "--output=json", str(self.ours / "top.qcow2")))
                self.assertNotIn(0, [run["depth"] for run in runs])

    def test_snapshots_stay(self) -> None:
        self.chain()
        subprocess.run(["qemu-img", "snapshot", "-c", "one", "top.qcow2"], cwd=self.images, check=True)
        self.write("top.qcow2", "write -P 8 0 64k")
        self.good("commit", "top.qcow2")
        self.same_image("top.qcow2")
        path = str(self.ours / "top.qcow2")
        subprocess.run([BLOCKD, "img", "snapshot", "-a", "one", path], check=True)
        images.check(path)

    def test_rate(self) -> None:
        self.chain()
        self.good("commit", "-r", "100M", "top.qcow2")
        self.same_words("commit", "-r", "x", "top.qcow2")


class Resize(CopyCase):
    """Options may follow the file."""

    def test_options_anywhere(self) -> None:
        self.chain()
        for arguments in (("base.qcow2", "--shrink", "-1M"), ("-f", "qcow2", "base.qcow2", "-q", "6M"), ("--", "base.qcow2", "+1M")):
            with self.subTest(arguments=arguments):
                self.good("resize", *arguments)
                self.same_image("base.qcow2")


class Encrypted(CopyCase):
    """Encrypted images."""

    SECRET = ("--object", "secret,id=s,data=hunter")
    KINDS = (
        ("a.luks", "luks", "key-secret=s,iter-time=10", "key-secret=s"),
        ("a.qcow2", "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "encrypt.key-secret=s"),
        ("aes.qcow2", "qcow2", "encrypt.format=aes,encrypt.key-secret=s", "encrypt.key-secret=s"),
    )

    def setUp(self) -> None:
        super().setUp()
        for name, file_format, options, _ in self.KINDS:
            # qemu-img takes seconds to find out how fast the machine is.
            command = [BLOCKD, "img", "create", "-q", *self.SECRET, "-f", file_format, "-o", options, name, "1M"]
            subprocess.run(command, cwd=self.images, check=True)

    def test_info_needs_no_key(self) -> None:
        for name, file_format, _, _ in self.KINDS:
            with self.subTest(name=name):
                for arguments in ((name,), ("--image-opts", f"driver={file_format},file.filename={name}")):
                    theirs = self.run_in(self.theirs, ["qemu-img"], ("info", *arguments))
                    status, output, errors = self.run_in(self.ours, [BLOCKD, "img"], ("info", *arguments))
                    lines = [line for line in output.splitlines() if "detached header" not in line]  # since 9.0
                    self.assertEqual((status, lines, errors), (0, theirs[1].splitlines(), ""))
                theirs = json.loads(self.run_in(self.theirs, ["qemu-img"], ("info", "--output=json", name))[1])
                ours = json.loads(self.run_in(self.ours, [BLOCKD, "img"], ("info", "--output=json", name))[1])
                ours.pop("children")  # since 8.0
                data = ours["format-specific"]["data"]
                data.get("encrypt", data).pop("detached-header", None)  # since 9.0
                self.assertEqual(ours, theirs)

    def test_all_else_needs_the_key(self) -> None:
        for name, _, _, _ in self.KINDS:
            for arguments in (("check", name), ("convert", "-O", "raw", name, "out.raw"), ("resize", name, "2M")):
                with self.subTest(arguments=arguments):
                    self.same_words(*arguments)

    def test_measure(self) -> None:
        """qemu-img measures how fast the machine is for it, and fails where that is not clear."""
        self.chain()
        header = (self.images / "a.luks").stat().st_size - MiB
        luks = "encrypt.format=luks,encrypt.key-secret=s"
        for plain, encrypted, more in (
            (("-O", "raw", "top.qcow2"), ("-O", "luks", "-o", "key-secret=s", "top.qcow2"), header),
            (("-O", "raw", "--size", "1G"), ("-O", "luks", "-o", "key-secret=s", "--size", "1G"), header),
            (("-O", "qcow2", "--size", "1G"), ("-O", "qcow2", "-o", luks, "--size", "1G"), -(-header // (64 * KiB)) * 64 * KiB),
            (
                ("-O", "qcow2", "-o", "cluster_size=4k", "top.qcow2"),
                ("-O", "qcow2", "-o", f"{luks},cluster_size=4k", "top.qcow2"),
                header,
            ),
        ):
            with self.subTest(encrypted=encrypted):
                theirs = json.loads(self.run_in(self.theirs, ["qemu-img"], ("measure", "--output=json", *plain))[1])
                done = self.run_in(self.ours, [BLOCKD, "img"], ("measure", "--output=json", *self.SECRET, *encrypted))
                ours = json.loads(done[1])
                for member in ("required", "fully-allocated"):
                    self.assertEqual(ours[member], theirs[member] + more)
        for arguments in (
            ("-O", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s", "--size", "1G"),
            ("-O", "qcow2", "-o", "backing_file=base.qcow2,backing_fmt=qcow2", "top.qcow2"),
        ):
            with self.subTest(arguments=arguments):
                self.good("measure", *self.SECRET, *arguments)
        self.same_words("measure", "-O", "luks", "--size", "1G")
        self.same_words("measure", "-O", "qcow2", "-o", "encrypt.format=luks", "--size", "1G")
        self.same_words("measure", "-O", "luks", "-o", "key-secret=nope", "--size", "1G")

    def test_copies(self) -> None:
        for name, file_format, _, key in self.KINDS:
            options = f"driver={file_format},{key},file.filename={name}"
            subprocess.run(
                ["qemu-io", *self.SECRET, "--image-opts", options, "-c", "write -P 5 64k 64k", "-c", "write -P 0 0 64k"],
                cwd=self.images, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            with self.subTest(name=name):
                self.good("convert", *self.SECRET, "--image-opts", "-O", "raw", options, "out.raw")
                self.assertEqual((self.ours / "out.raw").read_bytes(), (self.theirs / "out.raw").read_bytes())
                self.assertEqual((self.ours / "out.raw").read_bytes()[64 * KiB : 128 * KiB], b"\5" * 64 * KiB)
                self.good("compare", *self.SECRET, "--image-opts", options, options)
                self.good("check", *self.SECRET, "--image-opts", options) if file_format == "qcow2" else None
