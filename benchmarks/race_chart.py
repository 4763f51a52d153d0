"""What a race measured goes in, a picture comes out: a panel a figure, a bar an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.race_report import FIGURES, SMALLER_IS_BETTER

if TYPE_CHECKING:
    from benchmarks.race import Contender

TITLES = {
    "prefill": "prefill, tokens/s",
    "ttft_ms": "first token, prefix cached, ms",
    "decode_1": "decode, 1 sequence, tokens/s",
    "urial_32": "32 URIAL queries, tokens/s",
    "score": "score, tokens/s",
    "peak_MB": "peak memory, MB",
}
OURS = ("#0b6e4f", "#5fa585", "#a3cdb8")  # one an instruction set
OTHERS = ("#9aa0a6", "#c58b4e", "#4f7fbf", "#a05f8e")
WIDTH = 0.8  # of a group's bars together


def draw(entered: Sequence[Contender], file: Path) -> None:
    """Bars are medians, whiskers the least and the most; engines without a figure have no bar."""
    picture = Figure(figsize=(14, 8), dpi=110, layout="constrained")
    run = entered[0].runs[-1]
    threads = run["engine"]["threads"]
    picture.suptitle(f"{run['model']['name']}, bfloat16, {threads} threads", fontsize=15)
    axes = picture.subplots(2, 3)
    ran = [contender for contender in entered if contender.runs]
    groups = list(dict.fromkeys(group for contender in ran for group in contender.groups))
    colours = colours_of(ran)
    for panel, figure in zip(axes.flat, (*FIGURES, "peak_MB"), strict=True):
        better = "smaller" if figure in SMALLER_IS_BETTER else "larger"
        panel.set_title(f"{TITLES[figure]} ({better} is better)", fontsize=11)
        panel.set_xticks(range(len(groups)), groups)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(y=0.12)
        for place, group in enumerate(groups):
            bars(panel, place, [c for c in ran if group in c.groups], figure, colours)
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    picture.legend(handles=patches, loc="outside lower center", ncols=len(patches))
    picture.savefig(file)


def colours_of(ran: Sequence[Contender]) -> dict[str, str]:
    """Ours stand out; an engine has one colour wherever it stands."""
    own, others = (dict.fromkeys(c.shown for c in ran if c.own is ours) for ours in (True, False))
    return {**dict(zip(own, OURS, strict=False)), **dict(zip(others, OTHERS, strict=False))}


def bars(
    panel: Any, place: int, ran: Sequence[Contender], figure: str, colours: dict[str, str]
) -> None:
    """One group, side by side around `place`."""
    width = WIDTH / len(ran)
    for i, contender in enumerate(ran):
        value, values = contender.middle(figure), contender.values(figure)
        if value is None:
            continue
        name, x = contender.shown, place + (i - (len(ran) - 1) / 2) * width
        reach = [[value - min(values)], [max(values) - value]]
        shape = {"color": colours[name], "ecolor": "#333333", "capsize": 2}
        drawn = panel.bar(x, value, 0.92 * width, yerr=reach, **shape)
        text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        panel.bar_label(drawn, [text], padding=2, fontsize=8)
