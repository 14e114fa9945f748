"""`blockd img` beside qemu-img where something is wrong: every line of what is told, and what has become of the images."""

from __future__ import annotations

import json
import shutil
import subprocess

from iotests.harness.images import KiB
from iotests.tests.test_img import BLOCKD, ImgCase

SECRET = "--object=secret,id=s,data=123456"


class FaultCase(ImgCase):
    """Lines are compared with the program's name before them."""

    def same(self, *arguments: str) -> tuple[int, str, list[str]]:
        """The same of both, and what that is."""
        theirs = *self.run_in(self.theirs, ["qemu-img"], arguments)[:2], self.told
        ours = *self.run_in(self.ours, [BLOCKD, "img"], arguments)[:2], self.told
        self.assertEqual(ours, theirs, arguments)
        return theirs

    def refused(self, *arguments: str) -> None:
        """Both fail, and say why."""
        status, _, told = self.same(*arguments)
        self.assertEqual((status, bool(told)), (1, True))

    def accepted(self, *arguments: str) -> str:
        """Both succeed, and have nothing to complain about; what they print."""
        status, output, told = self.same(*arguments)
        self.assertEqual((status, told), (0, []))
        return output


class Words(FaultCase):
    """What is wrong with the command line."""

    def test_sizes(self) -> None:
        for size in ("1024.0", "1024.0b", "1.", "1.5k", "0.00"):
            self.accepted("create", "-f", "qcow2", "x.qcow2", size)
            self.same_image("x.qcow2")
        self.accepted("create", "-f", "qcow2", "-o", "size=4096.0,cluster_size=512.0b", "x.qcow2")
        self.same_image("x.qcow2")
        for size in ("1.5", "1024.1b", "1kilobyte", "foobar", ""):
            self.refused("create", "-f", "qcow2", "x.qcow2", size)

    def test_measure(self) -> None:
        for arguments in (
            ("--image-opts",),
            ("-f", "raw"),
            ("-l", "one"),
            ("-l", "snapshot.foo=bar"),
            ("--size", "1M", "-O", "qcow2", "-o", "nothing=1"),
            ("--size", "1M", "-O", "qcow2", "-o", "cluster_size=x"),
            ("--size", "-1"),
        ):
            self.refused("measure", *arguments)

    def test_shrinking(self) -> None:
        self.make("x.raw", "-f", "raw", "1M")
        self.refused("resize", "-f", "raw", "x.raw", "512k")

    def test_sizes_among_image_options(self) -> None:
        self.chain()
        for option in ("align=4k", "max-transfer=64k", "opt-write-zero=4k", "max-write-zero=8k", "opt-discard=4k", "max-discard=8k"):
            options = f"driver=blkdebug,align=4096,image.driver=qcow2,image.file.driver=file,image.file.filename=base.qcow2,{option}"
            self.accepted("compare", "--image-opts", options, "driver=qcow2,file.filename=base.qcow2")
        self.refused("info", "--image-opts", "driver=blkdebug,image.driver=raw,image.file.filename=plain.raw,align=x")


