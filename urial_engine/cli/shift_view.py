"""A token shift for a person: arrays go in, marked text and tables for a terminal come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..token_shift_result import CLASSES

if TYPE_CHECKING:
    from ..token_shift_result import TokenShift
    from ..tokenizer import Tokenizer

# By class. A terminal shows a style that needs no colour to be told apart, a file shows marks.
STYLES = ("", "underline yellow", "bold reverse red")
MARKS = (("", ""), ("‹", "›"), ("«", "»"))
MEANINGS = ("the base's first choice too", "its second or third", "further down")


def print_shift(console: Console, shift: TokenShift, tokenizer: Tokenizer) -> None:
    """Every answer with its tokens marked, then what they sum up to."""
    console.print(legend(marked=not console.is_terminal))
    for index, answer in enumerate(shift.answers):
        console.print(Text(f"\n▸ {answer.query}", style="bold cyan"))
        console.print(answer_text(shift, index, tokenizer, marked=not console.is_terminal))
    console.print()
    for table in (ratios(shift), most_shifted(shift)):
        console.print(table)


def legend(*, marked: bool) -> Text:
    """What each way of writing means."""
    kinds = enumerate(zip(CLASSES, MEANINGS, strict=True))
    parts = [
        Text.assemble(_written(name, kind, marked=marked), f" ({meaning})")
        for kind, (name, meaning) in kinds
    ]
    return Text.assemble("Each token of an answer is ", Text(", ").join(parts), ".")


def answer_text(shift: TokenShift, index: int, tokenizer: Tokenizer, *, marked: bool) -> Text:
    """One answer, token by token."""
    rows = (shift.answer == index).nonzero()[0]
    stream = tokenizer.stream(skip_special_tokens=False)
    out = Text()
    for row in rows:
        # Where a character is spread over tokens it comes with the last of them.
        piece = stream.push(int(shift.token_id[row]))
        out.append_text(_written(piece, int(shift.shift_class[row]), marked=marked))
    return out.append(stream.finish())


def _written(text: str, kind: int, *, marked: bool) -> Text:
    """Style or marks go round what can be seen of the token; a line end shows as ↵."""
    if kind == 0 or not text:
        return Text(text)
    line, line_end, rest = text.partition("\n")
    body = (line.strip(" ") + "↵" * bool(line_end)) or "␣"
    space = line[: len(line) - len(line.lstrip(" "))] if line.strip(" ") else ""
    before, after = MARKS[kind] if marked else ("", "")
    return Text.assemble(space, (f"{before}{body}{after}", STYLES[kind]), line_end + rest)


def ratios(shift: TokenShift, *, window: int = 32, most: int = 4) -> Table:
    """Shares of the classes, over all tokens and by position."""
    summary = shift.summary(window=window)
    table = Table(title="Token shift", title_justify="left")
    table.add_column("tokens of an answer")
    for name in ("tokens", *CLASSES, "KL (nats)"):
        table.add_column(name, justify="right")
    rows = [("all", {**summary, **summary["overall"]})]
    rows += [(f"{w['from']} to {w['to'] - 1}", w) for w in summary["by_position"][:most]]
    for name, row in rows:
        shares = (f"{row[name]:.1%}" if name in row else "-" for name in CLASSES)
        kl = f"{row['mean_kl_aligned_base']:.2f}"
        table.add_row(name, str(row["tokens"]), *shares, kl)
    return table


def most_shifted(shift: TokenShift) -> Text:
    """The tokens that are shifted most often."""
    found = shift.summary(most=12)["most_shifted"]
    each = (f"{_name(entry['token'])} × {entry['count']}" for entry in found)
    return Text("Shifted most often: " + (", ".join(each) or "none"))


def _name(token: str) -> str:
    return token.strip(" ").replace("\n", "↵") or "␣"
