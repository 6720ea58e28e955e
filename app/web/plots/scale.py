"""The geometry of plots that are drawn as SVG: positions on a scale, in percent."""

from collections.abc import Iterable
from dataclasses import dataclass

PADDING = 0.06


@dataclass(frozen=True)
class PlotScale:
    """A linear scale of values."""

    low: float
    high: float

    def place(self, value: float) -> str:
        """Return the position of a value from the left edge."""
        return f"{100 * self.share(value):.2f}%"

    def share(self, value: float) -> float:
        """Return the position of a value between 0 and 1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def contains(self, value: float) -> bool:
        """Return whether a value is on the scale."""
        return self.low <= value <= self.high


def draw_line(steps: Iterable[float], values: Iterable[float], x: PlotScale, y: PlotScale) -> str:
    """Return the points of a line in a plot that is 1000 wide and 300 high."""
    points = zip(steps, values, strict=True)
    return " ".join(f"{1000 * x.share(step):.1f},{300 * (1 - y.share(value)):.1f}" for step, value in points)


def fit_scale(values: Iterable[float | None]) -> PlotScale:
    """Return a scale on which all values are, with some space at both ends."""
    known = [value for value in values if value is not None]
    if not known:
        return PlotScale(0, 1)
    low, high = min(known), max(known)
    padding = (high - low) * PADDING or abs(high) * PADDING or 1.0
    return PlotScale(low - padding, high + padding)
