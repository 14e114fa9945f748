"""Medians, ratios and verdicts."""

from __future__ import annotations

import unittest
from typing import Any

from bench.figures import MEASURED, Outcome, quantile, verdict
from bench.row import Row
from bench.trial import Sample


def row(**members: Any) -> type[Row]:
    """A row that is not registered."""
    return type("Unnamed", (Row,), {"title": "t", **members})


def outcome(kind: type[Row], *pairs: tuple[float, float]) -> Outcome:
    """An outcome with these values, left and right, per round."""
    rounds = [(Sample(left, 1.0, 10), Sample(right, 2.0, 20)) for left, right in pairs]
    return Outcome(kind, MEASURED, rounds=rounds, size=1 << 30)


class Figures(unittest.TestCase):
    def test_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians(self) -> None:
        entry = outcome(row(), (1, 10), (2, 2), (10, 30)).figures()
        self.assertEqual(entry["ratio"], 3)
        self.assertEqual(entry["left"]["median"], 2)
        self.assertEqual(entry["right"]["median"], 10)

    def test_processor_time_is_per_gib_of_what_the_row_handles(self) -> None:
        entry = outcome(row(bytes_per_size=0.5), (1, 1)).figures()
        self.assertEqual(entry["left"]["cpu_seconds_per_gib"], 2)
        self.assertEqual(entry["right"]["cpu_seconds_per_gib"], 4)

    def test_quantile_interpolates(self) -> None:
        self.assertEqual(quantile([4, 1, 3, 2], 0.5), 2.5)
        self.assertEqual(quantile([7], 0.25), 7)
        self.assertEqual(quantile([1, 2], 1.0), 2)

    def test_even_means_within_three_percent(self) -> None:
        self.assertEqual(verdict(row(goal=1.0), 0.97, 1), "met")
        self.assertEqual(verdict(row(goal=1.0), 0.96, 1), "short")

    def test_other_goals_are_exact(self) -> None:
        self.assertEqual(verdict(row(goal=1.3), 1.29, 1), "short")
        self.assertEqual(verdict(row(goal=1.3), 1.3, 1), "met")

    def test_a_limit_judges_the_left_side_whatever_the_ratio(self) -> None:
        self.assertEqual(verdict(row(limit=24.0), 0.1, 24), "met")
        self.assertEqual(verdict(row(limit=24.0), 9, 25), "short")

    def test_without_goal_there_is_no_verdict(self) -> None:
        self.assertEqual(verdict(row(), 0.1, 1), "")
