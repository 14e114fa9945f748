"""block-commit of images in the middle of a chain: what it moves, what headers say afterwards, what it refuses."""

from __future__ import annotations

from typing import Any

from iotests.harness import images
from iotests.harness.case import CANCELLED, FAILED, REFUSED, SUCCESS, QMPTestCase, over_images
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only, daemon_differs

SIZE = 2 * MiB
PIECE = 256 * KiB
BUSY = "Node '{}' is busy: block device is in use by block job: commit"


class CommitCase(QMPTestCase):
    """A chain of five images; each overlay overwrites one piece of the base's data."""

    names = ("base", "low", "mid", "high", "top")
    sizes: dict[str, int] = {}

    def setUp(self) -> None:
        super().setUp()
        self.contents: dict[str, bytes] = {}
        model = bytearray()
        below = ""
        for number, name in enumerate(self.names):
            size = self.sizes.get(name, SIZE)
            path = self.create_image(name, size, backing=below)
            piece = self.random_bytes(PIECE if below else min(size, MiB), number)
            start = number * 200 * KiB if below else 0
            self.fill(path, piece, offset=start)
            model = bytearray(model[:size].ljust(size, b"\0"))
            model[start : start + len(piece)] = piece
            self.contents[name] = bytes(model)
            below = path
        self.launch()

    def open_chain(self, **options: Any) -> None:
        """Every image as a node of its own name, by reference."""
        below: dict[str, str] = {}
        for name in self.names:
            self.add_node(name, self.path(name), **options, **below)
            below = {"backing": name}

    def commit(self, **arguments: Any) -> tuple[str, ...]:
        """Run a commit below top to its end."""
        return self.run_job("block-commit", job_id="j", **{"device": "top", **arguments})

    def assert_contents(self, *names: str) -> None:
        """The guest-visible content of these images is what it was."""
        self.daemon.quit()
        for name in names:
            self.assert_content(self.path(name), self.contents[name])

    def assert_header(self, name: str, backing: str) -> None:
        """The header of an image names this backing file."""
        self.assertEqual(images.info(self.path(name)).get("backing-filename"), backing)


@over_images(*images.ALL_QCOW2)
class Middle(CommitCase):
    """The data of the images between arrives in the base, and the guest sees no difference."""

    def test_two_images(self) -> None:
        self.open_chain()
        self.commit(top_node="mid", base_node="base")
        self.assert_job_sequence("j", SUCCESS)
        event = self.completed_event("j")
        self.assertEqual((event["type"], event["len"], event["offset"], event["speed"]), ("commit", SIZE, SIZE, 0))
        self.assert_chain("top", "high", "base")
        self.contents["base"] = self.contents["mid"]
        self.assert_contents("top", "high", "base")
        self.assert_header("high", self.path("base"))

    def test_under_a_writing_guest(self) -> None:
        self.open_chain()
        self.export("top")
        writer = self.guest_writer("top", self.contents["top"])
        writer.wait_writes(5)
        self.qmp.cmd("block-commit", job_id="j", device="top", top_node="high", base_node="base", speed=4 * MiB)
        writer.wait_writes(20)
        self.unthrottle("j")
        self.wait_status("j", "null")
        writer.wait_writes(5)
        self.contents["top"] = writer.stop()
        self.assert_chain("top", "base")
        self.assert_contents("top")


