"""QEMU's own test-suite, run unchanged against blockd.

It has two parts. Tests that start a daemon or an emulator have blockd in its place, by way of the adapter; tests that
only make, read and write images have `blockd img` in the place of qemu-img.

A part's record (qemu_suite.txt, qemu_suite_img.txt) has a line for each test: format, name, what blockd does, what the
real binaries do, and why blockd does not pass; and the tests that do not suit, by reason. A run compares with it, and
prints the scoreboard; --record writes what was seen. A test of the suite that no record has is an error.

With --required only those run that are part of `make test`, in the form that tools/test.sh reads. A required test
that fails runs again, alone, when its verdict hangs on who comes first by the way it is written; the output says so.

usage: /usr/bin/python3 iotests/qemu_suite.py [--source FOLDER] [--jobs N] [--part daemon|img]
                                              [--required] [--record] [--table] [TEST...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "compatibility.md"
SCALE = float(os.environ.get("IOTESTS_TIMEOUT_SCALE", "1"))
SECONDS = 180 * SCALE  # that a test may take
RELEASE = "7.2"  # of the suite that the records are about
# What `make test` runs: what takes longest comes first.
REQUIRED = {
    "qcow2": """030 040 155 055 124 245 264 056 257 219 129 085 139 156 copy-before-write 152 223 057 image-fleecing
        141 144 065 224 132 242 165 208 216 218 254 255 258 195 228 236 246 248 310 reopen-file 096 256 260 283 304
        qsd-jobs""",
    "raw": "055 132 152 208 236",
}
# Of these the ones that give blockd, or the machine, a few seconds of real time for something, and no more. 055 cancels
# jobs whose storage answers only afterwards: blockd waits half a second for that, then the job is left behind (Grace in
# jobs/copy). 219 prints progress between two verbs, which must follow each other within a period of the speed limit.
HURRIED = frozenset("030 040 055 056 218 219 248 264 304".split())
# And those that ask about a job while it ends: QEMU answers when it has ended, blockd at once.
OVERTAKEN = frozenset(["257"])
TRIES = 3
TOOLS = {"QEMU_IMG_PROG": "qemu-img", "QEMU_IO_PROG": "qemu-io", "QEMU_NBD_PROG": "qemu-nbd"}
EMULATOR = Path("/usr/bin/qemu-system-x86_64")

# What is run as qemu-img. Errors begin with the program's name. What newer releases show and that of the suite does not
# is taken out: `compressed` of a map (8.2), `detached header` of LUKS (9.0).
STAND_IN = """#!/bin/bash
set -o pipefail
img() (exec -a qemu-img {blockd} img "$@")
case $1 in
map) img "$@" | sed -E 's/, "compressed": (true|false)//' ;;
info) img "$@" | sed '/^ *detached header: false$/d' ;;
*) img "$@" ;;
esac
"""


@dataclass(frozen=True)
class Part:
    """Some of the suite's tests, by what blockd takes the place of in them."""

    record: Path
    subject: str  # what its tests are
    outside: str  # what those are that do not suit
    stands_in: bool = False  # `blockd img` is in the place of qemu-img

    @property
    def marks(self) -> tuple[str, str]:
        """Where its scoreboard begins and ends in the documentation."""
        name = self.record.name
        return f"<!-- scoreboard of {name}: begin -->\n", f"<!-- scoreboard of {name}: end -->\n"


PARTS = {
    "daemon": Part(
        Path(__file__).with_name("qemu_suite.txt"),
        "tests that start a daemon",
        "The suite's other tests do not suit a block daemon",
    ),
    "img": Part(
        Path(__file__).with_name("qemu_suite_img.txt"),
        "tests of images",
        "Others of these tests are not for the formats that blockd has, or not for `blockd img`",
        stands_in=True,
    ),
}


@dataclass(frozen=True)
class Line:
    """One test of the suite in one format."""

    part: Part
    image_format: str  # or "nbd": raw images by way of qemu-nbd
    name: str
    result: str  # pass, fail, not-run
    reference: str  # what the real binaries do
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.image_format} {self.name} {self.result} {self.reference} {self.reason}".rstrip()


OUTSIDE = "outside "  # begins a line of tests that do not suit, and why


def read_record(part: Part) -> list[Line]:
    """The lines of a part's record, in its order."""
    lines = (text for text in part.record.read_text().splitlines() if text and not text.startswith(("#", OUTSIDE)))
    return [Line(part, *text.split(" ", 4)) for text in lines]


