"""QEMU's own test-suite, run unchanged against blockd by way of the adapter.

The record (qemu_suite.txt) has a line for each test: format, name, what blockd does, what the real binaries do,
and why blockd does not pass; and the tests that do not suit a block daemon, by reason. A run compares with it, and
prints the scoreboard; --record writes what was seen. A test of the suite that the record does not have is an error.

With --required only those run that are part of `make test`, in the form that tools/test.sh reads. A required test
that fails runs again, alone, when its verdict hangs on who comes first by the way it is written; the output says so.

usage: /usr/bin/python3 iotests/qemu_suite.py [--source FOLDER] [--jobs N] [--required] [--record] [--table] [TEST...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_suffix(".txt")
TABLE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- scoreboard of QEMU's suite: begin -->\n", "<!-- scoreboard of QEMU's suite: end -->\n"
SCALE = float(os.environ.get("IOTESTS_TIMEOUT_SCALE", "1"))
SECONDS = 180 * SCALE  # that a test may take
RELEASE = "7.2"  # of the suite that the record is about
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


@dataclass(frozen=True)
class Line:
    """One test of the suite in one format."""

    image_format: str  # or "nbd": raw images by way of qemu-nbd
    name: str
    result: str  # pass, fail, not-run
    reference: str  # what the real binaries do
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.image_format} {self.name} {self.result} {self.reference} {self.reason}".rstrip()


OUTSIDE = "outside "  # begins a line of tests that do not suit, and why


def read_record() -> list[Line]:
    """The record's lines, in its order."""
    lines = (text for text in RECORD.read_text().splitlines() if text and not text.startswith(("#", OUTSIDE)))
    return [Line(*text.split(" ", 4)) for text in lines]


def read_outside() -> dict[str, list[str]]:
    """The tests that do not suit a block daemon, by what they are about."""
    lines = (text for text in RECORD.read_text().splitlines() if text.startswith(OUTSIDE))
    parts = (text.removeprefix(OUTSIDE).split(": ", 1) for text in lines)
    return {reason: names.split() for names, reason in parts}


def unknown(source: Path) -> list[str]:
    """The tests of the suite that the record does not have."""
    folder = source / "tests" / "qemu-iotests"
    numbered = {path.name for path in folder.iterdir() if re.fullmatch("[0-9]{3}", path.name)}
    named = {path.name for path in (folder / "tests").iterdir() if not path.suffix}
    known = {line.name for line in read_record()}.union(*read_outside().values())
    return sorted((numbered | named) - known)


def environment(folder: Path) -> dict[str, str]:
    """What the suite's check takes from its environment."""
    tools = {name: f"/usr/bin/{tool}" for name, tool in TOOLS.items()}
    programs = {"QEMU_PROG": str(ROOT / "bin" / "qemu-adapter"), "QSD_PROG": str(ROOT / "bin" / "blockd")}
    # The tests are for the distribution's Python. Paths of sockets must be short.
    places = {"PATH": f"/usr/bin:{os.environ['PATH']}", "TEST_DIR": str(folder / "t"), "SOCK_DIR": str(folder / "s")}
    return os.environ | tools | programs | places


def run(source: Path, line: Line) -> tuple[str, str]:
    """Run one test; its result, and what check printed."""
    with tempfile.TemporaryDirectory(prefix="qs", ignore_cleanup_errors=True) as folder:
        check = subprocess.Popen(
            ["./check", f"-{line.image_format}", line.name],
            cwd=source / "tests" / "qemu-iotests",
            env=environment(Path(folder)),
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
    record = {(line.image_format, line.name): line for line in read_record()}
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
    """Raise LookupError unless the source is of the release that the record is about, and its tools are there."""
    missing = [tool for tool in TOOLS.values() if not Path("/usr/bin", tool).exists()]
    if missing:
        raise LookupError(f"needs {' '.join(missing)} (package qemu-utils)")
    version = source / "VERSION"
    if not version.exists():
        raise LookupError(f"{source} is no source of QEMU")
    if not version.read_text().startswith(RELEASE + "."):
        raise LookupError(f"its source is that of {version.read_text().strip()}, and the record that of {RELEASE}")


def scoreboard(lines: list[Line]) -> str:
    """The table for docs/compatibility.md."""
    count = {result: sum(line.result == result for line in lines) for result in ("pass", "fail", "not-run")}
    rows = [
        f"{len(lines)} tests that start a daemon: {count['pass']} pass, {count['fail']} fail, {count['not-run']} do not run.",
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
    rows += ["", f"These pass: {passed}.", "", "The suite's other tests do not suit a block daemon. They are about:", ""]
    rows += ["| Subject | Tests |", "|---|---|"]
    rows += [f"| {reason} | {' '.join(names)} |" for reason, names in read_outside().items()]
    return "\n".join([*rows, ""])


def write_table(lines: list[Line]) -> None:
    """Put the scoreboard into its place in the documentation."""
    text = TABLE.read_text()
    before, rest = text.split(BEGIN)
    TABLE.write_text(before + BEGIN + scoreboard(lines) + END + rest.split(END)[1])


def main() -> int:
    """Run the suite; 1 when a test fails that the record has as passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--required", action="store_true", help="run what `make test` does")
    parser.add_argument("--record", action="store_true", help="write what was seen to the record")
    parser.add_argument("--table", action="store_true", help="write the record's scoreboard to docs/compatibility.md")
    parser.add_argument("tests", nargs="*")
    options = parser.parse_args()
    record = read_record()
    if options.table:
        write_table(record)
        return 0
    try:
        source = options.source or fetch()
        suits(source)
    except LookupError as error:
        print(f"SKIP QEMU's suite: {error}\n0 passed, 0 failed, 1 skipped")
        return 0 if options.required else 1
    if options.required:
        return run_required(source, options.jobs)
    chosen = [line for line in record if not options.tests or line.name in options.tests]
    missing = unknown(source)
    if missing:
        print(f"The record does not have {' '.join(missing)}")
    worse = len(missing)
    seen: dict[tuple[str, str], str] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, (result, text) in zip(chosen, pool.map(lambda one: run(source, one), chosen), strict=True):
            seen[line.image_format, line.name] = result
            note = "" if result == line.result else f"  (the record has {line.result})"
            print(f"{line.image_format:6} {line.name:28} {result}{note}", flush=True)
            if result != "pass" and line.result == "pass":
                worse += 1
                print(text)
    for result in ("pass", "fail", "not-run"):
        print(f"{sum(value == result for value in seen.values())} {result}")
    if options.record:
        old = RECORD.read_text().splitlines()
        head = [text for text in old if text.startswith("#")]
        tail = [text for text in old if text.startswith(OUTSIDE)]
        new = [replace(line, result=seen.get((line.image_format, line.name), line.result)) for line in record]
        RECORD.write_text("\n".join([*head, *map(str, new), *tail]) + "\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