class Parts(CommitCase):
    """Which images: by node, by file, by default."""

    def test_default_base_is_the_lowest_image(self) -> None:
        self.open_chain()
        self.commit(top_node="high")
        self.assert_chain("top", "base")
        self.assert_contents("top")

    def test_base_in_the_middle(self) -> None:
        self.open_chain()
        self.commit(top_node="high", base_node="low")
        self.assert_chain("top", "low", "base")
        self.assert_contents("top", "base")
        self.assert_header("top", self.path("low"))

    def test_by_file_name(self) -> None:
        self.open_chain()
        self.commit(top=self.path("mid"), base=self.path("low"))
        self.assert_chain("top", "high", "low", "base")
        self.assert_contents("top")

    def test_chain_from_the_headers(self) -> None:
        self.add_node("top", self.path("top"))
        self.commit(top=self.path("high"), base=self.path("base"))
        self.assertEqual(len(self.nodes()), 4)
        self.assertEqual(self.completed_event("j")["len"], SIZE)
        self.qmp.cmd("blockdev-del", node_name="top")
        self.assert_nothing_left()
        self.assert_contents("top")
        self.assert_header("top", self.path("base"))

    def test_backing_file_in_the_header(self) -> None:
        self.open_chain()
        self.commit(top_node="mid", base_node="base", backing_file="written-name")
        self.daemon.quit()
        self.assert_header("high", "written-name")

    def test_read_only_chain(self) -> None:
        below: dict[str, str] = {}
        for name in self.names:
            self.add_node(name, self.path(name), read_only=name != "top", **below)
            below = {"backing": name}
        self.commit(top_node="mid", base_node="base")
        nodes = self.nodes()
        self.assertEqual([nodes[name]["ro"] for name in self.names], [True, True, True, True, False])
        self.assert_chain("top", "high", "base")
        self.assert_contents("top", "high")
        self.assert_header("high", self.path("base"))

    def test_every_overlay_gets_the_base(self) -> None:
        self.open_chain()
        other = self.create_image("other", SIZE, backing=self.path("mid"))
        self.add_node("other", other, backing="mid")
        self.commit(top_node="mid", base_node="base")
        self.assert_chain("top", "high", "base")
        self.assert_chain("other", "base")
        self.contents["other"] = self.contents["mid"]
        self.assert_contents("top", "other")
        self.assert_header("other", self.path("base"))

    def test_leaves_the_images_between_free(self) -> None:
        self.open_chain()
        self.commit(top_node="mid", base_node="base")
        for name in ("mid", "low"):
            self.qmp.cmd("blockdev-del", node_name=name)
        self.assert_contents("top")

    @blockd_only("7.2 does not know the argument")
    def test_mask_of_a_protocol(self) -> None:
        raw = self.path("raw")
        with open(raw, "wb") as file:
            file.truncate(SIZE)
        self.qmp.execute("blockdev-add", {"driver": "file", "filename": raw, "node-name": "raw"})
        low = self.create_image("over", SIZE, backing=raw, backing_format="raw")
        high = self.create_image("over2", SIZE, backing=low)
        last = self.create_image("over3", SIZE, backing=high)
        self.add_node("over", low, backing="raw")
        self.add_node("over2", high, backing="over")
        self.add_node("over3", last, backing="over2")
        self.commit(device="over3", top_node="over", base_node="raw", backing_mask_protocol=True)
        self.daemon.quit()
        self.assertEqual(images.info(high)["backing-filename-format"], "raw")

    @daemon_differs("the rival names the filter, as no image can be opened")
    def test_filter_as_base(self) -> None:
        below: dict[str, str] = {}
        self.qmp.cmd("object-add", qom_type="throttle-group", id="tg")
        for name in self.names:
            self.add_node(name, self.path(name), **below)
            below = {"backing": name}
            if name == "base":
                filtered = {"driver": "throttle", "throttle-group": "tg", "file": "base", "node-name": "filter"}
                self.qmp.execute("blockdev-add", filtered)
                below = {"backing": "filter"}
        self.commit(top_node="mid", base_node="filter")
        self.assertEqual((self.node_at("high/backing"), self.node_at("filter/file")), ("filter", "base"))
        image = self.nodes()["high"]["image"]
        self.assertEqual(image["backing-filename-format"], self.per_daemon(blockd="qcow2", rival="throttle"))
        self.assertEqual(image["backing-filename"] == self.path("base"), self.per_daemon(blockd=True, rival=False))


class Lengths(CommitCase):
    """The base grows; what the guest read as zeroes past a short image stays zero."""

    sizes = {"base": MiB}

    def test_base_grows(self) -> None:
        self.open_chain()
        self.commit(top_node="mid", base_node="base")
        self.assertEqual(self.completed_event("j")["len"], SIZE)
        self.assertEqual(self.nodes()["base"]["image"]["virtual-size"], SIZE)
        self.contents["base"] = self.contents["mid"]
        self.assert_contents("top", "base")


