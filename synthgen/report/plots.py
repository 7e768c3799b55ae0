"""Geometry of the page's figures: numbers in, positions in SVG units out.

Owns axes, ticks and paths. The templates draw them as inline SVG with the page's own colours, so that a
figure follows dark mode and print, keeps every script's letters as text, and needs no font of ours.
Equal inputs give equal bytes: there is no date, host or random id in a figure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TICK_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def nice_ticks(low: float, high: float, n_wanted: int = 5) -> list[float]:
    """Round tick positions from at or below `low` to at or above `high`.

    Args:
        low, high: finite, in any order; equal values are widened.
        n_wanted: about how many intervals.
    Returns:
        Ascending multiples of 1, 2, 2.5 or 5 times a power of ten; the data lie within.
    """
    low, high = min(low, high), max(low, high)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(1, n_wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in TICK_STEPS if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A linear axis: values `low`..`high` on `start`..`stop` in SVG units."""

    low: float
    high: float
    start: float
    stop: float
    ticks: list[float]

    @classmethod
    def around(cls, values: Sequence[float], start: float, stop: float, n_ticks: int = 5) -> "Axis":
        """An axis whose round ticks enclose all finite `values`."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        ticks = nice_ticks(min(finite), max(finite), n_ticks)
        return cls(ticks[0], ticks[-1], start, stop, ticks)

    def at(self, value: float) -> float:
        """Position of `value`, kept on the axis, to a hundredth of a unit."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 2)


@dataclass(frozen=True)
class ForestMark:
    """One row of a forest plot, in SVG units; `whisker` is None where there is no interval."""

    centre: float
    whisker: tuple[float, float] | None
    dots: list[float]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def forest_axis(gains: Sequence[Mapping[str, Any]], dots: Sequence[float], width: float) -> Axis:
    """The axis that all rows of a forest plot share, in percentage points; zero is always on it.

    The far ends of a very wide interval are cut at twice the spread of what else there is to see, so that one
    class with two test groups does not flatten the others.
    """
    centres = [100 * m for gain in gains if (m := _number(gain.get("mean"))) is not None]
    ends = [100 * e for gain in gains for key in ("low", "high") if (e := _number(gain.get(key))) is not None]
    inner = [0.0, *centres, *(100 * dot for dot in dots)]
    reach = max(2.0, 2.0 * max(abs(value) for value in inner))
    typical = sorted(abs(end) for end in ends)
    if typical:
        reach = max(reach, 1.5 * typical[len(typical) // 2])
    return Axis.around([*inner, *(min(max(end, -reach), reach) for end in ends)], 10.0, width - 10.0)


def forest_mark(gain: Mapping[str, Any], dots: Sequence[float], axis: Axis) -> ForestMark | None:
    """Positions of one gain (fractions) and of its folds' gains; None where there is no mean."""
    mean, low, high = (_number(gain.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return None
    whisker = None if low is None or high is None else (axis.at(100 * low), axis.at(100 * high))
    return ForestMark(axis.at(100 * mean), whisker, [axis.at(100 * dot) for dot in dots if math.isfinite(dot)])


@dataclass(frozen=True)
class Curve:
    """One line: `points` is an SVG polyline's attribute, `last` the position of its final point."""

    label: str
    style: str
    points: str
    last: tuple[float, float]


@dataclass(frozen=True)
class CurvePlot:
    """A small line plot over thousands of images shown.

    Attributes:
        title: what the lines are.
        summary: the same in words, for readers who cannot see it.
        x, y: the axes.
        curves: the lines, drawn in this order.
    """

    title: str
    summary: str
    x: Axis
    y: Axis
    curves: list[Curve]
    width: float
    height: float


def curve_plot(
    title: str,
    kimg: Sequence[float],
    series: Sequence[tuple[str, str, Sequence[float]]],
    width: float = 360.0,
    height: float = 190.0,
) -> CurvePlot | None:
    """Lines over kimg; points that are not finite are left out.

    Args:
        title: what the lines are.
        kimg: (n,) thousands of real images shown to the discriminator.
        series: (label, style class, (n,) values) per line.
    Returns:
        None where no line has two finite points.
    """
    kept = []
    for label, style, values in series:
        pairs = [(x, y) for x, y in zip(kimg, values, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if len(pairs) >= 2:
            kept.append((label, style, pairs))
    if not kept:
        return None
    furthest = max(px for _, _, pairs in kept for px, _ in pairs)
    ticks = [tick for tick in nice_ticks(0.0, furthest, 4) if tick <= furthest]
    x = Axis(0.0, max(furthest, 1e-9), 44.0, width - 30.0, ticks)
    y = Axis.around([py for _, _, pairs in kept for _, py in pairs], height - 34.0, 10.0, 4)
    curves = [
        Curve(
            label,
            style,
            " ".join(f"{x.at(px):g},{y.at(py):g}" for px, py in pairs),
            (x.at(pairs[-1][0]), y.at(pairs[-1][1])),
        )
        for label, style, pairs in kept
    ]
    ends = "; ".join(f"{label} from {pairs[0][1]:.2f} to {pairs[-1][1]:.2f}" for label, _, pairs in kept)
    return CurvePlot(title, f"{title} over {kept[0][2][-1][0]:g} kimg: {ends}", x, y, curves, width, height)


def bar_length(value: float, largest: float, width: float) -> float:
    """Length of a bar; any count above zero is at least one unit long, so that it can be seen."""
    if value <= 0 or largest <= 0:
        return 0.0
    return round(max(1.0, width * value / largest), 2)
