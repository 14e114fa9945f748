"""
The sequences that `make test` runs. They agree however busy the machine is: what depends on time is left out by
the generator or the comparison, and none is ever tried again.
"""

from __future__ import annotations

_RANGE = range(200)

# Seeds of the range that do not agree, each with what differs and why that is still so.
_LEFT_OUT: dict[int, str] = {}

SEEDS = [seed for seed in _RANGE if seed not in _LEFT_OUT]
