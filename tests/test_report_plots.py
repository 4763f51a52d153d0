"""Pictures: that they are written, the same each time, and show what the summary says."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.shifts import made_shift
from urial_engine.errors import ParameterError
from urial_engine.report import plots
from urial_engine.report.plots import shown, write_plots
from urial_engine.report.summary import summarize
from urial_engine.shift_data import ShiftData

pytestmark = pytest.mark.filterwarnings("error")
NAMES = [f"{name}.{kind}" for name in ("classes", "divergence", "base", "tokens")
         for kind in ("png", "svg")]  # fmt: skip
NASTY = ("$\\nosuch$", "\n", "中文", r" \frac{1}{2}", "שלום", "\x00", "\ud800", "🙂", "   ",
         "_^%#&{}", "<b>&amp;", "\u202e", "$", "a" * 60, "")  # fmt: skip


def drawn(draw: str, data: ShiftData, **options: Any) -> Sequence[Any]:
    """The panels of one picture."""
    return getattr(plots, draw)(summarize(data, **options)["contexts"]).axes


def test_the_same_summary_gives_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib as mpl

    summary = summarize(made_shift(12, 40))
    first = write_plots(summary, tmp_path / "new" / "one", title="A → B")
    assert [p.name for p in first] == NAMES
    with mpl.rc_context({"axes.facecolor": "#eeeeee", "text.parse_math": True}):
        second = write_plots(summary, tmp_path / "two", title="A → B")
        assert mpl.rcParams["axes.facecolor"] == "#eeeeee"  # a caller's settings stay as they were
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    untitled = write_plots(summary, tmp_path / "three")
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(first, untitled, strict=True))
    for path in first[1::2]:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<?xml") and not re.search(r"<dc:date>|20\d\d-\d\d-\d\d", text)
    for path in first[::2]:
        with Image.open(path) as image:
            assert round(image.info["dpi"][0]) == 150
            assert np.asarray(image.convert("L")).std() > 10  # something is drawn
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(NAMES)


def test_any_token_and_any_name_can_be_drawn(tmp_path: Path) -> None:
    data = made_shift(8, 40, contexts=("zero-shot $x^2$ \n a very long name of one context", "中"))
    vocabulary = {**data.vocabulary, **dict(enumerate(NASTY))}
    summary = summarize(replace(data, vocabulary=vocabulary))
    for context in summary["contexts"]:
        for i, one in enumerate(context["most_shifted"][: len(NASTY)]):
            one["token"] = NASTY[i]
    assert len(write_plots(summary, tmp_path, title="$x_{1}$ \n中文 " + "long " * 60)) == 8


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" Thank", "␣Thank"),
        ("a  ", "a␣␣"),
        ("  ", "␣␣"),
        ("a b", "a b"),
        ("\n\n", "↵↵"),
        (".\t", ".⇥"),
        ("$\\alpha$", "$\\alpha$"),
        ("中é", "\\u4e2dé"),
        ("\x00\u202e", "\\x00\\u202e"),
        ("\ud800", "\\ud800"),
        ("", ""),
    ],
)
def test_labels_show_what_cannot_be_seen(text: str, wanted: str) -> None:
    assert shown(text) == wanted


@pytest.mark.parametrize(
    "data",
    [
        made_shift(1, 1, contexts=("raw",)),
        made_shift(2, 5, contexts=tuple("abcdefgh")),
        replace(made_shift(1, 1), contexts=()),
        made_shift(1, 0),
    ],
    ids=["one token", "eight contexts", "no context", "no token"],
)
def test_little_or_much_can_be_drawn(data: ShiftData, tmp_path: Path) -> None:
    if not len(data.contexts):
        data = replace(data, answers=[])
    assert len(write_plots(summarize(data), tmp_path)) == 8


def test_bars_and_curves_are_the_summary() -> None:
    data = made_shift(20, 50, seed=3)
    first, second = summarize(data)["contexts"]
    left, _, last = drawn("_classes", data)
    places = len(first["by_position"])
    bars = left.containers  # from the ground up
    for name, container in zip(("shifted", "marginal", "unshifted"), bars, strict=True):
        heights = [bar.get_height() for bar in container]
        assert heights == pytest.approx([100 * p[name]["value"] for p in first["by_position"]])
    tops = [sum(bar.get_height() for bar in stack) for stack in zip(*bars, strict=True)]
    assert tops == pytest.approx([100] * places)
    wanted = [c["overall"][n]["value"] for c in (first, second)
              for n in ("unshifted", "marginal", "shifted")]  # fmt: skip
    assert [p.get_height() for p in last.patches] == pytest.approx([100 * v for v in wanted])
    hatches = {patch.get_hatch() for patch in last.patches}
    assert len(hatches) == 2  # contexts differ by more than colour
    for panel, measure in zip(
        drawn("_divergence", data), ("kl_aligned_base", "kl_base_aligned"), strict=True
    ):
        lines = [line for line in panel.lines if line.get_label() in ("zero-shot", "urial")]
        assert len({(one.get_marker(), one.get_linestyle()) for one in lines}) == 2
        for line, context in zip(lines, (first, second), strict=True):
            values = [p[measure]["value"] for p in context["by_position"]]
            assert list(line.get_ydata()) == pytest.approx(values)
        shade = panel.collections[0].get_paths()[0].vertices[:, 1]
        ends = [p[measure][end] for p in first["by_position"] for end in ("low", "high")]
        assert {round(e, 5) for e in ends if e is not None} <= {round(v, 5) for v in shade}
    ranks = drawn("_base", data)[1].lines[0].get_ydata()
    assert list(ranks) == [p["median_rank"] for p in first["by_position"]]


def test_bars_of_tokens_have_intervals_only_where_there_are_some() -> None:
    data = made_shift(6, 20, seed=3, contexts=("raw",))
    told = summarize(data)["contexts"][0]["most_shifted"][:15]
    (panel,) = drawn("_tokens", data)
    assert [t.get_text() for t in panel.get_yticklabels()] == [shown(t["token"]) for t in told]
    widths = [bar.get_width() for bar in panel.patches]
    assert widths == pytest.approx([100 * t["ratio"]["value"] for t in told])
    segments = panel.collections[0].get_segments()
    drawn_ends = [s[:, 0].tolist() for s in segments if len(s) and np.isfinite(s).all()]
    ends = [[100 * t["ratio"][e] for e in ("low", "high")] for t in told
            if t["ratio"]["low"] is not None]  # fmt: skip
    assert 0 < len(ends) < len(told)
    assert np.allclose(drawn_ends, ends)


def test_without_matplotlib_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ParameterError, match=r"pip install 'urial-engine\[analysis\]'"):
        write_plots(summarize(made_shift(2, 3)), tmp_path / "none")
    assert not (tmp_path / "none").exists()