class OldEncryption(FaultCase):
    """-o encryption."""

    def test_of_a_new_image(self) -> None:
        self.accepted("create", "-f", "qcow2", "-o", "encryption=off", "x.qcow2", "1M")
        self.same_image("x.qcow2")
        on = ("create", SECRET, "-f", "qcow2", "-o", "encryption=on,encrypt.key-secret=s", "x.qcow2", "1M")
        self.accepted(*on)
        for folder in (self.ours, self.theirs):
            done = subprocess.run(["qemu-img", "info", "--output=json", "x.qcow2"], cwd=folder, stdout=subprocess.PIPE, check=True)
            self.assertEqual(json.loads(done.stdout)["format-specific"]["data"]["encrypt"], {"format": "aes"})

    def test_refused(self) -> None:
        self.make("x.qcow2", "-f", "qcow2", "1M")
        for options in ("encryption=on", "encryption=maybe", "encryption=on,encrypt.format=luks,encrypt.key-secret=s"):
            self.refused("create", SECRET, "-f", "qcow2", "-o", options, "y.qcow2", "1M")
        self.refused("amend", "-f", "qcow2", "-o", "encryption=on", "x.qcow2")
        self.refused("convert", "-c", "-O", "qcow2", "-o", "encryption=on", "x.qcow2", "y.qcow2")

    def test_a_key_that_is_not_needed(self) -> None:
        self.chain()
        clear = "driver=qcow2,encrypt.key-secret=s,file.filename=other.qcow2"
        self.accepted("compare", SECRET, "--image-opts", clear, "driver=qcow2,file.filename=other.qcow2")
        self.refused("check", SECRET, "--image-opts", clear.replace("encrypt.", "encrypt.format=luks,encrypt."))

    def test_the_name_of_an_image_that_was_given_its_key(self) -> None:
        options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
        subprocess.run([BLOCKD, "img", "create", "-q", SECRET, "-f", "qcow2", "-o", options, "x.qcow2", "1M"], cwd=self.images, check=True)
        given = ("info", SECRET, "--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=x.qcow2")
        names = [
            self.run_in(folder, program, given)[1].splitlines()[0]
            for folder, program in ((self.ours, [BLOCKD, "img"]), (self.theirs, ["qemu-img"]))
        ]
        self.assertEqual(*names)


class Content(FaultCase):
    """What cannot be read, written or kept."""

    def broken(self, name: str, file_format: str, event: str, *more: str) -> str:
        """Options of an image of which a part fails."""
        inject = ",".join(f"{word}" for word in (f"file.inject-error.0.event={event}", *more))
        return f"driver={file_format},file.driver=blkdebug,file.image.driver=file,file.image.filename={name},{inject}"

    def test_a_source_that_cannot_be_read(self) -> None:
        self.chain()
        source = self.broken("plain.raw", "raw", "read_aio", "file.inject-error.0.sector=0")
        self.refused("convert", "--image-opts", "-O", "raw", source, "out.raw")
        status, _, told = self.same("compare", "--image-opts", source, source)
        self.assertEqual((status, len(told)), (4, 1))

    def test_a_source_that_cannot_be_looked_at(self) -> None:
        self.chain()
        # The first question is about the whole disk.
        source = (
            "driver=blkdebug,image.driver=raw,image.file.driver=file,image.file.filename=plain.raw,"
            "inject-error.0.event=none,inject-error.0.iotype=block-status,inject-error.0.sector=4099"
        )
        done = self.run_in(self.ours, [BLOCKD, "img"], ("convert", "--salvage", "--image-opts", "-O", "raw", source, "out.raw"))
        self.assertEqual(done[0], 0)
        text = f"PROGRAM: warning: error while reading block status at offset {4099 * 512}: Input/output error"
        self.assertLessEqual(set(self.told), {text})
        self.assertEqual((self.ours / "out.raw").read_bytes(), (self.images / "plain.raw").read_bytes())
        done = self.run_in(self.ours, [BLOCKD, "img"], ("map", "--image-opts", source))
        self.assertEqual((done[0], self.told), (1, ["PROGRAM: Could not read file metadata: Input/output error"]))

    def test_a_target_that_cannot_be_written(self) -> None:
        self.chain()
        target = self.broken("plain.raw", "raw", "write_aio", "file.inject-error.0.errno=28", "file.inject-error.0.sector=0")
        self.refused("convert", "-n", "--target-image-opts", "other.qcow2", target)

    def test_a_snapshot_that_finds_no_room_for_its_count(self) -> None:
        self.make("x.qcow2", "-f", "qcow2", "-orefcount_bits=1", "1M")
        self.write("x.qcow2", "write 0 64k")
        self.refused("snapshot", "-c", "one", "x.qcow2")
        self.make("x.raw", "-f", "raw", "1M")
        self.refused("snapshot", "--image-opts", "-c", "one", "driver=raw,file.driver=file,file.filename=x.raw")

    def test_a_commit_into_a_full_disk(self) -> None:
        self.make("base.qcow2", "-f", "qcow2", "1M")
        full = self.broken("base.qcow2", "qcow2", "write_aio", "file.inject-error.0.errno=28", "file.inject-error.0.once=on")
        options = dict(word.split("=", 1) for word in full.split(","))
        self.make("top.qcow2", "-f", "qcow2", "-u", "-Fqcow2", "-bjson:" + json.dumps(options), "1M")
        self.write("top.qcow2", "write 0 64k")
        self.refused("commit", "top.qcow2")

    def test_bitmaps_that_are_not_copied(self) -> None:
        self.make("x.qcow2", "-f", "qcow2", "1M")
        subprocess.run(["qemu-img", "bitmap", "--add", "x.qcow2", "one"], cwd=self.images, check=True)
        subprocess.run(["qemu-io", "-c", "write 0 64k", "-c", "sigraise 9", "x.qcow2"], cwd=self.images, check=False)
        status, _, told = self.same("convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", "x.qcow2", "y.qcow2")
        self.assertEqual((status, told), (0, ["PROGRAM: warning: Skipping inconsistent bitmap 'one'"]))


