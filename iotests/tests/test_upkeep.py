"""x-blockdev-check and x-blockdev-compact: images that guests write to are judged, mended and made smaller."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import CANCELLED, SUCCESS, QMPTestCase, over_images
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only

SIZE = 8 * MiB
REASON = "no rival looks after images that are in use"
COPIED = 1 << 63
OFFSET = 0x00FFFFFFFFFFFE00


def field_check(path: str, fix: str = "") -> dict[str, Any]:
    """What `qemu-img check --output=json` prints."""
    repair = ["-r", fix] if fix else []
    text = images.run_tool("qemu-img", "check", "-f", "qcow2", "--output=json", *repair, path, statuses=(0, 2, 3))
    found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return found


class Damage:
    """A qcow2 image with counts of 16 bits whose tables are changed in place."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = bytearray(Path(path).read_bytes())
        self.cluster = 1 << struct.unpack_from(">I", self.data, 20)[0]
        self.l1: int = struct.unpack_from(">Q", self.data, 40)[0]
        self.reftable: int = struct.unpack_from(">Q", self.data, 48)[0]

    def word(self, offset: int) -> int:
        """A word of the image."""
        return int(struct.unpack_from(">Q", self.data, offset)[0])

    def entry(self, index: int) -> int:
        """Where the L2 entry of a guest cluster is."""
        per_table = self.cluster // 8
        return (self.word(self.l1 + index // per_table * 8) & OFFSET) + index % per_table * 8

    def change(self, index: int, value: int) -> None:
        """Change an L2 entry."""
        struct.pack_into(">Q", self.data, self.entry(index), value)

    def host(self, index: int) -> int:
        """The cluster of the file that a guest cluster has."""
        return (self.word(self.entry(index)) & OFFSET) // self.cluster

    def set_count(self, cluster: int, count: int) -> None:
        """Change a refcount."""
        block = self.word(self.reftable + cluster // (self.cluster // 2) * 8)
        struct.pack_into(">H", self.data, block + cluster % (self.cluster // 2) * 2, count)

    def leak(self) -> None:
        """Three clusters that nothing refers to, and one that is counted twice."""
        for index in (3, 4, 9):
            self.change(index, 0)
        self.set_count(self.host(12), 2)
        self.change(12, self.word(self.entry(12)) & ~COPIED)

    def corrupt(self) -> None:
        """Flags that are missing, and two guest clusters at one place."""
        for index in (1, 2):
            self.change(index, self.word(self.entry(index)) & ~COPIED)
        self.change(7, self.word(self.entry(8)))

    def save(self, path: str) -> str:
        """Write the image."""
        Path(path).write_bytes(self.data)
        return path


class UpkeepCase(QMPTestCase):
    """An image full of data, as the node `disk`."""

    def setUp(self) -> None:
        super().setUp()
        self.model = self.random_bytes(SIZE)
        self.image = self.filled_image("disk", self.model)

    def start(self, **options: Any) -> None:
        """Start the daemon and open the image."""
        self.launch()
        self.add_node("disk", self.image, **options)

    def check(self, job_id: str = "check", **arguments: Any) -> dict[str, Any]:
        """Run a check to its end; its result, which is the same wherever it is told."""
        self.qmp.cmd("x-blockdev-check", job_id=job_id, node_name="disk", auto_dismiss=False, **arguments)
        self.wait_status(job_id, "concluded")
        result: dict[str, Any] = self.job(job_id)["x-check"]
        self.assertEqual(self.completed_event(job_id)["x-check"], result)
        (told,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual(told["x-check"], result)
        self.qmp.cmd("job-dismiss", id=job_id)
        return result

    def compact(self, job_id: str = "compact") -> dict[str, Any]:
        """Run a compaction to its end."""
        self.qmp.cmd("x-blockdev-compact", job_id=job_id, node_name="disk")
        self.wait_status(job_id, "null")
        event = self.completed_event(job_id)
        self.assertNotIn("error", event)
        result: dict[str, Any] = event["x-compact"]
        return result


@blockd_only(REASON)
@over_images(*images.ALL_QCOW2)
class CheckOfSoundImages(UpkeepCase):
    """What qemu-img says of an image at rest."""

    def test_result_is_the_field_s(self) -> None:
        expected = field_check(self.image)
        self.start()
        self.assertEqual(self.check(), expected)
        self.assert_job_sequence("check", SUCCESS)
        self.assertEqual(self.check("all", fix="all"), expected)
        self.daemon.quit()
        self.assert_content(self.image, self.model)

    def test_beside_a_writing_guest(self) -> None:
        self.start()
        self.export("disk")
        writer = self.guest_writer("disk", self.model)
        for number in range(5):
            writer.wait_writes(3)
            result = self.check(f"check{number}", fix=("none", "leaks", "all")[number % 3])
            for wrong in ("corruptions", "leaks", "corruptions-fixed", "leaks-fixed"):
                self.assertNotIn(wrong, result)
            self.assertEqual(result["check-errors"], 0)
        self.model = writer.stop()
        self.daemon.quit()
        self.assert_content(self.image, self.model)


@blockd_only(REASON)
class CheckOfDamagedImages(UpkeepCase):
    """The same is found, and the same is left, as by qemu-img."""

    def test_reports_and_repairs_as_the_field(self) -> None:
        sound = self.image
        for damage in ("leak", "corrupt"):
            for fix in ("none", "leaks", "all"):
                with self.subTest(damage=damage, fix=fix):
                    broken = Damage(sound)
                    getattr(broken, damage)()
                    theirs = broken.save(self.path("theirs"))
                    self.image = broken.save(self.path("disk"))
                    expected = field_check(theirs, "" if fix == "none" else fix)
                    self.start()
                    result = self.check(fix=fix)
                    result.pop("x-messages", None)
                    self.daemon.quit()
                    self.assertEqual({**result, "filename": theirs}, expected)
                    self.assertEqual({**field_check(self.image), "filename": theirs}, field_check(theirs))
                    images.compare(self.image, theirs, "qcow2", "qcow2")
                    broken.data = bytearray()
            self.image = sound

    def test_lost_refcounts_are_rebuilt_when_nobody_else_uses_the_node(self) -> None:
        broken = Damage(self.image)
        struct.pack_into(">Q", broken.data, broken.reftable, MiB << 20)
        broken.save(self.image)
        self.start()
        export = self.export("disk")
        self.qmp.cmd("x-blockdev-check", job_id="refused", node_name="disk", fix="all", auto_dismiss=False)
        self.wait_status("refused", "concluded")
        refused = self.job("refused")
        self.assertEqual(
            refused["error"],
            "Refcount structures of node 'disk' must be rebuilt, which cannot be done while the node is in use;"
            " check it when nothing else uses it",
        )
        self.assertEqual(refused["x-check"]["check-errors"], 1)
        self.qmp.cmd("job-dismiss", id="refused")
        self.unexport(export)
        result = self.check(fix="all")
        self.assertEqual(result["check-errors"], 0)
        self.assertNotIn("corruptions", result)
        self.assertGreater(result["corruptions-fixed"], 0)
        self.export("disk")
        writer = self.guest_writer("disk", self.model)
        writer.wait_writes(3)
        self.model = writer.stop()
        self.daemon.quit()
        self.assert_content(self.image, self.model)

    def test_repair_beside_a_writing_guest(self) -> None:
        broken = Damage(self.image)
        for cluster in range(5):
            broken.set_count(broken.host(40 + cluster), 2)
            broken.change(40 + cluster, broken.word(broken.entry(40 + cluster)) & ~COPIED)
        broken.save(self.image)
        self.start()
        self.export("disk")
        writer = self.guest_writer("disk", self.model)
        writer.wait_writes(3)
        fixed = self.check(fix="all")
        self.assertEqual(fixed["leaks-fixed"], 5)
        writer.wait_writes(3)
        self.assertNotIn("leaks", self.check("again"))
        self.model = writer.stop()
        self.daemon.quit()
        self.assert_content(self.image, self.model)


@blockd_only(REASON)
@over_images(*images.ALL_QCOW2)
class Compact(UpkeepCase):
    """The file ends where its content ends."""

    def free_the_first_half(self) -> None:
        """Zero clusters in the first half give up their places, not their space."""
        half = SIZE // 2
        guest = self.guest("disk")
        guest.handle.trim(half, 0)
        guest.handle.flush()
        guest.close()
        self.model = bytes(half) + self.model[half:]

    def test_gives_space_back(self) -> None:
        self.start(discard="unmap", pass_discard_request=False)
        self.export("disk")
        self.free_the_first_half()
        before = os.stat(self.image).st_size
        result = self.compact()
        after = os.stat(self.image).st_size
        self.assertEqual((result["file-size-before"], result["file-size-after"]), (before, after))
        self.assertLess(after, before - SIZE // 3)
        self.assertGreater(result["moved-clusters"], 0)
        self.assertEqual(result["unmovable-clusters"], 0)
        self.assert_job_sequence("compact", SUCCESS)
        self.assertEqual(self.guest("disk").read(0, SIZE), self.model)
        self.daemon.quit()
        self.assert_content(self.image, self.model)
        # The last cluster may be short in the file, and one of metadata may be free again by now.
        cluster = self.image_options.cluster_size
        self.assertLessEqual(abs(field_check(self.image)["image-end-offset"] - after), 2 * cluster)

    def test_beside_a_writing_guest(self) -> None:
        self.start(discard="unmap", pass_discard_request=False)
        self.export("disk")
        self.free_the_first_half()
        writer = self.guest_writer("disk", self.model)
        for number in range(3):
            writer.wait_writes(3)
            self.compact(f"compact{number}")
        self.model = writer.stop()
        self.daemon.quit()
        self.assert_content(self.image, self.model)


@blockd_only(REASON)
class Verbs(UpkeepCase):
    """Both are block jobs: slow, paused, cancelled, one at a time; and what they refuse."""

    image_options = images.QCOW2_512

    def test_paused_and_resumed(self) -> None:
        self.start()
        for command, job_id in (("x-blockdev-check", "check"), ("x-blockdev-compact", "compact")):
            self.qmp.cmd(command, job_id=job_id, node_name="disk", speed=1)
            self.qmp.cmd("job-pause", id=job_id)
            self.wait_status(job_id, "paused")
            self.qmp.cmd("job-resume", id=job_id)
            self.wait_status(job_id, "running")
            self.unthrottle(job_id)
            self.wait_status(job_id, "null")
            self.assertNotIn("error", self.completed_event(job_id))
        self.daemon.quit()
        self.assert_content(self.image, self.model)

    def test_cancelled(self) -> None:
        self.start()
        for command, job_id in (("x-blockdev-check", "check"), ("x-blockdev-compact", "compact")):
            self.qmp.cmd(command, job_id=job_id, node_name="disk", speed=1)
            self.qmp.cmd("job-cancel", id=job_id)
            self.wait_status(job_id, "null")
            self.assert_job_sequence(job_id, CANCELLED)
        self.assertNotIn("corruptions", self.check("after"))
        self.daemon.quit()
        self.assert_content(self.image, self.model)

    def test_one_at_a_time(self) -> None:
        self.start()
        self.qmp.cmd("x-blockdev-check", job_id="first", node_name="disk", speed=1)
        for command in ("x-blockdev-check", "x-blockdev-compact"):
            self.assert_qmp_error(
                "Node 'disk' is being checked or compacted already", command, job_id="second", node_name="disk"
            )
        self.qmp.cmd("job-cancel", id="first")
        self.wait_status("first", "null")
        self.check()

    def test_refusals(self) -> None:
        self.start(read_only=True)
        self.assert_qmp_error(
            "This image format does not support checks", "x-blockdev-check", job_id="j", node_name="disk-file"
        )
        self.assert_qmp_error(
            "This image format does not support compaction", "x-blockdev-compact", job_id="j", node_name="disk-file"
        )
        for fix in ("leaks", "all"):
            self.assert_qmp_error("Block node is read-only", "x-blockdev-check", job_id="j", node_name="disk", fix=fix)
        self.assert_qmp_error("Block node is read-only", "x-blockdev-compact", job_id="j", node_name="disk")
        self.assert_qmp_error(
            "Cannot find device='' nor node-name='none'", "x-blockdev-check", job_id="j", node_name="none"
        )
        self.assertNotIn("corruptions", self.check())
        self.assert_nothing_left("disk", "disk-file")

    def test_graph_changes_go_on(self) -> None:
        self.start()
        self.qmp.cmd("x-blockdev-check", job_id="check", node_name="disk", speed=64 * KiB)
        self.qmp.cmd("block_resize", node_name="disk", size=SIZE + MiB)
        self.unthrottle("check")
        self.wait_status("check", "null")
        result = self.completed_event("check")["x-check"]
        self.assertEqual(result["total-clusters"], (SIZE + MiB) // 512)
        self.assertNotIn("corruptions", result)
        self.daemon.quit()
        self.assert_content(self.image, self.model + bytes(MiB))