class ShortTop(CommitCase):
    """The highest image that is moved is shorter than the base."""

    sizes = {"mid": MiB + 256 * KiB}

    @blockd_only("the rival lets the base's old data show through")
    def test_what_was_zero_stays_zero(self) -> None:
        base = bytearray(self.contents["base"])
        tail = self.random_bytes(64 * KiB, 99)
        base[-len(tail) :] = tail
        self.fill(self.path("base"), tail, offset=SIZE - len(tail))
        self.open_chain()
        self.commit(top_node="mid", base_node="base")
        self.assertEqual(self.completed_event("j")["len"], self.sizes["mid"])
        self.assert_contents("top", "high")


class Lifecycle(CommitCase):
    """Cancel, finalize, filter node, and what is in use meanwhile."""

    def setUp(self) -> None:
        super().setUp()
        self.open_chain()

    def slow(self, **more: Any) -> None:
        """Start a commit that does not end by itself."""
        self.qmp.cmd(
            "block-commit", job_id="j", device="top", top_node="mid", base_node="base", speed=64 * KiB, **more
        )

    def cancel(self) -> None:
        """End it."""
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")

    def test_cancel_keeps_the_chain(self) -> None:
        self.slow()
        self.cancel()
        self.assert_job_sequence("j", CANCELLED)
        self.assert_chain("top", "high", "mid", "low", "base")
        self.assert_contents("top", "high", "mid")
        self.assert_header("high", self.path("mid"))

    def test_manual_finalize_changes_the_chain_only_then(self) -> None:
        self.qmp.cmd("block-commit", job_id="j", device="top", top_node="mid", auto_finalize=False)
        event = self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.assertEqual(event["data"], {"type": "commit", "id": "j"})
        self.assertNotEqual(self.node_at("high/backing"), "base")
        self.qmp.cmd("job-finalize", id="j")
        self.wait_status("j", "null")
        self.assert_chain("top", "high", "base")
        self.assert_contents("top")

    def test_manual_dismiss(self) -> None:
        self.run_job("block-commit", job_id="j", device="top", top_node="mid", auto_dismiss=False, wait_for="concluded")
        (job,) = self.qmp.cmd("query-jobs")
        self.assertEqual((job["status"], job["type"]), ("concluded", "commit"))
        self.qmp.cmd("job-dismiss", id="j")
        self.assert_job_sequence("j", SUCCESS)

    def test_filter_node(self) -> None:
        self.slow(filter_node_name="cf")
        node = self.nodes()["cf"]
        self.assertEqual((node["drv"], node["ro"], node["file"]), ("commit_top", True, self.path("mid")))
        self.assertEqual(node["backing_file_depth"], 0)
        self.assertNotIn("backing_file", node)
        self.assertEqual((self.node_at("high/backing"), self.node_at("cf/backing")), ("cf", "mid"))
        self.assert_qmp_error(
            "Node 'cf' is busy: node is used as backing hd of 'high'", "blockdev-del", node_name="cf"
        )
        self.cancel()
        self.assertNotIn("cf", self.nodes())

    def test_filter_node_goes_on_success(self) -> None:
        self.commit(top_node="mid", filter_node_name="cf")
        self.assertNotIn("cf", self.nodes())

    def test_nodes_in_use(self) -> None:
        self.slow(filter_node_name="cf")
        for name in ("base", "low", "mid", "top"):
            self.assert_qmp_error(BUSY.format(name), "block-stream", job_id="k", device=name)
        self.assert_qmp_error("Node mid is in use", "blockdev-del", node_name="mid")
        self.assert_qmp_error(BUSY.format("low"), "blockdev-del", node_name="low")
        self.assert_qmp_error(
            "Need a root block node", "block-commit", job_id="k", device="top", top_node="high", base_node="mid"
        )
        self.cancel()

    def test_permissions(self) -> None:
        self.slow(filter_node_name="cf")
        self.start_nbd()
        conflict = (
            "Permission conflict on node 'low': permissions 'consistent read' are both required by an unnamed block "
            "device (uses node 'low' as 'root' child) and unshared by commit job 'j' (uses node 'low' as "
            "'intermediate node' child)."
        )
        self.assert_qmp_error(conflict, "block-export-add", type="nbd", id="e", node_name="low")
        self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="cf")
        self.qmp.cmd("block-export-add", type="nbd", id="e2", node_name="high")
        self.cancel()

    def test_a_reader_of_what_is_to_be_moved(self) -> None:
        self.start_nbd()
        self.qmp.cmd("block-export-add", type="nbd", id="e", node_name="low")
        before = self.nodes()
        conflict = (
            "Permission conflict on node 'low': permissions 'consistent read' are both required by an unnamed block "
            "device (uses node 'low' as 'root' child) and unshared by commit job 'j' (uses node 'low' as "
            "'intermediate node' child)."
        )
        self.assert_qmp_error(
            conflict, "block-commit", job_id="j", device="top", top_node="mid", base_node="base"
        )
        self.assertEqual(self.job_sequence("j"), REFUSED)
        self.assertEqual(self.nodes(), before)

    def test_speed(self) -> None:
        self.slow()
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual((job["speed"], job["type"], job["len"]), (64 * KiB, "commit", SIZE))
        self.qmp.cmd("block-job-set-speed", device="j", speed=0)
        self.wait_status("j", "null")
        self.assert_job_sequence("j", SUCCESS)


