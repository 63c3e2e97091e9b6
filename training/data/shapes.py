"""Closed outlines from points, ellipses and strokes, and mixed colours: what the drawings are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.data.scene import Colour

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))  # type: ignore[return-value]


def shade(colour: Colour, amount: float) -> Colour:
    """Darker for a negative amount, lighter for a positive one."""
    return mix(colour, (255, 255, 255) if amount > 0 else (20, 10, 30), abs(amount))


def smooth(points: Sequence[Point], steps: int = 6) -> list[Point]:
    """A closed Catmull-Rom curve through the points."""
    n = len(points)
    curve: list[Point] = []
    for i in range(n):
        p0, p1, p2, p3 = (points[(i + k - 1) % n] for k in range(4))
        for s in range(steps):
            t = s / steps
            curve.append(
                tuple(  # type: ignore[arg-type]
                    0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t**3)
                    for a, b, c, d in zip(p0, p1, p2, p3)
                )
            )
    return curve


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> list[Point]:
    count = 28
    span = [math.radians(start + (end - start) * i / count) for i in range(count + (end - start < 360))]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in span]


def mirrored(right: Sequence[Point]) -> list[Point]:
    """A closed outline from its right half, given from top to bottom."""
    return [*right, *((-x, y) for x, y in reversed(right) if abs(x) > 1e-6)]


def stroke(points: Sequence[Point], width: float) -> list[Point]:
    """An open line as a polygon with the given width."""
    left: list[Point] = []
    right: list[Point] = []
    for i, (x, y) in enumerate(points):
        ax, ay = points[max(i - 1, 0)]
        bx, by = points[min(i + 1, len(points) - 1)]
        length = math.hypot(bx - ax, by - ay) or 1.0
        nx, ny = -(by - ay) / length * width / 2, (bx - ax) / length * width / 2
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    return [*left, *reversed(right)]
