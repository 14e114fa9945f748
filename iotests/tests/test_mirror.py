"""blockdev-mirror, drive-mirror and commits of the active layer: contents, events, errors, and who sees what."""

from __future__ import annotations

import os
from typing import Any

from iotests.harness import images
from iotests.harness.case import CANCELLED, FAILED, REFUSED, QMPTestCase, over_images
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only

SIZE = 4 * MiB
READY = ("created", "running", "ready", "BLOCK_JOB_READY")
ENDED = ("waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null")


class MirrorCase(QMPTestCase):
    """A chain of two with different data in each, opened as node s over base; the target is node t."""

    def setUp(self) -> None:
        super().setUp()
        self.data = bytearray(self.random_bytes(SIZE, 1))
        self.base = self.filled_image("base.qcow2", bytes(self.data), images.QCOW2)
        self.source = self.create_image("source.qcow2", SIZE, images.QCOW2, backing=self.base)
        piece = self.random_bytes(256 * KiB, 2)
        self.fill(self.source, piece, "qcow2", offset=512 * KiB)
        self.data[512 * KiB : 768 * KiB] = piece
        self.target = self.path("target.img")
        self.launch()
        self.add_node("s", self.source, "qcow2")

    def add_target(self, size: int = SIZE, **options: Any) -> None:
        """An empty target of the test's kind, as node t."""
        self.create_image("target.img", size)
        self.add_node("t", self.target, **options)

    def add_failing_target(self, *rules: dict[str, Any]) -> None:
        """A raw target behind blkdebug, as node t."""
        self.image_options = images.RAW
        self.create_image("target.img", SIZE)
        self.qmp.cmd(
            "blockdev-add",
            driver="blkdebug",
            node_name="t",
            image={"driver": "file", "filename": self.target, "node-name": "t-file"},
            inject_error=list(rules),
        )

    def mirror(self, **arguments: Any) -> None:
        """Start a mirror of everything from s to t."""
        self.qmp.cmd("blockdev-mirror", **{"job_id": "m", "device": "s", "target": "t", "sync": "full", **arguments})

    def wait_ready(self) -> None:
        """Wait until the mirror is ready."""
        self.qmp.wait_event("BLOCK_JOB_READY", {"device": "m"})

    def complete(self) -> None:
        """Have the mirror pivot, and wait for its end."""
        self.qmp.cmd("job-complete", id="m")
        self.wait_status("m", "null")

    def cancel(self, force: bool = False) -> None:
        """block-job-cancel, and wait for the end."""
        self.qmp.cmd("block-job-cancel", device="m", force=force)
        self.wait_status("m", "null")


@over_images(*images.ALL_IMAGES)
class Contents(MirrorCase):
    """The target is the source, as guests have written it."""

    def test_pivot(self) -> None:
        self.add_target()
        self.mirror()
        self.wait_ready()
        self.complete()
        self.assert_job_sequence("m", READY + ENDED)
        event = self.completed_event("m")
        self.assertEqual((event["type"], event["len"], event["offset"], event["speed"]), ("mirror", SIZE, SIZE, 0))
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))
        self.assert_content(self.source, bytes(self.data), "qcow2")

    def test_under_a_writing_guest_background(self) -> None:
        self.under_a_writing_guest("background")

    def test_under_a_writing_guest_write_blocking(self) -> None:
        self.under_a_writing_guest("write-blocking")

    def under_a_writing_guest(self, mode: str) -> None:
        """The guest goes on writing before, during and after the pivot."""
        self.add_target()
        self.export("s")
        writer = self.guest_writer("s", bytes(self.data))
        writer.wait_writes(5)
        self.mirror(copy_mode=mode, speed=2 * MiB, buf_size=256 * KiB)
        writer.wait_writes(20)
        self.unthrottle("m")
        self.wait_ready()
        writer.wait_writes(20)
        self.complete()
        writer.wait_writes(20)
        model = writer.stop()
        self.assertEqual(self.export_nodes(), ["t"])
        self.daemon.quit()
        self.assert_content(self.target, model)

    def export_nodes(self) -> list[str]:
        """The nodes of the exports."""
        return [export["node-name"] for export in self.qmp.cmd("query-block-exports")]

    def test_cancelled_when_ready_is_a_point_in_time(self) -> None:
        self.add_target()
        self.export("s")
        writer = self.guest_writer("s", bytes(self.data))
        self.mirror(copy_mode="write-blocking")
        self.wait_ready()
        writer.wait_writes(10)
        model = writer.stop()
        self.cancel()
        self.assert_job_sequence("m", READY + ENDED)
        self.assertEqual(self.export_nodes(), ["s"])
        self.daemon.quit()
        self.assert_content(self.target, model)
        self.assert_content(self.source, model, "qcow2")


