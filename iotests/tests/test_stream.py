"""block-stream: how much of a chain it takes in, what the header says afterwards, what it refuses."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from iotests.harness import images
from iotests.harness.case import CANCELLED, SUCCESS, QMPTestCase, over_images
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only

SIZE = 2 * MiB
PIECE = 256 * KiB


class StreamCase(QMPTestCase):
    """A chain of four images; each overlay overwrites one piece of the base's data."""

    names: tuple[str, ...] = ("base", "low", "mid", "top")

    def setUp(self) -> None:
        super().setUp()
        self.contents: dict[str, bytes] = {}
        model = bytearray(self.random_bytes(SIZE))
        below = ""
        for number, name in enumerate(self.names):
            path = self.create_image(name, SIZE, backing=below)
            if below:
                piece = self.random_bytes(PIECE, number)
                start = number * 300 * KiB
                self.fill(path, piece, offset=start)
                model[start : start + PIECE] = piece
            else:
                self.fill(path, bytes(model))
            self.contents[name] = bytes(model)
            below = path
        self.launch()

    def open_chain(self) -> None:
        """Every image as a node of its own name, by reference."""
        below: dict[str, str] = {}
        for name in self.names:
            self.add_node(name, self.path(name), **below)
            below = {"backing": name}

    def stream(self, **arguments: Any) -> tuple[str, ...]:
        """Run a stream on top (or what `device` says) to its end."""
        return self.run_job("block-stream", job_id="j", **{"device": "top", **arguments})

    def assert_contents(self) -> None:
        """No image's guest-visible content has changed."""
        self.daemon.quit()
        for name in self.names:
            self.assert_content(self.path(name), self.contents[name])


class WholeChainCase(StreamCase):
    """Without a base, the top stands alone afterwards."""

    def take_in_everything(self) -> None:
        """An idle chain."""
        self.open_chain()
        self.stream()
        self.assert_job_sequence("j", SUCCESS)
        self.assert_chain("top")
        self.daemon.quit()
        self.assertNotIn("backing-filename", images.info(self.path("top")))
        self.assert_contents()

    def take_in_under_a_guest(self) -> None:
        """A guest writes meanwhile."""
        self.open_chain()
        self.export("top")
        writer = self.guest_writer("top", self.contents["top"])
        writer.wait_writes(5)
        self.qmp.cmd("block-stream", job_id="j", device="top", speed=4 * MiB)
        writer.wait_writes(20)
        self.unthrottle("j")
        self.wait_status("j", "null")
        writer.wait_writes(5)
        self.contents["top"] = writer.stop()
        self.assert_contents()


@over_images(*(kind for kind in images.ALL_QCOW2 if kind is not images.QCOW2_EXTENDED))
class WholeChain(WholeChainCase):
    """Images of whole clusters."""

    def test_top_takes_in_everything(self) -> None:
        self.take_in_everything()

    def test_under_a_writing_guest(self) -> None:
        self.take_in_under_a_guest()


@blockd_only("a stream into subclusters of which some are allocated ends the rival by an assertion")
@over_images(images.QCOW2_EXTENDED)
class WholeChainOfSubclusters(WholeChainCase):
    """Images of subclusters."""

    def test_top_takes_in_everything(self) -> None:
        self.take_in_everything()

    def test_under_a_writing_guest(self) -> None:
        self.take_in_under_a_guest()


