"""x-blockdev-amend of an image's layout beside everything else: what is answered meanwhile, and what becomes of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only

SIZE = 1 * MiB
REASON = "QEMU changes layouts by qemu-img amend only"
DOWN: dict[str, Any] = {"x-compat": "v2"}
WIDE: dict[str, Any] = {"x-refcount-bits": 64, "x-lazy-refcounts": True}
NODE = {"driver": "qcow2", "node-name": "top", "file": "slow", "backing": "base"}
SECRETS = ("--object", "secret,id=s,data=hunter", "--object", "secret,id=n,data=new one")
REMADE = "Image is being amended, or could not be opened again since"
BUSY = "Node 'top' is busy: block device is in use by block job: amend"
NO_ROOT = "Need a root block node"
EPERM = "Operation not permitted"
CANCELED = "Operation canceled"

# How often the daemon is killed: all of them in `make test-all`.
ROUNDS = 60 if os.environ.get("BLOCKD_TEST_ALL") == "1" else 3


def conflict(perms: str, one: str, other: str) -> str:
    """Two users of `top` that do not get along."""
    return (
        f"Permission conflict on node 'top': permissions '{perms}' are both required by {one} (uses node 'top' as"
        f" 'root' child) and unshared by {other} (uses node 'top' as 'root' child)."
    )


class LayoutCase(QMPTestCase):
    """The node `top` over a throttle, with the backing file `base`; some of its clusters read as zeroes."""

    def setUp(self) -> None:
        super().setUp()
        self.below = self.random_bytes(SIZE)
        self.base = self.filled_image("base", self.below)
        self.top = self.create_image("top", SIZE, backing=self.base)
        content = bytearray(self.random_bytes(SIZE // 2, 1) + self.below[SIZE // 2 :])
        self.fill(self.top, bytes(content[: SIZE // 2]))
        for start in (0, SIZE - 192 * KiB):
            images.qemu_io(self.top, f"write -q -z {start} 128k")
            content[start : start + 128 * KiB] = bytes(128 * KiB)
        self.content = bytes(content)

    def start(self, **how: Any) -> None:
        """Start a daemon with the images."""
        self.started = self.launch("--object", "throttle-group,id=group", **how)
        self.qmp = self.started.qmp
        self.add_node("base", self.base)
        self.qmp.cmd("blockdev-add", driver="file", node_name="file", filename=self.top)
        self.qmp.cmd("blockdev-add", driver="throttle", node_name="slow", throttle_group="group", file="file")
        self.qmp.execute("blockdev-add", NODE)

    def spare(self, **options: Any) -> str:
        """Another empty image as the node `spare`; its path is given back."""
        path = self.create_image("spare", SIZE)
        self.add_node("spare", path, **options)
        return path

    def limit(self, rate: int) -> None:
        """So many bytes a second from and to the file of `top`; 0: as many as it can."""
        self.qmp.cmd("qom-set", path="group", property="limits", value={"bps-total": rate})

    def amend(self, job_id: str = "amend", **options: Any) -> None:
        """Start a job."""
        options = {"driver": "qcow2", **options}
        self.qmp.execute("x-blockdev-amend", {"job-id": job_id, "node-name": "top", "options": options})

    def amend_slowly(self, **options: Any) -> None:
        """Start the job with a byte a second: it does not get past its first accesses."""
        self.limit(1)
        self.amend(**options)

    def amend_paused(self, **options: Any) -> None:
        """Start the job, and have it rest somewhere in between."""
        self.amend_slowly(**options)
        self.qmp.cmd("job-pause", id="amend")
        self.limit(0)
        self.wait_status("amend", "paused")

    def end(self, error: str = "", job_id: str = "amend") -> None:
        """The job ends so."""
        self.wait_status(job_id, "concluded")
        self.assertEqual(self.job(job_id).get("error", ""), error)
        self.qmp.cmd("job-dismiss", id=job_id)

    def resume(self) -> None:
        """The job goes on to its end."""
        self.qmp.cmd("job-resume", id="amend")
        self.end()

    def assert_layout(self, bits: int = 64, version: str = "1.1") -> None:
        """What the image has become, by qemu-img and by the node; it holds what it held."""
        image = self.nodes()["top"]["image"]["format-specific"]["data"]
        self.daemon.quit()
        self.assert_content(self.top, self.content)
        for data in (image, images.info(self.top)["format-specific"]["data"]):
            self.assertEqual((data["refcount-bits"], data["compat"]), (bits, version))


@blockd_only(REASON)
class Meanwhile(LayoutCase):
    """While the job is paused somewhere in between, everything is answered at once."""

    def test_what_is_refused(self) -> None:
        self.start()
        self.start_nbd()
        self.spare(backing=None)
        self.amend_paused(**WIDE)
        device, job = "an unnamed block device", "amend job 'amend'"
        nbd = {"type": "nbd", "id": "e", "node-name": "top"}
        refused: list[tuple[str, dict[str, Any], str]] = [
            ("block-export-add", {**nbd, "writable": True}, conflict("resize", job, device)),
            ("block-export-add", nbd, conflict("resize", job, device)),
            ("block_resize", {"node-name": "top", "size": 2 * SIZE}, conflict("resize", device, job)),
            ("blockdev-del", {"node-name": "top"}, "Block device top is in use"),
            ("blockdev-del", {"node-name": "slow"}, "Block device slow is in use"),
            ("blockdev-del", {"node-name": "base"}, "Node 'base' is busy: node is used as backing hd of 'top'"),
            ("blockdev-reopen", {"options": [{**NODE, "l2-cache-size": 65536}]}, REMADE),
            ("blockdev-reopen", {"options": [{**NODE, "file": "file"}]}, REMADE),
            ("blockdev-reopen", {"options": [{**NODE, "backing": None}]}, REMADE),
            ("blockdev-reopen", {"options": [{**NODE, "read-only": True}]}, REMADE),
            ("block-dirty-bitmap-add", {"node": "top", "name": "b"}, "Node 'top' is busy: its image is being amended"),
            ("x-blockdev-amend", {"job-id": "j", "node-name": "top", "options": {"driver": "qcow2", **DOWN}}, BUSY),
            ("x-blockdev-amend", {"job-id": "j", "node-name": "top", "options": {"driver": "qcow2"}}, BUSY),
            (
                "x-blockdev-check",
                {"job-id": "j", "node-name": "top"},
                conflict("consistent read", "x-check job 'j'", job),
            ),
            (
                "x-blockdev-compact",
                {"job-id": "j", "node-name": "top"},
                conflict("consistent read, write unchanged", "x-compact job 'j'", job),
            ),
            ("blockdev-mirror", {"job-id": "j", "device": "top", "target": "spare", "sync": "full"}, NO_ROOT),
            ("block-commit", {"job-id": "j", "device": "top"}, NO_ROOT),
            ("blockdev-set-active", {"node-name": "top", "active": False}, f"Failed to inactivate node: {EPERM}"),
            ("job-pause", {"id": "amend"}, "Job is already paused"),
            ("job-complete", {"id": "amend"}, "Job 'amend' in state 'paused' cannot accept command verb 'complete'"),
            ("job-dismiss", {"id": "amend"}, "Job 'amend' in state 'paused' cannot accept command verb 'dismiss'"),
        ]
        for command, arguments, text in refused:
            with self.subTest(command=command, arguments=arguments):
                self.assert_qmp_error(text, command, arguments)
        # The names of the filters are the daemon's.
        for command, arguments in (
            ("blockdev-backup", {"device": "top", "target": "spare", "sync": "full"}),
            ("blockdev-backup", {"device": "spare", "target": "top", "sync": "full"}),
            ("blockdev-mirror", {"device": "spare", "target": "top", "sync": "full"}),
            ("block-stream", {"device": "top"}),
        ):
            with self.subTest(command=command, arguments=arguments):
                with self.assertRaisesRegex(Exception, "ermission conflict on node 'top'.*amend job 'amend'"):
                    self.qmp.execute(command, {"job-id": "j", **arguments})
        self.assertEqual([job["id"] for job in self.qmp.cmd("query-jobs")], ["amend"])
        self.resume()
        self.assert_layout()

    def test_snapshot_onto_it(self) -> None:
        self.start()
        overlay = self.create_image("over", SIZE)
        self.add_node("over", overlay, backing=None)
        self.amend_paused(**DOWN)
        self.qmp.cmd("blockdev-snapshot", node="top", overlay="over")
        self.assert_chain("over", "top", "base")
        # Who would use the new one would read the other.
        self.start_nbd()
        with self.assertRaisesRegex(Exception, "Permission conflict on node 'top'.*amend job 'amend'"):
            self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="over", writable=True)
        self.resume()
        self.export("over")
        guest = self.guest("over")
        self.assertEqual(guest.read(0, SIZE), self.content)
        written = self.random_bytes(64 * KiB, 2)
        guest.write(96 * KiB, written)
        guest.close()
        self.unexport("exp-over")
        self.run_job("block-commit", wait_for="ready", job_id="c", device="over", base_node="top")
        self.qmp.cmd("job-complete", id="c")
        self.wait_status("c", "null")
        self.content = self.content[: 96 * KiB] + written + self.content[160 * KiB :]
        self.assert_layout(16, "0.10")

    def test_work_below(self) -> None:
        """The backing file is read and backed up."""
        self.start()
        self.amend_paused(**DOWN)
        self.export("base", writable=False)
        guest = self.guest("base")
        self.assertEqual(guest.read(0, SIZE), self.below)
        backup = self.create_image("backup", SIZE)
        self.add_node("backup", backup)
        guest.close()
        self.unexport("exp-base")
        # It begins and ends beside the job, which reads through its filter.
        self.qmp.cmd("blockdev-backup", job_id="b", device="base", target="backup", sync="full", speed=64 * KiB)
        self.resume()
        self.unthrottle("b")
        self.wait_status("b", "null")
        self.assertNotIn("error", self.completed_event("b"))
        self.assert_layout(16, "0.10")
        self.assert_content(backup, self.below)

    def test_cancel(self) -> None:
        self.start()
        for options in (DOWN, WIDE):
            self.amend_paused(**options)
            self.qmp.cmd("job-cancel", id="amend")
            self.end(CANCELED)
            self.amend_slowly(**options)
            self.qmp.cmd("job-cancel", id="amend")
            self.limit(0)
            self.end(CANCELED)
        self.amend(**WIDE)
        self.end()
        self.assert_layout()

    def test_quit(self) -> None:
        for number, begin in enumerate((self.amend_paused, self.amend_slowly)):
            self.start(name=f"d{number}")
            begin(**DOWN)
            self.qmp.cmd("quit")
            self.started.quit()
            self.assert_content(self.top, self.content)

    def test_guests_before_and_after(self) -> None:
        """Nobody is disturbed by an amendment that is refused, and nothing is lost by one that is not."""
        self.start()
        model = self.content
        for options in (WIDE, DOWN | {"x-refcount-bits": 16}, WIDE | {"x-compat": "v3"}):
            identity = self.export("top")
            writer = self.guest_writer("top", model)
            writer.wait_writes(5)
            self.assert_qmp_error(
                conflict("consistent read, write", "an unnamed block device", "amend job 'amend'"),
                "x-blockdev-amend",
                {"job-id": "amend", "node-name": "top", "options": {"driver": "qcow2", **options}},
            )
            writer.wait_writes(5)
            model = writer.stop()
            self.unexport(identity)
            self.amend(**options)
            self.end()
        self.export("top")
        guest = self.guest("top")
        self.assertEqual(guest.read(0, SIZE), model)
        guest.close()
        self.unexport("exp-top")
        self.content = model
        self.assert_layout()


@blockd_only(REASON)
class Killed(LayoutCase):
    """kill -9 at any moment leaves an image that is sound, and the same command does the rest."""

    def test_kill(self) -> None:
        for turn in range(ROUNDS):
            self.start(name=f"d{turn}")
            options: dict[str, Any] = DOWN | {"x-refcount-bits": 16} if turn % 2 == 0 else WIDE | {"x-compat": "v3"}
            self.amend_slowly(**options)
            # Each query is answered while the job does a few accesses more.
            self.limit(0)
            for _ in range(turn * 7 % 20):
                self.qmp.cmd("query-jobs")
            self.started.kill()
            images.run_tool("qemu-img", "check", "-q", self.top, statuses=(images.CHECK_CLEAN, images.CHECK_LEAKS))
            self.start(name=f"again{turn}")
            self.amend(**options)
            self.end()
            self.qmp.cmd("quit")
            self.started.quit()
            images.run_tool("qemu-img", "check", "-q", "-r", "leaks", self.top)
            self.assert_content(self.top, self.content)


@blockd_only(REASON)
class OtherImages(QMPTestCase):
    """Images with keys, and with a data file."""

    def test_keys_and_layout(self) -> None:
        path, content = self.path("e"), self.random_bytes(SIZE)
        opened = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
        create = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1"
        images.run_tool("qemu-img", "create", "-q", *SECRETS, "-f", "qcow2", "-o", create, path, str(SIZE))
        raw = self.path("raw")
        Path(raw).write_bytes(content)
        images.run_tool(
            "qemu-img", "convert", "-n", *SECRETS, "-f", "raw", raw, "--target-image-opts", opened
        )
        self.launch(*SECRETS)
        self.add_node("e", path, "qcow2", encrypt={"format": "luks", "key-secret": "s"})
        added = {"format": "luks", "state": "active", "new-secret": "n", "iter-time": 1}
        self.qmp.execute(
            "x-blockdev-amend",
            {"job-id": "a", "node-name": "e", "options": {"driver": "qcow2", "encrypt": added, **WIDE}},
        )
        self.wait_status("a", "concluded")
        self.assertNotIn("error", self.job("a"))
        self.qmp.cmd("job-dismiss", id="a")
        # Keys change again, by the driver that has taken the other's place.
        self.qmp.execute(
            "x-blockdev-amend",
            {
                "job-id": "a",
                "node-name": "e",
                "options": {"driver": "qcow2", "encrypt": {"format": "luks", "state": "inactive", "keyslot": 0}},
            },
        )
        self.wait_status("a", "concluded")
        self.assertNotIn("error", self.job("a"))
        self.qmp.cmd("job-dismiss", id="a")
        self.export("e")
        guest = self.guest("e")
        self.assertEqual(guest.read(0, SIZE), content)
        guest.close()
        self.unexport("exp-e")
        self.daemon.quit()
        with self.assertRaises(images.ToolFailed):
            images.run_tool("qemu-img", "check", *SECRETS, "--image-opts", opened)
        renewed = opened.replace("key-secret=s", "key-secret=n")
        images.run_tool("qemu-img", "check", *SECRETS, "--image-opts", renewed)
        images.run_tool("qemu-img", "compare", *SECRETS, "--image-opts", renewed, f"driver=raw,file.filename={raw}")

    def test_data_file(self) -> None:
        data = self.path("data")
        image = self.create_image(
            "i", SIZE, images.ImageOptions("x", "qcow2", (f"data_file={data}", "data_file_raw=on"))
        )
        content = self.random_bytes(SIZE)
        self.fill(image, content, "qcow2")
        other = self.path("other")
        self.launch()
        self.add_node("i", image, "qcow2")
        options = {"driver": "qcow2", "x-data-file": other, "x-data-file-raw": False}
        self.qmp.execute("x-blockdev-amend", {"job-id": "a", "node-name": "i", "options": options})
        self.wait_status("a", "concluded")
        self.assertNotIn("error", self.job("a"))
        self.qmp.cmd("job-dismiss", id="a")
        self.export("i")
        guest = self.guest("i")
        written = self.random_bytes(64 * KiB, 1)
        guest.write(0, written)
        guest.close()
        self.unexport("exp-i")
        self.daemon.quit()
        os.rename(data, other)
        self.assertEqual(images.info(image)["format-specific"]["data"]["data-file"], other)
        self.assert_content(image, written + content[64 * KiB :], "qcow2")
