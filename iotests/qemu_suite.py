"""QEMU's own test-suite, run unchanged against blockd by way of the adapter.

The record (qemu_suite.txt) has a line for each test: format, name, what blockd does, what the real binaries do,
and why blockd does not pass. A run compares with it, and prints the scoreboard; --record writes what was seen.

usage: /usr/bin/python3 iotests/qemu_suite.py [--source FOLDER] [--jobs N] [--record] [--table] [TEST...]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_suffix(".txt")
TABLE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- scoreboard of QEMU's suite: begin -->\n", "<!-- scoreboard of QEMU's suite: end -->\n"
SECONDS = 180  # that a test may take
TOOLS = {"QEMU_IMG_PROG": "qemu-img", "QEMU_IO_PROG": "qemu-io", "QEMU_NBD_PROG": "qemu-nbd"}


@dataclass(frozen=True)
class Line:
    """One test of the suite in one format."""

    image_format: str
    name: str
    result: str  # pass, fail, not-run
    reference: str  # what the real binaries do
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.image_format} {self.name} {self.result} {self.reference} {self.reason}".rstrip()


def read_record() -> list[Line]:
    """The record's lines, in its order."""
    lines = (text for text in RECORD.read_text().splitlines() if text and not text.startswith("#"))
    return [Line(*text.split(" ", 4)) for text in lines]


def environment(folder: Path) -> dict[str, str]:
    """What the suite's check takes from its environment."""
    tools = {name: f"/usr/bin/{tool}" for name, tool in TOOLS.items()}
    programs = {"QEMU_PROG": str(ROOT / "bin" / "qemu-adapter"), "QSD_PROG": str(ROOT / "bin" / "blockd")}
    # Paths of sockets must be short.
    return os.environ | tools | programs | {"TEST_DIR": str(folder / "t"), "SOCK_DIR": str(folder / "s")}


def run(source: Path, line: Line) -> tuple[str, str]:
    """Run one test; its result, and what check printed."""
    with tempfile.TemporaryDirectory(prefix="qs") as folder:
        command = ["./check", f"-{line.image_format}", line.name]
        try:
            done = subprocess.run(
                command,
                cwd=source / "tests" / "qemu-iotests",
                env=environment(Path(folder)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "fail", f"no end after {SECONDS} s\n"
    if re.search(rf"^{re.escape(line.name)} +not run ", done.stdout.replace("\r", "\n"), re.MULTILINE):
        return "not-run", done.stdout
    return ("pass" if done.returncode == 0 else "fail"), done.stdout


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
    return "\n".join([*rows, "", f"These pass: {passed}.", ""])


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
    parser.add_argument("--record", action="store_true", help="write what was seen to the record")
    parser.add_argument("--table", action="store_true", help="write the record's scoreboard to docs/compatibility.md")
    parser.add_argument("tests", nargs="*")
    options = parser.parse_args()
    record = read_record()
    if options.table:
        write_table(record)
        return 0
    if options.source is None:
        script = ROOT / "tools" / "qemu-source.sh"
        options.source = Path(subprocess.run([script], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    chosen = [line for line in record if not options.tests or line.name in options.tests]
    worse = 0
    seen: dict[tuple[str, str], str] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, (result, text) in zip(chosen, pool.map(lambda one: run(options.source, one), chosen), strict=True):
            seen[line.image_format, line.name] = result
            note = "" if result == line.result else f"  (the record has {line.result})"
            print(f"{line.image_format:6} {line.name:28} {result}{note}", flush=True)
            if result != "pass" and line.result == "pass":
                worse += 1
                print(text)
    for result in ("pass", "fail", "not-run"):
        print(f"{sum(value == result for value in seen.values())} {result}")
    if options.record:
        head = [text for text in RECORD.read_text().splitlines() if text.startswith("#")]
        new = [replace(line, result=seen.get((line.image_format, line.name), line.result)) for line in record]
        RECORD.write_text("\n".join([*head, *map(str, new)]) + "\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
