"""Encrypted disks in memory: nbdcopy through the driver luks, by its default cipher, AES-256 in xts mode."""

from __future__ import annotations

from iotests.harness import images

from ..row import Row
from ..schema import command, driver
from ..trial import Sample, Trial
from .nbd import check_reads

_NEEDS = (command("nbd-server-start"), command("block-export-add"), command("object-add"), driver("luks"))


class _Encrypted(Row):
    goal = 1.0
    needs = _NEEDS
    tools = ("nbdcopy",)
    bytes_per_size = 0.5

    def prepare(self) -> None:
        self.store.half_luks()

    def open(self, trial: Trial, path: str, *, writable: bool = False) -> str:
        """Export the disk in an image."""
        trial.qmp.cmd("object-add", qom_type="secret", id="key", data=self.store.PASSWORD)
        trial.node("disk", path, "luks", key_secret="key")
        return trial.export("disk", writable=writable)


class EncryptedRead(_Encrypted):
    """nbdcopy of an encrypted disk to nowhere."""

    name = "luks-read"
    title = "LUKS sequential read (nbdcopy)"

    def measure(self, trial: Trial) -> Sample:
        uri = self.open(trial, self.store.half_luks())
        with trial.timed():
            images.run_tool("nbdcopy", uri, "null:")
        check_reads(trial, uri, self.store.half_raw())
        return trial.sample()


class EncryptedWrite(_Encrypted):
    """nbdcopy of a raw file onto an encrypted disk, with a flush."""

    name = "luks-write"
    title = "LUKS sequential write (nbdcopy)"
    writes = True

    def measure(self, trial: Trial) -> Sample:
        uri = self.open(trial, trial.copy_of(self.store.half_luks()), writable=True)
        with trial.timed():
            images.run_tool("nbdcopy", "--flush", self.store.half_raw(), uri)
        check_reads(trial, uri, self.store.half_raw())
        return trial.sample()