class DataFiles(FaultCase):
    """Images whose data lies in another file."""

    def test_info_leaves_the_data_file_alone(self) -> None:
        self.make("x.qcow2", "-f", "qcow2", "-odata_file=x.data", "1M")
        self.write("x.qcow2", "write 0 64k")
        self.accepted("info", "x.qcow2")
        (self.images / "x.data").unlink()
        self.accepted("info", "x.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "x.qcow2", "-F", "qcow2", "top", "1M"],
                       cwd=self.images, check=True)  # fmt: skip
        self.accepted("info", "--backing-chain", "top")
        self.refused("info", "--image-opts", "driver=qcow2,file.filename=x.qcow2,file.nothing=1")
        for command in ("map", "check", "measure"):
            self.refused(command, "x.qcow2")


class Chains(FaultCase):
    """Names within a chain."""

    def test_a_base_is_named_from_where_the_image_is(self) -> None:
        below = self.images / "below"
        below.mkdir()
        for name, *backing in (("base",), ("mid", "-Fqcow2", "-bbase"), ("top", "-Fqcow2", "-bmid")):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, name, "1M"], cwd=below, check=True)
            subprocess.run(["qemu-io", "-c", "write 0 4k", name], cwd=below, check=True, stdout=subprocess.DEVNULL)
        self.accepted("commit", "-b", "mid", "below/top")
        self.same_image("below/mid")
        self.accepted("commit", "-b", "base", "below/top")
        self.refused("commit", "-b", "below/mid", "below/top")

    def test_names_with_colons(self) -> None:
        self.accepted("create", "-f", "qcow2", "file:image:base", "1M")
        (self.ours / "image:base").rename(self.images / "image:base")
        for name in ("file:image:top", "./image:top", "file:top"):
            for backing in ("./image:base", "file:image:base"):
                self.accepted("create", "-f", "qcow2", "-b", backing, "-F", "qcow2", name)
                shutil.copy(self.ours / name.removeprefix("file:"), self.images)
                output = self.accepted("info", "--backing-chain", name)
                self.assertIn("backing file: " + backing, output)
        self.accepted("rebase", "-F", "qcow2", "-b", "./image:base", "file:image:top")
        self.refused("create", "-f", "qcow2", "image:base", "1M")

    def test_rebase_where_the_old_backing_file_has_ended(self) -> None:
        self.make("old.qcow2", "-f", "qcow2", "100k")
        self.make("new.qcow2", "-f", "qcow2", "1M")
        self.make("top.qcow2", "-f", "qcow2", "-obacking_file=old.qcow2,backing_fmt=qcow2", "1M")
        self.write("old.qcow2", "write -P 1 0 100k")
        self.write("new.qcow2", "write -P 2 0 512k")
        self.accepted("rebase", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2")
        self.same_image("top.qcow2")
        maps = [
            subprocess.run(["qemu-img", "map", "--output=json", "top.qcow2"], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
            for folder in (self.ours, self.theirs)
        ]
        # The cluster in which the old one ends is data, of which the file may have a hole.
        runs = [
            [(max(r["start"], 128 * KiB), r["start"] + r["length"], r["depth"], r["zero"]) for r in json.loads(text)
             if r["start"] + r["length"] > 128 * KiB]
            for text in maps
        ]
        self.assertEqual(*runs)