class Parts(StreamCase):
    """base, base-node, bottom, and an intermediate top."""

    def test_base_node_is_kept(self) -> None:
        self.open_chain()
        self.stream(base_node="low")
        self.assert_chain("top", "low", "base")
        self.daemon.quit()
        self.assertEqual(images.info(self.path("top"))["backing-filename"], self.path("low"))
        self.assert_contents()

    def test_base_by_file_name(self) -> None:
        self.open_chain()
        self.stream(base=self.path("base"))
        self.assert_chain("top", "base")
        self.assert_contents()

    def test_bottom_is_the_last_to_be_taken_in(self) -> None:
        self.open_chain()
        self.stream(bottom="mid")
        self.assert_chain("top", "low", "base")
        self.assert_contents()

    def test_intermediate_top(self) -> None:
        self.open_chain()
        self.stream(device="mid", base_node="base")
        self.assert_chain("top", "mid", "base")
        self.assert_contents()

    def test_intermediate_top_becomes_read_only_again(self) -> None:
        below: dict[str, str] = {}
        for name in self.names:
            self.add_node(name, self.path(name), read_only=name != "top", **below)
            below = {"backing": name}
        self.stream(device="mid")
        self.assertTrue(self.nodes()["mid"]["ro"])
        self.assert_chain("top", "mid")
        self.assert_contents()

    def test_backing_file_in_the_header(self) -> None:
        self.open_chain()
        self.stream(base_node="low", backing_file="written-name")
        self.daemon.quit()
        self.assertEqual(images.info(self.path("top"))["backing-filename"], "written-name")

    def test_base_that_is_the_direct_backing(self) -> None:
        self.open_chain()
        self.stream(base_node="mid")
        self.assert_chain("top", "mid", "low", "base")
        self.assert_contents()

    def test_chain_from_the_headers(self) -> None:
        self.add_node("top", self.path("top"))
        self.stream()
        self.assert_chain("top")
        self.assertEqual(set(self.nodes()), {"top", "top-file"})
        self.assert_contents()

    def test_top_without_backing(self) -> None:
        self.add_node("base", self.path("base"))
        self.assertEqual(self.stream(device="base")[-5:], SUCCESS[-5:])
        self.assertEqual(self.completed_event("j")["len"], self.completed_event("j")["offset"])

    def test_top_longer_than_its_backing(self) -> None:
        long = self.create_image("long", SIZE + MiB, backing=self.path("base"))
        self.add_node("long", long)
        self.stream(device="long")
        self.daemon.quit()
        self.assert_content(long, self.contents["base"] + bytes(MiB))

    def test_leaves_the_images_below_free(self) -> None:
        self.open_chain()
        self.stream()
        for name in ("mid", "low", "base"):
            self.qmp.cmd("blockdev-del", node_name=name)
        images.qemu_io(self.path("base"), "write -q 0 64k", driver="qcow2")

    def test_two_streams_in_one_chain(self) -> None:
        self.open_chain()
        self.qmp.cmd("block-stream", job_id="upper", device="top", base_node="mid", auto_finalize=False)
        self.qmp.cmd("block-stream", job_id="lower", device="low", auto_finalize=False)
        for job in ("upper", "lower"):
            self.qmp.wait_event("BLOCK_JOB_PENDING", {"id": job})
        for job in ("lower", "upper"):
            self.qmp.cmd("job-finalize", id=job)
            self.wait_status(job, "null")
        self.assert_chain("top", "mid", "low")
        self.assert_contents()


class Lifecycle(StreamCase):
    """Cancel, finalize, filter node, and what is in use meanwhile."""

    def setUp(self) -> None:
        super().setUp()
        self.open_chain()

    def test_cancel_keeps_the_chain(self) -> None:
        self.qmp.cmd("block-stream", job_id="j", device="top", speed=64 * KiB)
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assert_job_sequence("j", CANCELLED)
        self.assert_chain("top", "mid", "low", "base")
        self.assert_contents()

    def test_manual_finalize_changes_the_chain_only_then(self) -> None:
        self.qmp.cmd("block-stream", job_id="j", device="top", auto_finalize=False)
        event = self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.assertEqual(event["data"], {"type": "stream", "id": "j"})
        self.assertEqual(self.node_at("top/backing"), "mid")
        self.qmp.cmd("job-finalize", id="j")
        self.wait_status("j", "null")
        self.assert_chain("top")
        self.assert_contents()

    def test_filter_node(self) -> None:
        self.qmp.cmd("block-stream", job_id="j", device="top", speed=64 * KiB, filter_node_name="cor")
        self.assertEqual(self.nodes()["cor"]["drv"], "copy-on-read")
        self.assertEqual(self.node_at("cor/file"), "top")
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertNotIn("cor", self.nodes())

    def test_nodes_in_use(self) -> None:
        self.qmp.cmd("block-stream", job_id="j", device="top", base_node="base", speed=64 * KiB)
        self.assert_qmp_error(
            "Node 'top' is busy: block device is in use by block job: stream", "blockdev-del", node_name="top"
        )
        self.assert_qmp_error(
            "Node 'mid' is busy: block device is in use by block job: stream", "blockdev-del", node_name="mid"
        )
        self.assert_qmp_error(
            "Node 'top' is busy: block device is in use by block job: stream",
            "block-stream",
            job_id="k",
            device="top",
        )
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")

    def test_progress(self) -> None:
        self.stream()
        event = self.completed_event("j")
        self.assertEqual((event["type"], event["len"], event["offset"], event["speed"]), ("stream", SIZE, SIZE, 0))


