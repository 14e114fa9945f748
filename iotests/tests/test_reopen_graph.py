"""blockdev-reopen: backing files, files and filters change their place, while guests look on."""

from __future__ import annotations

from iotests.harness import images
from iotests.harness.images import MiB
from iotests.tests.test_reopen_options import ReopenCase


class Backing(ReopenCase):
    """The backing file is added, replaced and removed."""

    def content(self, *marks: int) -> bytes:
        """What a chain holds, by the number of the image that each region comes from; -1: none."""
        return b"".join(bytes(MiB) if mark < 0 else self.MARKS[mark] * MiB for mark in marks)

    def test_guest_sees_each_graph(self) -> None:
        options = [self.options(number, backing=None) for number in range(3)]
        guests = []
        for number in range(3):
            self.add(options[number])
            guests.append(self.guest(self.export(f"hd{number}", writable=False).removeprefix("exp-")))

        def sees(number: int, *marks: int) -> None:
            self.assertEqual(guests[number].read(0, 3 * MiB), self.content(*marks), f"hd{number}")

        def back(number: int, backing: str | None) -> None:
            self.reopen({**options[number], "backing": backing})

        sees(0, 0, -1, -1)
        back(0, "hd1")  # hd0 - hd1
        sees(0, 0, 1, -1)
        back(2, "hd1")  # hd0 - hd1, hd2 - hd1
        sees(2, -1, 1, 2)
        back(0, "hd2")  # hd0 - hd2 - hd1
        self.assert_chain("hd0", "hd2", "hd1")
        sees(0, 0, 1, 2)
        back(2, None)  # hd0 - hd2
        sees(0, 0, -1, 2)
        back(1, "hd2")
        back(0, "hd1")  # hd0 - hd1 - hd2
        self.assert_chain("hd0", "hd1", "hd2")
        sees(0, 0, 1, 2)
        self.refuse("Making 'hd1' a backing child of 'hd2' would create a cycle", {**options[2], "backing": "hd1"})
        back(0, "hd2")  # hd0 - hd2, hd1 - hd2
        sees(1, -1, 1, 2)
        self.refuse("Making 'hd1' a backing child of 'hd2' would create a cycle", {**options[2], "backing": "hd1"})
        self.refuse(
            "Permission conflict on node 'hd0-file': permissions 'write, resize' are both required by node 'hd0' (uses "
            "node 'hd0-file' as 'file' child) and unshared by node 'hd2' (uses node 'hd0-file' as 'file' child).",
            {**options[2], "file": "hd0-file"},
        )
        back(1, None)
        sees(1, -1, 1, -1)
        options[1].pop("backing")
        self.refuse("backing is missing for 'hd1'", options[1])
        sees(1, -1, 1, -1)

    def test_busy_nodes_stay(self) -> None:
        for number in range(3):
            self.add(self.options(number, backing=None))
        self.reopen(self.options(0, backing="hd2"))
        self.assert_qmp_error(
            "Node 'hd2' is busy: node is used as backing hd of 'hd0'", "blockdev-del", node_name="hd2"
        )
        self.reopen(self.options(0, backing=None))
        self.qmp.cmd("blockdev-del", node_name="hd2")

    def test_cycles(self) -> None:
        options = [self.options(number, backing=None) for number in range(3)]
        for number in range(3):
            self.add(options[number])
        self.reopen({**options[0], "backing": "hd1"})
        self.reopen({**options[2], "backing": "hd1"})
        cycle = "Making 'hd2' a backing child of 'hd1' would create a cycle"
        self.refuse(cycle, {**options[1], "backing": "hd2"})
        self.reopen({**options[2], "backing": "hd0"})
        self.refuse(cycle, {**options[1], "backing": "hd2"})
        self.refuse("Making 'hd1' a backing child of 'hd1' would create a cycle", {**options[1], "backing": "hd1"})
        self.refuse("Making 'hd1' a file child of 'hd1' would create a cycle", {**options[1], "file": "hd1"})

    def test_backing_file_must_be_named_while_there_is_one(self) -> None:
        self.add(self.options(2))
        self.add(self.options(0))
        self.reopen(self.options(0))
        self.reopen(self.options(0, backing="hd2"))
        self.refuse("backing is missing for 'hd0'", self.options(0))
        self.reopen(self.options(0, backing=None))
        self.reopen(self.options(0))

    def test_backing_file_must_be_named_when_the_node_above_is_reopened_with_it(self) -> None:
        self.add(self.options(2, backing=self.options(1, backing=self.options(0))))
        below = {**self.options(1), "read-only": True}
        self.refuse("backing is missing for 'hd1'", below, self.options(2, backing="hd1"))
        self.reopen({**below, "backing": "hd0"}, self.options(2, backing="hd1"))

    def test_backing_file_must_be_named_while_the_header_does(self) -> None:
        self.add(self.options(1))
        self.refuse("backing is missing for 'hd1'", self.options(1))
        below = self.node_at("hd1/backing")
        self.reopen(self.options(1, backing=None))
        self.assertNotIn(below, self.nodes())
        self.refuse("backing is missing for 'hd1'", self.options(1))

    def test_removed_and_given_back(self) -> None:
        options = self.options(1, backing=self.options(0))
        self.add(options)
        before = self.nodes()["hd1"]["image"]
        self.reopen({**options, "backing": None})
        self.assertNotIn("backing_file", self.nodes()["hd1"])
        self.add(self.options(0))
        self.reopen({**options, "backing": "hd0"})
        self.assertEqual(self.nodes()["hd1"]["image"], before)
        # hd0 is a node by itself now.
        self.refuse("Cannot change the option 'backing.driver'", options)
        self.assert_qmp_error(
            "Node 'hd0' is busy: node is used as backing hd of 'hd1'", "blockdev-del", node_name="hd0"
        )
        self.qmp.cmd("blockdev-del", node_name="hd1")
        self.qmp.cmd("blockdev-del", node_name="hd0")

    def test_rebase_does_not_hold_up_a_neighbour(self) -> None:
        """A is rebased between B and the base; C, over the same base, is written all the time."""
        self.create_image("a.qcow2", 3 * MiB)
        self.create_image("c.qcow2", 3 * MiB)

        def over(name: str, backing: str) -> dict[str, object]:
            file = {"driver": "file", "node-name": f"{name}-file", "filename": self.path(f"{name}.qcow2")}
            return {"driver": "qcow2", "node-name": name, "file": file, "backing": backing}

        self.add(self.options(0, **{"read-only": True}))
        self.add(self.options(2, backing="hd0"))
        self.add(over("a", "hd2"))
        self.add(over("c", "hd0"))
        self.export("c")
        self.export("a", writable=False)
        writer = self.guest_writer("c", self.content(0, -1, -1))
        guest = self.guest("a")
        for _ in range(20):
            self.reopen(over("a", "hd0"))
            self.assertEqual(guest.read(0, 3 * MiB), self.content(0, -1, -1))
            self.reopen(over("a", "hd2"))
            self.assertEqual(guest.read(0, 3 * MiB), self.content(0, -1, 2))
        writer.wait_writes(1)
        model = writer.stop()
        self.assertEqual(self.guest("c").read(0, 3 * MiB), model)