class Sync(MirrorCase):
    """What of the source is copied."""

    image_options = images.QCOW2

    def test_top(self) -> None:
        self.create_image("target.img", SIZE, backing=self.base)
        self.add_node("t", self.target)
        self.mirror(sync="top")
        self.wait_ready()
        self.assertEqual(self.job("m")["total-progress"], 256 * KiB)
        self.complete()
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def test_none(self) -> None:
        self.export("s")
        guest = self.guest("s")
        self.qmp.cmd("drive-mirror", job_id="m", device="s", target=self.target, sync="none", format="qcow2")
        self.wait_ready()
        piece = self.random_bytes(100 * KiB, 3)
        guest.write(3 * MiB, piece)
        self.data[3 * MiB : 3 * MiB + len(piece)] = piece
        self.cancel()
        guest.close()
        self.daemon.quit()
        self.assertEqual(images.info(self.target)["backing-filename"], self.source)
        self.assert_content(self.target, bytes(self.data))

    def test_zero_length(self) -> None:
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="z", size=0)
        self.qmp.cmd("blockdev-add", driver="null-co", node_name="y", size=0)
        self.mirror(device="z", target="y")
        self.wait_ready()
        self.complete()
        self.assert_job_sequence("m", READY + ENDED)

    def test_zeroes_hide_what_the_target_had(self) -> None:
        empty = self.create_image("empty.qcow2", SIZE)
        self.add_node("e", empty)
        self.filled_image("target.img", bytes(self.data), images.QCOW2)
        self.add_node("t", self.target)
        self.mirror(device="e")
        self.wait_ready()
        self.cancel()
        self.daemon.quit()
        self.assert_content(self.target, bytes(SIZE))


class Drive(MirrorCase):
    """drive-mirror opens its target, and makes it."""

    image_options = images.QCOW2

    def drive(self, **arguments: Any) -> None:
        """Start a drive-mirror to the target's path, and wait until it is ready."""
        self.qmp.cmd(
            "drive-mirror", **{"job_id": "m", "device": "s", "target": self.target, "sync": "full", **arguments}
        )
        self.wait_ready()

    def test_full(self) -> None:
        self.drive()
        self.cancel()
        self.assertNotIn("backing-filename", images.info(self.target))
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def test_top_gets_the_backing_file(self) -> None:
        self.export("s")
        self.drive(sync="top", node_name="t")
        self.complete()
        self.assertEqual(self.node_at("t/backing"), self.node_at("s/backing"))
        self.unexport("exp-s")
        self.daemon.quit()
        self.assertEqual(images.info(self.target)["backing-filename"], self.base)
        self.assert_content(self.target, bytes(self.data))

    @blockd_only("the rival fills the rest of the cluster that a guest's write begins with zeroes")
    def test_clusters_larger_than_the_granularity(self) -> None:
        images.run_tool(
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512k", "-b", self.base, "-F", "qcow2",
            self.target, str(SIZE),
        )
        self.export("s")
        guest = self.guest("s")
        self.drive(sync="top", mode="existing", granularity=4096, copy_mode="write-blocking")
        piece = self.random_bytes(5 * KiB, 3)
        guest.write(3 * MiB + 512, piece)
        self.data[3 * MiB + 512 : 3 * MiB + 512 + len(piece)] = piece
        guest.close()
        self.cancel()
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def test_existing_keeps_its_format(self) -> None:
        self.create_image("target.img", SIZE, images.QCOW2)
        self.drive(mode="existing")
        self.cancel()
        self.assertEqual(images.info(self.target)["format"], "qcow2")
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def test_refusals_leave_no_file(self) -> None:
        same = {"job-id": "m", "device": "s", "target": self.target, "sync": "full"}
        self.assert_qmp_error(
            "a node-name must be provided when replacing a named node of the graph", "drive-mirror", same, replaces="s"
        )
        self.assert_qmp_error("Unknown file format 'zz'", "drive-mirror", same, format="zz")
        self.assert_qmp_error(
            f"Could not open '{self.target}': No such file or directory", "drive-mirror", same, mode="existing"
        )
        self.assertFalse(os.path.exists(self.target))