class Refusals(StreamCase):
    """What a stream refuses; nothing is left behind."""

    def setUp(self) -> None:
        super().setUp()
        self.open_chain()

    def refuse(self, desc: str, **arguments: Any) -> None:
        """block-stream fails with this text."""
        before = set(self.nodes())
        full: dict[str, Any] = {"job_id": "j", "device": "top", **arguments}
        self.assert_qmp_error(desc, "block-stream", **full)
        self.assert_nothing_left(*before)

    def test_nodes(self) -> None:
        self.refuse("Cannot find device='zz' nor node-name='zz'", device="zz")
        self.refuse("Can't find 'zz' in the backing chain", base="zz")
        self.refuse("Cannot find device='' nor node-name='zz'", base_node="zz")
        self.refuse("Cannot find device='' nor node-name='zz'", bottom="zz")

    def test_chain(self) -> None:
        self.add_node("other", self.create_image("other", SIZE))
        self.refuse("Node 'other' is not a backing image of 'top'", base_node="other")
        self.refuse("Node 'other' is not in a chain starting from 'top'", bottom="other")
        self.refuse("Node 'top' is not a backing image of 'top'", base_node="top")

    def test_exclusive_arguments(self) -> None:
        self.refuse("'base' and 'base-node' cannot be specified at the same time", base="x", base_node="low")
        self.refuse("'base' and 'bottom' cannot be specified at the same time", base="x", bottom="low")
        self.refuse("'bottom' and 'base-node' cannot be specified at the same time", base_node="x", bottom="low")

    def test_backing_file_without_base(self) -> None:
        self.refuse("backing file specified, but streaming the entire chain", backing_file="x")

    def test_values(self) -> None:
        self.refuse("Parameter 'speed' expects a non-negative value", speed=-1)
        self.refuse("Parameter 'on-error' does not accept value 'zz'", on_error="zz")
        self.refuse("Invalid job ID '1 bad'", job_id="1 bad")

    def test_read_only_top(self) -> None:
        self.qmp.cmd("blockdev-del", node_name="top")
        self.add_node("ro", self.path("top"), read_only=True, backing="mid")
        # A read-only top is reopened writable for the job, and closed again.
        sequence = self.stream(device="ro")
        self.assertEqual(sequence[-5:], SUCCESS[-5:])
        self.assertTrue(self.nodes()["ro"]["ro"])
        self.assert_contents()


