"""Points of a curve over generations, thinned so that a run of any length stays small to send and to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Curve", "Point"]


@dataclass(slots=True)
class Point:
    """Sums over `count` rows, of which `generation` is the last."""

    generation: int
    count: int
    sums: list[float]


class Curve:
    """Points in order of generation. Past `limit` of them, neighbours are joined, and so are later rows.

    Appending leaves older points as they are until `version` changes: then all must be read again.
    """

    def __init__(self, limit: int = 2000) -> None:
        self.points: list[Point] = []
        self.version = 0
        self._limit = limit
        self._rows_a_point = 1
        self._open: Point | None = None

    def add(self, generation: int, values: Sequence[float]) -> None:
        """One row. A generation that was seen before takes the curve back to it, as a resume does."""
        self._go_back(generation)
        self._open = _joined(self._open, Point(generation, 1, list(values)))
        if self._open.count >= self._rows_a_point:
            self.points.append(self._open)
            self._open = None
        if len(self.points) > self._limit:
            self._thin()

    def _go_back(self, generation: int) -> None:
        if self._open is not None and self._open.generation >= generation:
            self._open = None
        if self.points and self.points[-1].generation >= generation:
            self.points = [point for point in self.points if point.generation < generation]
            self.version += 1

    def _thin(self) -> None:
        """Join neighbours; an odd last point stays open for the rows to come."""
        pairs = zip(self.points[::2], self.points[1::2], strict=False)
        rest = self.points[-1] if len(self.points) % 2 else None
        self.points = [_joined(first, second) for first, second in pairs]
        self._open = rest
        self._rows_a_point *= 2
        self.version += 1


def _joined(first: Point | None, second: Point) -> Point:
    if first is None:
        return second
    sums = [a + b for a, b in zip(first.sums, second.sums, strict=True)]
    return Point(second.generation, first.count + second.count, sums)
