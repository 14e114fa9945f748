"""Encrypted images: the format luks, and qcow2 with LUKS or the older method within."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iotests.harness import images
from iotests.harness.case import QMPTestCase
from iotests.harness.guest import Guest
from iotests.harness.images import KiB, MiB
from iotests.harness.markers import blockd_only
from iotests.harness.qmp import QMPError

SIZE = 1 * MiB
AMEND = "x-blockdev-amend"

# The passwords by the ids of their secrets.
PASSWORDS = {"s": "hunter", "n": "new one", "w": "wrong"}
OBJECTS = tuple(word for name, text in PASSWORDS.items() for word in ("--object", f"secret,id={name},data={text}"))

# The events of a job of blockdev-create and x-blockdev-amend.
DONE = ("created", "running", "waiting", "pending", "concluded", "null")
REFUSED = ("created", "running", "aborting", "concluded", "null")


class Encrypted(QMPTestCase):
    """A daemon with secrets, and one kind of encrypted image; the subclasses say which."""

    kind = "luks"
    prefix = ""  # before "key-secret" in errors

    def setUp(self) -> None:
        super().setUp()
        self.launch(*OBJECTS)

    # Options of this kind of image.

    def create_options(self, file: str, size: int = SIZE, **more: Any) -> dict[str, Any]:
        """Of blockdev-create."""
        return {"driver": "luks", "file": file, "size": size, "key-secret": "s", "iter-time": 10, **more}

    def open_options(self, secret: str | None = "s") -> dict[str, Any]:
        """Of blockdev-add."""
        return {"driver": "luks", **({} if secret is None else {"key-secret": secret})}

    def tool_options(self, path: str, secret: str = "s") -> str:
        """Of qemu-img and qemu-io."""
        return f"driver=luks,key-secret={secret},file.filename={path}"

    def amend_options(self, **change: Any) -> dict[str, Any]:
        """Of x-blockdev-amend."""
        return {"driver": "luks", **{name.replace("_", "-"): value for name, value in change.items()}}

    # Images.

    def empty_file(self, name: str) -> str:
        """An empty file, and a node NAME-file for it."""
        path = self.path(name)
        Path(path).touch()
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name=f"{name}-file")
        return path

    def create(self, name: str, size: int = SIZE, **more: Any) -> str:
        """Make an image with the daemon; its file stays open as NAME-file."""
        path = self.empty_file(name)
        for _ in range(5):
            error = self.run_create(self.create_options(f"{name}-file", size, **more))
            if "Unable to get accurate CPU usage" not in error:
                break  # the rival says so on a busy machine
        self.assertEqual(error, "")
        return path

    def open(self, name: str, secret: str | None = "s", **more: Any) -> None:
        """Open an image over the node NAME-file."""
        options = {name.replace("_", "-"): value for name, value in more.items()}
        self.qmp.execute(
            "blockdev-add", {**self.open_options(secret), "node-name": name, "file": f"{name}-file", **options}
        )

    def created(self, name: str = "a", size: int = SIZE) -> str:
        """An image that is made and open; its path is given back."""
        path = self.create(name, size)
        self.open(name)
        return path

    def close(self, name: str) -> None:
        """Close an image with its file."""
        self.qmp.cmd("blockdev-del", node_name=name)
        self.qmp.cmd("blockdev-del", node_name=f"{name}-file")

    def written(self, name: str, data: bytes, offset: int = 0) -> None:
        """A guest writes to a node, and flushes."""
        guest, identity = self.connected(name)
        guest.write(offset, data)
        guest.handle.flush()
        guest.close()
        self.unexport(identity, "hard")

    def read(self, name: str, offset: int = 0, length: int = SIZE) -> bytes:
        """What a guest reads of a node."""
        guest, identity = self.connected(name)
        data = guest.read(offset, length)
        guest.close()
        self.unexport(identity, "hard")
        return data

    def connected(self, name: str) -> tuple[Guest, str]:
        """A guest of a new export."""
        identity = self.export(name)
        return self.guest(name, strict=False), identity

    # Judging from outside.

    def io(self, path: str, *commands: str, secret: str = "s") -> None:
        """qemu-io on a closed image."""
        images.qemu_io("", *commands, options=self.tool_options(path, secret), extra=OBJECTS)

    def assert_holds(self, path: str, expected: bytes, *, secret: str = "s") -> None:
        """A closed image holds exactly this, by qemu-img, and not in the clear."""
        if self.kind == "qcow2":
            images.run_tool("qemu-img", "check", *OBJECTS, "--image-opts", self.tool_options(path, secret))
        model = self.path("model.raw")
        Path(model).write_bytes(expected)
        images.run_tool(
            "qemu-img", "compare", *OBJECTS, "--image-opts",
            self.tool_options(path, secret), f"driver=raw,file.filename={model}",
        )  # fmt: skip
        Path(model).unlink()
        stored = Path(path).read_bytes()
        for at in range(0, len(expected) - 64, 256 * KiB):
            piece = expected[at : at + 64]
            if piece.strip(b"\0"):
                self.assertNotIn(piece, stored, f"what is at {at} is in the clear")

    # Key slots.

    def amend(self, name: str, *, force: bool | None = None, job_id: str = "amend", **change: Any) -> str:
        """x-blockdev-amend to its end; its error is given back, "" for none."""
        arguments: dict[str, Any] = {"job-id": job_id, "node-name": name, "options": self.amend_options(**change)}
        if force is not None:
            arguments["force"] = force
        self.qmp.execute(AMEND, arguments)
        self.wait_status(job_id, "concluded")
        error = str(self.job(job_id).get("error", ""))
        self.qmp.cmd("job-dismiss", id=job_id)
        return error

    def add_key(self, name: str, secret: str = "n", **more: Any) -> str:
        """Add a key cheaply."""
        return self.amend(name, state="active", new_secret=secret, iter_time=10, **more)

    def luks_info(self, name: str) -> dict[str, Any]:
        """What query-named-block-nodes says of the LUKS header."""
        data: dict[str, Any] = self.nodes()[name]["image"]["format-specific"]["data"]
        return data

    def active_slots(self, name: str) -> list[int]:
        """The key slots in use."""
        return [i for i, slot in enumerate(self.luks_info(name)["slots"]) if slot["active"]]


# No test case of its own, so that its tests run in its subclasses only.
if TYPE_CHECKING:
    _Case = Encrypted
else:
    _Case = object


class Common(_Case):
    """The tests that hold for every kind of image with LUKS."""

    def test_created_and_opened(self) -> None:
        path = self.created()
        data = self.random_bytes(SIZE)
        self.written("a", data)
        self.assertEqual(self.read("a"), data)
        self.assertEqual(self.job_sequence("create"), DONE)
        self.close("a")
        self.assert_holds(path, data)

    def test_field_writes_we_read(self) -> None:
        path = self.create("a")
        self.qmp.cmd("blockdev-del", node_name="a-file")
        self.io(path, "write -P 0x11 0 512k", "write -P 0x22 768k 512")
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        self.open("a")
        self.assertEqual(self.read("a", 0, 512 * KiB), b"\x11" * 512 * KiB)
        self.assertEqual(self.read("a", 768 * KiB, 512), b"\x22" * 512)

    def test_parts_of_sectors(self) -> None:
        path = self.created()
        model = bytearray(self.random_bytes(SIZE))
        self.written("a", bytes(model))
        guest, identity = self.connected("a")
        for n, offset in enumerate((1, 511, 512, 513, 65535, 65536 - 700, 131072 + 3, SIZE - 5)):
            piece = self.random_bytes(min(1 + 377 * n, SIZE - offset), n)
            guest.write(offset, piece)
            model[offset : offset + len(piece)] = piece
            self.assertEqual(guest.read(offset, len(piece)), piece)
        guest.close()
        self.unexport(identity, "hard")
        self.assertEqual(self.read("a"), bytes(model))
        self.close("a")
        self.assert_holds(path, bytes(model))

    def test_secrets(self) -> None:
        self.create("a")
        arguments = {"node-name": "a", "file": "a-file"}
        for secret, text in (
            (None, f"Parameter '{self.prefix}key-secret' is required for cipher"),
            ("none", "No secret with id 'none'"),
            ("w", "Invalid password, cannot unlock any keyslot"),
        ):
            with self.subTest(secret=secret):
                self.assert_qmp_error(text, "blockdev-add", {**self.open_options(secret), **arguments})
                self.assert_nothing_left("a-file")
        self.open("a")

    def test_create_errors(self) -> None:
        self.empty_file("a")
        for change, text in (
            ({"key-secret": "none"}, "No secret with id 'none'"),
            ({"ivgen-alg": "essiv", "ivgen-hash-alg": "sha512"}, "No AES cipher with key size 64 available"),
        ):
            with self.subTest(change=change):
                options = self.create_options("a-file")
                options.get("encrypt", options).update(change)
                self.assertEqual(self.run_create(options), text)
                self.assertEqual(self.job_sequence("create")[-5:], REFUSED)

    def test_info(self) -> None:
        self.created()
        image = self.nodes()["a"]["image"]
        self.assertEqual((image["encrypted"], image["virtual-size"]), (True, SIZE))
        info = self.luks_info("a")
        self.assertEqual(
            {name: info[name] for name in ("cipher-alg", "cipher-mode", "ivgen-alg", "hash-alg")},
            {"cipher-alg": "aes-256", "cipher-mode": "xts", "ivgen-alg": "plain64", "hash-alg": "sha256"},
        )
        self.assertEqual(info["payload-offset"], 2068480)
        self.assertEqual([slot["active"] for slot in info["slots"]], [True] + 7 * [False])
        self.assertEqual(info["slots"][0]["stripes"], 4000)
        self.assertEqual([slot["key-offset"] for slot in info["slots"]], [4096 + n * 258048 for n in range(8)])
        self.assertEqual(len(info["uuid"]), 36)

    def test_amend_keys(self) -> None:
        path = self.created()
        data = self.random_bytes(SIZE // 2) + bytes(SIZE // 2)
        self.written("a", data)
        self.assertEqual(self.add_key("a"), "")
        self.assertEqual(self.job_sequence("amend"), DONE)
        self.assertEqual(self.active_slots("a"), [0, 1])
        self.assertEqual(self.amend("a", state="inactive", old_secret="s"), "")
        self.assertEqual(self.active_slots("a"), [1])
        self.assertEqual(self.read("a"), data)
        self.close("a")
        self.assert_holds(path, data, secret="n")
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        self.assert_qmp_error(
            "Invalid password, cannot unlock any keyslot",
            "blockdev-add",
            {**self.open_options("s"), "node-name": "a", "file": "a-file"},
        )
        self.open("a", "n")
        self.assertEqual(self.read("a"), data)

    def test_amend_refused(self) -> None:
        self.created()
        refused: list[tuple[dict[str, Any], str]] = [
            ({"state": "active"}, "'new-secret' is required to activate a keyslot"),
            ({"state": "active", "new_secret": "none"}, "No secret with id 'none'"),
            ({"state": "active", "new_secret": "n", "secret": "w"}, "Invalid password, cannot unlock any keyslot"),
            (
                {"state": "active", "new_secret": "n", "keyslot": 0},
                "Refusing to overwrite active keyslot 0 - please erase it first",
            ),
            (
                {"state": "inactive", "keyslot": 0},
                "Attempt to erase the only active keyslot 0 which will erase all the data in the image"
                " irreversibly - refusing operation",
            ),
            (
                {"state": "inactive", "old_secret": "s"},
                "All the active keyslots match the (old) password that was given and erasing them will erase all the"
                " data in the image irreversibly - refusing operation",
            ),
            ({"state": "inactive", "old_secret": "w"}, "No keyslots match given (old) password for erase operation"),
        ]
        for change, text in refused:
            with self.subTest(change=change):
                self.assertEqual(self.amend("a", **change), text)
                self.assertEqual(self.job_sequence("amend")[-5:], REFUSED)
        self.assertEqual(self.active_slots("a"), [0])
        self.close("a")

    def test_amend_by_force_takes_the_last_key(self) -> None:
        path = self.created()
        self.assertEqual(self.amend("a", force=True, state="inactive", keyslot=0), "")
        self.assertEqual(self.active_slots("a"), [])
        self.close("a")
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        self.assert_qmp_error(
            "Invalid password, cannot unlock any keyslot",
            "blockdev-add",
            {**self.open_options("s"), "node-name": "a", "file": "a-file"},
        )

    def test_amend_of_other_nodes(self) -> None:
        self.created()
        options = self.amend_options(state="active", new_secret="n")
        self.assert_qmp_error(
            "x-blockdev-amend doesn't support changing the block driver",
            AMEND,
            {"job-id": "j", "node-name": "a-file", "options": options},
        )
        self.assert_qmp_error(
            "Cannot find device='' nor node-name='none'",
            AMEND,
            {"job-id": "j", "node-name": "none", "options": options},
        )
        self.assertEqual(self.qmp.cmd("query-jobs"), [])

    def test_amend_read_only(self) -> None:
        """The format luks asks for its file, which is writable, by itself."""
        self.create("a")
        self.open("a", read_only=True)
        refused = "Could not read encryption header: Operation not permitted"
        self.assertEqual(self.add_key("a"), refused if self.kind == "qcow2" else "")
        self.assertEqual(self.active_slots("a"), [0] if self.kind == "qcow2" else [0, 1])

    def test_amend_under_a_guest(self) -> None:
        self.created()
        data = self.random_bytes(SIZE)
        guest, identity = self.connected("a")
        guest.write(0, data)
        arguments = {"node-name": "a", "options": self.amend_options(state="active", new_secret="n", iter_time=10)}
        for job in ("one", "two"):
            self.qmp.execute(AMEND, {"job-id": job, **arguments})
        guest.write(4096, data[:8192])
        for job in ("one", "two"):
            self.wait_status(job, "concluded")
            self.assertNotIn("error", self.job(job))
            self.qmp.cmd("job-dismiss", id=job)
        self.assertEqual(self.active_slots("a"), [0, 1, 2])
        self.assertEqual(guest.read(0, SIZE), data[:4096] + data[:8192] + data[12288:])
        guest.close()
        self.unexport(identity, "hard")

    def test_killed_while_amending(self) -> None:
        """The only key is replaced, by way of a free slot: the old or the new one opens the image."""
        path = self.created()
        data = self.random_bytes(SIZE)
        self.written("a", data)
        change = {"state": "active", "new_secret": "n", "keyslot": 0, "iter_time": 10}
        self.qmp.execute(
            AMEND, {"job-id": "j", "node-name": "a", "options": self.amend_options(**change), "force": True}
        )
        self.daemon.kill()
        Path(self.nbd_socket).unlink()
        self.launch(*OBJECTS)
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        try:
            self.open("a", "s")
        except QMPError as error:
            self.assertEqual(error.desc, "Invalid password, cannot unlock any keyslot")
            self.open("a", "n")
        self.assertEqual(self.read("a"), data)

    def test_resize(self) -> None:
        path = self.created()
        data = self.random_bytes(SIZE)
        self.written("a", data)
        self.qmp.cmd("block_resize", node_name="a", size=2 * SIZE)
        self.assertEqual(self.nodes()["a"]["image"]["virtual-size"], 2 * SIZE)
        self.written("a", data, SIZE)
        self.assertEqual(self.read("a", 0, 2 * SIZE), data + data)
        self.close("a")
        self.assert_holds(path, data + data)

    def test_overlay(self) -> None:
        path = self.created()
        base = self.random_bytes(SIZE)
        self.written("a", base)
        overlay = self.create_image("o", SIZE)
        self.add_node("o", overlay, "qcow2")
        self.qmp.cmd("blockdev-snapshot", node="a", overlay="o")
        self.written("o", b"x" * 700, 65536 - 100)
        model = bytearray(base)
        model[65536 - 100 : 65536 + 600] = b"x" * 700
        self.assertEqual(self.read("o"), bytes(model))
        steps = self.run_job("block-commit", job_id="c", device="o", wait_for="ready")
        self.assertEqual(steps[-1], "ready")
        self.qmp.cmd("job-complete", id="c")
        self.wait_status("c", "null")
        self.qmp.cmd("blockdev-del", node_name="o")
        self.close("a")
        self.assert_holds(path, bytes(model))

    def test_mirror_into_encrypted(self) -> None:
        path = self.created()
        data = self.random_bytes(SIZE - 65536) + bytes(65536)
        self.add_node("plain", self.filled_image("p", data), "qcow2")
        self.run_job("blockdev-mirror", job_id="m", device="plain", target="a", sync="full", wait_for="ready")
        self.qmp.cmd("job-complete", id="m")
        self.wait_status("m", "null")
        self.close("a")
        self.assert_holds(path, data)

    def test_backup_of_encrypted(self) -> None:
        self.created()
        data = self.random_bytes(SIZE)
        self.written("a", data)
        target = self.create_image("t", SIZE)
        self.add_node("t", target, "qcow2")
        self.run_job("blockdev-backup", job_id="b", device="a", target="t", sync="full")
        self.qmp.cmd("blockdev-del", node_name="t")
        self.assert_content(target, data, "qcow2")

    def test_backup_into_encrypted(self) -> None:
        path = self.created()
        data = bytes(SIZE // 2) + self.random_bytes(SIZE // 2)
        self.add_node("plain", self.filled_image("p", data), "qcow2")
        self.run_job("blockdev-backup", job_id="b", device="plain", target="a", sync="full")
        self.close("a")
        self.assert_holds(path, data)


class Luks(Common, Encrypted):
    """A file with a LUKS header."""

    def test_longest_size(self) -> None:
        self.empty_file("a")
        options = self.create_options("a-file", 2**63 - 512)
        self.assertEqual(self.run_create(options), "The requested file size is too large")

    @blockd_only("the rival shows the rest as a sector of garbage")
    def test_file_that_ends_within_a_sector(self) -> None:
        path = self.create("a")
        self.qmp.cmd("blockdev-del", node_name="a-file")
        with open(path, "ab") as file:
            file.write(b"rest")
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        self.open("a")
        self.assertEqual(self.nodes()["a"]["image"]["virtual-size"], SIZE)
        guest, identity = self.connected("a")
        guest.write(SIZE - 3, b"end")
        self.assertEqual(guest.read(SIZE - 3, 3), b"end")
        guest.close()
        self.unexport(identity, "hard")

    def test_file_that_ends_within_the_header(self) -> None:
        path = self.create("a")
        self.qmp.cmd("blockdev-del", node_name="a-file")
        os.truncate(path, 1024 * KiB)
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        self.assert_qmp_error(
            "Could not refresh total sector count: Input/output error",
            "blockdev-add",
            {**self.open_options(), "node-name": "a", "file": "a-file"},
        )
        self.assert_nothing_left("a-file")

    def test_amend_needs_the_file_alone(self) -> None:
        self.create("a")
        self.open("a")
        self.qmp.cmd("blockdev-add", driver="raw", file="a-file", node_name="r", read_only=True)
        identity = self.export("r", writable=False)
        options = self.amend_options(state="active", new_secret="n", iter_time=10)
        self.assert_qmp_error(
            "Permission conflict on node 'a-file': permissions 'consistent read' are both required by node 'r'"
            " (uses node 'a-file' as 'file' child) and unshared by node 'a' (uses node 'a-file' as 'file' child).",
            AMEND,
            {"job-id": "amend", "node-name": "a", "options": options},
        )
        self.assertEqual(self.qmp.cmd("query-jobs"), [])
        self.unexport(identity, "hard")
        self.assertEqual(self.add_key("a"), "")

    def test_within_qcow2(self) -> None:
        """An encrypted disk of which a qcow2 image is the file."""
        path = self.create_image("a", 0)
        self.add_node("q", path, "qcow2")
        self.qmp.execute("blockdev-create", {"job-id": "create", "options": self.create_options("q")})
        self.wait_status("create", "concluded")
        self.assertNotIn("error", self.job("create"))
        self.qmp.cmd("job-dismiss", id="create")
        self.qmp.execute("blockdev-add", {**self.open_options(), "node-name": "a", "file": "q"})
        data = self.random_bytes(SIZE)
        self.written("a", data)
        self.assertEqual(self.add_key("a"), "")
        self.qmp.cmd("blockdev-del", node_name="a")
        self.qmp.cmd("blockdev-del", node_name="q")
        options = f"driver=luks,key-secret=n,file.driver=qcow2,file.file.filename={path}"
        images.run_tool("qemu-img", "convert", *OBJECTS, "--image-opts", "-O", "raw", options, self.path("raw"))
        self.assertEqual(Path(self.path("raw")).read_bytes(), data)
        images.check(path)


    @blockd_only("QEMU has detached headers since 9.0")
    def test_detached_header(self) -> None:
        header, path = self.empty_file("h"), self.empty_file("a")
        self.assertEqual(self.run_create(self.create_options("a-file", header="h-file")), "")
        self.assertEqual((os.path.getsize(header), os.path.getsize(path)), (2068480, SIZE))
        self.open("a", header="h-file")
        info = self.luks_info("a")
        self.assertEqual((info["detached-header"], info["payload-offset"]), (True, 0))
        data = self.random_bytes(SIZE)
        self.written("a", data)
        self.assertEqual(self.add_key("a"), "")
        self.assertEqual(self.amend("a", state="inactive", old_secret="s"), "")
        self.qmp.cmd("blockdev-del", node_name="a")
        self.assert_qmp_error(
            "Invalid password, cannot unlock any keyslot",
            "blockdev-add",
            {**self.open_options("s"), "node-name": "a", "file": "a-file", "header": "h-file"},
        )
        self.open("a", "n", header="h-file")
        self.assertEqual(self.read("a"), data)
        self.close("a")
        self.qmp.cmd("blockdev-del", node_name="h-file")
        # Header and disk in one file are what every other program reads.
        both = bytearray(Path(header).read_bytes())
        both[104:108] = (len(both) // 512).to_bytes(4, "big")
        Path(self.path("both")).write_bytes(bytes(both) + Path(path).read_bytes())
        self.assert_holds(self.path("both"), data, secret="n")

    @blockd_only("QEMU has detached headers since 9.0")
    def test_header_for_a_disk_that_is_there(self) -> None:
        path = self.created()
        data = self.random_bytes(SIZE)
        self.written("a", data)
        self.close("a")
        whole = Path(path).read_bytes()
        Path(self.path("h")).write_bytes(whole[:2068480])
        self.empty_file("n")
        options = self.create_options("n-file")
        options["header"] = options.pop("file")
        self.assertEqual(
            self.run_create({**options, "preallocation": "full"}),
            "Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk",
        )
        self.assertEqual(self.run_create(options), "")
        del options["header"]
        self.assertEqual(self.run_create(options), "Either the parameter 'header' or 'file' must be specified")
        # A copy of an attached header goes with the whole file: it says where the disk begins.
        for name in ("a", "h"):
            path = self.path(name)
            self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name=f"{name}-file")
        self.open("a", header="h-file")
        self.assertEqual(self.read("a"), data)
        self.qmp.cmd("blockdev-del", node_name="a")
        # Another key decrypts to something else.
        self.open("a", header="n-file")
        self.assertNotEqual(self.read("a"), data)

    def qcow2_over_it(self, **options: Any) -> None:
        """A qcow2 image of which an encrypted disk, of no length at first, is the file: it grows by guests' writes."""
        path = self.created("a", 0)
        create = {"driver": "qcow2", "file": "a", "size": 4 * MiB, "cluster-size": 16 * KiB, **options}
        self.assertEqual(self.run_create(create), "")
        self.add_qcow2("a")
        model = bytearray(4 * MiB)
        for size in (4 * MiB, 9 * MiB + 512):
            model += bytes(size - len(model))
            if size > 4 * MiB:
                self.qmp.cmd("block_resize", node_name="q", size=size)
            guest, identity = self.connected("q")
            for n in range(24):
                data = self.random_bytes(700 * n + 1, n)
                offset = (n * 1_234_567 + size // 3) % (size - len(data))
                guest.write(offset, data)
                model[offset : offset + len(data)] = data
            guest.handle.zero(50_000, 100_000)
            model[100_000:150_000] = bytes(50_000)
            self.assertEqual(guest.read(0, size), bytes(model))
            guest.close()
            self.unexport(identity, "hard")
        self.qmp.cmd("blockdev-del", node_name="q")
        self.add_qcow2("a")
        self.assertEqual(self.read("q", 0, len(model)), bytes(model))
        self.qmp.cmd("blockdev-del", node_name="q")
        self.close("a")
        below = f"driver=qcow2,file.driver=luks,file.key-secret=s,file.file.filename={path}"
        images.run_tool("qemu-img", "check", *OBJECTS, "--image-opts", below)
        raw = self.path("model.raw")
        Path(raw).write_bytes(model)
        images.run_tool("qemu-img", "compare", *OBJECTS, "--image-opts", below, f"driver=raw,file.filename={raw}")

    def add_qcow2(self, file: str) -> None:
        """A node q of a qcow2 image in the node FILE."""
        self.qmp.cmd("blockdev-add", driver="qcow2", file=file, node_name="q")

    def test_qcow2_over_it(self) -> None:
        self.qcow2_over_it()

    def test_qcow2_of_version_2_over_it(self) -> None:
        self.qcow2_over_it(version="v2")

    @blockd_only("the rival shows noise")
    def test_preallocated_qcow2_over_it(self) -> None:
        self.qcow2_over_it(preallocation="metadata")

    @blockd_only("of what the base gets behind its end the rival leaves noise")
    def test_commit_makes_it_longer(self) -> None:
        path = self.created()
        base = self.random_bytes(SIZE)
        self.written("a", base)
        overlay = self.create_image("o", 2 * SIZE)
        self.add_node("o", overlay, "qcow2", backing="a")
        self.written("o", b"x" * 700, SIZE + 65536)
        self.run_job("block-commit", job_id="c", device="o", wait_for="ready")
        self.qmp.cmd("job-complete", id="c")
        self.wait_status("c", "null")
        self.qmp.cmd("blockdev-del", node_name="o")
        self.close("a")
        self.assert_holds(path, base + bytes(65536) + b"x" * 700 + bytes(SIZE - 65536 - 700))


class Qcow2(Common, Encrypted):
    """LUKS within a qcow2 image."""

    kind = "qcow2"
    prefix = "encrypt."

    def create_options(self, file: str, size: int = SIZE, **more: Any) -> dict[str, Any]:
        encrypt = {"format": "luks", "key-secret": "s", "iter-time": 10}
        return {"driver": "qcow2", "file": file, "size": size, "cluster-size": 16 * KiB, "encrypt": encrypt, **more}

    def open_options(self, secret: str | None = "s") -> dict[str, Any]:
        encrypt = {"format": "luks", **({} if secret is None else {"key-secret": secret})}
        return {"driver": "qcow2", "encrypt": encrypt}

    def tool_options(self, path: str, secret: str = "s") -> str:
        return f"driver=qcow2,encrypt.key-secret={secret},file.filename={path}"

    def amend_options(self, **change: Any) -> dict[str, Any]:
        encrypt = {name.replace("_", "-"): value for name, value in change.items()}
        return {"driver": "qcow2", "encrypt": {"format": "luks", **encrypt}}

    def luks_info(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = super().luks_info(name)["encrypt"]
        self.assertEqual(data.pop("format"), "luks")
        return data

    def test_snapshots_within(self) -> None:
        path = self.created()
        one, two = self.random_bytes(SIZE, 1), self.random_bytes(SIZE // 2, 2)
        self.written("a", one)
        self.qmp.cmd("blockdev-snapshot-internal-sync", device="a", name="first")
        self.written("a", two, 700)
        guest, identity = self.connected("a")
        guest.handle.zero(64 * KiB, 512 * KiB + 4096)
        guest.handle.trim(64 * KiB, 768 * KiB)
        model = bytearray(one)
        model[700 : 700 + len(two)] = two
        model[512 * KiB + 4096 : 576 * KiB + 4096] = bytes(64 * KiB)
        self.assertEqual(guest.read(0, 768 * KiB), bytes(model[: 768 * KiB]))
        guest.close()
        self.unexport(identity, "hard")
        self.close("a")
        images.run_tool(
            "qemu-img", "convert", *OBJECTS, "--image-opts", "-l", "snapshot.name=first", "-O", "raw",
            self.tool_options(path), self.path("raw"),
        )  # fmt: skip
        self.assertEqual(Path(self.path("raw")).read_bytes(), one)
        images.run_tool("qemu-img", "check", *OBJECTS, "--image-opts", self.tool_options(path))

    def test_stored_bitmap(self) -> None:
        path = self.created()
        self.qmp.cmd("block-dirty-bitmap-add", node="a", name="b", persistent=True)
        self.written("a", b"x" * 700, 100)
        self.close("a")
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        self.open("a")
        bitmap = self.nodes()["a"]["dirty-bitmaps"][0]
        self.assertEqual((bitmap["name"], bitmap["count"], bitmap["persistent"]), ("b", 16 * KiB, True))
        self.assertEqual(self.add_key("a"), "")
        self.close("a")
        self.assert_holds(path, bytes(100) + b"x" * 700 + bytes(SIZE - 800), secret="n")

    def test_stream_into_encrypted(self) -> None:
        data = self.random_bytes(SIZE)
        base = self.filled_image("base", data)
        path = self.created()
        self.close("a")
        self.add_node("b", base, "qcow2")
        self.qmp.cmd("blockdev-add", driver="file", filename=path, node_name="a-file")
        self.open("a", backing="b")
        self.written("a", b"x" * 700, 65536 - 100)
        model = bytearray(data)
        model[65536 - 100 : 65536 + 600] = b"x" * 700
        self.run_job("block-stream", job_id="st", device="a")
        self.close("a")
        self.assert_holds(path, bytes(model))

    def test_options_must_fit_the_image(self) -> None:
        self.create("a")
        self.assert_qmp_error(
            "Header reported 'luks' encryption format but options specify 'aes'",
            "blockdev-add",
            {"driver": "qcow2", "encrypt": {"format": "aes", "key-secret": "s"}, "node-name": "a", "file": "a-file"},
        )
        self.assert_qmp_error(
            "Parameter 'encrypt.key-secret' is required for cipher",
            "blockdev-add",
            {"driver": "qcow2", "node-name": "a", "file": "a-file"},
        )
        plain = self.create_image("p", SIZE)
        self.assert_qmp_error(
            "No encryption in image header, but options specified format 'luks'",
            "blockdev-add",
            {**self.open_options(), "node-name": "p", "file": {"driver": "file", "filename": plain}},
        )
        self.assert_nothing_left("a-file")