class BottomOfAFilter(StreamCase):
    """A copy-on-read filter with a bottom keeps the chain down to it as it is while it is open."""

    backing = "Cannot change 'backing' link from 'mid' to 'low'"
    file = "Cannot change 'file' link from 'cor' to 'top'"

    def setUp(self) -> None:
        super().setUp()
        self.open_chain()
        self.add_filter()

    def add_filter(self) -> None:
        """The filter over the top, with "low" as its bottom."""
        self.qmp.cmd("blockdev-add", driver="copy-on-read", node_name="cor", file="top", bottom="low")

    def refuse(self, desc: str, command: str, **arguments: Any) -> None:
        """The command fails with this text, and nothing is left behind."""
        before = set(self.nodes())
        self.assert_qmp_error(desc, command, **arguments)
        self.assert_nothing_left(*before)

    def test_stream(self) -> None:
        self.refuse(f"Could not create node: {self.file}", "block-stream", job_id="j", device="cor")
        self.refuse(f"Could not create node: {self.backing}", "block-stream", job_id="j", device="mid")
        text = "Could not replace node: Cannot change 'backing' link to 'low'"
        self.refuse(text, "block-stream", job_id="j", device="low")

    def test_stream_of_a_read_only_image(self) -> None:
        for name in ("cor", "top", "mid"):
            self.qmp.cmd("blockdev-del", node_name=name)
        self.add_node("mid", self.path("mid"), read_only=True, backing="low")
        self.add_node("top", self.path("top"), backing="mid")
        self.add_filter()
        self.refuse(self.backing, "block-stream", job_id="j", device="mid")
        self.assertTrue(self.nodes()["mid"]["ro"])

    def test_commit(self) -> None:
        cor = {"job_id": "j", "device": "cor", "base_node": "low"}
        self.refuse(self.file, "block-commit", **cor)
        self.refuse("Cannot change 'file' link to 'top'", "block-commit", **cor, top_node="top")
        self.refuse("Cannot change 'backing' link to 'mid'", "block-commit", **cor, top_node="mid")
        self.add_node("over", self.create_image("over", SIZE), backing="mid")
        self.refuse(self.backing, "block-commit", job_id="j", device="over", base_node="low")

    def test_backup(self) -> None:
        self.add_node("target", self.create_image("target", SIZE))
        text = "Could not replace node: Cannot change 'file' link to 'top'"
        self.refuse(text, "blockdev-backup", job_id="j", device="top", target="target", sync="full")

    def test_snapshot(self) -> None:
        self.add_node("over", self.create_image("over", SIZE), backing=None)
        self.refuse("Cannot change 'file' link to 'top'", "blockdev-snapshot", node="top", overlay="over")

    def test_reopen(self) -> None:
        top = {"driver": "qcow2", "node-name": "top", "file": "top-file", "backing": None}
        self.refuse("Cannot change frozen 'backing' link from 'top' to 'mid'", "blockdev-reopen", options=[top])

    def test_another_filter(self) -> None:
        for file, desc in (("cor", self.file), ("top", "Cannot change 'backing' link from 'top' to 'mid'")):
            another = {"driver": "copy-on-read", "node_name": "another", "file": file, "bottom": "low"}
            self.refuse(desc, "blockdev-add", **another)

    def test_over_a_running_stream(self) -> None:
        self.qmp.cmd("blockdev-del", node_name="cor")
        self.qmp.cmd("block-stream", job_id="j", device="top", speed=64 * KiB, filter_node_name="filter")
        another: dict[str, Any] = {"driver": "copy-on-read", "node_name": "cor", "file": "filter", "bottom": "low"}
        self.assert_qmp_error("Cannot change 'file' link from 'filter' to 'top'", "blockdev-add", **another)
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.add_filter()

    def test_what_lies_below_is_free(self) -> None:
        low = {"driver": "qcow2", "node-name": "low", "file": "low-file", "backing": None}
        self.qmp.cmd("blockdev-reopen", options=[low])
        self.assert_chain("top", "mid", "low")

    def test_a_closed_filter_lets_go(self) -> None:
        self.qmp.cmd("blockdev-del", node_name="cor")
        self.stream(base_node="low")
        self.assert_chain("top", "low", "base")
        self.assert_contents()

    def test_a_refused_filter_holds_nothing(self) -> None:
        self.qmp.cmd("blockdev-del", node_name="cor")
        reader = {"driver": "copy-on-read", "node_name": "cor", "bottom": "low"}
        self.add_node("reader", self.path("top"), read_only=True, force_share=True, backing="mid")
        self.refuse("Block node is read-only", "blockdev-add", file="reader", **reader)
        self.qmp.cmd("blockdev-del", node_name="reader")
        self.stream()
        self.assert_chain("top")