class Overlap(CommitCase):
    """Other jobs in the same chain (seed 001)."""

    def commit_to_pending(self, **top: Any) -> None:
        """mid into base, under the filter cf; the job is about over, so that a stream may be about top."""
        below: dict[str, str] = {}
        for name in self.names:
            self.add_node(name, self.path(name), **below, **(top if name == "top" else {}))
            below = {"backing": name}
        self.add_node("over", self.create_image("over", SIZE, backing=self.path("top")), backing="top")
        where = {"device": "over", "top_node": "mid", "base_node": "base"}
        self.qmp.cmd("block-commit", job_id="c", filter_node_name="cf", auto_finalize=False, **where)
        self.qmp.wait_event("BLOCK_JOB_PENDING", {"id": "c"})

    def finalize(self) -> None:
        """Let the commit end."""
        self.qmp.cmd("job-finalize", id="c")
        self.wait_status("c", "null")

    def test_stream_down_to_the_top_of_a_commit(self) -> None:
        self.commit_to_pending(read_only=True)
        self.assert_qmp_error(
            "Cannot freeze 'backing' link to 'cf'", "block-stream", job_id="s", device="top", base_node="mid"
        )
        self.qmp.cmd("job-cancel", id="c")
        self.wait_status("c", "null")
        self.assert_contents("top")

    @blockd_only("the rival lets the stream put the dropped node back into the chain")
    def test_stream_of_a_writable_image_down_to_the_top_of_a_commit(self) -> None:
        self.commit_to_pending()
        self.assert_qmp_error(
            "Cannot freeze 'backing' link to 'cf'", "block-stream", job_id="s", device="top", base_node="mid"
        )

    def assert_result(self) -> None:
        """Both jobs have succeeded; the base is what top has below it."""
        for job in ("c", "s"):
            pending = ("BLOCK_JOB_PENDING",) if job == "c" else ()
            self.assert_job_sequence(job, (*SUCCESS[:4], *pending, *SUCCESS[4:]))
        self.assert_chain("over", "top", "base")
        self.assert_contents("top")
        self.assert_header("top", self.path("base"))

    def test_stream_down_to_the_filter_ends_last(self) -> None:
        self.commit_to_pending()
        self.qmp.cmd("block-stream", job_id="s", device="top", base_node="cf", speed=64 * KiB)
        self.finalize()
        self.unthrottle("s")
        self.wait_status("s", "null")
        self.assert_result()

    def test_stream_down_to_the_filter_ends_first(self) -> None:
        self.commit_to_pending()
        self.qmp.cmd("block-stream", job_id="s", device="top", base_node="cf")
        self.wait_status("s", "null")
        self.assertEqual((self.node_at("top/backing"), self.node_at("cf/backing")), ("cf", "mid"))
        self.finalize()
        self.assert_result()

    def test_stream_below_a_commit_of_the_active_layer(self) -> None:
        self.open_chain()
        self.qmp.cmd("block-stream", job_id="s", device="mid", base_node="base", speed=64 * KiB)
        self.qmp.cmd("block-commit", job_id="c", device="top", base_node="high")
        self.qmp.wait_event("BLOCK_JOB_READY", {"device": "c"})
        self.unthrottle("s")
        self.wait_status("s", "null")
        self.qmp.cmd("job-complete", id="c")
        self.wait_status("c", "null")
        self.assert_job_sequence("s", SUCCESS)
        self.assertNotIn("error", self.completed_event("c"))
        self.assert_chain("high", "mid", "base")
        self.contents["high"] = self.contents["top"]
        self.assert_contents("high", "mid")

    def test_two_commits_in_one_chain(self) -> None:
        self.open_chain()
        self.add_node("over", self.create_image("over", SIZE, backing=self.path("top")), backing="top")
        self.qmp.cmd(
            "block-commit", job_id="c", device="over", top_node="low", base_node="base", auto_finalize=False
        )
        self.qmp.wait_event("BLOCK_JOB_PENDING", {"id": "c"})
        self.assert_qmp_error(
            "Need a root block node", "block-commit", job_id="d", device="over", top_node="high", base_node="mid"
        )
        self.qmp.cmd("job-finalize", id="c")
        self.wait_status("c", "null")
        self.assert_contents("top", "mid")