class Verbs(MirrorCase):
    """Events, and what is accepted when."""

    image_options = images.RAW

    def test_pause_complete_resume(self) -> None:
        self.add_target()
        self.mirror()
        self.wait_ready()
        self.qmp.cmd("job-pause", id="m")
        self.wait_status("m", "standby")
        self.assert_qmp_error("The block job for device 'm' is currently paused", "block-job-cancel", device="m")
        self.qmp.cmd("job-complete", id="m")
        self.assertEqual(self.job("m")["status"], "standby")
        self.qmp.cmd("job-resume", id="m")
        self.wait_status("m", "null")
        self.assert_job_sequence("m", READY + ("standby", "ready") + ENDED)

    def test_cancel_while_running(self) -> None:
        self.add_target()
        self.mirror(speed=64 * KiB, buf_size=64 * KiB)
        self.wait_status("m", "running")
        self.qmp.cmd("block-job-cancel", device="m")
        self.wait_status("m", "null")
        self.assert_job_sequence("m", CANCELLED)
        self.assertEqual(set(self.graph_edges()) & {("s", "backing", "t")}, set())

    def test_force_cancel_when_ready(self) -> None:
        self.add_target()
        self.mirror()
        self.wait_ready()
        self.cancel(force=True)
        self.assert_job_sequence("m", READY + CANCELLED[2:])

    def test_manual_finalize_and_dismiss(self) -> None:
        self.add_target()
        self.mirror(auto_finalize=False, auto_dismiss=False)
        self.wait_ready()
        self.qmp.cmd("job-complete", id="m")
        self.wait_status("m", "pending")
        self.qmp.cmd("job-finalize", id="m")
        self.wait_status("m", "concluded")
        self.qmp.cmd("job-dismiss", id="m")
        self.assert_job_sequence(
            "m", READY + ("waiting", "pending", "BLOCK_JOB_PENDING", "BLOCK_JOB_COMPLETED", "concluded", "null")
        )

    def test_pending(self) -> None:
        self.add_target()
        self.mirror(auto_finalize=False)
        self.wait_ready()
        self.qmp.cmd("job-complete", id="m")
        self.wait_status("m", "pending")
        [job] = self.qmp.cmd("query-block-jobs")
        self.assertEqual(
            {key: job[key] for key in ("status", "paused", "busy", "ready", "io-status")},
            {"status": "pending", "paused": True, "busy": False, "ready": False, "io-status": "ok"},
        )
        for verb, command in (("set-speed", "block-job-set-speed"), ("pause", "block-job-pause")):
            speed: dict[str, Any] = {"speed": MiB} if verb == "set-speed" else {}
            self.assert_qmp_error(
                f"Job 'm' in state 'pending' cannot accept command verb '{verb}'", command, device="m", **speed
            )
        self.qmp.cmd("job-finalize", id="m")
        self.wait_status("m", "null")

    def test_quit_with_a_mirror(self) -> None:
        self.add_target()
        self.mirror(speed=64 * KiB, buf_size=64 * KiB)
        self.daemon.quit()
        self.assert_content(self.source, bytes(self.data), "qcow2")

    def test_another_length_is_the_jobs_error(self) -> None:
        self.add_target(SIZE + MiB)
        self.mirror()
        self.wait_status("m", "null")
        self.assert_job_sequence("m", FAILED)
        event = self.completed_event("m")
        self.assertEqual(event["error"], "Source and target image have different sizes")
        self.assertEqual((event["len"], event["offset"]), (0, 0))

    def test_refusals(self) -> None:
        self.add_target()
        before = set(self.nodes())
        same = {"job-id": "m", "device": "s", "target": "t", "sync": "full"}
        refused: list[tuple[str, dict[str, Any]]] = [
            ("Cannot find device='zz' nor node-name='zz'", {"target": "zz"}),
            ("Need a root block node", {"device": "s-file"}),
            ("Can't mirror node into itself", {"target": "s"}),
            ("Sync mode 'incremental' not supported", {"sync": "incremental"}),
            ("Parameter 'granularity' expects a power of 2", {"granularity": 1000}),
            ("Parameter 'granularity' expects a value in range [512B, 64MB]", {"granularity": 256}),
            ("Invalid parameter 'buf-size'", {"buf-size": -1}),
            ("Failed to find node with node-name='zz'", {"replaces": "zz"}),
            (
                "Cannot replace 't' by a node mirrored from 's', because it cannot be guaranteed that doing so would"
                " not lead to an abrupt change of visible data",
                {"replaces": "t"},
            ),
            ("Duplicate nodes with node-name='t'", {"filter-node-name": "t"}),
        ]
        for desc, more in refused:
            self.assert_qmp_error(desc, "blockdev-mirror", {**same, **more})
            self.assert_nothing_left(*before)
        self.assertEqual(self.job_sequence("m"), ())
        self.assert_qmp_error("Parameter 'speed' expects a non-negative value", "blockdev-mirror", same, speed=-1)
        self.assert_job_sequence("m", REFUSED)

    def test_nodes_are_blocked(self) -> None:
        self.add_target()
        self.mirror()
        self.wait_ready()
        busy = "Node '{}' is busy: block device is in use by block job: mirror"
        self.assert_qmp_error(busy.format("s"), "blockdev-del", node_name="s")
        self.assert_qmp_error("Node t is in use", "blockdev-del", node_name="t")
        self.assert_qmp_error(busy.format("s"), "block-stream", job_id="k", device="s")
        self.assert_qmp_error("Need a root block node", "block-commit", job_id="k", device="s")
        self.complete()
        self.qmp.cmd("blockdev-del", node_name="s")

    def test_the_filters_name(self) -> None:
        self.add_target()
        self.mirror(filter_node_name="filter")
        self.wait_ready()
        self.assertEqual(self.nodes()["filter"]["drv"], "mirror_top")
        self.assertIn(("filter", "backing", "s"), self.graph_edges())
        self.complete()
        self.assertNotIn("filter", self.nodes())


