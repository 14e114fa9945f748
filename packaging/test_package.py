"""The Debian package, installed into a folder, started as its unit says, and removed; the container's image.

After `make deb`. dpkg installs below a root of its own, so that nothing of this machine changes; the test plays
systemd.
"""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECONDS = 60.0

# What a container gives to its program.
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

# What systemd-analyze makes of a unit without any protection is 9.6 of 10, less being better; in tenths.
EXPOSURE = 25


def run(*command: str, **options: object) -> str:
    """Run a program that must succeed; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise AssertionError(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def listen(path: Path) -> socket.socket:
    """The socket of a service manager, which is told how its service is."""
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(path))
    told.settimeout(SECONDS)
    return told


class Unit(configparser.RawConfigParser):
    """A unit file. What is given twice counts once, which suffices here."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False)
        self.read(path)

    def optionxform(self, optionstr: str) -> str:
        """Names keep their case."""
        return optionstr


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        packages = list((ROOT / "bin").glob("blockd_*.deb"))
        assert len(packages) == 1, f"one package is expected, after make deb: {packages}"
        cls.package = str(packages[0])

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="blockd-deb")
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        database = self.root / "var/lib/dpkg"
        (database / "updates").mkdir(parents=True)
        (database / "info").mkdir()
        (database / "status").touch()
        (self.root / "etc").mkdir()

    def dpkg(self, *arguments: str) -> None:
        """dpkg below the root, maintainer scripts included."""
        run(
            "dpkg", f"--root={self.root}", "--force-not-root,script-chrootless", f"--log={self.root}/dpkg.log",
            *arguments, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        )  # fmt: skip

    def installed(self) -> None:
        self.dpkg("--install", self.package)

    def test_the_user_of_the_service_is_made(self) -> None:
        self.installed()
        self.assertIn("\nblockd:", "\n" + (self.root / "etc/passwd").read_text())
        self.assertIn("\nblockd:", "\n" + (self.root / "etc/group").read_text())

    def test_nothing_is_left_but_configurations(self) -> None:
        self.installed()
        mine = self.root / "etc/blockd/mine.yaml"
        mine.write_text("{}\n")
        self.dpkg("--purge", "blockd")
        left = [
            path
            for path in self.root.rglob("*")
            if path.is_file() and "blockd" in str(path.relative_to(self.root)) and "dpkg" not in str(path)
        ]
        self.assertEqual(left, [mine])

    def test_every_subcommand_has_a_page(self) -> None:
        self.installed()
        pages = {path.name for path in (self.root / "usr/share/man/man1").iterdir()}
        help_text = run(str(self.root / "usr/bin/blockd"), "help")
        listed = help_text.partition("Available Commands:\n")[2].partition("\n\n")[0]
        names = [line.split()[0] for line in listed.splitlines()]
        self.assertIn("serve", names)
        self.assertEqual([name for name in names if name != "help" and f"blockd-{name}.1.gz" not in pages], [])
        run("man", "--warnings=all", "-l", str(self.root / "usr/share/man/man1/blockd.1.gz"))

    def test_completion_is_a_script(self) -> None:
        self.installed()
        run("bash", "-n", str(self.root / "usr/share/bash-completion/completions/blockd"))

    def test_the_units_are_sound_and_protect(self) -> None:
        self.installed()
        units = self.root / "usr/lib/systemd/system"
        service = units / "blockd@.service"
        instance = units / "blockd@test.service"
        instance.symlink_to(service.name)
        socket_instance = units / "blockd-qmp@test.socket"
        socket_instance.symlink_to("blockd-qmp@.socket")
        kill = self.root / "bin/kill"  # of another package
        kill.parent.mkdir()
        kill.touch(0o755)
        said = subprocess.run(
            ["systemd-analyze", f"--root={self.root}", "--man=no", "verify", instance.name, socket_instance.name],
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        # A root without the rest of systemd's units is no fault of ours.
        faults = [line for line in said.stderr.splitlines() if "blockd" in line and "not found" not in line]
        self.assertEqual(faults, [])
        run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", str(instance))

    def test_the_socket_of_the_monitor_stays_within_reach(self) -> None:
        self.installed()
        units = self.root / "usr/lib/systemd/system"
        # systemd makes the folders of a socket as root, and removes those of a service that ends.
        self.assertEqual(int(Unit(units / "blockd-qmp@.socket")["Socket"]["DirectoryMode"], 8) & 0o055, 0o055)
        self.assertEqual(Unit(units / "blockd@.service")["Service"]["RuntimeDirectoryPreserve"], "yes")

    def test_an_upgrade_takes_no_disks_away(self) -> None:
        control = self.root / "control"
        run("dpkg-deb", "--control", self.package, str(control))
        commands = [
            line.split()[1] for line in (control / "postinst").read_text().splitlines() if line.split()[:1] == ["systemctl"]
        ]
        self.assertEqual(commands, ["daemon-reload"])

    def test_the_configuration_says_what_may_be_opened(self) -> None:
        self.installed()
        service = Unit(self.root / "usr/lib/systemd/system/blockd@.service")["Service"]
        self.assertNotIn("--allow-path", service["ExecStart"])  # it would replace the key of that name

    def test_the_service_runs_as_its_unit_says(self) -> None:
        self.installed()
        service = Unit(self.root / "usr/lib/systemd/system/blockd@.service")["Service"]
        self.assertEqual(service["Type"], "notify")
        for folder in ("run/blockd/test", "var/lib/blockd/test"):
            (self.root / folder).mkdir(parents=True)
        command = self.instance(service["ExecStart"])
        example = (self.root / "usr/share/doc/blockd/examples/example.yaml").read_text()
        (self.root / "etc/blockd/test.yaml").write_text(self.instance(example.replace("/NAME/", "/test/")))
        run("qemu-img", "create", "-q", "-f", "qcow2", str(self.root / "var/lib/blockd/test/disk.qcow2"), "64M")
        told = listen(self.root / "notify")
        self.addCleanup(told.close)
        daemon = subprocess.Popen(
            command.split(), env={"NOTIFY_SOCKET": str(self.root / "notify"), "WATCHDOG_USEC": "200000"},
        )  # fmt: skip
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        self.assertEqual(told.recv(100), b"READY=1")
        qmp = str(self.root / "run/blockd/test/qmp.sock")
        answer = run(str(self.root / "usr/bin/blockd"), "qmp", qmp, "query-block-exports")
        self.assertIn('"export0"', answer)
        self.assertEqual(told.recv(100), b"WATCHDOG=1")
        reload = service["ExecReload"].replace("$MAINPID", str(daemon.pid))
        run(*shlex.split(reload))
        run(str(self.root / "usr/bin/blockd"), "qmp", qmp, "query-version")
        daemon.send_signal(signal.SIGTERM)
        while (state := told.recv(100)) == b"WATCHDOG=1":
            pass
        self.assertEqual(state, b"STOPPING=1")
        self.assertEqual(daemon.wait(SECONDS), 0)
        self.assertFalse(Path(qmp).exists())

    def instance(self, text: str) -> str:
        """A line of the unit for the instance "test", below the root."""
        for folder in ("/usr/bin/", "/etc/blockd/", "/run/blockd/", "/var/lib/blockd/"):
            text = text.replace(folder, f"{self.root}{folder}")
        return text.replace("%i", "test")


class Container(unittest.TestCase):
    """The image of the container file, without a builder: its files, and nothing else."""

    def test_the_program_needs_nothing_beside_it(self) -> None:
        lines = [line.split() for line in (HERE / "Containerfile").read_text().splitlines()]
        self.assertIn(["FROM", "scratch"], lines)
        with tempfile.TemporaryDirectory(prefix="blockd-container") as root:
            for line in lines:
                if line[:1] == ["COPY"]:
                    target = Path(root + line[2])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / line[1], target)
            entry = next(json.loads(" ".join(line[1:])) for line in lines if line[:1] == ["ENTRYPOINT"])
            # A container has /proc, too; the mount ends with its namespace.
            (Path(root) / "proc").mkdir()
            enter = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
            inside = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", enter, root, *entry)
            run(*inside, "img", "create", "-q", "-f", "qcow2", "/disk.qcow2", "1G", env=CLEAN)
            self.assertEqual(json.loads(run(*inside, "img", "info", "--output=json", "/disk.qcow2", env=CLEAN))["format"], "qcow2")
            (Path(root) / "blockd.yaml").write_text("qmp: [/qmp.sock]\n")
            told = listen(Path(root) / "notify")
            self.addCleanup(told.close)
            daemon = subprocess.Popen([*inside, "serve", "--config", "/blockd.yaml"], env={**CLEAN, "NOTIFY_SOCKET": "/notify"})
            try:
                self.assertEqual(told.recv(100), b"READY=1")
                self.assertEqual(run(str(ROOT / "bin/blockd"), "qmp", f"{root}/qmp.sock", "quit"), "{}\n")
                self.assertEqual(daemon.wait(SECONDS), 0)
            finally:
                daemon.kill()
                daemon.wait()


if __name__ == "__main__":
    unittest.main()
