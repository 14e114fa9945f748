"""The document: generated between its marks, kept by hand around them."""

from __future__ import annotations

import json
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

from bench import plot, report
from bench.cli import select
from bench.figures import FAILED, MEASURED, NOT_YET, Outcome
from bench.fio import read_report
from bench.growth.series import Series
from bench.row import MICROSECONDS, SECONDS, Row
from iotests.harness.images import ToolFailed

from .test_figures import outcome, row

ENVIRONMENT = {
    "date": "d", "left": "l", "right": "r", "commit": "c", "cpu": "p", "cpus": 2, "memory_gib": 1.0, "kernel": "k",
    "scratch": "tmpfs", "disk": "ext4", "go": "g", "nbdcopy": "n", "fio": "f", "load": 0.5, "rounds": 3,
    "image_mib": 64, "made_by": "bench/run",
}  # fmt: skip


class Document(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "performance.md"

    def test_notes_around_the_marks_are_kept(self) -> None:
        report.into_document(self.path, "first")
        self.path.write_text("above\n" + self.path.read_text() + "tried: nothing\n")
        report.into_document(self.path, "second")
        text = self.path.read_text()
        self.assertTrue(text.startswith("above\n") and text.endswith("tried: nothing\n"))
        self.assertIn(f"{report.BEGIN}\nsecond\n{report.END}", text)
        self.assertNotIn("first", text)

    def test_a_document_without_marks_is_not_overwritten(self) -> None:
        self.path.write_text("precious")
        with self.assertRaises(ValueError):
            report.into_document(self.path, "x")
        self.assertEqual(self.path.read_text(), "precious")


class Tables(unittest.TestCase):
    def results(self) -> dict[str, Any]:
        """A measured row, and one that a side cannot do."""
        measured = outcome(row(goal=1.5), (1.0, 2.0), (1.0, 2.0), (1.0, 2.0)).figures()
        absent = Outcome(row(title="later"), NOT_YET, "blockd has no x|y").figures()
        return report.merge({}, {"a": measured, "b": absent}, {}, ENVIRONMENT)

    def test_every_row_of_a_table_has_as_many_cells_as_its_head(self) -> None:
        head = 0
        for line in report.markdown(self.results(), ["a", "b"], "p.svg").splitlines():
            cells = line.replace("\\|", "").count("|")
            if not line.startswith("|"):
                head = 0
            elif not head:
                head = cells
            else:
                self.assertEqual(cells, head, line)

    def test_results_are_json(self) -> None:
        json.dumps(self.results())

    def test_rows_that_did_not_run_keep_their_figures_and_their_environment(self) -> None:
        first = self.results()
        again = report.merge(first, {"b": Outcome(row(), FAILED, "x").figures()}, {}, {**ENVIRONMENT, "date": "later"})
        self.assertEqual(again["rows"]["a"], first["rows"]["a"])
        self.assertEqual(again["rows"]["b"]["environment"]["date"], "later")

    def test_a_row_that_fails_keeps_the_figures_of_before_and_says_so(self) -> None:
        first = self.results()
        failed = {"a": Outcome(row(goal=1.5), FAILED, "the store|went").figures()}
        second = report.merge(first, failed, {}, {**ENVIRONMENT, "date": "later"})
        kept = second["rows"]["a"]
        self.assertEqual((kept["status"], kept["ratio"], kept["environment"]["date"]), (MEASURED, 2.0, "d"))
        text = report.markdown(second, ["a"], "")
        self.assertIn("| met; of d, 3 rounds; failed on later: the store\\|went |", text)
        # A figure of its own ends that.
        third = report.merge(second, first["rows"], {}, {**ENVIRONMENT, "date": "latest"})
        self.assertNotIn("since", third["rows"]["a"])
        self.assertIn("| met |", report.markdown(third, ["a"], ""))

    def test_a_row_that_was_cut_short_says_so(self) -> None:
        results = report.merge({}, {"a": outcome(row(goal=1.5), (1.0, 2.0)).figures()}, {}, ENVIRONMENT)
        self.assertIn("| met; 1 rounds |", report.markdown(results, ["a"], ""))

    def test_a_series_that_fails_keeps_its_figures_too(self) -> None:
        first = report.merge({}, {}, {"s": {"status": MEASURED, "values": 1}}, ENVIRONMENT)
        failed = {"s": {"status": FAILED, "reason": "x"}}
        second = report.merge(first, {}, failed, {**ENVIRONMENT, "date": "later"})
        self.assertEqual(second["growth"]["s"]["values"], 1)
        self.assertEqual(second["growth"]["s"]["since"], {"status": FAILED, "reason": "x", "date": "later"})

    def test_an_unflushed_side_is_shouted(self) -> None:
        entry = outcome(row(), (1.0, 2.0)).figures()
        side = {"flushed_at_end": True}
        entry["flushes"] = {"left": {"flushed_at_end": False}, "right": side}
        self.assertIn("NOT FLUSHED: left", report.line("a", entry))

    def test_units(self) -> None:
        self.assertEqual(report.value(0.0123, SECONDS), "12.3 ms")
        self.assertEqual(report.value(4.5, MICROSECONDS), "4.5 us")
        self.assertEqual(report.value(17_100_000, MICROSECONDS), "17.1 s")

    def test_the_plot_is_well_formed(self) -> None:
        entry = outcome(row(goal=2.0), (1.0, 1000.0)).figures()
        root = xml.etree.ElementTree.fromstring(plot.ratios({"a<b": entry}))
        self.assertIn("a<b", [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")])


class FioReport(unittest.TestCase):
    def job(self, runtime: int, requests: int, p50: int, error: int = 0) -> dict[str, Any]:
        """One connection of fio's report."""
        percentile = {"50.000000": p50, "99.000000": p50 * 2, "99.900000": p50 * 3}
        return {"error": error, "read": {"runtime": runtime, "total_ios": requests, "clat_ns": {"percentile": percentile}}}

    def test_connections_run_side_by_side(self) -> None:
        text = "note: x\n" + json.dumps({"jobs": [self.job(100, 1000, 5000), self.job(200, 1000, 7000)]})
        answer = read_report(text, "read")
        self.assertEqual(answer.per_request, 100.0)
        self.assertEqual((answer.p50, answer.p99, answer.requests), (7.0, 14.0, 2000))

    def test_a_failed_connection_fails_the_run(self) -> None:
        with self.assertRaises(ToolFailed):
            read_report(json.dumps({"jobs": [self.job(1, 1, 1, error=5)]}), "read")


class Selection(unittest.TestCase):
    def test_an_unknown_name_is_an_error(self) -> None:
        rows, series = select(["nbd-randread", "growth-chain"])
        self.assertEqual([kind.name for kind in rows], ["nbd-randread-1", "nbd-randread-4"])
        self.assertEqual([kind.name for kind in series], ["growth-chain"])
        self.assertEqual(select([]), (Row.registry, Series.registry))
        with self.assertRaises(ValueError):
            select(["backup", "nonsense"])
