"""A summary goes in; its pictures come out, as PNG and SVG of the same bytes for the same summary.

Colours are Okabe and Ito's, which the colour-blind tell apart; hatches, markers and line styles say
the same again for print.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ParameterError
from ..jsonl import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = Mapping[str, Any]
Look = dict[str, Any]

DPI = 150
PANEL = (3.7, 2.9)  # inches
COLUMNS = 3  # panels beside each other, at most
TOKENS = 15  # bars of a panel
NUMBERED = 3  # so many contexts leave room for figures on their bars
# From the ground up, so that the rare classes, which are looked at, start at zero.
CLASSES = (("shifted", "#D55E00", "xxxx"), ("marginal", "#F0C75E", "////"))
UNSHIFTED = ("unshifted", "#DCE6EF", "")
# What tells contexts apart: colour, marker, line and hatch.
LOOKS = (
    *(("#0072B2", "o", "-", ""), ("#D55E00", "s", "--", "////"), ("#009E73", "^", "-.", "....")),
    *(("#CC79A7", "D", ":", "xxxx"), ("#8C6D00", "v", "-", "----"), ("#56B4E9", "P", "--", "oo")),
)
ERRORS: Json = {"fmt": "none", "ecolor": "#111111", "elinewidth": 1, "capsize": 2}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "text.parse_math": False,  # a token may hold a dollar sign
    "svg.hashsalt": "urial-engine",
    "svg.fonttype": "path",
}
VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥"}


def write_plots(summary: Json, folder: Path, *, title: str = "") -> list[Path]:
    """classes, divergence, base and tokens, each .png and .svg, into `folder`, which is made.

    Needs matplotlib: `ParameterError` says how to install it.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ParameterError(
            "plots need matplotlib: pip install 'urial-engine[analysis]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context():
        mpl.rcdefaults()  # a reader's own settings would change the bytes
        mpl.rcParams.update(STYLE)
        for name, draw in (
            ("classes", _classes),
            ("divergence", _divergence),
            ("base", _base),
            ("tokens", _tokens),
        ):
            figure = draw(summary["contexts"])
            if title:
                width = int(12 * figure.get_figwidth())  # about as many letters as fit
                figure.suptitle("\n".join(map(shown, textwrap.wrap(title, width))), fontsize=11)
            written += _save(figure, folder / name)
    return written


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = []
    for kind, nameless in (("png", ("Software",)), ("svg", ("Date", "Creator"))):
        picture = io.BytesIO()
        figure.savefig(picture, format=kind, dpi=DPI, metadata=dict.fromkeys(nameless))
        paths.append(stem.with_suffix(f".{kind}"))
        write_atomically(paths[-1], picture.getvalue())
    return paths


def _panels(count: int, height: float = PANEL[1]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = max(1, min(COLUMNS, count))
    rows = max(1, -(-count // columns))
    size = (PANEL[0] * columns, height * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _classes(contexts: Sequence[Json]) -> Figure:
    """Shares by position, a panel a context, and in total with intervals."""
    figure, panels = _panels(len(contexts) + 1)
    for axes, context in zip(panels, contexts, strict=False):
        _stack(axes, context["by_position"])
        axes.set_title(_name(context))
        axes.set_ylabel("share of tokens (%)")
    _totals(panels[-1], contexts)
    _legend(figure, panels[0], 3)
    return figure


def _stack(axes: Axes, places: Sequence[Json]) -> None:
    bottom = [0.0] * len(places)
    for name, colour, hatch in (*CLASSES, UNSHIFTED):
        share = [100 * place[name]["value"] for place in places]
        look: Look = {"color": colour, "hatch": hatch, "edgecolor": "#444444", "linewidth": 0.5}
        axes.bar(range(len(places)), share, 0.86, bottom, label=name, **look)
        bottom = [a + b for a, b in zip(bottom, share, strict=True)]
    axes.set_ylim(0, 100)
    axes.grid(visible=False)
    _positions(axes, places)


def _totals(axes: Axes, contexts: Sequence[Json]) -> None:
    names = [name for name, _, _ in (UNSHIFTED, *reversed(CLASSES))]
    width = 0.8 / max(1, len(contexts))
    for i, context in enumerate(contexts):
        found = [context["overall"][name] for name in names]
        known = [(j, band) for j, band in enumerate(found) if band["value"] is not None]
        x = [j + (i - (len(contexts) - 1) / 2) * width for j, _ in known]
        share = [100 * band["value"] for _, band in known]
        colour, _, _, hatch = LOOKS[i % len(LOOKS)]
        look: Look = {"color": colour, "alpha": 0.55, "hatch": hatch, "edgecolor": "#222222"}
        axes.bar(x, share, width * 0.92, label=_name(context, 24), linewidth=0.5, **look)
        axes.errorbar(x, share, _errors([band for _, band in known]), **ERRORS)
        for at, (_, band) in zip(x, known, strict=True):
            if len(contexts) <= NUMBERED:
                top = (at, 100 * (band["high"] or band["value"]))
                above: Look = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
                axes.annotate(f"{100 * band['value']:.1f}", top, fontsize=7, **above)
    axes.set_title("all positions, 95 % interval")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("share of tokens (%)")
    axes.set_ylim(0, 109)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(visible=False, axis="x")
    if any(context["tokens"] for context in contexts):
        axes.legend(fontsize=8)
    else:
        _say(axes, "no tokens")


def _errors(bands: Sequence[Json]) -> list[list[float]]:
    """In percent, below and above; NaN, which is not drawn, where there is no interval."""
    below = [band["value"] - _float(band["low"]) for band in bands]
    above = [_float(band["high"]) - band["value"] for band in bands]
    return [[100 * max(reach, 0.0) for reach in side] for side in (below, above)]


def _divergence(contexts: Sequence[Json]) -> Figure:
    figure, panels = _panels(2)
    _curves(panels[0], contexts, "kl_aligned_base")
    _curves(panels[1], contexts, "kl_base_aligned")
    panels[0].set_title("KL(aligned ‖ base)")
    panels[1].set_title("KL(base ‖ aligned)")
    for axes in panels:
        axes.set_ylabel("mean (nats)")
        axes.set_ylim(bottom=0)
    _legend(figure, panels[0], COLUMNS)
    return figure


def _base(contexts: Sequence[Json]) -> Figure:
    from matplotlib.ticker import LogLocator

    figure, panels = _panels(2)
    _curves(panels[0], contexts, "base_probability")
    _curves(panels[1], contexts, "median_rank")
    panels[0].set_title("base probability of the token")
    panels[0].set_ylabel("mean")
    panels[0].set_ylim(0, 1)
    panels[1].set_title("base rank of the token (1 = its first choice)")
    panels[1].set_ylabel("median (logarithmic)")
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].yaxis.set_major_formatter("{x:g}")
    panels[1].minorticks_off()
    panels[1].set_ylim(0.9, max(10.0, 1.2 * panels[1].get_ylim()[1]))
    _legend(figure, panels[0], COLUMNS)
    return figure


def _curves(axes: Axes, contexts: Sequence[Json], measure: str) -> None:
    """A line a context, by position, with its interval shaded where there is one."""
    longest: Sequence[Json] = []
    for i, context in enumerate(contexts):
        places = context["by_position"]
        longest = max(longest, places, key=len)
        colour, marker, line, _ = LOOKS[i % len(LOOKS)]
        told = [place[measure] for place in places]
        values = [one["value"] if isinstance(one, Mapping) else one for one in told]
        x = range(len(places))
        look: Look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4}
        axes.plot(x, values, label=_name(context), linewidth=1.4, **look)
        if places and isinstance(told[0], Mapping):
            low, high = ([_float(one[end]) for one in told] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    _positions(axes, longest)


def _float(value: float | None) -> float:
    return float("nan") if value is None else value


def _positions(axes: Axes, places: Sequence[Json]) -> None:
    spans = [(place["from"], place["to"] - 1) for place in places]
    labels = [f"{a}" if a == b else f"{a}–{b}" for a, b in spans]
    crowded = len(labels) > 7
    look: Look = {"rotation": 45, "ha": "right"} if crowded else {}
    axes.set_xlim(-0.6, max(len(labels), 4) - 0.4)
    axes.set_xticks(range(len(labels)), labels, fontsize=7.5, rotation_mode="anchor", **look)
    axes.set_xlabel("position in the answer (tokens from 0)")
    if not places:
        _say(axes, "no tokens")


def _tokens(contexts: Sequence[Json]) -> Figure:
    """How often the most shifted tokens are shifted, beside all tokens."""
    longest = max([len(c["most_shifted"][:TOKENS]) for c in contexts], default=0)
    figure, panels = _panels(len(contexts), 0.9 + 0.21 * max(longest, 6))
    for axes, context in zip(panels, contexts, strict=True):
        _bars(axes, context["most_shifted"][:TOKENS])
        mean = context["overall"]["shifted"]["value"]
        if mean is not None:
            look: Look = {"color": "#222222", "linestyle": "--", "linewidth": 1}
            axes.axvline(100 * mean, label="all tokens", **look)
        axes.set_title(_name(context, 30))
    if panels:
        _legend(figure, panels[0], 1)
    return figure


def _bars(axes: Axes, told: Sequence[Json]) -> None:
    share = [100 * one["ratio"]["value"] for one in told]
    look: Look = {"color": "#E08A4F", "edgecolor": "#444444", "linewidth": 0.5}
    axes.barh(range(len(told)), share, 0.72, **look)
    axes.errorbar(share, range(len(told)), xerr=_errors([one["ratio"] for one in told]), **ERRORS)
    beside: Look = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7.5}
    axes.annotate("shifted / all", (1.02, -1), annotation_clip=False, **beside)
    for i, one in enumerate(told):
        axes.annotate(f"{one['count']} / {one['occurrences']}", (1.02, i), **beside)
    axes.set_yticks(range(len(told)), [shown(one["token"]) for one in told], fontsize=8)
    axes.set_ylim(max(len(told), 6) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("shifted (% of the token's occurrences)")
    if not told:
        _say(axes, "no token is shifted")


def _name(context: Json, width: int = 44) -> str:
    return shown(textwrap.shorten(context["name"], width, placeholder="…"))


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")


def shown(text: str) -> str:
    """As a label: spaces at the ends and ends of lines visible, and by its code what the font
    lacks or nobody can see."""
    from matplotlib import font_manager, ft2font

    font = font_manager.findfont("DejaVu Sans")  # comes with matplotlib
    known = ft2font.FT2Font(font).get_charmap()
    left, right = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    spaces = "␣" * left + text[left:right] + "␣" * (len(text) - max(left, right))
    return "".join(
        c if ord(c) in known and c.isprintable() else c.encode("unicode_escape").decode()
        for c in (VISIBLE.get(c, c) for c in spaces)
    )