class Active(CommitCase):
    """A commit whose top may change goes on until it is completed."""

    def test_an_image_with_a_writer_on_it(self) -> None:
        self.open_chain()
        self.export("high")
        self.qmp.cmd("block-commit", job_id="j", device="top", top_node="high", base_node="low")
        self.qmp.wait_event("BLOCK_JOB_READY", {"device": "j"})
        guest = self.guest("high")
        data = self.random_bytes(64 * KiB, 77)
        guest.write(SIZE - len(data), data)
        guest.close()
        self.qmp.cmd("job-complete", id="j")
        self.wait_status("j", "null")
        self.assertNotIn("error", self.completed_event("j"))
        self.assert_chain("top", "low", "base")
        for name in ("top", "high"):
            self.contents[name] = self.contents[name][: -len(data)] + data
        self.unexport("exp-high")
        self.contents["low"] = self.contents["high"]
        self.assert_contents("low")


class Refusals(CommitCase):
    """What a commit refuses; nothing is left behind."""

    def setUp(self) -> None:
        super().setUp()
        self.open_chain()
        self.add_node("other", self.create_image("other", SIZE))

    def refuse(self, desc: str, error_class: str = "GenericError", **arguments: Any) -> None:
        """block-commit fails with this text."""
        before = self.nodes()
        full: dict[str, Any] = {"job_id": "j", "device": "top", **arguments}
        self.assert_qmp_error(desc, "block-commit", error_class=error_class, **full)
        self.assertEqual(self.nodes(), before)
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_device(self) -> None:
        self.refuse("Device 'zz' not found", "DeviceNotFound", device="zz")
        self.refuse("Device 'zz' not found", "DeviceNotFound", device="zz", top="x", top_node="y")
        self.refuse("Need a root block node", device="high", top_node="mid")

    def test_top(self) -> None:
        self.refuse("'top-node' and 'top' are mutually exclusive", top="x", top_node="mid")
        self.refuse("Cannot find device='' nor node-name='zz'", top_node="zz")
        self.refuse("'other' is not in this backing file chain", top_node="other")
        self.refuse("'top-file' is not in this backing file chain", top_node="top-file")
        self.refuse("Top image file zz not found", top="zz")

    def test_base(self) -> None:
        self.refuse("'base-node' and 'base' are mutually exclusive", base="x", base_node="low", top_node="mid")
        self.refuse("Cannot find device='' nor node-name='zz'", base_node="zz", top_node="mid")
        self.refuse("'high' is not in this backing file chain", base_node="high", top_node="mid")
        self.refuse("Can't find 'zz' in the backing chain", base="zz", top_node="mid")
        self.refuse("cannot commit an image into itself", base_node="mid", top_node="mid")
        self.refuse("cannot commit an image into itself", top_node="base")

    def test_backing_file_of_the_active_layer(self) -> None:
        self.refuse("'backing-file' specified, but 'top' is the active layer", backing_file="x")
        self.export("high")
        self.refuse("'backing-file' specified, but 'top' has a writer on it", backing_file="x", top_node="high")

    def test_values(self) -> None:
        where: dict[str, Any] = {"top_node": "mid", "base_node": "base"}
        self.refuse("Parameter 'speed' expects a non-negative value", speed=-1, **where)
        self.refuse("Parameter 'on-error' does not accept value 'zz'", on_error="zz", **where)
        self.refuse("Invalid job ID '1 bad'", **{**where, "job_id": "1 bad"})
        self.refuse("Invalid node-name: '1bad'", filter_node_name="1bad", **where)
        self.refuse("Duplicate nodes with node-name='low'", filter_node_name="low", **where)
        self.assert_qmp_error("Invalid job ID ''", "block-commit", device="top", **where)
        self.assert_qmp_error("Parameter 'device' is missing", "block-commit", job_id="j", **where)

    def test_a_job_with_the_same_id(self) -> None:
        self.qmp.cmd("block-commit", job_id="j", device="top", top_node="mid", auto_finalize=False)
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.add_node("low2", self.create_image("low2", SIZE))
        self.add_node("top2", self.create_image("top2", SIZE, backing=self.path("low2")), backing="low2")
        self.add_node("over2", self.create_image("over2", SIZE, backing=self.path("top2")), backing="top2")
        self.assert_qmp_error("Job ID 'j' already in use", "block-commit", job_id="j", device="over2", top_node="top2")
        self.qmp.cmd("job-cancel", id="j")
        self.wait_status("j", "null")


