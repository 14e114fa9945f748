"""The ratios as an SVG: one bar a row on a logarithmic scale, from 1.0 to the left or right, goals marked."""

from __future__ import annotations

import math
from html import escape
from typing import Any, Mapping

_ROW = 22
_LABEL = 190
_SCALE = 520
_MARGIN = 34
# The scale's ends, as powers of two; what lies outside is cut off there.
_LOWEST, _HIGHEST = -3.0, 7.0


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The drawing, for rows that were measured."""
    height = _MARGIN + _ROW * len(rows) + 10
    width = _LABEL + _SCALE + 70
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for power in range(int(_LOWEST), int(_HIGHEST) + 1):
        x = _place(2.0**power)
        color = "#444" if power == 0 else "#ddd"
        shapes.append(f'<line x1="{x:.1f}" y1="{_MARGIN - 8}" x2="{x:.1f}" y2="{height - 6}" stroke="{color}"/>')
        shapes.append(f'<text x="{x:.1f}" y="{_MARGIN - 14}" text-anchor="middle" fill="#444">{2.0**power:g}</text>')
    for number, (name, entry) in enumerate(rows.items()):
        shapes += _bar(name, entry, _MARGIN + _ROW * number)
    return "\n".join([*shapes, "</svg>", ""])


def _bar(name: str, entry: Mapping[str, Any], top: float) -> list[str]:
    ratio = entry["ratio"]
    start, end = sorted((_place(1.0), _place(ratio)))
    middle = top + _ROW / 2
    color = "#c0392b" if entry["verdict"] == "short" else "#2e7d4f"
    low, high = _place(entry["ratio_low"]), _place(entry["ratio_high"])
    shapes = [
        f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{start:.1f}" y="{top + 4}" width="{max(1.0, end - start):.1f}" height="{_ROW - 8}" fill="{color}"/>',
        f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" stroke="black"/>',
        f'<text x="{max(end, high) + 6:.1f}" y="{middle + 4}">{ratio:.2f}</text>',
    ]
    if entry["goal"]:
        x = _place(entry["goal"])
        shapes.append(
            f'<line x1="{x:.1f}" y1="{top + 2}" x2="{x:.1f}" y2="{top + _ROW - 2}" stroke="#1f4e9c" stroke-width="2"/>'
        )
    return shapes


def _place(ratio: float) -> float:
    power = min(_HIGHEST, max(_LOWEST, math.log2(ratio)))
    return _LABEL + (power - _LOWEST) / (_HIGHEST - _LOWEST) * _SCALE