class Failures(StreamCase):
    """A backing image with a compressed cluster that does not inflate: its reads fail, and only they."""

    names = ("base", "top")
    broken = 20 * 64 * KiB

    def setUp(self) -> None:
        super().setUp()
        data = b"".join(bytes([number]) * 64 * KiB for number in range(1, SIZE // (64 * KiB) + 1))
        Path(self.path("data")).write_bytes(data)
        convert = ("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2")
        images.run_tool(*convert, self.path("data"), self.path("base"))
        self.break_cluster(self.path("base"), self.broken // (64 * KiB))
        self.add_node("base", self.path("base"), read_only=True)
        self.add_node("top", self.path("top"), backing="base")

    def break_cluster(self, path: str, number: int) -> None:
        """Overwrite the deflated bytes of a cluster with some that no inflater takes."""
        with open(path, "r+b") as file:
            file.seek(40)
            (l1_offset,) = struct.unpack(">Q", file.read(8))
            file.seek(l1_offset)
            l2_offset = struct.unpack(">Q", file.read(8))[0] & 0x00FFFFFFFFFFFE00
            file.seek(l2_offset + 8 * number)
            (entry,) = struct.unpack(">Q", file.read(8))
            self.assertTrue(entry >> 62 & 1, "not compressed")
            # With 64 KiB clusters the host offset takes the lower 54 bits.
            file.seek(entry & (1 << 54) - 1)
            file.write(b"\xff" * 16)

    def test_report_ends_the_job(self) -> None:
        self.qmp.cmd("block-stream", job_id="j", device="top")
        self.wait_status("j", "null")
        self.assert_job_sequence(
            "j", ("created", "running", "BLOCK_JOB_ERROR", "aborting", "BLOCK_JOB_COMPLETED", "concluded", "null")
        )
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "read", "action": "report"})
        self.assertEqual(self.completed_event("j")["error"], "Input/output error")
        self.assert_chain("top", "base")

    def test_ignore_goes_on_and_fails_at_the_end(self) -> None:
        self.qmp.cmd("block-stream", job_id="j", device="top", on_error="ignore")
        self.wait_status("j", "null")
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error["action"], "ignore")
        event = self.completed_event("j")
        self.assertEqual((event["error"], event["offset"]), ("Input/output error", event["len"]))
        self.assert_chain("top", "base")

    def test_stop_waits_to_be_resumed(self) -> None:
        self.qmp.cmd("block-stream", job_id="j", device="top", on_error="stop")
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error["action"], "stop")
        self.wait_status("j", "paused")
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual((job["io-status"], job["status"]), ("failed", "paused"))
        self.qmp.cmd("job-resume", id="j")
        self.qmp.wait_event("BLOCK_JOB_ERROR", {"action": "stop"})
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assertEqual(self.job_sequence("j")[-4:], ("aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"))
        self.assert_chain("top", "base")


class Throttled(StreamCase):
    """Storage behind throttle nodes, in the base and in the top: a cancel and the end do not wait for it."""

    names = ("base", "top")

    def setUp(self) -> None:
        super().setUp()
        slow = {"bps-total": 128 * KiB, "bps-total-max": 128 * KiB}
        self.qmp.cmd("object-add", qom_type="throttle-group", id="group", limits=slow)
        below: dict[str, str] = {}
        for name in self.names:
            file = {"driver": "file", "filename": self.path(name)}
            node = {"driver": "throttle", "throttle-group": "group", "file": file}
            self.qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": node, **below})
            below = {"backing": name}
        self.qmp.cmd("block-stream", job_id="j", device="top")

    def test_refused_snapshot(self) -> None:
        over = self.create_image("over", SIZE, backing=self.path("top"))
        self.add_node("over", over, backing=None)
        self.assert_qmp_error(
            "Node 'top' is busy: block device is in use by block job: stream",
            "blockdev-snapshot",
            node="top",
            overlay="over",
        )
        self.assertEqual(self.job("j")["status"], "running")

    def test_cancel(self) -> None:
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")
        self.assert_chain("top", "base")

    def test_the_limit_is_lifted(self) -> None:
        self.qmp.cmd("qom-set", path="/objects/group", property="limits", value={"bps-total": 0, "bps-total-max": 0})
        self.wait_status("j", "null")
        self.assertEqual(self.completed_event("j")["offset"], SIZE)
        self.assert_chain("top")
        self.assert_contents()