class Failures(CommitCase):
    """Storage that fails, by blkdebug below the base or the images between."""

    def open_faulty(self, faulty: str, event: str, errno: int = 5, **how: Any) -> None:
        """The chain, with one image's file over blkdebug."""
        below: dict[str, str] = {}
        for name in self.names:
            file: dict[str, Any] = {"driver": "file", "filename": self.path(name), "node-name": f"{name}-file"}
            if name == faulty:
                rule = {"event": event, "errno": errno, "once": True, "immediately": False, **how}
                file = {"driver": "blkdebug", "image": file, "inject-error": [rule], "node-name": f"{name}-faulty"}
            self.qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, **below})
            below = {"backing": name}

    def test_report_ends_the_job(self) -> None:
        self.open_faulty("mid", "read_aio")
        self.qmp.cmd("block-commit", job_id="j", device="top", top_node="mid", base_node="base")
        self.wait_status("j", "null")
        self.assert_job_sequence("j", (*FAILED[:2], "BLOCK_JOB_ERROR", *FAILED[2:]))
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "read", "action": "report"})
        self.assertEqual(self.completed_event("j")["error"], "Input/output error")
        self.assert_chain("top", "high", "mid", "low", "base")

    def test_ignore_tries_again(self) -> None:
        self.open_faulty("mid", "read_aio")
        self.commit(top_node="mid", base_node="base", on_error="ignore")
        self.assertEqual(self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]["action"], "ignore")
        self.assert_chain("top", "high", "base")
        self.assert_contents("top")

    def test_stop_and_resume(self) -> None:
        self.open_faulty("base", "write_aio", 28)
        self.qmp.cmd("block-commit", job_id="j", device="top", top_node="mid", base_node="base", on_error="enospc")
        error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        self.assertEqual(error, {"device": "j", "operation": "write", "action": "stop"})
        self.wait_status("j", "paused")
        (job,) = self.qmp.cmd("query-block-jobs")
        self.assertEqual((job["io-status"], job["status"], job["paused"]), ("nospace", "paused", True))
        self.qmp.cmd("job-resume", id="j")
        self.wait_status("j", "null")
        self.assert_chain("top", "high", "base")
        self.assert_contents("top")


class Sparse(CommitCase):
    """Zeroes of the images between."""

    @daemon_differs("zeroes stay zeroes since QEMU 10.1")
    def test_zeroes_take_no_room_in_the_base(self) -> None:
        images.qemu_io(self.path("mid"), "write -q -z 0 2M", driver="qcow2")
        self.contents["mid"] = bytes(SIZE)
        base = self.path("base")
        self.open_chain()
        self.commit(top_node="mid", base_node="base")
        self.daemon.quit()
        self.assert_content(base, bytes(SIZE))
        data = sum(extent["length"] for extent in images.allocation(base, "qcow2") if extent["data"])
        self.assertEqual(data > 0, self.per_daemon(blockd=False, rival=True))
