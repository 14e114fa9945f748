"""The commands that change nothing, without arguments."""

from __future__ import annotations

# What these answer is looked at after every step, or is each daemon's own: what it has.
LOOKED_AT_ELSEWHERE = (
    "query-block-jobs",
    "query-chardev-backends",
    "query-commands",
    "query-jobs",
    "query-named-block-nodes",
    "query-qmp-schema",
    "query-version",
    "x-debug-query-block-graph",
)

# Of these the answers are compared.
COMPARED = ("query-block", "query-block-exports", "query-blockstats", "query-chardev")
