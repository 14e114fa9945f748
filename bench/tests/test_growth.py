"""How growth is judged, and shown."""

from __future__ import annotations

import dataclasses
import unittest
import xml.etree.ElementTree
from typing import Any

from bench.figures import MEASURED, SKIPPED
from bench.growth import plot, report
from bench.growth.series import FLAT, LINEAR, Curve, Series, exponent, verdict
from bench.row import MICROSECONDS, SECONDS

POINTS = (1, 10, 100, 1000)
RUN = {"date": "d", "rounds": 3}
CURVES = (Curve("add", "one more", MICROSECONDS, FLAT), Curve("query", "all of them", SECONDS, LINEAR))


def entry(add: list[float], query: list[float]) -> dict[str, Any]:
    """A measured series, the rival twice as slow."""
    left = {"add": add, "query": query}
    return {
        "title": "nodes",
        "of": "nodes",
        "points": list(POINTS),
        "curves": [dataclasses.asdict(curve) for curve in CURVES],
        "status": MEASURED,
        "reason": "",
        "values": {"left": left, "right": {name: [2 * number for number in side] for name, side in left.items()}},
        "environment": RUN,
        "verdicts": {curve.name: verdict(curve.law, POINTS, left[curve.name]) for curve in CURVES},
    }


class Laws(unittest.TestCase):
    def test_what_is_in_proportion_is_linear(self) -> None:
        self.assertEqual(verdict(LINEAR, POINTS, [1, 10, 100, 1000]), "met")
        self.assertAlmostEqual(exponent(POINTS, [1, 10, 100, 1000]), 1.0)

    def test_a_constant_part_does_not_hide_a_square(self) -> None:
        self.assertEqual(verdict(LINEAR, POINTS, [50 + point**2 / 1000 for point in POINTS]), "short")

    def test_what_must_stay_may_only_double(self) -> None:
        self.assertEqual(verdict(FLAT, POINTS, [5, 4, 6, 12]), "met")
        self.assertEqual(verdict(FLAT, POINTS, [5, 4, 6, 13]), "short")


class Shown(unittest.TestCase):
    def test_a_row_has_a_cell_for_each_number_and_one_for_its_growth(self) -> None:
        text = report.markdown({"a": entry([1, 1, 1, 1], [1, 10, 100, 1000])}, ["a"], "p.svg", RUN)
        for line in text.splitlines():
            if line.startswith("|"):
                self.assertEqual(line.count("|"), len(POINTS) + 3, line)
        self.assertIn("1 us / 2 us", text)
        self.assertIn("flat: 1.00 times, met", text)
        self.assertIn("linear: power 1.00, met", text)

    def test_a_side_that_gave_up_has_no_figures_from_there_on(self) -> None:
        short = entry([1, 1, 1, 1], [1, 10, 100, 1000])
        short["values"]["right"]["add"] = [1, 2, None, None]
        self.assertIn("1 us / gave up", report.markdown({"a": short}, ["a"], "p.svg", RUN))
        xml.etree.ElementTree.fromstring(plot.curves({"a": short}))

    def test_one_that_did_not_run_says_why(self) -> None:
        skipped = {"title": "t", "status": SKIPPED, "reason": "needs fio on this machine", "environment": RUN}
        self.assertIn("needs fio", report.markdown({"a": skipped}, ["a"], "p.svg", RUN))
        self.assertIn("needs fio", report.lines("a", skipped)[0])

    def test_the_picture_has_a_line_for_each_side_of_each_curve(self) -> None:
        drawing = plot.curves({"a": entry([1, 2, 1, 1], [1, 10, 100, 1000]), "b": {"status": SKIPPED}})
        root = xml.etree.ElementTree.fromstring(drawing)
        self.assertEqual(len(root.findall("{*}polyline")), 2 * len(CURVES))

    def test_every_series_is_whole(self) -> None:
        for kind in Series.registry:
            self.assertTrue(kind.title and kind.of and kind.curves, kind.name)
            self.assertGreater(len(kind.points), 2, kind.name)
            self.assertEqual(sorted(kind.points), list(kind.points), kind.name)