class Files(ReopenCase):
    """The protocol node below an image is replaced, filters come and go."""

    def test_replaced(self) -> None:
        for number in range(2):
            path = self.create_image(f"f{number}.raw", MiB, images.RAW)
            self.add({"driver": "file", "node-name": f"f{number}", "filename": path})
        options = {"driver": "raw", "node-name": "hd", "file": "f0"}
        self.add(options)
        self.export("hd")
        guest = self.guest("hd")
        guest.write(0, b"\xa0" * MiB)
        self.reopen({**options, "file": "f1"})
        self.assertEqual(guest.read(0, MiB), bytes(MiB))
        guest.write(0, b"\xa1" * MiB)
        self.reopen({**options, "file": "f0"})
        self.assertEqual(guest.read(0, MiB), b"\xa0" * MiB)
        self.reopen({**options, "file": "f1"})
        self.assertEqual(guest.read(0, MiB), b"\xa1" * MiB)
        guest.close()
        for number, byte in ((0, 0xA0), (1, 0xA1)):
            images.qemu_io(self.path(f"f{number}.raw"), f"read -q -P {byte:#x} 0 1M", driver="raw", extra=("-U", "-r"))

    def test_throttle_between_image_and_file(self) -> None:
        options = self.options(0)
        self.add(options)
        self.export("hd0")
        guest = self.guest("hd0")
        self.qmp.cmd("object-add", qom_type="throttle-group", id="group0", limits={"iops-total": 1000})
        self.add({"driver": "throttle", "node-name": "throttle0", "throttle-group": "group0", "file": "hd0-file"})
        self.reopen({**options, "file": "throttle0"})
        self.assertIn(("hd0", "file", "throttle0"), self.graph_edges())
        guest.write(0, b"t" * 65536)
        self.reopen({**options, "file": "hd0-file"})
        self.assertEqual(guest.read(0, 65536), b"t" * 65536)
        self.qmp.cmd("blockdev-del", node_name="throttle0")

    def test_filter_between_two_images(self) -> None:
        """raw over qcow2: a copy-on-read filter in between copies up only while it is there."""
        inner = self.options(1, backing=self.options(0))
        options = {"driver": "raw", "node-name": "hd", "file": inner}
        self.add(options)
        self.add({"driver": "copy-on-read", "node-name": "cor", "file": "hd1"})
        self.export("hd", writable=False)
        guest = self.guest("hd")
        half = MiB // 2
        self.reopen({**options, "file": "cor"})
        self.assertEqual(guest.read(0, half), self.MARKS[0] * half)
        self.reopen({**options, "file": "hd1"})
        self.assertEqual(guest.read(half, half), self.MARKS[0] * half)
        # It has not been within hd's options any more since it was away.
        self.refuse("Cannot change the option 'file.backing.file.driver'", options)
        guest.close()
        self.unexport("exp-hd", mode="hard")
        self.qmp.cmd("blockdev-del", node_name="cor")
        self.qmp.cmd("blockdev-del", node_name="hd")
        own = [area for area in images.allocation(self.files[1], "qcow2") if area["depth"] == 0 and area["data"]]
        self.assertEqual([(area["start"], area["length"]) for area in own], [(0, half), (MiB, MiB)])

    def test_two_images_swap_their_files(self) -> None:
        guests = {}
        for number in (0, 2):
            self.add(self.options(number))
            self.export(f"hd{number}")
            guests[number] = self.guest(f"hd{number}")
        # Both images have their tables at the same places, so that each can serve the other's file.
        for name, file, other in (("hd0", "hd2-file", "hd2"), ("hd2", "hd0-file", "hd0")):
            self.refuse(
                f"Permission conflict on node '{file}': permissions 'write, resize' are both required by node "
                f"'{other}' (uses node '{file}' as 'file' child) and unshared by node '{name}' (uses node '{file}' "
                f"as 'file' child).",
                {**self.options(int(name[2])), "file": file},
            )
        self.reopen({**self.options(0), "file": "hd2-file"}, {**self.options(2), "file": "hd0-file"})
        self.assertLessEqual({("hd0", "file", "hd2-file"), ("hd2", "file", "hd0-file")}, self.graph_edges())
        self.assertEqual(guests[0].read(0, 3 * MiB), bytes(2 * MiB) + self.MARKS[2] * MiB)
        self.assertEqual(guests[2].read(0, 3 * MiB), self.MARKS[0] * MiB + bytes(2 * MiB))
        self.reopen(self.options_by_name(0), self.options_by_name(2))
        self.assertEqual(guests[0].read(0, 3 * MiB), self.MARKS[0] * MiB + bytes(2 * MiB))
        self.assertEqual(guests[2].read(0, 3 * MiB), bytes(2 * MiB) + self.MARKS[2] * MiB)

    def options_by_name(self, number: int) -> dict[str, object]:
        """The options of an image over its file node."""
        return {**self.options(number), "file": f"hd{number}-file"}

    def test_no_file_for_a_filter_that_has_another_child(self) -> None:
        self.add(self.options(0))
        self.qmp.cmd("object-add", qom_type="throttle-group", id="g", limits={"iops-total": 1000})
        options = {"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "hd0"}
        self.add(options)
        self.refuse("Making 't' a file child of 't' would create a cycle", {**options, "file": "t"})


class Jobs(ReopenCase):
    """While a job relies on a part of the chain, that part stays."""

    def chain(self) -> dict[str, object]:
        """hd0 over hd1 over hd2, the options of one within the other's."""
        options = self.options(0, backing=self.options(1, backing=self.options(2)))
        self.add(options)
        return options

    def test_stream_takes_the_backing_file(self) -> None:
        options = self.options(0, backing=self.options(1, backing=None))
        self.add(options)
        self.run_job("block-stream", job_id="s", device="hd0")
        self.assertNotIn("hd1", self.nodes())
        self.refuse("Cannot change the option 'backing.driver'", options)
        self.reopen(self.options(0))
        self.reopen(self.options(0, backing=None))
        self.qmp.cmd("blockdev-del", node_name="hd0")

    def test_stream_takes_an_intermediate_image(self) -> None:
        options = self.chain()
        self.run_job("block-stream", job_id="s", device="hd0", base_node="hd2")
        self.assert_chain("hd0", "hd2")
        # What was said of hd1 does not fit hd2.
        self.refuse("Cannot change the option 'backing.driver'", options)
        self.reopen(self.options(0, backing=self.options(2)))
        self.reopen(self.options(0, backing="hd2"))
        self.refuse("backing is missing for 'hd0'", self.options(0))
        self.qmp.cmd("blockdev-del", node_name="hd0")
        self.assert_nothing_left()

    def test_stream_into_the_active_image(self) -> None:
        self.chain()
        self.qmp.cmd("block-stream", job_id="s", device="hd0", base_node="hd2", auto_finalize=False)
        self.wait_status("s", "pending")
        # The base is not the job's.
        self.reopen(self.options(0, backing=self.options(1, backing=None)))
        self.refuse("Cannot change frozen 'backing' link from 'hd0' to 'hd1'", self.options(0, backing=None))
        self.qmp.cmd("job-finalize", id="s")
        self.wait_status("s", "null")

    def test_stream_into_an_intermediate_image(self) -> None:
        options = self.chain()
        self.qmp.cmd(
            "block-stream", job_id="s", device="hd1", filter_node_name="cor", auto_finalize=False
        )
        self.wait_status("s", "pending")
        self.refuse("Cannot change the option 'backing.backing.file.node-name'", options)
        inner = self.options(1, backing=self.options(2))
        self.refuse(
            "Read-only block node 'hd1' cannot support read-write users", {**inner, "read-only": True}
        )
        self.refuse(
            "Cannot change frozen 'backing' link from 'hd1' to 'hd2'", {**inner, "backing": None, "read-only": False}
        )
        self.reopen(self.options(0, backing=None))
        self.qmp.cmd("job-finalize", id="s")
        self.wait_status("s", "null")

    def test_commit_of_an_intermediate_image(self) -> None:
        self.chain()
        self.qmp.cmd("block-commit", job_id="c", device="hd0", top_node="hd1", auto_finalize=False)
        self.wait_status("c", "pending")
        # The job's filter is in between, so what is said of hd1 does not fit.
        self.refuse(
            "Cannot change the option 'backing.driver'", self.options(0, backing=self.options(1, backing=None))
        )
        self.refuse("Cannot replace implicit backing child of hd0", self.options(0, backing=None))
        self.qmp.cmd("job-finalize", id="c")
        self.wait_status("c", "null")
        self.assert_chain("hd0", "hd2")
        self.assertEqual({name: self.nodes()[name]["ro"] for name in ("hd0", "hd2")}, {"hd0": False, "hd2": True})
        self.reopen(self.options(0, backing=self.options(2)))

    def test_commit_of_the_active_image(self) -> None:
        self.chain()
        self.qmp.cmd("block-commit", job_id="c", device="hd0")
        self.wait_status("c", "ready")
        self.refuse(
            "Cannot change frozen 'backing' link from 'hd1' to 'hd2'",
            self.options(0, backing=self.options(1, backing=None)),
        )
        self.refuse("Cannot change frozen 'backing' link from 'hd0' to 'hd1'", self.options(0, backing=None))
        self.qmp.cmd("job-complete", id="c")
        self.wait_status("c", "null")
        self.assertEqual(set(self.nodes()), {"hd0", "hd0-file", "hd1", "hd1-file", "hd2", "hd2-file"})