def read_outside(part: Part) -> dict[str, list[str]]:
    """The tests of a part that do not suit, by reason."""
    lines = (text for text in part.record.read_text().splitlines() if text.startswith(OUTSIDE))
    parts = (text.removeprefix(OUTSIDE).split(": ", 1) for text in lines)
    return {reason: names.split() for names, reason in parts}


def unknown(source: Path) -> list[str]:
    """The tests of the suite that no record has."""
    folder = source / "tests" / "qemu-iotests"
    numbered = {path.name for path in folder.iterdir() if re.fullmatch("[0-9]{3}", path.name)}
    named = {path.name for path in (folder / "tests").iterdir() if not path.suffix}
    known = {line.name for part in PARTS.values() for line in read_record(part)}
    known = known.union(*(names for part in PARTS.values() for names in read_outside(part).values()))
    return sorted((numbered | named) - known)


def environment(part: Part, folder: Path) -> dict[str, str]:
    """What the suite's check takes from its environment. What it needs for that is put into the folder."""
    tools = {name: f"/usr/bin/{tool}" for name, tool in TOOLS.items()}
    if part.stands_in:
        program = folder / "qemu-img"
        program.write_text(STAND_IN.format(blockd=shlex.quote(str(ROOT / "bin" / "blockd"))))
        program.chmod(0o755)
        tools["QEMU_IMG_PROG"] = str(program)
    # Tests of images only ask the emulator for its formats.
    emulator = EMULATOR if part.stands_in and EMULATOR.exists() else ROOT / "bin" / "qemu-adapter"
    programs = {"QEMU_PROG": str(emulator), "QSD_PROG": str(ROOT / "bin" / "blockd")}
    # The tests are for the distribution's Python. Paths of sockets must be short.
    places = {"PATH": f"/usr/bin:{os.environ['PATH']}", "TEST_DIR": str(folder / "t"), "SOCK_DIR": str(folder / "s")}
    return os.environ | tools | programs | places


