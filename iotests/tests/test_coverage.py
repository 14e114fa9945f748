"""Every command and every event that the daemon has is used by a test here.

The daemon itself says what it has: there is no list that could fall behind, and no exception.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from iotests.harness.case import QMPTestCase
from iotests.harness.markers import blockd_only

# A command in text that goes on the wire as it is.
_RAW_COMMAND = re.compile(r"""["']?(?:execute|exec-oob)["']?\s*:\s*["']([\w-]+)["']""")


def _named(tree: ast.Module) -> set[str]:
    """The strings of a module, without its docstrings, and the commands in what it sends as text."""
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    }
    return texts.union(*(_RAW_COMMAND.findall(text) for text in texts))


@functools.cache
def names() -> frozenset[str]:
    """What all other modules of tests name."""
    here = Path(__file__)
    modules = [path for path in here.parent.glob("test_*.py") if path != here]
    return frozenset[str]().union(*(_named(ast.parse(path.read_text("utf-8"))) for path in modules))


@blockd_only("the rival has much that blockd stands in for no more")
class Coverage(QMPTestCase):
    """The schema against the tests."""

    def test_each_is_used(self) -> None:
        self.launch()
        schema = self.qmp.cmd("query-qmp-schema")
        for kind in ("command", "event"):
            there = {entry["name"] for entry in schema if entry["meta-type"] == kind}
            self.assertGreater(len(there), 10)
            self.assertEqual(sorted(there - names()), [], f"{kind}s that no test names")

    def test_prose_does_not_count(self) -> None:
        found = _named(ast.parse('"""x-prose"""\ndef f():\n    "x-more"\n    cmd("x-one", \'{"execute": "x-two"}\')\n'))
        self.assertEqual(found, {"x-one", "x-two", '{"execute": "x-two"}'})