class Replaces(MirrorCase):
    """The target takes the place of a node below the device."""

    image_options = images.RAW

    def test_below_a_filter(self) -> None:
        self.qmp.cmd("object-add", qom_type="throttle-group", id="g")
        self.qmp.cmd("blockdev-add", driver="throttle", node_name="f", throttle_group="g", file="s")
        self.export("f")
        self.add_target()
        self.mirror(device="f", replaces="s")
        self.wait_ready()
        self.complete()
        self.assertEqual(self.node_at("f/file"), "t")

    def test_is_blocked_once_the_job_completes(self) -> None:
        self.qmp.cmd("blockdev-add", driver="compress", node_name="f", file="s")
        self.add_target()
        self.add_node("other", self.create_image("other", SIZE))
        backup: dict[str, Any] = {"job_id": "j", "device": "s", "target": "other", "sync": "full"}
        self.mirror(device="f", replaces="s", auto_finalize=False)
        self.wait_ready()
        self.qmp.cmd("blockdev-backup", **backup)
        self.wait_status("j", "null")
        self.qmp.cmd("job-complete", id="m")
        self.wait_status("m", "pending")
        busy = "Node 's' is busy: block device is in use by block-job-complete"
        self.assert_qmp_error(busy, "blockdev-backup", **backup)
        self.assert_qmp_error(busy, "block-stream", job_id="j", device="s")
        self.qmp.cmd("job-finalize", id="m")
        self.wait_status("m", "null")
        self.assertEqual(self.node_at("f/file"), "t")
        self.qmp.cmd("blockdev-backup", **backup)
        self.wait_status("j", "null")

    def test_what_the_target_does_not_share_is_the_jobs_error(self) -> None:
        self.add_target()
        self.qmp.cmd("blockdev-add", driver="blkdebug", node_name="tp", image="t", unshare_child_perms=["consistent-read"])
        self.mirror()
        self.qmp.cmd("blockdev-add", driver="blkdebug", node_name="sp", image="s", take_child_perms=["consistent-read"])
        self.wait_ready()
        self.complete()
        self.assertEqual(self.completed_event("m")["error"], "Operation not permitted")
        self.assertEqual([self.node_at("sp/image"), self.node_at("tp/image")], ["s", "t"])

    def test_child_of_a_quorum(self) -> None:
        for name in "abc":
            self.add_node(name, self.filled_image(name, bytes(self.data)))
        self.qmp.cmd(
            "blockdev-add", driver="quorum", node_name="q", vote_threshold=2, children=["a", "b", "c"]
        )
        self.export("q")
        self.add_target()
        self.mirror(device="q", replaces="b")
        self.wait_ready()
        self.complete()
        self.assertEqual(self.node_at("q/children.1"), "t")
        self.assertEqual(self.node_at("q/children.2"), "c")
        self.unexport("exp-q")
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))


