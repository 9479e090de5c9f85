"""Two small plots as SVG, without a plotting library: bars on a logarithmic scale, and curves."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STYLE = (
    "text{font:13px sans-serif;fill:#222}.n{text-anchor:end}.t{font-weight:bold;font-size:15px}"
    "rect{fill:#7a8ea8}.ours{fill:#1f6f4a}line{stroke:#ddd}polyline{fill:none;stroke-width:2}"
)
_COLOURS = ("#1f6f4a", "#a8452f", "#3b5ea8", "#8a6d1f", "#6b3fa0")


def bars(title: str, values: Mapping[str, float], *, ours: str) -> str:
    """Draw one bar a name, longest first, on a logarithmic scale; names that begin with `ours` stand out."""
    rows = sorted(values.items(), key=lambda item: -item[1])
    low = 10 ** math.floor(math.log10(min(values.values()))) / 2
    scale = 420 / (math.log10(max(values.values())) - math.log10(low))
    parts = [f'<text class="t" x="10" y="24">{escape(title)}</text>']
    for row, (name, value) in enumerate(rows):
        y = 40 + 26 * row
        width = scale * (math.log10(value) - math.log10(low))
        mark = ' class="ours"' if name.startswith(ours) else ""
        parts += [
            f'<text class="n" x="250" y="{y + 15}">{escape(name)}</text>',
            f'<rect{mark} x="260" y="{y}" width="{width:.1f}" height="20"/>',
            f'<text x="{265 + width:.1f}" y="{y + 15}">{value:,.0f}</text>',
        ]
    return _page(760, 50 + 26 * len(rows), parts)


def curves(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw curves over (x, y) on two logarithmic scales."""
    points = [point for curve in curves.values() for point in curve]
    x_low, x_high = (bound(math.log10(x) for x, _ in points) for bound in (min, max))
    y_low, y_high = (bound(math.log10(max(y, 1e-3)) for _, y in points) for bound in (min, max))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / max(x_high - x_low, 1e-9)
        up = (math.log10(max(y, 1e-3)) - y_low) / max(y_high - y_low, 1e-9)
        return 70 + 420 * across, 330 - 270 * up

    parts = [f'<text class="t" x="10" y="24">{escape(title)}</text>']
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        x, _ = place(10.0**power, 10.0**y_low)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="60" y2="330"/>')
        parts.append(f'<text x="{x - 20:.1f}" y="350">{10**power:,}</text>')
    for power in range(math.ceil(y_low), math.floor(y_high) + 1):
        _, y = place(10.0**x_low, 10.0**power)
        parts.append(f'<line x1="70" x2="490" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="n" x="64" y="{y + 4:.1f}">{10.0**power:g}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{line}" style="stroke:{colour}"/>')
        parts.append(f'<text x="510" y="{80 + 22 * number}" style="fill:{colour}">{escape(name)}</text>')
    return _page(720, 370, parts)


def _page(width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    paper = '<rect width="100%" height="100%" style="fill:#fff"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", paper, *parts, "</svg>\n"])
