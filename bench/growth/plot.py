"""The curves as an SVG: a small field each, both axes logarithmic, both sides in it."""

from __future__ import annotations

import math
from html import escape
from typing import Any, Mapping, Sequence

from ..figures import MEASURED
from ..report import value

_WIDTH, _HEIGHT = 230, 150
_ACROSS = 4
_GAP = 24
_TITLE = 34
_COLORS = {"left": "#1f6f43", "right": "#b0532a"}


def curves(series: Mapping[str, Mapping[str, Any]]) -> str:
    """The drawing, for series that were measured."""
    fields = [
        (entry, curve) for entry in series.values() if entry["status"] == MEASURED for curve in entry["curves"]
    ]
    rows = math.ceil(len(fields) / _ACROSS)
    width = _GAP + _ACROSS * (_WIDTH + _GAP)
    height = _TITLE + rows * (_HEIGHT + _TITLE + _GAP)
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_GAP}" y="18" font-size="13"><tspan fill="{_COLORS["left"]}">blockd</tspan>'
        f' and <tspan fill="{_COLORS["right"]}">qemu-storage-daemon</tspan></text>',
    ]
    for number, (entry, curve) in enumerate(fields):
        x = _GAP + number % _ACROSS * (_WIDTH + _GAP)
        y = _TITLE + _TITLE + number // _ACROSS * (_HEIGHT + _TITLE + _GAP)
        shapes += _field(entry, curve, x, y)
    return "\n".join([*shapes, "</svg>", ""])


def _field(entry: Mapping[str, Any], curve: Mapping[str, Any], left: float, top: float) -> list[str]:
    points = entry["points"]
    sides = {side: entry["values"][side][curve["name"]] for side in _COLORS}
    every = [number for values in sides.values() for number in values if number]
    # A power of ten above and below, so that what is flat looks flat.
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    high = max(high, low + 1)

    def place(point: float, number: float) -> tuple[float, float]:
        x = left + _WIDTH * math.log(point / points[0]) / math.log(points[-1] / points[0])
        return x, top + _HEIGHT * (high - math.log10(number)) / (high - low)

    shapes = [
        f'<text x="{left}" y="{top - 18}" font-weight="bold">{escape(entry["title"])}</text>',
        f'<text x="{left}" y="{top - 5}">{escape(curve["title"])}</text>',
        f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{left + 3}" y="{top + 11}" fill="#666">{value(10.0**high, curve["unit"])}</text>',
        f'<text x="{left + 3}" y="{top + _HEIGHT - 3}" fill="#666">{value(10.0**low, curve["unit"])}</text>',
        f'<text x="{left}" y="{top + _HEIGHT + 12}" fill="#666">{points[0]}</text>',
        f'<text x="{left + _WIDTH}" y="{top + _HEIGHT + 12}" fill="#666" text-anchor="end">{points[-1]} '
        f'{escape(entry["of"])}</text>',
    ]
    for side, values in sides.items():
        shapes += _line([place(point, number) for point, number in zip(points, values) if number], _COLORS[side])
    return shapes


def _line(places: Sequence[tuple[float, float]], color: str) -> list[str]:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [
        f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="1.5"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in places),
    ]