@over_images(*images.ALL_QCOW2)
class ActiveCommit(QMPTestCase):
    """block-commit of the device's own image."""

    def setUp(self) -> None:
        super().setUp()
        self.data = bytearray(self.random_bytes(SIZE, 1))
        self.base = self.filled_image("base", bytes(self.data[: SIZE // 2]))
        self.mid = self.create_image("mid", SIZE, backing=self.base)
        self.top = self.create_image("top", SIZE, backing=self.mid)
        self.data[SIZE // 2 :] = bytes(SIZE // 2)
        for number, path in enumerate((self.mid, self.top)):
            piece = self.random_bytes(300 * KiB, number)
            offset = (number * 2 + 1) * MiB
            self.fill(path, piece, offset=offset)
            self.data[offset : offset + len(piece)] = piece
        self.launch()
        self.add_node("top", self.top)
        self.export("top")

    def commit(self, **arguments: Any) -> None:
        """Start the commit, and wait until it is ready."""
        self.qmp.cmd("block-commit", job_id="m", device="top", **arguments)
        self.qmp.wait_event("BLOCK_JOB_READY", {"device": "m"})

    def test_pivot_under_a_writing_guest(self) -> None:
        writer = self.guest_writer("top", bytes(self.data))
        writer.wait_writes(5)
        self.commit()
        writer.wait_writes(10)
        self.qmp.cmd("job-complete", id="m")
        self.wait_status("m", "null")
        writer.wait_writes(10)
        model = writer.stop()
        self.assert_job_sequence("m", READY + ENDED)
        self.assertEqual(self.completed_event("m")["type"], "commit")
        self.daemon.quit()
        self.assert_content(self.base, model)

    def test_cancelled_when_ready_leaves_the_chain(self) -> None:
        before = self.graph_edges()
        self.commit(base=self.mid)
        self.qmp.cmd("block-job-cancel", device="m")
        self.wait_status("m", "null")
        self.assertEqual(self.graph_edges(), before)
        self.daemon.quit()
        self.assert_content(self.mid, bytes(self.data))
        self.assert_content(self.top, bytes(self.data))

    def test_backing_file_is_refused(self) -> None:
        self.assert_qmp_error(
            "'backing-file' specified, but 'top' is the active layer",
            "block-commit",
            job_id="m",
            device="top",
            backing_file="x",
        )


@blockd_only("7.2 has neither the command nor the members")
class CopyMode(MirrorCase):
    """block-job-change, actively-synced, x-write-blocking-after, x-convergence."""

    image_options = images.RAW

    def synced(self) -> bool:
        """actively-synced of the mirror."""
        (job,) = self.qmp.cmd("query-block-jobs")
        return bool(job["actively-synced"])

    def change(self, mode: str) -> None:
        """Change the copy mode."""
        self.qmp.execute("block-job-change", {"id": "m", "type": "mirror", "copy-mode": mode})

    def test_there_and_back(self) -> None:
        self.add_target()
        self.export("s")
        guest = self.guest("s")
        self.mirror()
        self.wait_ready()
        self.assertFalse(self.synced())
        self.change("write-blocking")
        piece = self.random_bytes(8 * KiB, 3)
        guest.write(64 * KiB, piece)
        with open(self.target, "rb") as file:
            file.seek(64 * KiB)
            self.assertEqual(file.read(len(piece)), piece)
        self.data[64 * KiB : 64 * KiB + len(piece)] = piece
        self.change("background")
        guest.write(128 * KiB, piece)
        self.data[128 * KiB : 128 * KiB + len(piece)] = piece
        self.assertFalse(self.synced())
        guest.close()
        self.complete()
        self.unexport("exp-s")
        self.daemon.quit()
        self.assert_content(self.target, bytes(self.data))

    def test_refusals(self) -> None:
        self.assert_qmp_error(
            "Block job 'zz' not found",
            "block-job-change",
            {"id": "zz", "type": "mirror", "copy-mode": "background"},
            error_class="DeviceNotActive",
        )
        self.add_target()
        self.qmp.cmd("blockdev-backup", job_id="b", device="s", target="t", sync="none")
        self.assert_qmp_error(
            "Job type does not support change",
            "block-job-change",
            {"id": "b", "type": "mirror", "copy-mode": "background"},
        )

    def test_a_writer_faster_than_the_target(self) -> None:
        self.create_image("target.img", SIZE)
        self.qmp.cmd("object-add", qom_type="throttle-group", id="slow", limits={"bps-total": 2 * MiB})
        self.add_node("t-raw", self.target)
        self.qmp.cmd("blockdev-add", driver="throttle", node_name="t", throttle_group="slow", file="t-raw")
        self.export("s")
        writer = self.guest_writer("s", bytes(self.data))
        self.mirror(x_write_blocking_after=1, buf_size=256 * KiB)
        self.wait_ready()
        self.assertIn("x-convergence", self.job("m"))
        self.qmp.cmd("qom-set", path="slow", property="limits", value={"bps-total": 0})
        self.complete()
        model = writer.stop()
        self.unexport("exp-s")
        self.daemon.quit()
        self.assert_content(self.target, model)
