"""Names of images that stand for filters, and names among options, beside qemu-img."""

from __future__ import annotations

import json

from iotests.harness.images import MiB

from .test_img import ImgCase


class Names(ImgCase):
    """What is read into a file name."""

    def setUp(self) -> None:
        super().setUp()
        self.make("t.qcow2", "-f", "qcow2", "1M")
        self.write("t.qcow2", "write -P 3 64k 64k")
        (self.images / "r.raw").write_bytes(bytes(64 * 1024) + b"\3" * 64 * 1024 + bytes(MiB - 128 * 1024))
        (self.images / "file:x").write_bytes((self.images / "t.qcow2").read_bytes())

    def refused(self, *arguments: str) -> str:
        """What both say."""
        status, output, errors = self.both(*arguments)
        self.assertEqual((status, output), (1, ""), arguments)
        return errors.removeprefix(f"Could not open '{arguments[-1]}': ")

    def test_filters_by_name(self) -> None:
        for name in (
            "blkverify:r.raw:t.qcow2",
            "blkdebug::t.qcow2",
            "blkdebug::blkverify:r.raw:t.qcow2",
            "blkverify:r.raw:blkdebug::t.qcow2",
            'blkdebug::json:{"filename": "t.qcow2", "cache": {"direct": false}}',
        ):
            self.good("map", name)
            self.good("compare", name, "r.raw" if "verify" in name else "t.qcow2")

    def test_mistakes_in_names(self) -> None:
        text = "blkverify requires raw copy and original image path"
        self.assertEqual(self.refused("info", "blkverify:r.raw"), text)
        text = "blkdebug requires both config file and image path"
        self.assertEqual(self.refused("info", "blkdebug:t.qcow2"), text)
        for name in ("blkverify:missing:t.qcow2", "blkverify:r.raw:missing", "blkdebug::missing"):
            self.assertEqual(self.refused("info", name), "Could not open 'missing': No such file or directory")

    def test_filters_by_options(self) -> None:
        for options in (
            "driver=blkverify,raw.filename=r.raw,test.file.filename=t.qcow2",
            "driver=raw,file.driver=blkverify,file.raw.filename=r.raw,file.test.file.filename=t.qcow2",
            "file.driver=blkdebug,file.image.filename=t.qcow2",
            "driver=quorum,vote-threshold=1,children.0.file.filename=t.qcow2",
            "driver=quorum,vote-threshold=1,children.0.driver=qcow2,children.0.file.filename=t.qcow2",
            "driver=raw,file.driver=quorum,file.vote-threshold=1,file.children.0.driver=qcow2,file.children.0.file.filename=t.qcow2",
        ):
            plain = "driver=raw,file.filename=r.raw" if "verify" in options else "driver=qcow2,file.filename=t.qcow2"
            self.good("compare", "--image-opts", options, plain)

    def test_filter_that_is_the_whole_image(self) -> None:
        for options in (
            "driver=blkdebug,image.filename=r.raw",
            "driver=blkverify,raw.filename=r.raw,test.file.filename=t.qcow2",
            "driver=blkdebug,image.driver=qcow2,image.file.driver=file,image.file.filename=t.qcow2",
            "driver=blkdebug,image.driver=qcow2,image.file.filename=t.qcow2",
            "driver=blkdebug,image.driver=qcow2,image.file.driver=blkdebug,image.file.image.filename=t.qcow2",
        ):
            self.good("map", "--image-opts", options)

    def test_options_of_children_that_others_have(self) -> None:
        text = "Block format 'qcow2' does not support the option 'raw.x'"
        self.assertEqual(self.refused("info", "--image-opts", "driver=qcow2,file.filename=t.qcow2,raw.x=1"), text)
        options = "driver=blkverify,x=1,raw.filename=r.raw,test.file.filename=t.qcow2"
        text = "Block protocol 'blkverify' doesn't support the option 'x'"
        self.assertEqual(self.refused("info", "--image-opts", options), text)

    def test_name_among_options_is_a_files_to_the_letter(self) -> None:
        self.good("map", "file:t.qcow2")
        for options in ("file.filename=file:x", "driver=qcow2,file.driver=file,file.filename=file:x"):
            self.good("map", "--image-opts", options)
        for name in ("file:t.qcow2", "foo:bar", "nbd://localhost", "blkdebug::t.qcow2", 'json:{"driver": "null-co"}'):
            text = f"Could not open '{name}': No such file or directory"
            self.assertEqual(self.refused("map", "--image-opts", f"file.filename={name}"), text)

    def test_words_for_switches_stay(self) -> None:
        shown = []
        for word in ("on", "off", True, False):
            options = {"driver": "null-co", "read-zeroes": word}
            name = "json:" + json.dumps(options)
            status, output, errors = self.both("info", name)
            self.assertEqual((status, errors), (0, ""), name)
            shown.append(output.splitlines()[0])
        self.assertEqual(
            shown,
            [
                f'image: json:{{"read-zeroes": {word}, "driver": "null-co"}}'
                for word in ('"on"', '"off"', "true", "false")
            ],
        )
