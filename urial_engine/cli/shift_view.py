"""A token shift for a person: arrays go in, marked text and tables for a terminal come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..shift_data import CLASSES, shift_class

if TYPE_CHECKING:
    from ..shift_data import ShiftData
    from ..token_shift_result import TokenShift

# By class. A terminal shows a style that needs no colour to be told apart, a file shows marks.
STYLES = ("", "underline yellow", "bold reverse red")
MARKS = (("", ""), ("‹", "›"), ("«", "»"))
MEANINGS = ("the base's first choice too", "its second or third", "further down")
POSITIONS = 8  # ranges of positions that are shown
MOST = 12  # tokens


def print_shift(console: Console, shift: TokenShift) -> None:
    """Every answer with its tokens marked, under each context, then what they sum up to."""
    console.print(legend(marked=not console.is_terminal))
    several = len(shift.contexts) > 1
    for index, answer in enumerate(shift.answers):
        console.print(Text(f"\n▸ {answer.query}", style="bold cyan"))
        for number, context in enumerate(shift.contexts):
            if several:
                console.print(Text(context.name, style="dim"))
            console.print(answer_text(shift, index, number, marked=not console.is_terminal))
    console.print()
    print_summary(console, shift.summary(most=MOST))


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """The ratios of each context, and what is shifted most."""
    several = len(summary["contexts"]) > 1
    for context in summary["contexts"]:
        console.print(ratios(context, named=several))
        found = context["most_shifted"][:MOST]
        each = (f"{_name(entry['token'])} × {entry['count']}" for entry in found)
        console.print(Text("Shifted beyond their frequency: " + (", ".join(each) or "none")))


def legend(*, marked: bool) -> Text:
    """What each way of writing means."""
    kinds = enumerate(zip(CLASSES, MEANINGS, strict=True))
    parts = [
        Text.assemble(_written(name, kind, marked=marked), f" ({meaning})")
        for kind, (name, meaning) in kinds
    ]
    return Text.assemble("Each token of an answer is ", Text(", ").join(parts), ".")


def answer_text(data: ShiftData, index: int, context: int, *, marked: bool) -> Text:
    """One answer, token by token. A character that is spread over tokens comes with the last."""
    begin, end = np.searchsorted(data.answer, (index, index + 1))  # rows stand by answer
    own = data.context[begin:end] == context
    classes = shift_class(data.base_rank[begin:end][own]).tolist()
    pieces = zip(data.answers[index].pieces, classes, strict=True)
    return Text().join(_written(piece, kind, marked=marked) for piece, kind in pieces)


def _written(text: str, kind: int, *, marked: bool) -> Text:
    """Style or marks go round what can be seen of the token; a line end shows as ↵."""
    if kind == 0 or not text:
        return Text(text)
    line, line_end, rest = text.partition("\n")
    body = (line.strip(" ") + "↵" * bool(line_end)) or "␣"
    space = line[: len(line) - len(line.lstrip(" "))] if line.strip(" ") else ""
    before, after = MARKS[kind] if marked else ("", "")
    return Text.assemble(space, (f"{before}{body}{after}", STYLES[kind]), line_end + rest)


def ratios(context: Mapping[str, Any], *, named: bool = False) -> Table:
    """Shares of the classes with their intervals over all tokens, and by position."""
    title = f"Token shift: {context['name']}" if named else "Token shift"
    table = Table(title=title, title_justify="left")
    table.add_column("tokens of an answer")
    for name in ("tokens", *CLASSES, "KL (nats)"):
        table.add_column(name, justify="right")
    _add(table, "all", context["overall"], intervals=True)
    for row in context["by_position"][:POSITIONS]:
        begin, end = row["from"], row["to"] - 1
        _add(table, str(begin) if begin == end else f"{begin} to {end}", row)
    if len(context["by_position"]) > POSITIONS:
        table.add_row("…", *[""] * 5)
    return table


def _add(table: Table, name: str, row: Mapping[str, Any], *, intervals: bool = False) -> None:
    shares = [_share(row[kind], intervals=intervals) for kind in CLASSES]
    kl = row["kl_aligned_base"]["value"]
    table.add_row(name, str(row["tokens"]), *shares, "-" if kl is None else f"{kl:.2f}")


def _share(band: Mapping[str, Any], *, intervals: bool) -> str:
    value, low, high = (band[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    if intervals and low is not None:
        return f"{value:.1%} ({100 * low:.1f} to {100 * high:.1f})"
    return f"{value:.1%}"


def _name(token: str) -> str:
    shown = token.strip(" ").replace("\n", "↵") or "␣"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
