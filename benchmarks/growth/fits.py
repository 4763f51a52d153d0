"""What was measured goes in; for each curve, the straight line through it beside the one through
what was expected comes out.

Both lines are fitted by least squares to the same values of the parameter, so "steeper than
expected" is one number also where a curve bends, as attention makes it do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.growth.curves import MEMORY, Curve
from benchmarks.growth.point import Sizes
from benchmarks.growth.work import Expected, Prices
from urial_engine.config import ModelConfig

WITHIN = 0.15  # of the expected slope
LEAST = 3  # points of a slope
Run = Mapping[str, Any]  # as point.py leaves it
Points = Mapping[str, Sequence[Run]]  # by the value of the parameter


class Slopes(NamedTuple):
    """In seconds or bytes for one unit of the parameter."""

    measured: float
    expected: float

    @property
    def ratio(self) -> float | None:
        """None where nothing should grow."""
        return self.measured / self.expected if self.expected else None


@dataclass(frozen=True, slots=True)
class Fit:
    """A curve beside its expectation, in seconds or bytes."""

    values: list[int]
    measured: list[float]  # medians
    ranges: list[tuple[float, float]]
    expected: list[float]
    start: int  # index of the first point where it grows
    slopes: Slopes
    parts: dict[str, Slopes]  # of the time: the layers, the head, and Python, which should be none

    @property
    def within(self) -> bool:
        """Whether the slope is as expected. What should not grow may do so by as little of its
        smallest value, from the first point to the last."""
        if self.slopes.ratio is not None:
            return abs(self.slopes.ratio - 1) <= WITHIN
        grown = self.slopes.measured * (self.values[-1] - self.values[self.start])
        return abs(grown) <= WITHIN * self.measured[self.start]

    @property
    def squared_correlation(self) -> float | None:
        """Of measured and expected: 1 where all that differs is a factor and a constant."""
        if self.slopes.ratio is None or np.ptp(self.expected) == 0:
            return None
        grown = self.measured[self.start :], self.expected[self.start :]
        return float(np.corrcoef(*grown)[0, 1] ** 2)

    @property
    def bend(self) -> float | None:
        """The ratio of the larger half over that of the smaller half; the middle is in both."""
        middle, last = (self.start + len(self.values) - 1) / 2, len(self.values)
        halves = [self._between(self.start, int(middle + 1.5)), self._between(int(middle), last)]
        small, large = (half.ratio for half in halves)
        return large / small if small and large else None

    @property
    def spread(self) -> float:
        """The largest run of a point over its smallest, at the worst point."""
        return max(high / low for low, high in self.ranges)

    def _between(self, start: int, end: int) -> Slopes:
        part = slice(start, end)
        return slopes(self.values[part], self.measured[part], self.expected[part])


def slopes(values: Sequence[int], measured: Sequence[float], expected: Sequence[float]) -> Slopes:
    lines = (np.polyfit(values, ys, 1)[0] for ys in (measured, expected))
    return Slopes(*(float(line) for line in lines))


def seconds(runs: Sequence[Run], figure: str, part: str = "all") -> float:
    return median(run["seconds"][figure][part] for run in runs)


def fit(
    curve: Curve, points: Points, prices: Sequence[Run], model: ModelConfig, sizes: Sizes
) -> Fit:
    """`prices`: the runs of the calls that have one."""
    calls = {name: seconds(prices, name) for name in prices[0]["seconds"]}
    expected = Expected(model, sizes, Prices.of(calls, model, sizes))
    of = memory_fit if curve.figure == MEMORY else time_fit
    return of(curve, points, expected)


def time_fit(curve: Curve, points: Points, expected: Expected) -> Fit:
    known = {int(v): runs for v, runs in points.items() if curve.figure in runs[0]["seconds"]}
    costs = [curve.expected(expected, value) for value in known]
    each = [[run["seconds"][curve.figure]["all"] for run in runs] for runs in known.values()]
    values, measured, wanted = list(known), [*map(median, each)], [cost.all for cost in costs]
    start = first_grown(curve, values, expected)

    def grown(took: Sequence[float], cost: Sequence[float]) -> Slopes:
        return slopes(values[start:], took[start:], cost[start:])

    layers, head = (
        [seconds(runs, curve.figure, part) for runs in known.values()]
        for part in ("layers", "head")
    )
    rest = [all_ - a - b for all_, a, b in zip(measured, layers, head, strict=True)]
    parts = {
        "layers": grown(layers, [cost.layers for cost in costs]),
        "head": grown(head, [cost.head for cost in costs]),
        "Python": grown(rest, [0.0] * len(values)),
    }
    ranges = [(min(times), max(times)) for times in each]
    return Fit(values, measured, ranges, wanted, start, grown(measured, wanted), parts)


def memory_fit(curve: Curve, points: Points, expected: Expected) -> Fit:
    """What stands still is taken from the measured points: expected are differences."""
    values = [int(value) for value in points]
    each = [[resident(curve, run) for run in runs] for runs in points.values()]
    measured = [float(median(sizes)) for sizes in each]
    grown = [curve.expected(expected, value) for value in values]
    rest = float(np.mean(measured) - np.mean(grown))
    wanted = [rest + more for more in grown]
    ranges = [(float(min(sizes)), float(max(sizes))) for sizes in each]
    start = first_grown(curve, values, expected)
    found = slopes(values[start:], measured[start:], grown[start:])
    return Fit(values, measured, ranges, wanted, start, found, {})


def first_grown(curve: Curve, values: Sequence[int], expected: Expected) -> int:
    """Index of the first point that the slope is taken from."""
    start = sum(not curve.grows(expected, value) for value in values)
    return min(start, max(len(values) - LEAST, 0))


def resident(curve: Curve, run: Run) -> int:
    """The peak since the engine was opened. Where nothing should grow, without what the opened
    engine had: a small growth must not hide behind the weights."""
    used = run["bytes"]
    return int(used["peak"] - (used["before"] if curve.experiment == "scored" else 0))
