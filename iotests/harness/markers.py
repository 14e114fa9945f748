"""Marks for tests whose outcome depends on which daemon runs, or on tools of the machine.

The tests are written against two daemons: blockd and the rival that it stands in for. What one of them
does not have is marked with the reason, and is left out for the other without counting as skipped.
"""

from __future__ import annotations

import functools
import shutil
import unittest
from typing import Any, Callable, TypeVar

Test = TypeVar("Test", bound=Callable[..., Any])
AnyTest = TypeVar("AnyTest")

BLOCKD = "blockd"
RIVAL = "qemu-storage-daemon"


def blockd_only(reason: str) -> Callable[[AnyTest], AnyTest]:
    """Mark a test or class of what only blockd has."""
    return _only(BLOCKD, reason)


def rival_only(reason: str) -> Callable[[AnyTest], AnyTest]:
    """Mark a test or class that only holds for the rival."""
    return _only(RIVAL, reason)


def daemon_differs(reason: str) -> Callable[[AnyTest], AnyTest]:
    """Mark a test that expects different things of the two daemons (by `QMPTestCase.per_daemon`)."""
    if not reason:
        raise ValueError("say why the daemons differ")

    def mark(test: AnyTest) -> AnyTest:
        setattr(test, "daemon_difference", reason)
        return test

    return mark


def needs_tool(*tools: str) -> Callable[[Test], Test]:
    """Skip a test when a program is not installed."""

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            missing = [tool for tool in tools if shutil.which(tool) is None]
            if missing:
                raise unittest.SkipTest(f"needs {', '.join(missing)}")
            return test(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def applies_to(test: object, daemon: str) -> bool:
    """Whether a test (or the class of one) is meant for that daemon."""
    only = getattr(test, "only_for_daemon", None)
    return only is None or only[0] == daemon


def _only(daemon: str, reason: str) -> Callable[[AnyTest], AnyTest]:
    if not reason:
        raise ValueError("say why the test is for one daemon only")

    def mark(test: AnyTest) -> AnyTest:
        setattr(test, "only_for_daemon", (daemon, reason))
        return test

    return mark
