"""The command line; see the package's documentation."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Iterator, Sequence

from .compare import difference
from .coverage import Coverage
from .execute import Record, Run
from .generate import Generator
from .sample import SEEDS
from .shrink import shrink
from .step import Step
from .world import files_of, make_images

ROOT = Path(__file__).resolve().parents[2]


class Pair:
    """The two programs, and where they work."""

    def __init__(self, ours: str, theirs: str, parent: Path) -> None:
        self.ours, self.theirs, self.parent = ours, theirs, parent
        self.pristine = parent / "pristine"
        self.pristine.mkdir()
        make_images(self.pristine)

    def run(self, steps: Sequence[Step], *, partial: bool) -> tuple[str, Record, Record]:
        """Where the records differ, and both. The folders are gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.parent) as name:
            records: list[Record] = []
            for side, program in (("a", self.ours), ("b", self.theirs)):
                folder = Path(name) / side
                folder.mkdir()
                for file in files_of(steps):
                    shutil.copyfile(self.pristine / file, folder / file)
                records.append(Run(program, folder).follow(steps))
            ours, theirs = records
            return difference(steps, ours, theirs, partial=partial), ours, theirs

    def commands(self) -> list[str]:
        """The rival's commands."""
        with tempfile.TemporaryDirectory(dir=self.parent) as name:
            run = Run(self.theirs, Path(name))
            names = sorted(command["name"] for command in run.qmp.execute("query-commands"))
            run.follow([])
        return names


def main(arguments: Sequence[str]) -> int:
    """Runs seeds; the exit status is 1 when one shows a difference."""
    parser = argparse.ArgumentParser(prog="iotests.differential", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many sequences (200)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--sample", action="store_true", help="those of `make test`; a difference is shown as it is")
    parser.add_argument("--blockd", default=str(ROOT / "bin" / "blockd-test"))
    parser.add_argument("--rival", default="qemu-storage-daemon")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--keep-going", action="store_true", help="show every difference, not the first ten")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--coverage", action="store_true", help="print what was reached")
    parser.add_argument("--wanted", type=int, default=20, help="how often everything is to be reached, for the marks in that table (20)")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the steps with their replies")
    options = parser.parse_args(arguments)
    seeds: Sequence[int] = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    if options.sample:
        seeds, options.no_shrink = SEEDS, True
    coverage = Coverage()
    failed = 0
    # Images in memory, where that is possible: nothing here is about what survives.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="diff", dir=memory) as name:
        pair = Pair(options.blockd, options.rival, Path(name))
        trial = Trial(pair, shrink=not options.no_shrink, verbose=options.verbose)
        # Processes, not threads: half of the work is done here.
        with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
            pending = [pool.submit(trial.of, seed) for seed in seeds]
            for future in pending:
                reached, report, differs = future.result()
                coverage.join(reached)
                print(report, end="", flush=True)
                failed += differs
                if failed == 10 and not options.keep_going:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
        if options.coverage:
            print(coverage.table(pair.commands(), options.wanted))
        print(f"the rival did not survive {coverage.crashes.total()} of them")
    print(f"{len(seeds) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is done with one seed."""

    pair: Pair
    shrink: bool
    verbose: bool

    def of(self, seed: int) -> tuple[Coverage, str, bool]:
        """What was reached, what is to be printed, and whether the two differ."""
        generator = Generator(seed)
        steps, partial = generator.sequence(), generator.partial
        found, ours, theirs = self.pair.run(steps, partial=partial)
        coverage = Coverage()
        coverage.add(steps, theirs)
        lines = list(_told(steps, ours, theirs)) if self.verbose else []
        if found:
            lines.append(f"seed {seed}: {found}")
        if found and self.shrink:
            short = shrink(steps, lambda tried: signature(self.pair.run(tried, partial=partial)[0]) == signature(found))
            lines.append(f"  {len(short)} steps suffice:")
            lines += [f"    {str(step)[:1000]}" for step in short]
            lines.append(f"  {self.pair.run(short, partial=partial)[0]}")
        return coverage, "".join(line + "\n" for line in lines), bool(found)


def signature(found: str) -> tuple[str, ...]:
    """What kind of difference it is: at which kind of step, and in what; while a sequence is cut, it has to stay the same."""
    first, *rest = found.split("\n")
    return (re.sub(r"^step \d+: |'[^']*'|\d+", "", first).split(" ")[0], *(line for line in rest[:1] if first.startswith("step")))


def _told(steps: Sequence[Step], ours: Record, theirs: Record) -> Iterator[str]:
    """The steps with their replies."""
    for number, step in enumerate(steps):
        yield f"{number:3} {step}"
        for side, record in (("blockd", ours), ("rival ", theirs)):
            if number < len(record.steps):
                reply = {key: value for key, value in record.steps[number].reply.items() if key != "id"}
                states = {job["id"]: job["status"] for job in record.steps[number].jobs}
                yield f"      {side} {str(reply)[:300]} {states}"
    for side, record in (("blockd", ours), ("rival", theirs)):
        if record.ending:
            yield f"{side}: {record.ending}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
