"""Cuts a failing sequence down to what it takes."""

from __future__ import annotations

from typing import Callable, Sequence

from .step import Step


def shrink(steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool], *, attempts: int = 150) -> list[Step]:
    """A shorter sequence that fails, too; pieces are left out, large ones first."""
    current = list(steps)
    size = max(1, len(current) // 2)
    while size >= 1 and attempts > 0:
        begin = 0
        while begin < len(current) and attempts > 0:
            shorter = current[:begin] + current[begin + size :]
            attempts -= 1
            if shorter and fails(shorter):
                current = shorter
            else:
                begin += size
        size //= 2
    return current
