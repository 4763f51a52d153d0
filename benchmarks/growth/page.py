"""What was measured, as a page of Markdown: growth.json goes in, its text comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from benchmarks.growth import memory
from benchmarks.growth.curves import CURVES, EXPERIMENTS, MEMORY, Curve
from benchmarks.growth.fits import WITHIN, Fit, fit, seconds
from benchmarks.growth.point import Sizes
from benchmarks.race_report import table
from urial_engine.config import ModelConfig

SCALES = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9, "MB": 1e-6, "kB": 1e-3, "B": 1.0}
GROWS = {experiment.name: experiment.grows for experiment in EXPERIMENTS}
# What limits a figure when threads are added: arithmetic, or reading.
BOUND_BY = {"prefill": "operation", "step": "byte", "batch": "operation", "score": "operation"}

Found = Mapping[str, Any]


def fits(found: Found) -> dict[str, tuple[Curve, Fit]]:
    """Of each curve that was measured, by name."""
    model, sizes = ModelConfig.from_dict(found["shape"]), Sizes(**found["sizes"])
    return {
        curve.name: (curve, fit(curve, held[curve.experiment], held["prices"]["0"], model, sizes))
        for curve in CURVES
        if (held := found["experiments"].get(curve.experiment))
    }


def markdown(found: Found) -> str:
    """The whole page."""
    made = fits(found)
    times = [pair for pair in made.values() if pair[0].figure != MEMORY]
    memories = [pair for pair in made.values() if pair[0].figure == MEMORY]
    lines = ["# Growth", "", *head(found), ""]
    lines += section("Time", times) + section("Memory", memories)
    lines += threads_section(found) + workloads_section(found)
    lines += table(["machine", ""], [[k, v] for k, v in found["machine"].items()])
    return "\n".join(lines) + "\n"


def head(found: Found) -> Iterator[str]:
    m = ModelConfig.from_dict(found["shape"])
    yield (
        f"One parameter grows, everything else stands still. A model with random weights: "
        f"{m.num_layers} layers of hidden size {m.hidden_size:,}, {m.num_heads} query and "
        f"{m.num_kv_heads} key/value heads of {m.head_dim}, feed-forward {m.intermediate_size:,}, "
        f"vocabulary {m.vocab_size:,}, bfloat16; {found['threads']} threads. Every point is a "
        f"process of its own; medians of {found['rounds']} rounds in turn."
    )
    yield ""
    yield (
        "**slope**: of the straight line through the measured points. **expected**: of the one "
        "through the counted work times what a unit of work costs in single calls of the backend "
        "(`work.py`). **R²**: of measured and expected. **bend**: measured over expected slope in "
        "the larger half of the points, over the same in the smaller half; 1 where the cost of a "
        "unit does not grow. **spread**: the slowest run of a point over its fastest, at the worst "
        "point; where it is large, the machine did something else. Where time is more than "
        f"{WITHIN:.0%} off, the parts of the slope say where."
    )


def section(title: str, made: list[tuple[Curve, Fit]]) -> list[str]:
    if not made:
        return []
    names = ["grows", "measured", "from, to", "", "slope", "expected", "ratio"]
    names += ["R²", "bend", "spread", ""]
    lines = [f"## {title}", "", *table(names, [row(*pair) for pair in made]), ""]
    lines += [parts(*pair) for pair in made if pair[1].parts and not pair[1].within]
    return [*lines, ""]


def row(curve: Curve, made: Fit) -> list[str]:
    ends = [f"{scaled(made.measured[i], curve.unit)}" for i in (0, -1)]
    unit = f"{curve.slope_unit} a {curve.per}".replace("us", "µs").replace("a entry", "an entry")
    unit += f", from {made.values[made.start]:,} on" if made.start else ""
    return [
        f"{GROWS[curve.experiment]}, {made.values[0]:,} … {made.values[-1]:,}",
        curve.title,
        f"{' → '.join(ends)} {curve.unit}",
        unit,
        scaled(made.slopes.measured, curve.slope_unit),
        scaled(made.slopes.expected, curve.slope_unit),
        ratio(made.slopes.ratio),
        ratio(made.squared_correlation, 3),
        ratio(made.bend),
        ratio(made.spread),
        verdict(made.within),
    ]


def parts(curve: Curve, made: Fit) -> str:
    """A line that says which part of a step is not as expected."""
    each = (
        f"{name} {scaled(slopes.measured, curve.slope_unit)} of "
        f"{scaled(slopes.expected, curve.slope_unit)} expected"
        for name, slopes in made.parts.items()
    )
    return f"- {GROWS[curve.experiment]}, {curve.title}: {', '.join(each)}."


def threads_section(found: Found) -> list[str]:
    """What the second thread brings, beside what it brings to the limits of the machine."""
    if not (held := found["experiments"].get("threads")):
        return []
    few, many = held["threads"].values()
    limits = {bound: gain(*held["limits"].values(), bound) for bound in ("byte", "operation")}
    rows = []
    for figure, bound in BOUND_BY.items():
        made, wanted = gain(few, many, figure), limits[bound]
        within = abs(made / wanted - 1) <= WITHIN
        times = [scaled(seconds(runs, figure), "ms") for runs in (few, many)]
        rows.append([figure, f"{' → '.join(times)} ms", f"{made:.2f} ×", f"{wanted:.2f} ×"])
        rows[-1] += [ratio(made / wanted), verdict(within)]
    peaks = [median(run["bytes"]["peak"] for run in runs) for runs in (few, many)]
    shown = " → ".join(scaled(peak, "MB") for peak in peaks)
    rows.append(["peak", f"{shown} MB", f"{peaks[0] / peaks[1]:.2f} ×", "1.00 ×"])
    rows[-1] += [ratio(peaks[0] / peaks[1]), verdict(abs(peaks[1] / peaks[0] - 1) <= WITHIN)]
    names = ["1 → 2 threads", "", "as fast", "expected", "ratio", ""]
    text = (
        "Expected: as much faster as the machine itself is with two threads, at operations "
        f"({limits['operation']:.2f} ×) or at reading ({limits['byte']:.2f} ×)."
    )
    return ["## Threads", "", text, "", *table(names, rows), ""]


def gain(few: Any, many: Any, figure: str) -> float:
    return seconds(few, figure) / seconds(many, figure)


def workloads_section(found: Found) -> list[str]:
    """The peak of each workload beside its weights and cache, while opening and while working."""
    if not (held := found.get("workloads")):
        return []
    rows = []
    for name, run in held["runs"].items():
        each = {phase: memory.excess(run, phase) for phase in ("opening", "working")}
        known = [run["imported"], run["weights"]]
        for phase, more in each.items():
            known += [run[phase]["peak"], run[phase]["cache"], more]
        rows.append([name, *(scaled(size, "MB") for size in known)])
        rows[-1].append(verdict(max(each.values()) <= memory.LIMIT))
    names = ["MB", "Python", "weights"]
    names += ["peak while opening", "cache", "excess", "peak while working", "cache", "excess", ""]
    text = (
        f"{held['model']}, {held['dtype']}, {held['texts']} texts; a process for each workload. "
        "Excess: what is resident at the peak beside weights and used blocks of the cache; at most "
        f"{scaled(memory.LIMIT, 'MB')} MB."
    )
    return ["## Memory of the workloads", "", text, "", *table(names, rows), ""]


def verdict(within: bool) -> str:
    return "✓" if within else "**outside**"


def scaled(value: float, unit: str) -> str:
    """Three digits."""
    value *= SCALES[unit]
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
