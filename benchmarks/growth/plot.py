"""The curves as a picture of small multiples: growth.json goes in, a PNG comes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.growth.curves import MEMORY, Curve
from benchmarks.growth.fits import Fit
from benchmarks.growth.page import GROWS, SCALES, fits

COLUMNS = 4
MEASURED, EXPECTED = "#1f5fa8", "#c0504d"


def draw(found: Mapping[str, Any], out: Path) -> None:
    """A panel a curve, time before memory: measured points and ranges, the expected line."""
    made = list(fits(found).values())
    rows = -(-max(len(made), 1) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 3 * rows), squeeze=False)
    for axis in axes.flat[len(made) :]:
        axis.axis("off")
    for axis, (curve, line) in zip(axes.flat, made, strict=False):
        panel(axis, curve, line)
    if made:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", frameon=False, ncols=2)
    figure.suptitle("Growth of time and memory", x=0.02, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def panel(axis: Any, curve: Curve, line: Fit) -> None:
    scale = SCALES[curve.unit]
    measured, expected = ([scale * y for y in ys] for ys in (line.measured, line.expected))
    ranges = zip(line.measured, line.ranges, strict=True)
    bars = [(scale * (middle - low), scale * (high - middle)) for middle, (low, high) in ranges]
    axis.plot(line.values, expected, color=EXPECTED, label="expected from the counted work")
    axis.errorbar(
        line.values,
        measured,
        yerr=list(zip(*bars, strict=True)),
        fmt="o",
        markersize=4,
        capsize=2,
        color=MEASURED,
        label="measured",
    )
    ratio = line.slopes.ratio
    told = "flat" if ratio is None else f"slope {ratio:.2f} × the expected"
    color = "black" if line.within else EXPECTED
    axis.set_title(f"{curve.title}: {told}", fontsize=9, loc="left", color=color)
    axis.set_xlabel(GROWS[curve.experiment], fontsize=8)
    axis.set_ylabel(f"{curve.unit} {MEMORY if curve.figure == MEMORY else ''}", fontsize=8)
    axis.tick_params(labelsize=8)
    if curve.figure != MEMORY or line.slopes.ratio is None:  # what grows is little of all memory
        axis.set_ylim(0, 1.1 * max(*measured, *expected))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
