"""The runner: test classes in worker processes, a line per failure, a list of what was skipped, a count.

A worker runs one class after the other. A test that hangs is ended by an alarm, which kills the daemons
of the worker first, since a thread of libnbd waits for them and hears no exception.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import faulthandler
import fnmatch
import importlib
import multiprocessing
import os
import pkgutil
import shutil
import signal
import sys
import time
import traceback
import unittest
from types import FrameType
from typing import Any, Iterator, Optional

from .daemon import Daemon, daemon_kind, program
from .deadline import SCALE
from .markers import applies_to

PACKAGE = "iotests.tests"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

# Seconds for one test, and those more after which a worker that hears nothing is given up.
_TEST_SECONDS = 90.0
_GRACE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one test; `detail` is the traceback or the reason."""

    name: str
    verdict: str
    seconds: float
    detail: str = ""


class _Collector(unittest.TestResult):
    """Turns unittest's callbacks into one Outcome for each test, subtests and cleanups included."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[Outcome] = []
        self._started = 0.0
        self._problems: list[str] = []
        self._skip: Optional[str] = None

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._started = time.monotonic()
        self._problems, self._skip = [], None

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._problems.append(_explain(err))

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._problems.append(_explain(err))

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self._problems.append(f"{subtest}\n{_explain(err)}")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._skip = reason

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._problems.append("unexpected success")

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        spent = time.monotonic() - self._started
        name = short_name(test)
        if self._problems:
            self.outcomes.append(Outcome(name, FAILED, spent, "\n".join(self._problems)))
        elif self._skip is not None:
            self.outcomes.append(Outcome(name, SKIPPED, spent, self._skip))
        else:
            self.outcomes.append(Outcome(name, PASSED, spent))


class TestHangs(BaseException):
    """Raised by the alarm; no `except Exception` of a test swallows it."""


def short_name(test: unittest.TestCase) -> str:
    """MODULE.Class.test, without the package."""
    return test.id().removeprefix(PACKAGE + ".")


def run_class(module_name: str, class_name: str, method_names: list[str]) -> list[Outcome]:
    """Run tests of one class in this process."""
    case = getattr(importlib.import_module(module_name), class_name)
    collector = _Collector()
    signal.signal(signal.SIGALRM, _on_alarm)
    for method in method_names:
        faulthandler.dump_traceback_later((_TEST_SECONDS + _GRACE_SECONDS) * SCALE, exit=True)
        signal.setitimer(signal.ITIMER_REAL, _TEST_SECONDS * SCALE)
        test = case(method)
        try:
            test.run(collector)
        except TestHangs:
            name = short_name(test)
            if not collector.outcomes or collector.outcomes[-1].name != name:
                collector.outcomes.append(Outcome(name, FAILED, _TEST_SECONDS, "hangs"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            _kill_leftovers()
    return collector.outcomes


def main(arguments: list[str]) -> int:
    """Run what the arguments select; 0 when nothing failed and something ran."""
    options = _parse(arguments)
    try:
        kind = daemon_kind()
    except (OSError, ValueError) as error:
        print(f"iotests: {error}", file=sys.stderr)
        return 1
    if shutil.which("qemu-img") is None or shutil.which("qemu-io") is None:
        print("SKIP iotests (all of them): needs qemu-img and qemu-io (package qemu-utils)")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    selected, elsewhere = _select(options.filters, kind)
    if options.list:
        for case, methods in selected:
            for method in methods:
                print(f"{case.__module__.removeprefix(PACKAGE + '.')}.{case.__name__}.{method}")
        return 0
    if options.differences:
        _print_differences(selected)
        return 0
    print(f"iotests: {program()} ({kind}), {options.jobs} at a time")
    started = time.monotonic()
    outcomes = _run(selected, options.jobs, options.verbose)
    _report(outcomes, elsewhere, time.monotonic() - started, options.verbose)
    counts = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in (PASSED, FAILED, SKIPPED)}
    print(f"{counts[PASSED]} passed, {counts[FAILED]} failed, {counts[SKIPPED]} skipped")
    return 0 if outcomes and not counts[FAILED] else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="iotests", description="Tests of a storage daemon, from outside.")
    parser.add_argument("filters", nargs="*", help="part of a test's name, or a pattern with * and ?")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("-l", "--list", action="store_true", help="print the names of the tests")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every test")
    parser.add_argument("--differences", action="store_true", help="print where the two daemons differ, and why")
    return parser.parse_args(arguments)


def _cases() -> Iterator[type[unittest.TestCase]]:
    package = importlib.import_module(PACKAGE)
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{PACKAGE}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == module.__name__:
                yield value


def _select(
    filters: list[str], kind: str
) -> tuple[list[tuple[type[unittest.TestCase], list[str]]], list[tuple[str, str]]]:
    """The tests to run by class, and those for the other daemon with the reasons."""
    selected: list[tuple[type[unittest.TestCase], list[str]]] = []
    elsewhere: list[tuple[str, str]] = []
    for case in _cases():
        methods: list[str] = []
        for method in unittest.defaultTestLoader.getTestCaseNames(case):
            name = f"{case.__module__.removeprefix(PACKAGE + '.')}.{case.__name__}.{method}"
            if filters and not any(_matches(name, one) for one in filters):
                continue
            marked = next((it for it in (case, getattr(case, method)) if not applies_to(it, kind)), None)
            if marked is not None:
                elsewhere.append((name, getattr(marked, "only_for_daemon")[1]))
            else:
                methods.append(method)
        if methods:
            selected.append((case, methods))
    return selected, elsewhere


def _matches(name: str, one: str) -> bool:
    return fnmatch.fnmatchcase(name, one) if "*" in one or "?" in one else one in name


def _run(selected: list[tuple[type[unittest.TestCase], list[str]]], jobs: int, verbose: bool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {
            pool.submit(run_class, case.__module__, case.__name__, methods): (case, methods)
            for case, methods in sorted(selected, key=lambda pair: -len(pair[1]))
        }
        for future in concurrent.futures.as_completed(futures):
            case, methods = futures[future]
            try:
                done = future.result()
            except Exception as error:  # pylint: disable=broad-except; a worker died with its tests
                prefix = f"{case.__module__.removeprefix(PACKAGE + '.')}.{case.__name__}"
                done = [Outcome(f"{prefix}.{one}", FAILED, 0.0, f"worker died: {error}") for one in methods]
            for outcome in done:
                outcomes.append(outcome)
                if verbose or outcome.verdict == FAILED:
                    print(f"{outcome.verdict:7} {outcome.seconds:6.2f}s {outcome.name}", flush=True)
                if outcome.verdict == FAILED:
                    print(_indented(outcome.detail), flush=True)
    return outcomes


def _report(outcomes: list[Outcome], elsewhere: list[tuple[str, str]], seconds: float, verbose: bool) -> None:
    print(f"iotests: {len(outcomes)} tests in {seconds:.1f} s; {len(elsewhere)} are for the other daemon")
    if verbose:
        for name, reason in elsewhere:
            print(f"OTHER {name}: {reason}")
        for outcome in sorted(outcomes, key=lambda one: -one.seconds)[:10]:
            print(f"SLOW {outcome.seconds:6.2f}s {outcome.name}")
    for outcome in outcomes:
        if outcome.verdict == FAILED:
            print(f"FAIL {outcome.name}")
    for outcome in outcomes:
        if outcome.verdict == SKIPPED:
            print(f"SKIP {outcome.name}: {outcome.detail}")


def _print_differences(selected: list[tuple[type[unittest.TestCase], list[str]]]) -> None:
    for case, methods in selected:
        for method in methods:
            reason = getattr(getattr(case, method), "daemon_difference", None)
            if reason:
                print(f"{case.__name__}.{method}: {reason}")


def _explain(err: Any) -> str:
    """The traceback without unittest's own frames."""
    exception = traceback.TracebackException(*err)
    one: Optional[traceback.TracebackException] = exception
    while one is not None:
        kept = [frame for frame in one.stack if os.sep + "unittest" + os.sep not in frame.filename]
        one.stack = traceback.StackSummary.from_list(kept)
        one = one.__cause__ or one.__context__
    return "".join(exception.format()).rstrip()


def _indented(text: str) -> str:
    return "\n".join("        " + line for line in text.splitlines())


def _on_alarm(_number: int, _frame: Optional[FrameType]) -> None:
    _kill_leftovers()
    raise TestHangs(f"no end within {_TEST_SECONDS * SCALE:.0f} s")


def _kill_leftovers() -> None:
    for daemon in list(Daemon.running):
        os.kill(daemon.process.pid, signal.SIGKILL)
        Daemon.running.discard(daemon)
