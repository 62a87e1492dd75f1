"""A plot as SVG: lines over a logarithmic scale of sizes, several panels beside each other. Pure, without libraries."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 300
"""Of a panel, in pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 40
_COLOURS = ("#1f5fbf", "#c4501b", "#2e8540", "#7a3fa0", "#6b6b6b")
_MARKS = ("circle", "square")


@dataclass(frozen=True)
class Panel:
    """One set of axes. Values are greater than 0."""

    title: str
    lines: Mapping[str, Sequence[tuple[int, float]]]
    """By name: points (octets, value)."""


def svg(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels in rows. Both axes are logarithmic. Raises ValueError for a value that has no logarithm."""
    for panel in panels:
        for name, points in panel.lines.items():
            if any(size <= 0 or not value > 0 or not math.isfinite(value) for size, value in points):
                raise ValueError(f"{panel.title}, {name}: only finite values above 0 can be drawn")
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    rows = -(-len(panels) // columns)
    width, height = WIDTH * min(columns, max(1, len(panels))), HEIGHT * rows + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = WIDTH * (number % columns), HEIGHT * (number // columns)
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _panel(panel, names)
        parts.append("</g>")
    x = _LEFT
    for number, name in enumerate(names):
        parts.append(_mark(number, x, height - 14))
        parts.append(f'<text x="{x + 9}" y="{height - 10}" fill="#222222">{escape(name)}</text>')
        x += 30 + 7 * len(name)
    return "\n".join([*parts, "</svg>"]) + "\n"


def size_label(octets: float) -> str:
    """2048 as `2 KiB`."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if octets >= factor:
            return f"{octets / factor:.3g} {unit}"
    return f"{octets:g}"


def _panel(panel: Panel, names: Sequence[str]) -> list[str]:
    parts = [f'<text x="{_LEFT}" y="20" font-size="13" fill="#222222">{escape(panel.title)}</text>']
    points = [point for line in panel.lines.values() for point in line]
    if not points:
        return [*parts, f'<text x="{_LEFT}" y="60" fill="#222222">not measured</text>']
    sizes = sorted({size for size, _ in points})
    low, high = math.log10(min(value for _, value in points)), math.log10(max(value for _, value in points))
    bottom, top = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    left, right = math.log(sizes[0]), math.log(sizes[-1])

    def at(size: float, value: float) -> tuple[float, float]:
        share = (math.log(size) - left) / (right - left) if right > left else 0.5
        rise = (math.log10(value) - bottom) / (top - bottom)
        return (
            round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - rise * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    for power in range(bottom, top + 1):
        for factor in (1, 2, 5) if power < top else (1,):
            value = factor * 10.0**power
            y = at(sizes[0], value)[1]
            shade = "#bbbbbb" if factor == 1 else "#e6e6e6"
            parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="{shade}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end" fill="#222222">{value:g}</text>')
    for size in sizes:
        x = at(size, 10.0**bottom)[0]
        parts.append(
            f'<text x="{x}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle" fill="#222222">{size_label(size)}</text>'
        )
    for name, line in panel.lines.items():
        number = names.index(name)
        placed = [at(size, value) for size, value in sorted(line)]
        path = " ".join(f"{x},{y}" for x, y in placed)
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_mark(number, x, y) for x, y in placed]
    return parts


def _mark(number: int, x: float, y: float) -> str:
    colour = _COLOURS[number % len(_COLOURS)]
    if _MARKS[number % len(_MARKS)] == "circle":
        return f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
    return f'<rect x="{x - 4:g}" y="{y - 4:g}" width="8" height="8" fill="{colour}"/>'
