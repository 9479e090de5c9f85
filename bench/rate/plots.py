"""Rates over time, drawn as SVG with nothing but text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.rate.cells import contender
from bench.rate.world import play

if TYPE_CHECKING:
    from bench.rate.world import Scene

WIDTH, HEIGHT, MARGIN = 720, 240, 40
_COLOURS = {"learn": "#0a7d36", "aimd": "#b45f06", "botocore": "#1155cc"}


def plot(title: str, scene: Scene, *, seed: int = 0) -> str:
    """Draw the accepted calls of each second, and the service's rate in grey."""
    top = 1.6 * max(scene.rate_per_s, scene.rate_at(scene.seconds) if scene.rate_at else 0.0)
    seconds = int(scene.seconds)
    rates = [scene.rate_at(at) if scene.rate_at else scene.rate_per_s for at in range(seconds)]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{MARGIN}" y="16">{title}</text>',
        _line(rates, top, "#999", 3),
    ]
    for number, (name, colour) in enumerate(_COLOURS.items()):
        client = play(scene, [(0.0, contender(name, scene, seed))], seed)[0]
        parts.append(_line(_smooth(client.accepted[:seconds]), top, colour, 1.3))
        throttled = sum(client.throttled)
        share = 100.0 * throttled / (throttled + sum(client.accepted))
        text = f"{name} ({share:.1f} % throttled)"
        parts.append(f'<text x="{MARGIN + 180 * number}" y="32" fill="{colour}">{text}</text>')
    parts += [f'<text x="4" y="{_y(at, top):.0f}">{at:g}/s</text>' for at in (0.0, scene.rate_per_s)]
    parts += [
        f'<text x="{_x(at, seconds):.0f}" y="{HEIGHT - 8}">{at} s</text>'
        for at in range(0, seconds + 1, max(10, seconds // 6))
    ]
    return "\n".join([*parts, "</svg>", ""])


def _smooth(counts: list[int], width: int = 3) -> list[float]:
    return [sum(counts[max(0, at - width + 1) : at + 1]) / min(width, at + 1) for at in range(len(counts))]


def _line(values: list[float], top: float, colour: str, width: float) -> str:
    points = " ".join(f"{_x(at, len(values)):.1f},{_y(value, top):.1f}" for at, value in enumerate(values))
    return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{points}"/>'


def _x(at: float, seconds: int) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * at / max(1, seconds)


def _y(value: float, top: float) -> float:
    return HEIGHT - MARGIN / 1.5 - (HEIGHT - 2 * MARGIN) * min(value, top) / top