def run(source: Path, line: Line) -> tuple[str, str]:
    """Run one test; its result, and what check printed."""
    with tempfile.TemporaryDirectory(prefix="qs", ignore_cleanup_errors=True) as folder:
        check = subprocess.Popen(
            ["./check", f"-{line.image_format}", line.name],
            cwd=source / "tests" / "qemu-iotests",
            env=environment(line.part, Path(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        late = ""
        try:
            text, _ = check.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            late = f"no end after {SECONDS:g} s\n"
        finally:
            # What a test has left behind would keep the machine busy, and the pipe open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(check.pid, signal.SIGKILL)
        if late:
            text = late + check.communicate()[0]
    if re.search(rf"^{re.escape(line.name)} +not run ", text.replace("\r", "\n"), re.MULTILINE):
        return "not-run", text
    return ("pass" if check.returncode == 0 else "fail"), text


def shortened(text: str) -> str:
    """As much of what check printed as tells what happened."""
    lines = text.splitlines()
    return "\n".join(lines if len(lines) <= 100 else [*lines[:80], "...", *lines[-20:]])


def run_required(source: Path, jobs: int) -> int:
    """Run what is part of `make test`; 1 when a test fails or does not run."""
    record = {(line.image_format, line.name): line for line in read_record(PARTS["daemon"])}
    chosen = [record[image_format, name] for image_format, names in REQUIRED.items() for name in names.split()]

    def judge(line: Line) -> tuple[str, str, float]:
        begun = time.monotonic()
        result, text = run(source, line)
        return result, text, time.monotonic() - begun

    begun = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        judged = list(zip(chosen, pool.map(judge, chosen), strict=True))
    count = {"pass": 0, "fail": 0, "not-run": 0}
    slowest = (0.0, "")
    for line, (result, text, seconds) in judged:
        slowest = max(slowest, (seconds, line.name))
        for number in range(2, TRIES + 1):
            if result == "fail" and line.name in HURRIED | OVERTAKEN:
                again = f"is run again ({number} of {TRIES}), since it depends on time"
                print(f"{line.image_format} {line.name} {again}:\n{shortened(text)}")
                result, text = run(source, line)
        count[result] += 1
        if result != "pass":
            print(f"FAIL {line.image_format} {line.name}: {result}\n{shortened(text)}")
    took = time.monotonic() - begun
    print(f"QEMU's suite: {len(chosen)} tests in {took:.1f} s, the slowest {slowest[1]} with {slowest[0]:.1f} s")
    print(f"{count['pass']} passed, {count['fail'] + count['not-run']} failed, 0 skipped")
    return 1 if count["pass"] < len(chosen) else 0


def fetch() -> Path:
    """The suite's source. Raises LookupError with the reason where it cannot be had."""
    script = ROOT / "tools" / "qemu-source.sh"
    done = subprocess.run(["sh", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise LookupError(f"its source cannot be had: {(done.stderr.strip() or 'no reason is given').splitlines()[-1]}")
    return Path(done.stdout.strip())


def suits(source: Path) -> None:
    """Raise LookupError unless the source is of the release that the records are about, and its tools are there."""
    missing = [tool for tool in TOOLS.values() if not Path("/usr/bin", tool).exists()]
    if missing:
        raise LookupError(f"needs {' '.join(missing)} (package qemu-utils)")
    version = source / "VERSION"
    if not version.exists():
        raise LookupError(f"{source} is no source of QEMU")
    if not version.read_text().startswith(RELEASE + "."):
        raise LookupError(f"its source is that of {version.read_text().strip()}, and the records that of {RELEASE}")


def scoreboard(part: Part, lines: list[Line]) -> str:
    """The table of a part for docs/compatibility.md."""
    count = {result: sum(line.result == result for line in lines) for result in ("pass", "fail", "not-run")}
    rows = [
        f"{len(lines)} {part.subject}: {count['pass']} pass, {count['fail']} fail, {count['not-run']} do not run.",
        "",
        "| Format | Test | blockd | Real binaries | Why |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {line.image_format} | {line.name} | {line.result} | {line.reference} | {line.reason} |"
        for line in lines
        if line.result != "pass"
    ]
    passed = " ".join(f"{line.name} ({line.image_format})" for line in lines if line.result == "pass")
    rows += ["", f"These pass: {passed}.", "", f"{part.outside}. They are about:", "", "| Subject | Tests |", "|---|---|"]
    rows += [f"| {reason} | {' '.join(names)} |" for reason, names in read_outside(part).items()]
    return "\n".join([*rows, ""])


def write_table(part: Part) -> None:
    """Put a part's scoreboard into its place in the documentation."""
    begin, end = part.marks
    before, rest = TABLE.read_text().split(begin)
    TABLE.write_text(before + begin + scoreboard(part, read_record(part)) + end + rest.split(end)[1])


def write_record(part: Part, seen: dict[Line, str]) -> None:
    """Put what was seen into a part's record."""
    old = part.record.read_text().splitlines()
    head = [text for text in old if text.startswith("#")]
    tail = [text for text in old if text.startswith(OUTSIDE)]
    new = [replace(line, result=seen.get(line, line.result)) for line in read_record(part)]
    part.record.write_text("\n".join([*head, *map(str, new), *tail]) + "\n")


def main() -> int:
    """Run the suite; 1 when a test fails that the record has as passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--required", action="store_true", help="run what `make test` does")
    parser.add_argument("--record", action="store_true", help="write what was seen to the record")
    parser.add_argument("--table", action="store_true", help="write the record's scoreboard to docs/compatibility.md")
    parser.add_argument("--part", choices=PARTS, help="only that part of the suite")
    parser.add_argument("tests", nargs="*")
    options = parser.parse_args()
    parts = [PARTS[options.part]] if options.part else list(PARTS.values())
    if options.table:
        for part in parts:
            write_table(part)
        return 0
    try:
        source = options.source or fetch()
        suits(source)
    except LookupError as error:
        print(f"SKIP QEMU's suite: {error}\n0 passed, 0 failed, 1 skipped")
        return 0 if options.required else 1
    if options.required:
        return run_required(source, options.jobs)
    record = [line for part in parts for line in read_record(part)]
    chosen = [line for line in record if not options.tests or line.name in options.tests]
    missing = unknown(source)
    if missing:
        print(f"No record has {' '.join(missing)}")
    worse = len(missing)
    seen: dict[Line, str] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, (result, text) in zip(chosen, pool.map(lambda one: run(source, one), chosen), strict=True):
            seen[line] = result
            note = "" if result == line.result else f"  (the record has {line.result})"
            print(f"{line.image_format:6} {line.name:28} {result}{note}", flush=True)
            if result != "pass" and line.result == "pass":
                worse += 1
                print(text)
    for result in ("pass", "fail", "not-run"):
        print(f"{sum(value == result for value in seen.values())} {result}")
    if options.record:
        for part in parts:
            write_record(part, seen)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
